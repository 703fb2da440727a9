//! Unix compress (`.Z`, on the TREC disks `.z .0z .1z .2z`): LZW with codes of 9 bits that grow to 10 to 16. No maintained
//! crate reads it: those for GIF and TIFF lack its habit of padding to whole groups of eight codes whenever
//! the code width changes or the table is cleared, which is what this file is about.
//!
//! The format is that of `compress` 4.2: magic 1f 9d, one byte with the largest width (low five bits) and
//! whether code 256 clears the table (high bit), then codes, lowest bit first.

use std::io::{self, Read};

/// First bytes of a compressed file.
pub(crate) const MAGIC: [u8; 2] = [0x1f, 0x9d];
const CLEAR: u32 = 256;
const NARROWEST: u32 = 9;
/// Bits of the third byte that no version has a use for.
const RESERVED: u8 = 0x60;

/// Decompresses what `inner` reads.
pub(crate) struct Unlzw<R> {
    inner: R,
    widest: u32,
    blocks: bool,
    width: u32,
    /// Bits read and not yet used, lowest first.
    bits: u32,
    held: u32,
    /// Bytes of the group of eight codes that is being read; a change of width skips what is left of it.
    group: u32,
    prefix: Vec<u16>,
    suffix: Vec<u8>,
    /// The last code and the first byte of its text.
    last: Option<(u32, u8)>,
    /// Nothing has been decoded: the first code must be a byte.
    fresh: bool,
    /// Text of the last code in reverse.
    ready: Vec<u8>,
    ended: bool,
}

impl<R: Read> Unlzw<R> {
    /// # Errors
    /// Bytes that do not start a compressed file.
    pub(crate) fn new(mut inner: R) -> io::Result<Self> {
        let mut head = [0; 3];
        inner.read_exact(&mut head).map_err(|_| bad("it ends within the head that Unix compress writes"))?;
        let widest = u32::from(head[2] & 0x1f);
        if head[..2] != MAGIC || !(NARROWEST..=16).contains(&widest) || head[2] & RESERVED != 0 {
            return Err(bad("not a file made by Unix compress"));
        }
        // Versions of compress disagree on whether such codes ever grow to ten bits.
        if widest == NARROWEST {
            return Err(bad(
                "made by compress -b 9, which versions of compress read differently; unpack it with the program that \
                 made it",
            ));
        }
        let blocks = head[2] & 0x80 != 0;
        let mut prefix = Vec::with_capacity(1 << widest);
        prefix.resize(if blocks { 257 } else { 256 }, 0);
        let mut suffix: Vec<u8> = (0..=255).collect();
        suffix.resize(prefix.len(), 0);
        Ok(Self {
            inner,
            widest,
            blocks,
            width: NARROWEST,
            bits: 0,
            held: 0,
            group: 0,
            prefix,
            suffix,
            last: None,
            fresh: true,
            ready: Vec::new(),
            ended: false,
        })
    }

    fn first_free(&self) -> usize {
        if self.blocks { 257 } else { 256 }
    }

    /// The next code, `None` at the end of the file.
    fn code(&mut self) -> io::Result<Option<u32>> {
        while self.held < self.width {
            let mut byte = [0];
            if self.inner.read(&mut byte)? == 0 {
                // The last group may be cut after any code; what is left of its last byte is zero.
                return if self.held >= 8 || self.bits != 0 {
                    Err(bad("ends within a code"))
                } else {
                    Ok(None)
                };
            }
            self.group = (self.group + 1) % self.width;
            self.bits |= u32::from(byte[0]) << self.held;
            self.held += 8;
        }
        let code = self.bits & ((1 << self.width) - 1);
        self.bits >>= self.width;
        self.held -= self.width;
        Ok(Some(code))
    }

    /// Skips to the end of the group of eight codes and takes the new width.
    fn set_width(&mut self, width: u32) -> io::Result<()> {
        let left = if self.group == 0 { 0 } else { self.width - self.group };
        io::copy(&mut (&mut self.inner).take(u64::from(left)), &mut io::sink())?;
        (self.bits, self.held, self.group, self.width) = (0, 0, 0, width);
        Ok(())
    }

    /// Puts the text of the next code into `ready`; false at the end.
    fn fill(&mut self) -> io::Result<bool> {
        if self.prefix.len() >= 1 << self.width && self.width < self.widest {
            self.set_width(self.width + 1)?;
        }
        let Some(mut code) = self.code()? else { return Ok(false) };
        if std::mem::take(&mut self.fresh) && code > 255 {
            return Err(bad("a code that is not in the table"));
        }
        if code == CLEAR && self.blocks {
            self.prefix.truncate(self.first_free());
            self.suffix.truncate(self.first_free());
            self.last = None;
            self.set_width(NARROWEST)?;
            return Ok(true);
        }
        let now = code;
        if code as usize >= self.prefix.len() {
            match self.last {
                Some((last, first)) if code as usize == self.prefix.len() => {
                    self.ready.push(first);
                    code = last;
                }
                _ => return Err(bad("a code that is not in the table")),
            }
        }
        while code > 255 {
            self.ready.push(self.suffix[code as usize]);
            code = u32::from(self.prefix[code as usize]);
        }
        let first = code as u8;
        self.ready.push(first);
        if let Some((last, _)) = self.last
            && self.prefix.len() < 1 << self.widest
        {
            self.prefix.push(last as u16);
            self.suffix.push(first);
        }
        self.last = Some((now, first));
        Ok(true)
    }
}

impl<R: Read> Read for Unlzw<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let mut written = 0;
        while written < out.len() {
            match self.ready.pop() {
                Some(byte) => {
                    out[written] = byte;
                    written += 1;
                }
                None if self.ended => break,
                None => self.ended = !self.fill()?,
            }
        }
        Ok(written)
    }
}

fn bad(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}
