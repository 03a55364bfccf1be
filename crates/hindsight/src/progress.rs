//! What is going on, on standard error: one line that changes at a terminal, plain lines elsewhere.

use crate::terminal;
use std::io::Write;
use std::sync::Mutex;
use std::time::{Duration, Instant};

const REDRAW_EVERY: Duration = Duration::from_millis(100);

/// Tells people how far something is.
#[derive(Debug)]
pub struct Progress {
    drawn: Option<Mutex<Option<Instant>>>,
}

impl Progress {
    /// For this process's standard error.
    pub fn new() -> Self {
        Self { drawn: terminal::is_progress().then(|| Mutex::new(None)) }
    }

    /// Never says anything.
    pub fn quiet() -> Self {
        Self { drawn: None }
    }

    /// Tells a step that takes time, such as a download: a line in a log, or the changing line.
    pub fn line(&self, text: &str) {
        match &self.drawn {
            Some(drawn) => draw(drawn, text),
            None => eprintln!("hindsight: {text}"),
        }
    }

    /// How far something is; only at a terminal, and not more often than eyes can follow.
    pub fn update(&self, text: impl FnOnce() -> String) {
        let Some(drawn) = &self.drawn else { return };
        let last = drawn.lock().map_or(None, |last| *last);
        if last.is_none_or(|last| last.elapsed() >= REDRAW_EVERY) {
            draw(drawn, &text());
        }
    }

    /// Takes the changing line away, before other output.
    pub fn clear(&self) {
        let Some(drawn) = &self.drawn else { return };
        if drawn.lock().is_ok_and(|mut last| last.take().is_some()) {
            eprint!("\r\x1b[K");
        }
    }
}

fn draw(drawn: &Mutex<Option<Instant>>, text: &str) {
    let (_, columns) = terminal::window();
    let width = if columns == 0 { 80 } else { usize::from(columns) };
    let text: String = text.chars().take(width.saturating_sub(1)).collect();
    let mut stderr = std::io::stderr();
    let _ = write!(stderr, "\r\x1b[K{text}").and_then(|()| stderr.flush());
    if let Ok(mut last) = drawn.lock() {
        *last = Some(Instant::now());
    }
}
