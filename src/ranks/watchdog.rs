//! A thread a rank that ends the job when a rank is gone or stuck, and says which and why. MPI cannot
//! do so itself: a rank inside a collective waits for as long as the missing one is missing.
//!
//! The threads talk over TCP, beside MPI: every rank connects to rank 0 and sends its `Look` twice a second;
//! rank 0 answers. So a killed process is noticed when its socket closes, within a tick, and a stopped one or
//! a dead machine by its silence. Files in a shared run directory would need no port, but network file
//! systems show changes to other machines only after seconds to a minute (NFS caches attributes for 3 to 60
//! s), and a closed socket says at once what a file never says. A rank that cannot connect logs a warning and
//! is still covered by the launcher.
//!
//! Ending: the thread may not call MPI (only the main thread may), so it leaves the process with
//! `_exit`; the launcher then ends the ranks that are left.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::beat::{Beat, Look, late};
use crate::journal::host;
use crate::{Error, Result};

const THREAD: &str = "watchdog";

/// Between two looks.
const TICK: Duration = Duration::from_millis(500);

/// How often rank 0 looks at its sockets.
const POLL: Duration = Duration::from_millis(50);

/// How long a rank tries to reach rank 0 under one address.
const CONNECT: Duration = Duration::from_secs(3);

/// What ends a job.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    pub text: String,
    /// Whether this process is to say so on the terminal, for all of them.
    pub speak: bool,
}

/// Called once, on the watchdog's thread, when the job must end.
pub type OnEnd = Box<dyn Fn(Verdict) + Send>;

/// Where rank 0 listens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Address {
    host: String,
    ip: Option<IpAddr>,
    port: u16,
    /// Distinguishes rank 0 from other services on the same port.
    token: u64,
}

/// A line on the wire.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Line {
    Hello {
        token: u64,
        rank: usize,
        host: String,
        process: u32,
    },
    Welcome {
        token: u64,
    },
    Look(Look),
    Alive,
    /// The process ends as planned, or says itself why it ends.
    Bye,
    /// Everybody ends.
    End {
        text: String,
    },
}

/// One rank's watchdog.
pub struct Watchdog {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// Rank 0's: listens for `size - 1` ranks. `limit` is how long training may make no progress.
    ///
    /// # Errors
    /// `Error::Device` when no port can be opened.
    pub fn lead(size: usize, limit: Duration, beat: Arc<Beat>, on_end: OnEnd) -> Result<(Self, Address)> {
        let bad = |e: std::io::Error| Error::device(format!("the watchdog cannot open a port: {e}"));
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).map_err(bad)?;
        listener.set_nonblocking(true).map_err(bad)?;
        let port = listener.local_addr().map_err(bad)?.port();
        let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let token = clock.as_nanos() as u64 ^ u64::from(std::process::id()) << 32;
        let address = Address { host: host(), ip: outward_ip(), port, token };
        let stop = Arc::new(AtomicBool::new(false));
        let lead = Lead {
            listener,
            token,
            size,
            limit,
            beat,
            stop: stop.clone(),
            peers: BTreeMap::new(),
            guests: Vec::new(),
        };
        let thread = spawn(move || {
            if let Some(verdict) = lead.watch() {
                on_end(verdict);
            }
        })?;
        Ok((Self { stop, thread: Some(thread) }, address))
    }

    /// Another rank's. Returns `None` when rank 0 cannot be reached.
    ///
    /// # Errors
    /// `Error::Device` when the thread cannot be started.
    pub fn follow(
        rank: usize,
        address: &Address,
        limit: Duration,
        beat: Arc<Beat>,
        on_end: OnEnd,
    ) -> Result<Option<Self>> {
        let Some(wire) = connect(rank, address) else { return Ok(None) };
        let stop = Arc::new(AtomicBool::new(false));
        let mine = stop.clone();
        let thread = spawn(move || {
            if let Some(verdict) = follow(wire, rank, limit, &beat, &mine) {
                on_end(verdict);
            }
        })?;
        Ok(Some(Self { stop, thread: Some(thread) }))
    }
}

impl Drop for Watchdog {
    /// Tells the others that this process ends by itself.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic of it has been reported
        }
    }
}

fn spawn(work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name(THREAD.into())
        .spawn(work)
        .map_err(|e| Error::device(format!("the watchdog's thread cannot be started: {e}")))
}

