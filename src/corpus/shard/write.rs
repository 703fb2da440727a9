//! The writing side of `shard`. Everything goes to a hidden directory beside the target, part by part, each
//! synced; the shards get their real name last. So a shard directory is either whole or not there, and
//! what a killed preparation had finished is found again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::CLICK_TIMES;
use super::binary::BinaryWriter;
use super::manifest::{FileEntry, MAGIC, MANIFEST, MANIFEST_CRC, Manifest, Source, VERSION, token_width};
use super::parts::{self, Note, Part, PartWriter};
use crate::files::{self, Held, Lock};
use crate::text::Tokenizer;
use crate::{Error, Result};

/// Texts after which a part is finished: their lengths and ids wait in memory.
const PART_TEXTS: usize = 1 << 20;
/// Held by the process that writes the hidden directory.
const LOCK: &str = "lock";
/// Says what the finished parts were made from.
const PLAN: &str = "plan";

/// What the manifest holds beyond counts.
#[derive(Clone, Debug, Default)]
pub struct About {
    pub max_tokens: usize,
    pub documents_cut: u64,
    pub options: BTreeMap<String, String>,
    pub sources: Vec<Source>,
    pub dropped: BTreeMap<String, u64>,
}

/// The hidden directory of a target, this process's own.
pub struct Workplace {
    target: PathBuf,
    root: PathBuf,
    /// What does not go into the shards.
    pub(crate) work: PathBuf,
    /// What will be the shard directory.
    dir: PathBuf,
    keep: bool,
    _lock: Held,
}

impl Workplace {
    /// Claims the hidden directory of `target`. What an earlier process left there stays if it was made
    /// by the same `plan`, else it goes.
    ///
    /// # Errors
    /// `Error::Data` where `target` is there already, another process is writing it, or nothing can be
    /// written beside it.
    pub fn claim(target: &Path, plan: &str) -> Result<Self> {
        check_free(target)?;
        let root = partial_of(target)?;
        let (work, dir) = (root.join("work"), root.join("shards"));
        std::fs::create_dir_all(&root).map_err(|cause| Error::io("made", &root, cause))?;
        let lock = lock(&root)?;
        check_free(target)?; // another process may have made it while this one came here
        let resumed = std::fs::read_to_string(work.join(PLAN)).is_ok_and(|old| old == plan);
        if !resumed {
            for old in [&work, &dir].into_iter().filter(|old| old.exists()) {
                std::fs::remove_dir_all(old).map_err(|cause| Error::io("removed", old, cause))?;
            }
        }
        for new in [&work, &dir] {
            std::fs::create_dir_all(new).map_err(|cause| Error::io("made", new, cause))?;
            files::sweep(new);
        }
        files::write(&work.join(PLAN), plan.as_bytes())?;
        Ok(Self { target: target.to_owned(), root, work, dir, keep: false, _lock: lock })
    }

    /// Gives the shards their name and removes the rest.
    fn publish(mut self) -> Result<()> {
        let failed = |path: &Path, cause| Error::io("written", path, cause);
        files::sync(&self.dir)?;
        if self.target.exists() {
            // An empty directory, as `check_free` saw.
            std::fs::remove_dir(&self.target).map_err(|cause| failed(&self.target, cause))?;
        }
        std::fs::rename(&self.dir, &self.target).map_err(|cause| failed(&self.target, cause))?;
        self.keep = false;
        match self.target.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            Some(parent) => files::sync(parent),
            None => files::sync(Path::new(".")),
        }
    }
}

impl Drop for Workplace {
    fn drop(&mut self) {
        if !self.keep {
            // Best effort: what stays behind is removed by the next prepare with the same target.
            let _ = std::fs::remove_dir_all(&self.root);
        }
    }
}

/// Removes what a process that was killed after its last step left beside a finished target.
pub(crate) fn tidy(target: &Path) {
    if let Ok(root) = partial_of(target)
        && root.exists()
        && lock(&root).is_ok()
    {
        // Best effort, as above.
        let _ = std::fs::remove_dir_all(&root);
    }
}

/// Writes one shard directory; dropped before `finish`, it leaves nothing, unless the disk itself failed.
pub struct ShardWriter {
    place: Workplace,
    vocab: usize,
    documents: Texts,
    queries: Texts,
    clicks: Vec<[u32; 2]>,
    /// How often each click happened; empty (or shorter) where all that follow happened once.
    times: Vec<u32>,
}

