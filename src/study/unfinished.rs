//! `OUT.part`, beside the run that it will become: the topics that a re-ranking has scored so far. Started
//! again with the same model and data, re-ranking continues from there; with others, it starts over.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use crate::files::{Held, Lock, Target};
use crate::ir::run::Run;
use crate::{Error, Result, files};

/// Tag of the runs that `rerank` writes: their scores are logits, not probabilities.
const TAG: &str = "ctune-dist-logits";

/// The file of finished topics: a line `# identity`, then each topic's lines followed by `# topic done`.
pub struct Unfinished {
    /// Absent if the run goes to a pipe or a device, which cannot be continued.
    part: Option<(File, PathBuf)>,
    /// Finished topics.
    pub done: Vec<String>,
    run: Run,
}

impl Unfinished {
    /// The path of the part of `out`.
    pub fn path(out: &Path) -> PathBuf {
        let mut name = out.as_os_str().to_owned();
        name.push(".part");
        name.into()
    }

    /// Keeps other re-rankings away from `out` and its part. On a file system without locks, nobody is kept
    /// away.
    ///
    /// # Errors
    /// `Error::Data` that names the other process when one is writing it.
    pub fn lock(out: &Path) -> Result<Option<Held>> {
        if let Target::Stream(_) = files::target(out)? {
            return Ok(None);
        }
        let mut name = Self::path(out).into_os_string();
        name.push(".lock");
        match files::lock(Path::new(&name))? {
            Lock::Held(held) | Lock::Unknown(held) => Ok(Some(held.passing())),
            Lock::Busy(who) => Err(Error::data(format!(
                "{}: another rerank is writing it ({who}): wait for it, or name another --run-out",
                out.display()
            ))),
        }
    }

    /// Takes over what an earlier start with the same `identity` finished; otherwise starts over. Topics
    /// whose lines are damaged are left out, and so scored again.
    ///
    /// # Errors
    /// `Error::Data` when the file cannot be read or written; `Error::Config` when it is something else.
    pub fn open(out: &Path, identity: &str) -> Result<Self> {
        if let Target::Stream(_) = files::target(out)? {
            return Ok(Self { part: None, done: Vec::new(), run: Run::default() });
        }
        let path = Self::path(out);
        let head = format!("# {identity}\n");
        let text = match fs::read_to_string(&path) {
            Ok(text) if text.starts_with(&head) => text,
            // a file that was cut off within its head is a part too
            Ok(text) if !text.starts_with("# {") && !"# {".starts_with(&text) => return Err(foreign(&path)),
            Err(cause) if cause.kind() == ErrorKind::InvalidData => return Err(foreign(&path)),
            _ => head.clone(),
        };
        let (done, blocks) = whole_topics(&text[head.len()..]);
        fs::write(&path, head + &blocks).map_err(|e| Error::io("written", &path, e))?;
        let run = if done.is_empty() { Run::default() } else { Run::read(&path)? };
        let file = OpenOptions::new().append(true).open(&path).map_err(|e| Error::io("written", &path, e))?;
        Ok(Self { part: Some((file, path)), done, run })
    }

    /// Adds finished topics.
    pub fn add(&mut self, run: &Run) -> Result<()> {
        if let Some((file, path)) = &mut self.part {
            let mut text = String::new();
            for topic in run.topics() {
                run.lines(topic, TAG, &mut text);
                text.push_str(&format!("# {topic} done\n"));
            }
            let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_data());
            written.map_err(|e| Error::io("written", path, e))?;
        }
        self.run.merge(run.clone())
    }

    /// Writes the whole run to `out` and removes the part.
    pub fn finish(self, out: &Path) -> Result<()> {
        self.run.write(out, TAG)?;
        let Some((_, path)) = self.part else { return Ok(()) };
        fs::remove_file(&path).map_err(|e| Error::io("removed", &path, e))
    }
}

/// The finished topics of a part, and their text. A topic counts if its lines are intact and it has not
/// occurred before. What follows the last mark was being written when the process ended; anything else that
/// does not fit comes from two processes that wrote at once, or from a full disk.
fn whole_topics(text: &str) -> (Vec<String>, String) {
    let (mut done, mut kept) = (Vec::new(), String::new());
    let (mut block, mut sound, mut docs) = (String::new(), true, HashSet::new());
    let mut topics: HashSet<&str> = HashSet::new();
    for line in text.split_inclusive('\n') {
        block.push_str(line);
        if let Some(topic) = line.strip_prefix("# ").and_then(|line| line.strip_suffix(" done\n")) {
            let own = docs.iter().all(|(of, _)| *of == topic);
            if sound && own && !docs.is_empty() && topics.insert(topic) {
                kept.push_str(&block);
                done.push(topic.to_owned());
            }
            (block, sound) = (String::new(), true);
            docs.clear();
            continue;
        }
        let columns: Vec<&str> = line.split_whitespace().collect();
        sound &= match columns[..] {
            [topic, "Q0", doc, _, score, TAG] => {
                score.parse::<f32>().is_ok_and(f32::is_finite) && docs.insert((topic, doc))
            }
            _ => false,
        };
    }
    (done, kept)
}

