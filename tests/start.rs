//! How tests start the program: it sees no GPU of the machine, whatever the machine has, and what hangs is ended.
//! Tests of the GPU engine start it through `softgpu::command`.

use std::process::Command;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

pub const BINARY: &str = env!("CARGO_BIN_EXE_ctune-dist");

/// Nothing here takes longer, even on a busy machine: what does is taken to hang.
pub const PATIENCE: Duration = Duration::from_secs(600);

/// What the refusal of a GPU says where none can be used, whether for want of a driver or of a card.
pub const NO_GPU: [&str; 3] = ["no ", " here: ", "run.device = \"cpu\""];

/// A command whose children see no GPU.
fn without_gpus(command: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(command);
    command.env("CUDA_VISIBLE_DEVICES", "");
    command
}

/// The program.
pub fn program() -> Command {
    without_gpus(BINARY)
}

/// The program under `ranks` ranks, as root too, with more ranks than cores. Arguments that follow are its own.
pub fn ranks(ranks: usize) -> Command {
    let mut command = mpirun();
    command.args(["-n", &ranks.to_string(), BINARY]);
    command
}

/// `mpirun`, which arguments that follow tell what to start.
pub fn mpirun() -> Command {
    let mut command = without_gpus("mpirun");
    command.arg("--oversubscribe");
    command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    command
}

/// A line of bash, which may start the program as `BINARY`.
pub fn shell(line: &str) -> Command {
    let mut command = without_gpus("bash");
    command.args(["-c", line]);
    command
}

/// `command`, ended with status 124 when it takes longer than anything here may.
pub fn limited(command: &Command) -> Command {
    let mut limited = Command::new("timeout");
    limited.args(["--foreground", "--kill-after=10", &PATIENCE.as_secs().to_string()]);
    limited.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => limited.env(name, value),
            None => limited.env_remove(name),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        limited.current_dir(folder);
    }
    limited
}

/// Runs `work`, which must come to its end.
pub fn must_end(work: impl FnOnce() + Send + 'static) {
    let (sender, ended) = channel::<()>();
    let thread = std::thread::spawn(move || {
        let _sender = sender;
        work();
    });
    // the sender goes with the work, whichever way that ends
    assert_eq!(ended.recv_timeout(PATIENCE), Err(RecvTimeoutError::Disconnected), "it does not end");
    thread.join().unwrap();
}

#[test]
fn a_started_program_sees_no_gpu() {
    let hidden = shell("echo \"[${CUDA_VISIBLE_DEVICES-all of them}]\"");
    for mut command in [limited(&hidden), hidden] {
        assert_eq!(String::from_utf8(command.output().unwrap().stdout).unwrap(), "[]\n");
    }
    for command in [program(), ranks(2), mpirun()] {
        let hidden = |(name, value): (&std::ffi::OsStr, Option<&std::ffi::OsStr>)| {
            name == "CUDA_VISIBLE_DEVICES" && value.is_some_and(std::ffi::OsStr::is_empty)
        };
        assert!(command.get_envs().any(hidden), "{command:?}");
    }
}