impl ShardWriter {
    /// Begins a directory that will appear at `target` for a tokenizer of `vocab` pieces.
    ///
    /// # Errors
    /// As `Workplace::claim`.
    pub fn create(target: &Path, vocab: usize) -> Result<Self> {
        Self::at(Workplace::claim(target, "")?, vocab)
    }

    /// Goes on in a claimed place behind the parts that are finished there.
    ///
    /// # Errors
    /// `Error::Data` where a file cannot be written or removed.
    pub fn at(place: Workplace, vocab: usize) -> Result<Self> {
        let width = token_width(vocab);
        let documents = Texts::resume(&place, "documents", width)?;
        let queries = Texts::resume(&place, "queries", width)?;
        Ok(Self { documents, queries, vocab, clicks: Vec::new(), times: Vec::new(), place })
    }

    /// Appends a document; its index is returned.
    ///
    /// # Errors
    /// `Error::Data` where a token is not below V, there are too many documents, or the disk refuses.
    pub fn document(&mut self, id: &str, tokens: &[u32]) -> Result<u32> {
        let pushed = self.documents.push(&self.place, id, tokens, self.vocab);
        self.keeping(pushed)
    }

    /// Appends a query; its index is returned.
    ///
    /// # Errors
    /// As `document`.
    pub fn query(&mut self, id: &str, tokens: &[u32]) -> Result<u32> {
        let pushed = self.queries.push(&self.place, id, tokens, self.vocab);
        self.keeping(pushed)
    }

    /// Appends a click. Both indices must have been returned before `finish`.
    pub fn click(&mut self, query: u32, document: u32) {
        self.clicks.push([query, document]);
    }

    /// As `click`, for one that happened `times` times.
    pub fn click_times(&mut self, query: u32, document: u32, times: u32) {
        if times != 1 {
            self.times.resize(self.clicks.len(), 1);
            self.times.push(times);
        }
        self.click(query, document);
    }

    /// Ends the part of the documents (or queries) that is being filled.
    ///
    /// # Errors
    /// `Error::Data` where the disk refuses.
    pub fn seal(&mut self, queries: bool) -> Result<()> {
        self.seal_with(queries, &Note::default())
    }

    /// As `seal`, with a note for the process that goes on should this one be killed.
    pub(crate) fn seal_with(&mut self, queries: bool, note: &Note) -> Result<()> {
        let texts = if queries { &mut self.queries } else { &mut self.documents };
        let sealed = texts.seal(&self.place, note);
        self.keeping(sealed)
    }

    /// Whether the part that is being filled has `most` tokens, or texts enough, to be sealed.
    pub(crate) fn is_full(&self, queries: bool, most: u64) -> bool {
        let texts = if queries { &self.queries } else { &self.documents };
        texts.open.as_ref().is_some_and(|part| part.tokens() >= most || part.texts() >= PART_TEXTS)
    }

    /// Finished parts of documents (or queries), read back one by one.
    pub(crate) fn sealed(&self, queries: bool) -> impl Iterator<Item = Result<Part>> {
        let texts = if queries { &self.queries } else { &self.documents };
        (0..texts.sealed).map(move |number| texts.part(&self.place, number))
    }

    /// Work folder for what must survive a kill and does not go into the shards.
    pub(crate) fn work(&self) -> &Path {
        &self.place.work
    }

    /// The directory that will be the shards.
    pub(crate) fn dir(&self) -> &Path {
        &self.place.dir
    }

    /// A failure to write keeps what is finished, so that the user can make room and go on.
    fn keeping<T>(&mut self, result: Result<T>) -> Result<T> {
        self.place.keep |= result.is_err() && self.documents.sealed > 0;
        result
    }

