//! Parse, run, exit code; nothing else.

use clap::Parser;
use ctune_dist::memory::Memory;
use ctune_dist::{cli, commands, journal, ranks, terminal};

#[global_allocator]
static MEMORY: Memory = Memory;

fn main() {
    journal::start();
    if let Err(error) = commands::run(cli::Cli::parse().command).and_then(|()| terminal::check()) {
        // An error that ends all ranks alike is reported by the first.
        if ranks::speaks() {
            journal::complain(&error.to_string());
        }
        std::process::exit(error.exit_code());
    }
}
