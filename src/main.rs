//! Parse, run, exit code; nothing else.

use clap::Parser;
use ctune_dist::{cli, commands, journal, ranks, terminal};

fn main() {
    journal::start();
    if let Err(error) = commands::run(cli::Cli::parse().command).and_then(|()| terminal::check()) {
        // Errors before the ranks have met: every rank has the same one, and the first says it.
        if ranks::launched_rank().unwrap_or(0) == 0 {
            journal::complain(&error.to_string());
        }
        std::process::exit(error.exit_code());
    }
}