/// This machine's address on the default route; nothing is sent.
fn outward_ip() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((Ipv4Addr::new(10, 255, 255, 255), 9)).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// Lines over a socket that never blocks for longer than a set time.
struct Wire {
    socket: TcpStream,
    received: Vec<u8>,
}

/// The result of reading a socket.
enum Heard {
    Line(Line),
    Nothing,
    Closed,
}

impl Wire {
    fn send(&mut self, line: &Line) -> bool {
        let Ok(mut text) = serde_json::to_vec(line) else { return false };
        text.push(b'\n');
        self.socket.write_all(&text).is_ok()
    }

    fn hear(&mut self) -> Heard {
        loop {
            if let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.received.drain(..=end).collect();
                match serde_json::from_slice(&line) {
                    Ok(line) => return Heard::Line(line),
                    Err(_) => return Heard::Closed, // somebody else's connection
                }
            }
            let mut chunk = [0; 1024];
            match self.socket.read(&mut chunk) {
                Ok(0) => return Heard::Closed,
                Ok(n) => self.received.extend_from_slice(&chunk[..n]),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return Heard::Nothing;
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Heard::Closed,
            }
        }
    }
}

// ---- rank 0 --------------------------------------------------------------------------------------

struct Peer {
    wire: Wire,
    host: String,
    process: u32,
    look: Look,
    /// When it last said anything.
    heard: Instant,
    left: bool,
}

struct Lead {
    listener: TcpListener,
    token: u64,
    size: usize,
    limit: Duration,
    beat: Arc<Beat>,
    stop: Arc<AtomicBool>,
    peers: BTreeMap<usize, Peer>,
    /// Connected, but not yet introduced.
    guests: Vec<Wire>,
}

impl Lead {
    fn watch(mut self) -> Option<Verdict> {
        let mut told = Instant::now();
        loop {
            self.admit();
            let verdict = self.listen().or_else(|| self.stuck());
            if let Some(text) = verdict {
                self.tell(&Line::End { text: text.clone() });
                return Some(Verdict { text, speak: true });
            }
            if self.stop.load(Ordering::Relaxed) {
                self.tell(&Line::Bye);
                return None;
            }
            if told.elapsed() >= TICK {
                self.tell(&Line::Alive);
                told = Instant::now();
            }
            std::thread::sleep(POLL);
        }
    }

    fn tell(&mut self, line: &Line) {
        for peer in self.peers.values_mut().filter(|peer| !peer.left) {
            peer.wire.send(line); // a rank that is gone is noticed in `listen`
        }
    }

    /// Lets in ranks that know the token.
    fn admit(&mut self) {
        while let Ok((socket, _)) = self.listener.accept() {
            if socket.set_nonblocking(true).is_ok() {
                self.guests.push(Wire { socket, received: Vec::new() });
            }
        }
        for mut wire in std::mem::take(&mut self.guests) {
            match wire.hear() {
                Heard::Line(Line::Hello { token, rank, host, process }) if token == self.token => {
                    wire.send(&Line::Welcome { token });
                    let (look, heard) = (Look::default(), Instant::now());
                    self.peers.insert(rank, Peer { wire, host, process, look, heard, left: false });
                }
                Heard::Nothing => self.guests.push(wire),
                _ => {}
            }
        }
    }

    /// Reads what the ranks say; returns the reason to end when one is gone.
    fn listen(&mut self) -> Option<String> {
        for (rank, peer) in &mut self.peers {
            while !peer.left {
                match peer.wire.hear() {
                    Heard::Nothing => break,
                    Heard::Line(Line::Look(look)) => (peer.look, peer.heard) = (look, Instant::now()),
                    Heard::Line(Line::Bye) => peer.left = true,
                    Heard::Line(Line::End { text }) => return Some(text),
                    Heard::Line(_) => {}
                    Heard::Closed => {
                        return Some(format!(
                            "rank {rank} on {} (process {}) died at step {}: killed, out of memory, or crashed; \
                             logs/rank-{rank:03}.log and that machine's system log may say more",
                            peer.host, peer.process, peer.look.step
                        ));
                    }
                }
            }
        }
        None
    }

