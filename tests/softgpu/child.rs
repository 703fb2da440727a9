//! Tests of behaviour that ends a process. This test binary is started again for a single test, which then
//! plays the program under test, in its own environment.

use std::process::{Command, Output};

use super::REPORTED;

const MARK: &str = "SOFTGPU_TEST_CHILD";

/// The role of the started test; `None` in an ordinary run of the tests.
pub fn role() -> Option<String> {
    std::env::var(MARK).ok()
}

/// This binary again, for one test in one role.
pub fn command(test: &str, role: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--nocapture", "--test-threads=1"]).env(MARK, role);
    for name in ["SOFTGPU_STREAMS", "SOFTGPU_ORDER", "SOFTGPU_STRICT", "SOFTGPU_RECORD"] {
        command.env_remove(name);
    }
    command
}

/// The lines that the software device wrote.
pub fn reports(output: &Output) -> Vec<String> {
    let text = String::from_utf8_lossy(&output.stderr);
    text.lines().filter_map(|l| l.strip_prefix("softgpu: ")).map(String::from).collect()
}

/// Runs the role and expects it to be ended by a report that contains all of `words`.
pub fn expect_report(command: &mut Command, words: &[&str]) {
    let output = command.output().unwrap();
    let found = reports(&output);
    let hit = found.iter().any(|line| words.iter().all(|w| line.contains(w)));
    assert!(hit, "{words:?} not in {found:?}; {}", text(&output));
    assert_eq!(output.status.code(), Some(REPORTED), "{}", text(&output));
}

/// Runs the role and expects success without a report.
pub fn expect_silence(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success() && reports(&output).is_empty(), "{}", text(&output));
}

fn text(output: &Output) -> String {
    format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