fn foreign(path: &Path) -> Error {
    let place = path.display();
    Error::config(format!(
        "{place}: is in the way, and rerank did not write it: move it or name another --run-out"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::run::Hit;

    fn run_of(topic: &str) -> Run {
        let mut run = Run::default();
        let hits = (0..3).map(|d| Hit { doc: format!("d{d}").into(), score: f64::from(d) / 3.0 }).collect();
        run.insert(topic, hits).unwrap();
        run
    }

    #[test]
    fn goes_on_after_the_last_finished_topic() {
        let folder = tempfile::tempdir().unwrap();
        let (out, whole) = (folder.path().join("out.run"), folder.path().join("whole.run"));
        let mut part = Unfinished::open(&whole, r#"{"model": 1}"#).unwrap();
        ["a", "b", "c"].iter().for_each(|topic| part.add(&run_of(topic)).unwrap());
        part.finish(&whole).unwrap();

        let mut part = Unfinished::open(&out, r#"{"model": 1}"#).unwrap();
        assert!(part.done.is_empty());
        ["a", "b"].iter().for_each(|topic| part.add(&run_of(topic)).unwrap());
        drop(part);
        let mut torn = OpenOptions::new().append(true).open(Unfinished::path(&out)).unwrap();
        torn.write_all(b"c Q0 d2 1 0.66 ctune-dist\nc Q0 d1").unwrap();

        let mut part = Unfinished::open(&out, r#"{"model": 1}"#).unwrap();
        assert_eq!(part.done, ["a", "b"]);
        part.add(&run_of("c")).unwrap();
        part.finish(&out).unwrap();
        assert_eq!(fs::read(&out).unwrap(), fs::read(&whole).unwrap());
        assert!(!Unfinished::path(&out).exists());
    }

    /// Two processes that appended at once, and lines that a full disk cut.
    #[test]
    fn topics_that_are_there_twice_or_damaged_are_made_again() {
        let lines = |topic: &str| {
            let mut text = String::new();
            run_of(topic).lines(topic, TAG, &mut text);
            text
        };
        let whole = |topic: &str| format!("{}# {topic} done\n", lines(topic));
        let [a, b, c] = ["a", "b", "c"].map(whole);
        let line = |text: &str| text.lines().next().unwrap().to_owned() + "\n";
        for (what, text, left) in [
            ("as it was", [&a[..], &b].concat(), "ab"),
            ("one twice", [&a[..], &b, &a].concat(), "ab"),
            ("everything twice", [&a[..], &b, &a, &b].concat(), "ab"),
            ("a document twice", [&a[..], &line(&b), &b, &c].concat(), "ac"),
            ("one within another", [&a[..], &line(&c), &b, &c].concat(), "ac"),
            ("a line cut short", [&a[..], "b Q0 d1\n", &b, &c].concat(), "ac"),
            ("a score that is none", [&a[..], &b.replace("0.3", "nan"), &c].concat(), "ac"),
            ("a mark alone", [&a[..], "# b done\n", &c].concat(), "ac"),
            ("the end missing", [&a[..], &lines("b")].concat(), "a"),
            ("nothing", String::new(), ""),
        ] {
            let (done, kept) = whole_topics(&text);
            assert_eq!(done.concat(), left, "{what}");
            let expected: String = left.chars().map(|topic| whole(&topic.to_string())).collect();
            assert_eq!(kept, expected, "{what}");
        }
    }

    #[test]
    fn a_second_start_is_told_who_writes() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out.run");
        let first = Unfinished::lock(&out).unwrap();
        let refused = Unfinished::lock(&out).unwrap_err().to_string();
        assert!(refused.contains("out.run: another rerank") && refused.contains(" since "), "{refused}");
        drop(first);
        assert!(Unfinished::lock(&out).is_ok());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "the lock is left");
    }

    #[test]
    fn another_model_starts_over() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out.run");
        Unfinished::open(&out, r#"{"model": 1}"#).unwrap().add(&run_of("a")).unwrap();
        let part = Unfinished::open(&out, r#"{"model": 2}"#).unwrap();
        assert!(part.done.is_empty());
        part.finish(&out).unwrap();
        assert_eq!(fs::read_to_string(&out).unwrap(), "", "nothing of the other model is left");
    }

    #[test]
    fn a_file_of_somebody_else_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out.run");
        for other in [&b"notes\n"[..], b"# notes\n", b"\xff\xfe"] {
            fs::write(Unfinished::path(&out), other).unwrap();
            let refused = Unfinished::open(&out, r#"{"model": 1}"#).err().unwrap();
            assert!(refused.to_string().contains("out.run.part"), "{refused}");
            assert_eq!(fs::read(Unfinished::path(&out)).unwrap(), other);
        }
    }
}
