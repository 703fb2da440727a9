//! Running out of memory ends the program with one line and exit code 4. Rust would abort the process, which
//! leaves a core file and no advice.

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

/// Exit code when the machine has run out of something.
const EXHAUSTED: i32 = 4;

/// One thread has found out, and says it for all.
static SAID: AtomicBool = AtomicBool::new(false);

/// The system's allocator, whose refusals end the process.
pub struct Memory;

// SAFETY: every call is the system allocator's, with the same arguments; a null pointer is never returned.
unsafe impl GlobalAlloc for Memory {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are those that the system allocator asks for.
        there(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        there(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above.
        there(unsafe { System.realloc(memory, layout, size) }, size)
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[inline]
fn there(memory: *mut u8, bytes: usize) -> *mut u8 {
    if memory.is_null() {
        exhausted(bytes);
    }
    memory
}

/// Says so without allocating, and exits without running anything else.
#[cold]
fn exhausted(bytes: usize) -> ! {
    if SAID.swap(true, Ordering::Relaxed) {
        loop {
            std::thread::park(); // another thread is ending the process
        }
    }
    let mut line = [0; 200];
    let mut rest = &mut line[..];
    let _ = writeln!(
        rest,
        "ctune-dist: the system refuses {bytes} bytes of memory: raise the limit (ulimit -v, the job's or the \
         container's), or make train.pack_tokens, the model or the input smaller"
    );
    let used = 200 - rest.len();
    let _ = std::io::stderr().write_all(&line[..used]); // there is nobody else to tell
    signal_hook::low_level::exit(EXHAUSTED);
}
