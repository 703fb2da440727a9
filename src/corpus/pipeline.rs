//! One thread reads, all threads work: batches of rows on their way between, and whose error is told
//! when either side ends early.

use std::sync::mpsc::{Receiver, sync_channel};

use crate::{Error, Result};

/// Bytes of text handed over at once: enough to keep all threads busy, little enough to wait for.
const BATCH_BYTES: usize = 4 << 20;
/// What an item counts beyond its text, so that empty texts end a batch too.
const ITEM_BYTES: usize = 64;
/// Batches on their way.
const WAITING: usize = 4;
/// Why the reading side ends when the working side did: not an error of its own.
const STOPPED: &str = "the reading was stopped";

/// Runs `read` on a thread of its own, which passes items with their sizes in bytes to its argument, and
/// `work` here, on the batches that arrive. Both results are returned.
///
/// # Errors
/// The first error of the two sides.
pub(super) fn run<T: Send, R: Send, W>(
    read: impl FnOnce(&mut dyn FnMut(usize, T) -> Result<()>) -> Result<R> + Send,
    work: impl FnOnce(Receiver<Vec<T>>) -> Result<W>,
) -> Result<(R, W)> {
    let (send, receive) = sync_channel::<Vec<T>>(WAITING);
    std::thread::scope(|scope| {
        let reader = scope.spawn(move || {
            let mut batch = Batcher::new(|items| send.send(items).map_err(|_| Error::data(STOPPED)));
            let result = read(&mut |bytes, item| batch.push(bytes, item))?;
            batch.end().map(|()| result)
        });
        // `work` owns the receiver: when it fails, the reader's next send does, and both end.
        let worked = work(receive);
        let read = reader.join().unwrap_or_else(|_| Err(Error::data("a reading thread ended unexpectedly")));
        match read {
            Err(Error::Data(text)) if text == STOPPED => {
                worked.and_then(|_| Err(Error::data("the work on the rows ended before the rows did")))
            }
            Err(error) => Err(error),
            Ok(read) => worked.map(|work| (read, work)),
        }
    })
}

/// Collects items until they hold `BATCH_BYTES` of text, then passes them on.
struct Batcher<T, F: FnMut(Vec<T>) -> Result<()>> {
    items: Vec<T>,
    bytes: usize,
    pass: F,
}

impl<T, F: FnMut(Vec<T>) -> Result<()>> Batcher<T, F> {
    fn new(pass: F) -> Self {
        Self { items: Vec::new(), bytes: 0, pass }
    }

    fn push(&mut self, bytes: usize, item: T) -> Result<()> {
        self.items.push(item);
        self.bytes += bytes + ITEM_BYTES;
        if self.bytes < BATCH_BYTES {
            return Ok(());
        }
        self.bytes = 0;
        (self.pass)(std::mem::take(&mut self.items))
    }

    fn end(mut self) -> Result<()> {
        if self.items.is_empty() { Ok(()) } else { (self.pass)(self.items) }
    }
}
