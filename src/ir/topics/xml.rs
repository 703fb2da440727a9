//! Topics in XML, as TREC's tracks have them since TREC-COVID. A parser reads them, so that characters by number
//! or by name, CDATA and attributes are what the standard says they are.

use quick_xml::events::{BytesStart, Event};
use quick_xml::{Reader, XmlVersion, escape};

use super::found::{Found, Parsed, TopicField, is_id, is_topic};
use crate::files::{Fate, Ledger};

/// Attributes of a topic that are its id.
const IDS: [&[u8]; 4] = [b"number", b"num", b"id", b"qid"];

/// What is wrong, and at which byte offset.
type Fault = (usize, String);

/// What the text of an element is.
#[derive(Clone, Copy)]
enum Value {
    Id,
    Field(TopicField),
}

/// Where the reading is.
#[derive(Default)]
struct State {
    topics: Vec<Found>,
    /// Names of open elements.
    open: Vec<String>,
    /// How many were open before the topic that is being read.
    topic: Option<usize>,
    /// What is being read, and how many were open before it.
    value: Option<(Value, usize)>,
    text: String,
}

/// Every `<topic>` or `<top>`, wherever it stands.
pub(super) fn topics(text: &str, ledger: &mut Ledger) -> Parsed {
    let mut reader = Reader::from_str(text);
    // Wrong in XML, common in topics: `R&D`.
    reader.config_mut().allow_dangling_amp = true;
    let mut state = State::default();
    loop {
        let start = reader.buffer_position() as usize;
        let event = reader.read_event();
        let event = event.map_err(|cause| (reader.error_position() as usize, format!("not XML: {cause}")))?;
        let end = reader.buffer_position() as usize;
        let inside = state.topic.is_some();
        let comment = matches!(event, Event::Comment(_));
        let over = matches!(event, Event::Eof);
        state.take(event, start)?;
        let piece = &text.as_bytes()[start..end];
        let fate = match (inside || state.topic.is_some(), comment) {
            (true, _) => Fate::Used,
            (false, true) => Fate::Comment,
            (false, false) => Fate::of_gap(piece),
        };
        ledger.add(fate, piece.len());
        if over {
            return match state.open.last() {
                Some(name) => Err((text.len(), format!("not XML: <{name}> is not closed"))),
                None => Ok(state.topics),
            };
        }
    }
}

impl State {
    fn take(&mut self, event: Event<'_>, at: usize) -> Result<(), Fault> {
        let not_xml = |cause: &dyn std::fmt::Display| (at, format!("not XML: {cause}"));
        match event {
            Event::Start(tag) => self.begin(&tag, at)?,
            Event::Empty(tag) => {
                self.begin(&tag, at)?;
                self.end();
            }
            Event::End(_) => self.end(),
            Event::Text(text) => self.add(&text.decode().map_err(|cause| not_xml(&cause))?),
            Event::CData(text) => self.add(&text.decode().map_err(|cause| not_xml(&cause))?),
            Event::GeneralRef(name) => {
                let character = name.resolve_char_ref().map_err(|cause| not_xml(&cause))?;
                let name = name.decode().map_err(|cause| not_xml(&cause))?;
                match character {
                    Some(character) => self.add(character.encode_utf8(&mut [0; 4])),
                    None => match escape::resolve_html5_entity(&name) {
                        Some(text) => self.add(text),
                        None => return Err(not_xml(&format!("nothing says what &{name}; stands for"))),
                    },
                }
            }
            Event::Comment(_) | Event::Decl(_) | Event::PI(_) | Event::DocType(_) | Event::Eof => {}
        }
        Ok(())
    }

    fn begin(&mut self, tag: &BytesStart<'_>, at: usize) -> Result<(), Fault> {
        let name = String::from_utf8_lossy(tag.local_name().as_ref()).into_owned();
        let depth = self.open.len();
        if self.topic.is_none() {
            if is_topic(&name) {
                self.topic = Some(depth);
                self.topics.push(Found { offset: at, id: id(tag, at)?, ..Found::default() });
            }
        } else if self.value.is_none() {
            let field = || TopicField::of_tag(&name).map(Value::Field);
            let value = if is_id(&name) { Some(Value::Id) } else { field() };
            self.value = value.map(|value| (value, depth));
            self.text.clear();
        }
        self.open.push(name);
        Ok(())
    }

    fn end(&mut self) {
        self.open.pop();
        let depth = Some(self.open.len());
        if let Some((value, _)) = self.value.take_if(|(_, before)| depth == Some(*before))
            && let Some(topic) = self.topics.last_mut()
        {
            match value {
                Value::Id => topic.take_id(&self.text),
                Value::Field(field) => topic.take(field, &self.text),
            }
        }
        self.topic.take_if(|before| depth == Some(*before));
    }

    fn add(&mut self, text: &str) {
        if self.value.is_some() {
            self.text.push_str(text);
        }
    }
}

/// The id that a topic has as an attribute, or nothing.
fn id(tag: &BytesStart<'_>, at: usize) -> Result<String, Fault> {
    let not_xml = |cause: &dyn std::fmt::Display| (at, format!("not XML: {cause}"));
    let mut found = String::new();
    for attribute in tag.attributes() {
        let attribute = attribute.map_err(|cause| not_xml(&cause))?;
        if found.is_empty() && IDS.contains(&attribute.key.as_ref()) {
            let value =
                attribute.normalized_value_with(XmlVersion::Implicit1_0, 1, escape::resolve_html5_entity);
            found = value.map_err(|cause| not_xml(&cause))?.trim().to_owned();
        }
    }
    Ok(found)
}
