//! What a re-ranking has scored so far, beside the run it will become: `OUT.part`. Started again with
//! the same model and data, it goes on from there; with others, it starts over.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use crate::ir::run::Run;
use crate::{Error, Result};

/// Tag of the runs that `rerank` writes: their scores are logits, no probabilities.
const TAG: &str = "ctune-dist-logits";

/// The file of finished topics: a line `# identity`, then each topic's lines and, when they are all
/// there, `# topic done`.
pub struct Unfinished {
    file: File,
    path: PathBuf,
    /// Finished topics.
    pub done: Vec<String>,
    run: Run,
}

impl Unfinished {
    /// Where the part of `out` lies.
    pub fn path(out: &Path) -> PathBuf {
        let mut name = out.as_os_str().to_owned();
        name.push(".part");
        name.into()
    }

    /// Takes over what an earlier start with the same `identity` finished; else begins anew.
    ///
    /// # Errors
    /// `Error::Data` when the file cannot be read or written; `Error::Config` when it is something else.
    pub fn open(out: &Path, identity: &str) -> Result<Self> {
        let path = Self::path(out);
        let head = format!("# {identity}\n");
        let mut text = match fs::read_to_string(&path) {
            Ok(text) if text.starts_with(&head) => text,
            // one that was cut off while its head was written is a part too
            Ok(text) if !text.starts_with("# {") && !"# {".starts_with(&text) => return Err(foreign(&path)),
            Err(cause) if cause.kind() == ErrorKind::InvalidData => return Err(foreign(&path)),
            _ => head.clone(),
        };
        // what follows the last mark was being written when the process ended
        let end = text.rmatch_indices(" done\n").next().map_or(head.len(), |(at, mark)| at + mark.len());
        text.truncate(end);
        let mark = |line: &str| Some(line.strip_prefix("# ")?.strip_suffix(" done")?.to_owned());
        let done: Vec<String> = text.lines().skip(1).filter_map(mark).collect();
        fs::write(&path, &text).map_err(|e| Error::io("written", &path, e))?;
        let run = if done.is_empty() { Run::default() } else { Run::read(&path)? };
        let file = OpenOptions::new().append(true).open(&path).map_err(|e| Error::io("written", &path, e))?;
        Ok(Self { file, path, done, run })
    }

    /// Adds finished topics.
    pub fn add(&mut self, run: &Run) -> Result<()> {
        let mut text = String::new();
        for topic in run.topics() {
            run.lines(topic, TAG, &mut text);
            text.push_str(&format!("# {topic} done\n"));
        }
        let written = self.file.write_all(text.as_bytes()).and_then(|()| self.file.sync_data());
        written.map_err(|e| Error::io("written", &self.path, e))?;
        self.run.merge(run.clone())
    }

    /// Writes the whole run to `out` and removes the part.
    pub fn finish(self, out: &Path) -> Result<()> {
        self.run.write(out, TAG)?;
        fs::remove_file(&self.path).map_err(|e| Error::io("removed", &self.path, e))
    }
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
