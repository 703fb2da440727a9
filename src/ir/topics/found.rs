//! A topic as its file has it: an id and the text of each field. Every form of topic file ends in this.

/// Which part of a topic is the query. Tab-separated files have only the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TopicField {
    /// SGML `<title>`, XML `<title>` or `<query>`.
    #[default]
    Title,
    /// SGML `<desc>`, XML `<desc>`, `<description>` or `<question>`.
    Description,
    /// `<narr>` or `<narrative>`.
    Narrative,
}

impl TopicField {
    pub(super) fn of_tag(tag: &str) -> Option<Self> {
        match tag.to_ascii_lowercase().as_str() {
            "title" | "query" | "text" => Some(Self::Title),
            "desc" | "description" | "question" => Some(Self::Description),
            "narr" | "narrative" => Some(Self::Narrative),
            _ => None,
        }
    }

    /// The words that TREC writes at the start of a value.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Title => "topic:",
            Self::Description => "description:",
            Self::Narrative => "narrative:",
        }
    }
}

/// A topic with the byte offset of its start; the text of each `TopicField`, empty where there is none.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) offset: usize,
    pub(super) id: String,
    pub(super) values: [String; 3],
}

/// Topics, or what is wrong and at which byte offset.
pub(super) type Parsed = std::result::Result<Vec<Found>, (usize, String)>;

impl Found {
    /// Takes a value without the words that TREC writes at its start; the first that says anything counts.
    pub(super) fn take(&mut self, field: TopicField, value: &str) {
        let mine = &mut self.values[field as usize];
        if mine.is_empty() {
            *mine = without(&one_line(value), field.label()).to_owned();
        }
    }

    pub(super) fn take_id(&mut self, value: &str) {
        self.id = without(&one_line(value), "number:").to_owned();
    }
}

/// Whether a tag is one of a topic's id.
pub(super) fn is_id(tag: &str) -> bool {
    tag.eq_ignore_ascii_case("num") || tag.eq_ignore_ascii_case("number")
}

/// Whether a tag begins a topic.
pub(super) fn is_topic(tag: &str) -> bool {
    tag.eq_ignore_ascii_case("top") || tag.eq_ignore_ascii_case("topic")
}

/// `text` without `label` at its start, whatever the case.
fn without<'a>(text: &'a str, label: &str) -> &'a str {
    match text.get(..label.len()) {
        Some(start) if start.eq_ignore_ascii_case(label) => text[label.len()..].trim_start(),
        _ => text,
    }
}

pub(super) fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
