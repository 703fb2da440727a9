//! Training jobs as processes that a test can watch, signal and kill.

use std::fs::{self, File};
use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::program::Place;
use crate::start::{self, PATIENCE};

/// `coarse` of the test plan to its end, as a single process or under mpirun.
pub fn train(place: &Place, ranks: usize, out: &str, more: &[&str]) -> Output {
    let args = [&["coarse", "--config", "plan.toml", "--out", out][..], more].concat();
    if ranks == 1 { place.run(&args) } else { place.mpirun(ranks, &args) }
}

/// A running job.
pub struct Job {
    child: Child,
    ranks: usize,
    dir: PathBuf,
    metrics: PathBuf,
    errors: PathBuf,
}

impl Job {
    /// Starts `coarse`.
    pub fn start(place: &Place, ranks: usize, out: &str, more: &[&str]) -> Self {
        let args = [&["coarse", "--config", "plan.toml", "--out", out][..], more].concat();
        let mut job = Self::start_command(place, ranks, &args, &format!("{out}/metrics.jsonl"));
        job.dir = place.path(out);
        job
    }

    /// Starts any command that writes `metrics`.
    pub fn start_command(place: &Place, ranks: usize, args: &[&str], metrics: &str) -> Self {
        let errors = place.path("job.err");
        let mut command = if ranks == 1 { start::program() } else { start::ranks(ranks) };
        let child = command
            .args(args)
            .current_dir(place.path("."))
            .stdout(Stdio::null())
            .stderr(File::create(&errors).unwrap())
            .spawn()
            .expect("mpirun is needed (launch/test.sh installs it)");
        let metrics = place.path(metrics);
        Self { child, ranks, dir: place.path("."), metrics, errors }
    }

    /// Steps in the metrics file so far.
    pub fn steps(&self) -> usize {
        fs::read_to_string(&self.metrics).map_or(0, |text| text.lines().count())
    }

    pub fn wait_for_step(&mut self, step: usize) {
        self.wait_until(&format!("step {step}"), |job| job.steps() >= step);
    }

    pub fn wait_for_file(&mut self, name: &str) {
        let path = self.dir.join(name);
        self.wait_until(name, |_| path.exists());
    }

    /// Whether there is a checkpoint that is being written, or was when the job ended.
    pub fn partial(&self) -> bool {
        let entries = fs::read_dir(self.dir.join("checkpoints"));
        entries.is_ok_and(|mut all| {
            all.any(|entry| {
                entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with(".step-"))
            })
        })
    }

    pub fn wait_for_partial(&mut self) {
        self.wait_until("checkpoint that is being written", Self::partial);
    }

    fn wait_until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while !done(self) {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("the job ended ({status}) before {what}: {}", self.stderr());
            }
            assert!(start.elapsed() < PATIENCE, "no {what}: {}", self.stderr());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Signals the process that was started: the program itself, or mpirun.
    pub fn signal(&self, name: &str) {
        send(self.child.id(), name);
    }

    /// Signals one rank.
    pub fn signal_rank(&self, rank: usize, name: &str) {
        send(self.rank_pid(rank), name);
    }

    /// Process id of a rank: mpirun's child with that rank in its environment.
    fn rank_pid(&self, rank: usize) -> u32 {
        let wanted = format!("OMPI_COMM_WORLD_RANK={rank}");
        let parent = format!("/proc/{0}/task/{0}/children", self.child.id());
        let children = fs::read_to_string(parent).unwrap();
        let found = children.split_whitespace().find(|pid| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|entry| entry == wanted.as_bytes())
        });
        found.expect("the rank's process").parse().unwrap()
    }

    /// SIGKILL to the only process, or to the last rank, and waits for the end.
    pub fn kill(&mut self) {
        let pid = if self.ranks == 1 { self.child.id() } else { self.rank_pid(self.ranks - 1) };
        send(pid, "KILL");
        self.wait();
    }

    /// Exit code; `None` for a process that a signal ended.
    pub fn wait(&mut self) -> Option<i32> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(start.elapsed() < PATIENCE, "the job does not end: {}", self.stderr());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub fn stderr(&self) -> String {
        let mut text = String::new();
        File::open(&self.errors).unwrap().read_to_string(&mut text).unwrap();
        text
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        // A test that failed leaves no process behind.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn send(pid: u32, signal: &str) {
    let status = Command::new("kill").args([format!("-{signal}"), pid.to_string()]).status().unwrap();
    assert!(status.success(), "kill -{signal} {pid}");
}

pub fn finished(place: &Place, run: &str) -> bool {
    place.path(run).join("DONE").exists()
}

pub fn model(place: &Place, run: &str) -> Vec<u8> {
    fs::read(place.path(run).join("model/model.safetensors")).unwrap()
}

/// The losses of a run, whose steps must follow each other without gaps or repetitions.
pub fn losses(place: &Place, run: &str) -> Vec<f64> {
    let metrics = place.metrics(run);
    let steps: Vec<u64> = metrics.iter().map(|line| line["step"].as_u64().unwrap()).collect();
    assert!(steps.windows(2).all(|pair| pair[1] == pair[0] + 1), "{steps:?}");
    metrics.iter().map(|line| line["loss"].as_f64().unwrap()).collect()
}