    /// The reason to end when training is stuck.
    fn stuck(&self) -> Option<String> {
        if self.peers.len() + 1 < self.size {
            return None; // not all of them can be seen
        }
        let mut looks = vec![self.beat.look()];
        for peer in self.peers.values() {
            // a process that is stopped sends nothing: its silence counts as well
            let still_s = peer.look.still_s + peer.heard.elapsed().saturating_sub(TICK).as_secs_f64();
            looks.push(Look { still_s, ..peer.look });
        }
        let hung = looks.iter().filter(|look| look.armed && look.still_s > self.limit.as_secs_f64());
        let longest = hung.map(|look| look.still_s).fold(0.0, f64::max);
        if longest == 0.0 {
            return None;
        }
        let late = late(&looks);
        let limit = self.limit.as_secs_f64();
        if late.is_empty() {
            return Some(format!(
                "no progress for {longest:.0} s (run.hang_limit_s = {limit}): all ranks wait in the same exchange: \
                 the network between them is stuck"
            ));
        }
        let names: Vec<String> = late.iter().map(|rank| self.name(*rank, &looks[*rank])).collect();
        Some(format!(
            "no progress for {longest:.0} s (run.hang_limit_s = {limit}): the others wait for {}",
            names.join(", ")
        ))
    }

    fn name(&self, rank: usize, look: &Look) -> String {
        let (host, process) = match self.peers.get(&rank) {
            Some(peer) => (peer.host.clone(), peer.process),
            None => (host(), std::process::id()),
        };
        let silent = match self.peers.get(&rank) {
            Some(peer) if peer.heard.elapsed() > 4 * TICK => ", which is silent",
            _ => "",
        };
        format!("rank {rank} on {host} (process {process}, step {}{silent})", look.step)
    }
}

// ---- the other ranks -----------------------------------------------------------------------------

/// Reaches rank 0 under its name or its address, on the same machine through the loopback.
fn connect(rank: usize, address: &Address) -> Option<Wire> {
    let mut candidates: Vec<std::net::SocketAddr> = Vec::new();
    if address.host == host() {
        candidates.push((Ipv4Addr::LOCALHOST, address.port).into());
    }
    candidates.extend(address.ip.map(|ip| std::net::SocketAddr::new(ip, address.port)));
    candidates.extend((address.host.as_str(), address.port).to_socket_addrs().into_iter().flatten());
    let process = std::process::id();
    let hello = Line::Hello { token: address.token, rank, host: host(), process };
    candidates.iter().find_map(|candidate| {
        let socket = TcpStream::connect_timeout(candidate, CONNECT).ok()?;
        socket.set_read_timeout(Some(CONNECT)).ok()?;
        socket.set_write_timeout(Some(CONNECT)).ok()?;
        let mut wire = Wire { socket, received: Vec::new() };
        let welcome = wire.send(&hello)
            && matches!(wire.hear(), Heard::Line(Line::Welcome { token }) if token == address.token);
        welcome.then_some(wire)
    })
}

fn follow(mut wire: Wire, rank: usize, limit: Duration, beat: &Beat, stop: &AtomicBool) -> Option<Verdict> {
    let _ = wire.socket.set_read_timeout(Some(POLL));
    // One rank speaks for those that lost rank 0.
    let ended = |text: String| Some(Verdict { text, speak: rank == 1 });
    let (mut told, mut heard) = (Instant::now(), Instant::now());
    loop {
        if stop.load(Ordering::Relaxed) {
            wire.send(&Line::Bye);
            return None;
        }
        if told.elapsed() >= TICK {
            wire.send(&Line::Look(beat.look()));
            told = Instant::now();
        }
        match wire.hear() {
            Heard::Line(Line::End { text }) => return Some(Verdict { text, speak: false }),
            Heard::Line(Line::Bye) => return None,
            Heard::Line(_) => heard = Instant::now(),
            Heard::Closed => return ended("rank 0 died: killed, out of memory, or crashed".into()),
            Heard::Nothing => {}
        }
        if beat.look().armed && heard.elapsed() > limit {
            let seconds = heard.elapsed().as_secs_f64();
            return ended(format!("rank 0 has been silent for {seconds:.0} s (run.hang_limit_s)"));
        }
    }
}

// ---- one a process -------------------------------------------------------------------------------

static OWN: Mutex<Option<Watchdog>> = Mutex::new(None);

/// Keeps `watchdog` as this process's.
pub fn keep(watchdog: Option<Watchdog>) {
    if let Ok(mut own) = OWN.lock() {
        *own = watchdog;
    }
}

/// The process ends and says why itself, so that the others' watchdogs do not guess.
pub fn dismiss() {
    if std::thread::current().name() == Some(THREAD) {
        return; // it would wait for itself
    }
    let own = OWN.try_lock().ok().and_then(|mut own| own.take());
    drop(own);
}
