//! Parse, run, exit code; nothing else.

use std::io::IsTerminal;

use clap::Parser;
use ctune_dist::{cli, commands, dist};

fn main() {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::from_default_env().add_directive(tracing::Level::WARN.into()),
        )
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .without_time()
        .with_target(false)
        .init();
    if let Err(error) = commands::run(cli::Cli::parse().command) {
        // Errors before the ranks have met: every rank has the same one, and the first says it.
        if dist::launched_rank().unwrap_or(0) == 0 {
            eprintln!("ctune-dist: {error}");
        }
        std::process::exit(error.exit_code());
    }
}