    /// Writes what is left, syncs, and gives the directory its name.
    ///
    /// # Errors
    /// `Error::Data` where a click names no document or query, there are too many, or the disk refuses.
    pub fn finish(mut self, tokenizer: &Tokenizer, about: About) -> Result<Manifest> {
        let (documents, queries) = (self.documents.count()?, self.queries.count()?);
        let clicks =
            u32::try_from(self.clicks.len()).map_err(|_| Error::data("more than 2^32 - 1 clicks"))?;
        if let Some([query, document]) = self.clicks.iter().find(|[q, d]| *q >= queries || *d >= documents) {
            return Err(Error::data(format!("click of query {query} on document {document}: no such index")));
        }
        self.place.keep = true;
        let (mut files, document_tokens) = self.documents.finish(&self.place)?;
        let (more, query_tokens) = self.queries.finish(&self.place)?;
        files.extend(more);
        files.extend(self.write_clicks(queries)?);
        files.extend(write_tokenizer(tokenizer, &self.place.dir)?);
        let manifest = Manifest {
            magic: MAGIC.into(),
            version: VERSION,
            documents,
            queries,
            clicks,
            vocab: self.vocab,
            special: tokenizer.special(),
            max_tokens: about.max_tokens,
            document_tokens,
            query_tokens,
            documents_cut: about.documents_cut,
            options: about.options,
            sources: about.sources,
            files,
            dropped: about.dropped,
        };
        write_manifest(&manifest, &self.place.dir)?;
        self.place.publish()?;
        Ok(manifest)
    }

    fn write_clicks(&mut self, queries: u32) -> Result<Vec<FileEntry>> {
        let clicks = std::mem::take(&mut self.clicks);
        let dir = &self.place.dir;
        let mut log = BinaryWriter::create(dir, "clicks.bin", 4)?;
        log.write(clicks.as_flattened())?;
        let mut files = vec![log.finish()?];
        if !self.times.is_empty() {
            self.times.resize(clicks.len(), 1);
            let mut times = BinaryWriter::create(dir, CLICK_TIMES, 4)?;
            times.write(&self.times)?;
            files.push(times.finish()?);
        }
        // A counting sort by query keeps this linear in the clicks.
        let mut ends = vec![0u64; queries as usize + 1];
        for [query, _] in &clicks {
            ends[*query as usize + 1] += 1;
        }
        for i in 1..ends.len() {
            ends[i] += ends[i - 1];
        }
        let mut next = ends.clone();
        let mut sorted = vec![0u32; clicks.len()];
        for [query, document] in &clicks {
            let place = &mut next[*query as usize];
            sorted[*place as usize] = *document;
            *place += 1;
        }
        let mut by_query = BinaryWriter::create(dir, "clicks_by_query.bin", 4)?;
        let mut offsets = BinaryWriter::create(dir, "clicks_by_query.offsets", 8)?;
        offsets.write(&[0u64])?;
        let mut row = Vec::new();
        for range in ends.windows(2) {
            row.clear();
            row.extend_from_slice(&sorted[range[0] as usize..range[1] as usize]);
            row.sort_unstable();
            row.dedup();
            by_query.write(&row)?;
            offsets.write(&[by_query.count])?;
        }
        files.extend([by_query.finish()?, offsets.finish()?]);
        Ok(files)
    }
}

/// Refuses a target that holds something.
///
/// # Errors
/// `Error::Data` that says what to do.
pub fn check_free(target: &Path) -> Result<()> {
    let taken = match std::fs::read_dir(target) {
        Ok(mut entries) => entries.next().is_some(),
        Err(_) => target.exists(),
    };
    if taken {
        return Err(Error::data(format!(
            "{}: already exists; remove it or choose another --out",
            target.display()
        )));
    }
    Ok(())
}

/// `dir/.name.partial` for `dir/name`.
fn partial_of(target: &Path) -> Result<PathBuf> {
    let name = target
        .file_name()
        .ok_or_else(|| Error::config(format!("--out {}: must name a directory to make", target.display())))?;
    Ok(target.with_file_name(format!(".{}.partial", name.to_string_lossy())))
}

/// Locks the hidden directory. Where the file system has no locks it cannot be known to be ours.
fn lock(root: &Path) -> Result<Held> {
    let taken = |who: &str| {
        let place = root.display();
        Error::data(format!("{place}: another prepare is writing it ({who}): wait for it or stop it"))
    };
    match files::lock(&root.join(LOCK))? {
        Lock::Held(held) => Ok(held),
        Lock::Busy(who) => Err(taken(&who)),
        Lock::Unknown(_) => Err(taken("or was: this file system has no locks; remove the folder if none is")),
    }
}

fn write_tokenizer(tokenizer: &Tokenizer, dir: &Path) -> Result<Vec<FileEntry>> {
    let mut files = Vec::new();
    for name in tokenizer.save(dir)? {
        let path = dir.join(name);
        files::sync(&path)?;
        let bytes = std::fs::metadata(&path).map_err(|cause| Error::io("read", &path, cause))?.len();
        files.push(FileEntry { name: name.into(), bytes, crc32: files::crc32(&path)? });
    }
    Ok(files)
}

