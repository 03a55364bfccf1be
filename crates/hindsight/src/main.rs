//! Hindsight: a virtual machine with a rewind button. This crate is its command line.
//!
//! Each command is one file under `commands/`; what the user gave is read and checked by
//! `cli`, `values` and `inputs` before anything starts, and what stands between a guest and the
//! person at the terminal is in `terminal`, `keyboard`, `console` and `stop`. The machine itself
//! is behind one seam, [`session`].
//!
//! **What it may know:** the user's files, terminal and signals. **What it must never do:**
//! touch the state of a machine other than through a session, print anything but the summary on
//! standard output with `--json`, or leave the terminal changed.
#![forbid(unsafe_code)]

mod cli;
mod commands;
mod console;
mod failure;
mod inputs;
mod keyboard;
mod library;
mod progress;
mod session;
mod sessions;
mod stop;
mod summary;
mod terminal;
mod values;

use failure::Failure;
use std::process::ExitCode;

fn main() -> ExitCode {
    install_panic_hook();
    let status = std::panic::catch_unwind(|| cli::parse().and_then(commands::dispatch));
    terminal::restore();
    match status {
        Ok(Ok(status)) => ExitCode::from(status),
        Ok(Err(failure)) => {
            failure.say();
            ExitCode::from(failure.status())
        }
        // The panic hook has spoken.
        Err(_) => ExitCode::from(Failure::INTERNAL),
    }
}

/// A bug of ours still leaves a usable terminal and one line that says where to look. A panic in
/// any thread ends the process: a machine with a thread missing must not run on.
fn install_panic_hook() {
    std::panic::set_hook(Box::new(|panic| {
        terminal::restore();
        let place = panic.location().map_or_else(|| "unknown place".to_owned(), ToString::to_string);
        let payload = panic.payload();
        let said = payload.downcast_ref::<&str>().copied();
        let said =
            said.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message");
        let said = said.lines().collect::<Vec<_>>().join(" ");
        eprintln!("hindsight: internal error at {place}: {said}; please report this");
        if std::thread::current().name() != Some("main") {
            std::process::exit(Failure::INTERNAL.into());
        }
    }));
}
