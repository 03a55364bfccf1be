//! The outside of a session: the user's terminal, files and signals.

use crate::console::Console;
use crate::keyboard::{Input, end_of_input};
use crate::progress::Progress;
use crate::session::HostSide;
use crate::sessions::wire::Wire;
use crate::stop::Stop;
use base::Position;
use guest::job::{Mode, Report, ReportReader};
use guest::{PanicLine, PanicReader};
use machine::Moment;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};
use timeline::{Host, HostFailed, Verdict, Watcher};

/// The console and the second port, as they are shown and understood.
struct Shown {
    console: Console,
    reports: ReportReader,
    ready: bool,
    job_status: Option<u8>,
    panic: PanicReader,
    verdict: Verdict,
}

impl Shown {
    fn new(console: Console) -> Self {
        Self {
            console,
            reports: ReportReader::new(),
            ready: false,
            job_status: None,
            panic: PanicReader::new(),
            verdict: Verdict::Well,
        }
    }

    fn take(&mut self, port: u32, bytes: &[u8]) -> Result<(), HostFailed> {
        match port {
            0 => {
                for byte in bytes {
                    match self.panic.byte(*byte) {
                        Some(PanicLine::Begin) if self.verdict == Verdict::Well => {
                            self.verdict = Verdict::Dying
                        }
                        Some(PanicLine::End) if self.verdict == Verdict::Dying => {
                            self.verdict = Verdict::Dead
                        }
                        _ => {}
                    }
                }
                self.console.write(bytes).map_err(|failure| HostFailed(failure.to_string()))
            }
            1 => {
                for report in bytes.iter().filter_map(|byte| self.reports.byte(*byte)) {
                    match report {
                        Report::Ready => self.ready = true,
                        Report::Exit(status) => self.job_status = Some(status),
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

/// The host of a live guest.
pub struct LiveSeat {
    shown: Shown,
    stop: Stop,
    keys: Receiver<Input>,
    /// Where the network card leads.
    wire: Option<Wire>,
    /// Frames wait where they come from: the guest has no room for them.
    frames_held: bool,
    /// What the console is to the job, if there is one.
    job: Option<Mode>,
    /// The last byte that went in.
    last: Option<u8>,
    /// There will be no more input.
    over: bool,
}

impl LiveSeat {
    /// `job` is what the console is to the job, if there is one.
    pub fn new(host: HostSide, job: Option<Mode>, wire: Option<Wire>) -> Self {
        Self {
            shown: Shown::new(host.console),
            stop: host.stop,
            keys: host.input,
            wire,
            frames_held: false,
            job,
            last: None,
            over: false,
        }
    }

    /// The job listens already, and this was the last byte that went in.
    pub fn resume(&mut self, last: Option<u8>) {
        self.shown.ready = true;
        self.last = last;
    }

    /// The status that the job reported.
    pub fn job_status(&self) -> Option<u8> {
        self.shown.job_status
    }

    /// The request to stop.
    pub fn stop(&self) -> &Stop {
        &self.stop
    }

    /// What is sent before the job has begun would be lost.
    fn is_listening(&self) -> bool {
        self.job.is_none() || self.shown.ready
    }
}

impl Watcher for LiveSeat {
    fn console(&mut self, port: u32, bytes: &[u8]) -> Result<(), HostFailed> {
        self.shown.take(port, bytes)
    }

    fn frame(&mut self, _card: u32, frame: &[u8]) {
        if let Some(wire) = &self.wire {
            wire.send(frame);
        }
    }

    fn wants_stop(&mut self) -> bool {
        self.stop.reason().is_some()
    }
}

impl LiveSeat {
    /// The next input from the keyboard, waiting for it up to `wait`.
    fn key(&mut self, wait: Duration) -> Option<machine::Input> {
        if self.over || !self.is_listening() {
            std::thread::sleep(wait);
            return None;
        }
        let bytes = match self.keys.recv_timeout(wait) {
            Ok(Input::Bytes(bytes)) => bytes,
            Err(RecvTimeoutError::Timeout) => return None,
            Ok(Input::End) | Err(RecvTimeoutError::Disconnected) => {
                self.over = true;
                if self.job != Some(Mode::Pipe) {
                    return None;
                }
                end_of_input(self.last).to_vec()
            }
        };
        self.last = bytes.last().copied();
        Some(machine::Input::Serial { port: 0, bytes })
    }
}

impl Host for LiveSeat {
    fn input(&mut self, wait: Duration) -> Option<machine::Input> {
        let until = Instant::now() + wait;
        loop {
            let Some(wire) = self.wire.as_ref().filter(|_| !self.frames_held) else {
                return self.key(wait);
            };
            if let Some(bytes) = wire.receive() {
                return Some(machine::Input::Frame { card: 0, bytes });
            }
            if let Some(input) = self.key(Duration::ZERO) {
                return Some(input);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            if let Some(wire) = &self.wire {
                wire.wait(left);
            }
        }
    }

    fn hold_frames(&mut self, hold: bool) {
        self.frames_held = hold;
    }

    fn may_give_input(&self) -> bool {
        self.wire.is_some() || !self.over && self.is_listening()
    }

    fn verdict(&self) -> Verdict {
        self.shown.verdict
    }
}

/// Who watches a replay.
pub struct Audience {
    shown: Shown,
    stop: Stop,
    progress: Progress,
    end: Position,
}

impl Audience {
    /// For a replay whose recording ends at `end`.
    pub fn new(host: HostSide, end: Position) -> Self {
        Self { shown: Shown::new(host.console), stop: host.stop, progress: host.progress, end }
    }

    /// Whether the job has reported that it begins.
    pub fn job_has_begun(&self) -> bool {
        self.shown.ready
    }

    /// The status that the job reported.
    pub fn job_status(&self) -> Option<u8> {
        self.shown.job_status
    }

    /// The request to stop.
    pub fn stop(&self) -> &Stop {
        &self.stop
    }

    /// Takes the progress line away.
    pub fn clear(&self) {
        self.progress.clear();
    }
}

impl Watcher for Audience {
    fn console(&mut self, port: u32, bytes: &[u8]) -> Result<(), HostFailed> {
        if port == 0 {
            self.progress.clear();
        }
        self.shown.take(port, bytes)
    }

    fn wants_stop(&mut self) -> bool {
        self.stop.reason().is_some()
    }

    fn progress(&mut self, now: Moment) {
        self.progress.update(|| {
            let share = now.position.count() as f64 / self.end.count().max(1) as f64;
            format!("replayed {:.0} %, {:.1} s of guest time", 100.0 * share, now.time.seconds())
        });
    }
}

/// Who watches a bisection: it shows nothing of the guest, which is executed over and over.
pub struct Narrowing<'a>(pub &'a mut Audience);

impl Watcher for Narrowing<'_> {
    fn console(&mut self, _port: u32, _bytes: &[u8]) -> Result<(), HostFailed> {
        Ok(())
    }

    fn wants_stop(&mut self) -> bool {
        self.0.stop.reason().is_some()
    }

    fn progress(&mut self, now: Moment) {
        self.0.progress.update(|| format!("bisecting, at position {}", now.position));
    }
}
