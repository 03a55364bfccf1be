//! The commands, one file each.

mod debug;
mod demo;
mod explore;
mod guest;
mod live;
mod recordings;
mod run;

use crate::cli::{Cli, Command};
use crate::failure::Failure;
use crate::library::Library;
use serde::Serialize;
use std::io::Write;

/// Does what was asked and returns the process's exit status.
pub fn dispatch(cli: Cli) -> Result<u8, Failure> {
    match cli.command {
        Command::Demo(options) => demo::demo(&options),
        Command::Run(options) => run::run(&options),
        Command::Record(options) => run::record(&options),
        Command::Explore(options) => explore::explore(&options),
        Command::Replay(options) => run::replay(&options),
        Command::Debug(options) => debug::debug(&options),
        Command::Info(options) => recordings::info(&options),
        Command::Ls(options) => recordings::ls(&options, &Library::of_user()?),
        Command::Rm(options) => recordings::rm(&options, &Library::of_user()?),
        Command::Pack(options) => recordings::pack(&options),
        Command::Guest(options) => guest::guest(&options),
    }
}

/// Prints text on standard output. A reader that has gone is no failure of ours.
fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::host(format!("standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// Prints one JSON object on standard output.
fn print_json(object: &impl Serialize) -> Result<(), Failure> {
    print(&serde_json::to_string(object).map_err(Failure::host)?)
}
