//! Standard output that survives a closed pipe. `println!` panics when the reader has gone (`| head`) or the
//! disk is full; training whose results are in files must not stop because of that.

use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write};
use std::sync::OnceLock;

use crate::{Error, Result};

/// Why output was lost, the first time.
static LOST: OnceLock<String> = OnceLock::new();

/// `println!` that never panics.
macro_rules! tell {
    ($($text:tt)*) => { $crate::terminal::write(format_args!("{}\n", format_args!($($text)*))) };
}

/// `print!` that never panics.
macro_rules! tell_raw {
    ($($text:tt)*) => { $crate::terminal::write(format_args!($($text)*)) };
}

/// Writes to standard output; an error is kept for `check`.
pub fn write(text: Arguments) {
    if let Err(cause) = io::stdout().lock().write_fmt(text) {
        note(&cause);
    }
}

fn note(cause: &io::Error) {
    if cause.kind() != ErrorKind::BrokenPipe {
        let _ = LOST.set(cause.to_string()); // the first cause explains the rest
    }
}

/// Reports lost output; called once at the end.
///
/// # Errors
/// `Error::Data` when output was lost. A closed pipe is no error: its reader has what it wants.
pub fn check() -> Result<()> {
    if let Err(cause) = io::stdout().flush() {
        note(&cause);
    }
    match LOST.get() {
        Some(cause) => Err(Error::data(format!("standard output cannot be written: {cause}"))),
        None => Ok(()),
    }
}