fn write_manifest(manifest: &Manifest, dir: &Path) -> Result<()> {
    let text = serde_json::to_string_pretty(manifest)
        .map_err(|cause| Error::data(format!("{}: {MANIFEST} cannot be made: {cause}", dir.display())))?
        + "\n";
    files::write(&dir.join(MANIFEST_CRC), format!("{:08x}\n", crc32fast::hash(text.as_bytes())).as_bytes())?;
    files::write(&dir.join(MANIFEST), text.as_bytes())
}

/// Documents or queries: finished parts and the one that is being filled.
struct Texts {
    kind: &'static str,
    width: usize,
    sealed: usize,
    /// Texts in finished parts.
    before: u64,
    open: Option<PartWriter>,
}

impl Texts {
    /// Counts the parts that are finished and whole; what lies behind them is written anew.
    fn resume(place: &Workplace, kind: &'static str, width: usize) -> Result<Self> {
        let mut texts = Self { kind, width, sealed: 0, before: 0, open: None };
        while let Some(part) = parts::read(&place.dir, &place.work, kind, texts.sealed, true) {
            texts.before += part.lengths.len() as u64;
            texts.sealed += 1;
        }
        Ok(texts)
    }

    fn part(&self, place: &Workplace, number: usize) -> Result<Part> {
        parts::read(&place.dir, &place.work, self.kind, number, false).ok_or_else(|| {
            Error::data(format!("{}: a finished part of {} was changed", place.root.display(), self.kind))
        })
    }

    fn count(&self) -> Result<u32> {
        let open = self.open.as_ref().map_or(0, PartWriter::texts) as u64;
        u32::try_from(self.before + open)
            .map_err(|_| Error::data(format!("more than 2^32 - 1 {}", self.kind)))
    }

    fn push(&mut self, place: &Workplace, id: &str, tokens: &[u32], vocab: usize) -> Result<u32> {
        let index = self.count()?;
        if let Some(token) = tokens.iter().find(|&&token| token as usize >= vocab) {
            return Err(Error::data(format!(
                "{} {id}: token {token} with a vocabulary of {vocab}",
                self.kind
            )));
        }
        self.part_to_fill(place)?.push(id, tokens, token_width(vocab) == 4)?;
        Ok(index)
    }

    fn part_to_fill(&mut self, place: &Workplace) -> Result<&mut PartWriter> {
        match &mut self.open {
            Some(part) => Ok(part),
            open => Ok(open.insert(PartWriter::create(&place.dir, self.kind, self.sealed, self.width)?)),
        }
    }

    fn seal(&mut self, place: &Workplace, note: &Note) -> Result<()> {
        self.part_to_fill(place)?;
        if let Some(part) = self.open.take() {
            self.before += part.texts() as u64;
            part.seal(&place.work, note)?;
            self.sealed += 1;
        }
        Ok(())
    }

    /// Puts the notes of all parts together: offsets and ids. Returns the files and the number of tokens.
    fn finish(&mut self, place: &Workplace) -> Result<(Vec<FileEntry>, u64)> {
        if self.open.is_some() || self.sealed == 0 {
            self.seal(place, &Note::default())?;
        }
        let create = |name: &str, width: usize| BinaryWriter::create(&place.dir, name, width);
        let mut offsets = create(&format!("{}.offsets", self.kind), 8)?;
        let mut ids = create(&format!("{}.ids", self.kind), 1)?;
        let mut id_offsets = create(&format!("{}.ids.offsets", self.kind), 8)?;
        let (mut files, mut tokens) = (Vec::new(), 0);
        offsets.write(&[0u64])?;
        id_offsets.write(&[0u64])?;
        for number in 0..self.sealed {
            let part = self.part(place, number)?;
            for (length, id) in part.lengths.iter().zip(part.ids()) {
                tokens += u64::from(*length);
                offsets.write(&[tokens])?;
                ids.write(id.as_bytes())?;
                id_offsets.write(&[ids.count])?;
            }
            files.push(part.entry);
        }
        files.extend([offsets.finish()?, ids.finish()?, id_offsets.finish()?]);
        Ok((files, tokens))
    }
}
