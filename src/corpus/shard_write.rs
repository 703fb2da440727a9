//! The writing side of `shard`. Everything goes to a hidden directory beside the target, is synced,
//! and gets its real name last, so a shard directory is either whole or not there.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Seek, Write};
use std::path::{Path, PathBuf};

use super::manifest::{
    FileEntry, HEADER, MAGIC, MANIFEST, MANIFEST_CRC, Manifest, Source, VERSION, crc32_of_file, part_name,
    token_width,
};
use super::tokenise::Tokenizer;
use crate::{Error, Result};

/// Tokens of a part file before the next one begins (1 GiB at two bytes a token).
const PART_TOKENS: u64 = 1 << 29;
/// Held by the process that writes the hidden directory.
const LOCK: &str = "lock";

/// What the manifest holds beyond counts.
#[derive(Clone, Debug, Default)]
pub struct About {
    pub max_tokens: usize,
    pub documents_cut: u64,
    pub options: BTreeMap<String, String>,
    pub sources: Vec<Source>,
    pub dropped: BTreeMap<String, u64>,
}

/// Writes one shard directory; dropped before `finish`, it leaves nothing.
pub struct ShardWriter {
    target: PathBuf,
    partial: PathBuf,
    vocab: usize,
    documents: TextWriter,
    queries: TextWriter,
    clicks: Vec<[u32; 2]>,
    finished: bool,
    _lock: File,
}

impl ShardWriter {
    /// Begins a directory that will appear at `target` for a tokenizer of `vocab` pieces.
    ///
    /// # Errors
    /// `Error::Data` where `target` is there already, another process is writing it, or nothing can be
    /// written beside it.
    pub fn create(target: &Path, vocab: usize) -> Result<Self> {
        Self::create_in_parts(target, vocab, PART_TOKENS)
    }

    /// As `create`, with part files of about `part_tokens` tokens.
    ///
    /// # Errors
    /// As `create`.
    pub fn create_in_parts(target: &Path, vocab: usize, part_tokens: u64) -> Result<Self> {
        check_free(target)?;
        let partial = partial_of(target)?;
        let lock = claim(&partial)?;
        let text = |kind| TextWriter::create(&partial, kind, token_width(vocab), part_tokens);
        Ok(Self {
            documents: text("documents")?,
            queries: text("queries")?,
            target: target.to_owned(),
            vocab,
            clicks: Vec::new(),
            finished: false,
            _lock: lock,
            partial,
        })
    }

    /// Appends a document; its index is returned.
    ///
    /// # Errors
    /// `Error::Data` where a token is not below V, there are too many documents, or the disk refuses.
    pub fn document(&mut self, id: &str, tokens: &[u32]) -> Result<u32> {
        self.documents.push(id, tokens, self.vocab)
    }

    /// Appends a query; its index is returned.
    ///
    /// # Errors
    /// As `document`.
    pub fn query(&mut self, id: &str, tokens: &[u32]) -> Result<u32> {
        self.queries.push(id, tokens, self.vocab)
    }

    /// Appends a click. Both indices must have been returned before `finish`.
    pub fn click(&mut self, query: u32, document: u32) {
        self.clicks.push([query, document]);
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
        let (document_tokens, query_tokens) = (self.documents.tokens, self.queries.tokens);
        let mut files = self.documents.finish()?;
        files.extend(self.queries.finish()?);
        files.extend(self.write_clicks(queries)?);
        files.extend(write_tokenizer(tokenizer, &self.partial)?);
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
        write_manifest(&manifest, &self.partial)?;
        self.publish()?;
        Ok(manifest)
    }

    fn write_clicks(&mut self, queries: u32) -> Result<Vec<FileEntry>> {
        let clicks = std::mem::take(&mut self.clicks);
        let mut log = BinaryWriter::create(&self.partial, "clicks.bin", 4)?;
        log.write(clicks.as_flattened())?;
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
        let mut by_query = BinaryWriter::create(&self.partial, "clicks_by_query.bin", 4)?;
        let mut offsets = BinaryWriter::create(&self.partial, "clicks_by_query.offsets", 8)?;
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
        Ok(vec![log.finish()?, by_query.finish()?, offsets.finish()?])
    }

