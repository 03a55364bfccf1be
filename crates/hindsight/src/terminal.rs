//! The user's terminal: raw while a guest has it, and as it was on every way out.
//!
//! The settings to go back to are kept for the whole process, so that the panic hook, the signal
//! thread and the normal end can all restore them; doing so twice does no harm.

use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use std::io::{stderr, stdin, stdout};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// As found, and as set by us.
static CHANGED: Mutex<Option<(Termios, Termios)>> = Mutex::new(None);

/// Ends raw mode when it goes out of scope.
#[derive(Debug)]
pub struct RawMode(());

impl Drop for RawMode {
    fn drop(&mut self) {
        restore();
    }
}

fn changed() -> MutexGuard<'static, Option<(Termios, Termios)>> {
    CHANGED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a person types: standard input is a terminal.
pub fn is_keyboard() -> bool {
    isatty(stdin())
}

/// Whether a person watches: standard output is a terminal.
pub fn is_screen() -> bool {
    isatty(stdout())
}

/// Whether progress may be drawn: standard error is a terminal.
pub fn is_progress() -> bool {
    isatty(stderr())
}

/// Lines and columns of the window, 0 when unknown.
pub fn window() -> (u16, u16) {
    tcgetwinsize(stdout()).map_or((0, 0), |size| (size.ws_row, size.ws_col))
}

/// Gives every key to the guest, also Ctrl-C. `None` when standard input is no terminal or
/// refuses; keys then come line by line, which works too.
pub fn raw() -> Option<RawMode> {
    let found = tcgetattr(stdin()).ok()?;
    let mut raw = found.clone();
    raw.make_raw();
    tcsetattr(stdin(), OptionalActions::Now, &raw).ok()?;
    // The first settings found are the user's own.
    let mut changed = changed();
    let user = changed.take().map_or(found, |(user, _)| user);
    *changed = Some((user, raw));
    Some(RawMode(()))
}

/// Makes the terminal as it was found. Nothing to do when it was not changed.
pub fn restore() {
    if let Some((found, _)) = changed().take() {
        // Nothing can be done about a terminal that has gone.
        let _ = tcsetattr(stdin(), OptionalActions::Now, &found);
    }
}

/// After the process was stopped and continued, a shell has changed the settings.
pub fn reapply() {
    if let Some((_, raw)) = &*changed() {
        let _ = tcsetattr(stdin(), OptionalActions::Now, raw);
    }
}
