//! One thread reads, all cores work, one thread takes the results in the order of the reading. Order is what
//! makes a preparation repeatable; it costs nothing because the queue of promised results is the bound
//! on what is on its way.

use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread::Builder;

use crate::{Error, Result, threads};

/// Items on their way for each working thread: enough to go on working while the taker waits for a disk.
const WAITING: usize = 4;
/// Why the reading side ends when the taking side did: not an error of its own.
const STOPPED: &str = "the reading was stopped";

/// An item and where its result goes.
type Job<T, R> = (T, SyncSender<Result<R>>);

/// Runs `read` on a thread of its own, which passes items to its argument; `work` on them on as many threads
/// as rayon has; and `take` here, on the results in the order of the items. Where the system gives no threads
/// for it, everything is done here.
///
/// # Errors
/// The first error in that order; an error of `read` after the results of what it passed on.
pub(crate) fn run<T: Send, R: Send>(
    read: impl FnOnce(&mut dyn FnMut(T) -> Result<()>) -> Result<()> + Send,
    work: impl Fn(T) -> Result<R> + Sync,
    mut take: impl FnMut(R) -> Result<()>,
) -> Result<()> {
    if threads::alone() {
        return read(&mut |item| take(work(item)?));
    }
    let most = rayon::current_num_threads();
    let (send_job, jobs) = channel::<Job<T, R>>();
    let (promise, promised) = sync_channel::<Receiver<Result<R>>>(WAITING * most);
    // A thread that cannot be started takes its closure with it: what only one may have lies here.
    let reading = Mutex::new(Some(read));
    let (jobs, work, reading) = (&Mutex::new(jobs), &work, &reading);
    let begin = || reading.lock().unwrap_or_else(PoisonError::into_inner).take();
    std::thread::scope(|scope| {
        let worker = || {
            while let Some((item, result)) = jobs.lock().ok().and_then(|jobs| jobs.recv().ok()) {
                // Nobody waits for it once `take` has failed.
                let _ = result.send(work(item));
            }
        };
        let workers = (0..most).map_while(|_| Builder::new().spawn_scoped(scope, worker).ok()).count();
        let reader = move || {
            let Some(read) = begin() else { return Ok(()) };
            let stopped = || Error::data(STOPPED);
            read(&mut |item| {
                let (result, place) = sync_channel(1);
                // The bound is here: only so many results may be promised.
                promise.send(place).map_err(|_| stopped())?;
                send_job.send((item, result)).map_err(|_| stopped())
            })
        };
        let reader = if workers > 0 { Builder::new().spawn_scoped(scope, reader).ok() } else { None };
        let Some(reader) = reader else {
            return begin().map_or(Ok(()), |read| read(&mut |item| take(work(item)?)));
        };
        let taken = take_all(promised, &mut take);
        let read = reader.join().unwrap_or_else(|_| Err(Error::data("a reading thread ended unexpectedly")));
        match read {
            Err(Error::Data(text)) if text == STOPPED => taken,
            read => taken.and(read),
        }
    })
}

/// Owns the queue of promises: when `take` fails, the reader's next promise does, and all threads end.
fn take_all<R>(
    promised: Receiver<Receiver<Result<R>>>,
    take: &mut impl FnMut(R) -> Result<()>,
) -> Result<()> {
    for place in promised {
        let result = place.recv().map_err(|_| Error::data("a working thread ended unexpectedly"))?;
        take(result?)?;
    }
    Ok(())
}