    fn publish(mut self) -> Result<()> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |cause| Error::io("written", &path, cause)
        };
        let lock = self.partial.join(LOCK);
        std::fs::remove_file(&lock).map_err(failed(&lock))?;
        sync(&self.partial)?;
        std::fs::rename(&self.partial, &self.target).map_err(failed(&self.target))?;
        self.finished = true;
        match self.target.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            Some(parent) => sync(parent),
            None => sync(Path::new(".")),
        }
    }
}

impl Drop for ShardWriter {
    fn drop(&mut self) {
        if !self.finished {
            // Best effort: what stays behind is removed by the next prepare with the same target.
            let _ = std::fs::remove_dir_all(&self.partial);
        }
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
            "{}: is there already; remove it or name another --out",
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

/// Makes the hidden directory this process's own and empty, unless another process is at work in it.
fn claim(partial: &Path) -> Result<File> {
    std::fs::create_dir_all(partial).map_err(|cause| Error::io("made", partial, cause))?;
    let path = partial.join(LOCK);
    let lock = File::create(&path).map_err(|cause| Error::io("written", &path, cause))?;
    if lock.try_lock().is_err() {
        return Err(Error::data(format!(
            "{}: another prepare is writing it; wait or end it",
            partial.display()
        )));
    }
    let entries = std::fs::read_dir(partial).map_err(|cause| Error::io("read", partial, cause))?;
    for entry in entries.flatten().filter(|entry| entry.file_name() != LOCK) {
        std::fs::remove_file(entry.path()).map_err(|cause| Error::io("removed", &entry.path(), cause))?;
    }
    Ok(lock)
}

fn sync(path: &Path) -> Result<()> {
    File::open(path).and_then(|file| file.sync_all()).map_err(|cause| Error::io("synced", path, cause))
}

fn write_tokenizer(tokenizer: &Tokenizer, dir: &Path) -> Result<Vec<FileEntry>> {
    tokenizer.save(dir)?;
    let mut files = Vec::new();
    for name in ["tokenizer.json", "vocab.txt", "tokenizer_config.json"] {
        let path = dir.join(name);
        sync(&path)?;
        let bytes = std::fs::metadata(&path).map_err(|cause| Error::io("read", &path, cause))?.len();
        files.push(FileEntry { name: name.into(), bytes, crc32: crc32_of_file(&path)? });
    }
    Ok(files)
}

fn write_manifest(manifest: &Manifest, dir: &Path) -> Result<()> {
    let text = serde_json::to_string_pretty(manifest)
        .map_err(|cause| Error::data(format!("{}: {MANIFEST} cannot be made: {cause}", dir.display())))?
        + "\n";
    let crc = format!("{:08x}\n", crc32fast::hash(text.as_bytes()));
    for (name, content) in [(MANIFEST_CRC, crc), (MANIFEST, text)] {
        let path = dir.join(name);
        std::fs::write(&path, content).map_err(|cause| Error::io("written", &path, cause))?;
        sync(&path)?;
    }
    Ok(())
}

/// Documents or queries, token parts and ids.
struct TextWriter {
    dir: PathBuf,
    kind: &'static str,
    width: usize,
    part_tokens: u64,
    parts: Vec<FileEntry>,
    part: BinaryWriter,
    offsets: BinaryWriter,
    ids: BinaryWriter,
    id_offsets: BinaryWriter,
    tokens: u64,
    narrow: Vec<u16>,
}

impl TextWriter {
    fn create(dir: &Path, kind: &'static str, width: usize, part_tokens: u64) -> Result<Self> {
        let create = |name: &str, width: usize| BinaryWriter::create(dir, name, width);
        let mut offsets = create(&format!("{kind}.offsets"), 8)?;
        let mut id_offsets = create(&format!("{kind}.ids.offsets"), 8)?;
        offsets.write(&[0u64])?;
        id_offsets.write(&[0u64])?;
        Ok(Self {
            part: create(&part_name(kind, 0), width)?,
            ids: create(&format!("{kind}.ids"), 1)?,
            dir: dir.to_owned(),
            kind,
            width,
            part_tokens,
            parts: Vec::new(),
            offsets,
            id_offsets,
            tokens: 0,
            narrow: Vec::new(),
        })
    }

    fn count(&self) -> Result<u32> {
        u32::try_from(self.offsets.count - 1)
            .map_err(|_| Error::data(format!("more than 2^32 - 1 {}", self.kind)))
    }

    fn push(&mut self, id: &str, tokens: &[u32], vocab: usize) -> Result<u32> {
        let index = self.count()?;
        if let Some(token) = tokens.iter().find(|&&token| token as usize >= vocab) {
            return Err(Error::data(format!(
                "{} {id}: token {token} with a vocabulary of {vocab}",
                self.kind
            )));
        }
        if self.part.count > 0 && self.part.count + tokens.len() as u64 > self.part_tokens {
            let next =
                BinaryWriter::create(&self.dir, &part_name(self.kind, self.parts.len() + 1), self.width)?;
            self.parts.push(std::mem::replace(&mut self.part, next).finish()?);
        }
        if self.width == 2 {
            self.narrow.clear();
            // Below V <= 65,536, as checked above.
            self.narrow.extend(tokens.iter().map(|&token| token as u16));
            self.part.write(&self.narrow)?;
        } else {
            self.part.write(tokens)?;
        }
        self.tokens += tokens.len() as u64;
        self.offsets.write(&[self.tokens])?;
        self.ids.write(id.as_bytes())?;
        self.id_offsets.write(&[self.ids.count])?;
        Ok(index)
    }

    /// Ends all files. The writer must not be used after.
    fn finish(&mut self) -> Result<Vec<FileEntry>> {
        let mut files = std::mem::take(&mut self.parts);
        for file in [&mut self.part, &mut self.offsets, &mut self.ids, &mut self.id_offsets] {
            files.push(file.finish()?);
        }
        Ok(files)
    }
}

/// One binary file: a header whose count is filled in at the end, then elements.
struct BinaryWriter {
    path: PathBuf,
    file: BufWriter<File>,
    width: usize,
    count: u64,
    crc: crc32fast::Hasher,
}

impl BinaryWriter {
    fn create(dir: &Path, name: &str, width: usize) -> Result<Self> {
        let path = dir.join(name);
        let failed = |cause| Error::io("written", &path, cause);
        let mut file = BufWriter::with_capacity(1 << 18, File::create(&path).map_err(failed)?);
        file.write_all(&[0; HEADER]).map_err(failed)?;
        Ok(Self { file, width, count: 0, crc: crc32fast::Hasher::new(), path })
    }

    fn write<T: bytemuck::Pod>(&mut self, elements: &[T]) -> Result<()> {
        debug_assert_eq!(size_of::<T>(), self.width);
        let bytes: &[u8] = bytemuck::cast_slice(elements);
        self.crc.update(bytes);
        self.count += elements.len() as u64;
        self.file.write_all(bytes).map_err(|cause| Error::io("written", &self.path, cause))
    }

    fn finish(&mut self) -> Result<FileEntry> {
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(MAGIC.as_bytes());
        header[8..12].copy_from_slice(&VERSION.to_le_bytes());
        header[12..16].copy_from_slice(&(self.width as u32).to_le_bytes());
        header[16..24].copy_from_slice(&self.count.to_le_bytes());
        let failed = |cause| Error::io("written", &self.path, cause);
        self.file.rewind().map_err(failed)?;
        self.file.write_all(&header).map_err(failed)?;
        self.file.flush().map_err(failed)?;
        self.file.get_ref().sync_all().map_err(failed)?;
        let mut crc = crc32fast::Hasher::new();
        crc.update(&header);
        crc.combine(&self.crc);
        let name = self.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(FileEntry { name, bytes: HEADER as u64 + self.count * self.width as u64, crc32: crc.finalize() })
    }
}
