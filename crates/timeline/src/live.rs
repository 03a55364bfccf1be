//! Running a guest live: the one loop in which host and machine meet.
//!
//! The machine runs in slices that end at multiples of [`SLICE`], so that two runs with the same
//! inputs look at the outside at the same positions. Between slices, and while the guest is idle,
//! what has come from the host enters through the gate, and what has left the machine is handed to
//! the host.

use crate::pace::{Pacer, Steering};
use crate::{ClockMode, Recorder, Session};
use base::{GuestTime, Position};
use disk::DiskError;
use machine::{GateError, Input, Moment, Stop};
use recording::Stopped;
use std::time::{Duration, Instant};

/// Instructions between two looks at the host: a few milliseconds.
pub const SLICE: u64 = 8_000_000;
/// The same for a guest on a network, where a look is a round trip.
const NETWORK_SLICE: u64 = 500_000;
/// How long a dying kernel may speak before the run ends, in instructions.
const LAST_WORDS: u64 = 400_000_000;
/// How long to wait for input before looking whether to stop.
const NAP: Duration = Duration::from_millis(50);
/// Most inputs that enter at one position.
const INPUTS_MAX: u32 = 256;

/// The host could not do its part, such as showing the console; the run cannot go on.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct HostFailed(pub String);

/// Who sees what leaves a machine, live or replayed.
pub trait Watcher {
    /// Bytes left by console `port`: 0 is the console, 1 the second serial port.
    ///
    /// # Errors
    /// When they cannot be shown; the run ends.
    fn console(&mut self, port: u32, bytes: &[u8]) -> Result<(), HostFailed>;
    /// A frame left by network card `card`.
    fn frame(&mut self, _card: u32, _frame: &[u8]) {}
    /// Whether the run is to end now. Asked often.
    fn wants_stop(&mut self) -> bool;
    /// The machine is here now. Told often.
    fn progress(&mut self, _now: Moment) {}
}

/// What a host makes of the console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The guest is well.
    Well,
    /// Its kernel has begun to say that it is dead.
    Dying,
    /// It is dead.
    Dead,
}

/// The outside of a live guest.
pub trait Host: Watcher {
    /// The next input for the guest, waiting for it up to `wait`.
    fn input(&mut self, wait: Duration) -> Option<Input>;
    /// Whether frames are to wait outside for now, because the guest does not keep up with them: what
    /// the card drops would be sent again, and recorded again. Other input comes all the same.
    fn hold_frames(&mut self, _hold: bool) {}
    /// Whether there may be input some time: nobody waits for one that cannot come.
    fn may_give_input(&self) -> bool;
    /// What the console has shown so far.
    fn verdict(&self) -> Verdict {
        Verdict::Well
    }
}

/// How a live run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The guest powered off.
    PowerOff,
    /// The guest wrote this to the debug-exit port.
    DebugExit(u32),
    /// The guest reset itself.
    Reset,
    /// The guest's kernel panicked.
    Panic,
    /// The processor shut down.
    TripleFault,
    /// The processor halted, and nothing can ever wake it.
    Halted,
    /// The host wanted it.
    Stopped,
}

/// Why a live run failed. The machine is where it was; nothing can be run on.
#[derive(Debug, thiserror::Error)]
pub enum LiveError {
    /// The host.
    #[error(transparent)]
    Host(#[from] HostFailed),
    /// The recording cannot be written any more.
    #[error(transparent)]
    Recording(#[from] Stopped),
    /// A disk's contents could not be hashed.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// A device failed.
    #[error("{0}")]
    Machine(String),
    /// The session replays.
    #[error(transparent)]
    Gate(#[from] GateError),
}

/// Runs `session` with `host` as its outside until it ends; `recorder`, if any, has been begun on
/// the same session.
///
/// # Errors
/// When the host, the recording or a device fails.
pub fn run_live(
    session: &mut Session,
    host: &mut dyn Host,
    recorder: Option<&mut Recorder>,
) -> Result<Ended, LiveError> {
    let slice = if session.guest().card.is_some() { NETWORK_SLICE } else { SLICE };
    let time = match session.guest().clock {
        ClockMode::Virtual => Time::Virtual(Pacer::default()),
        ClockMode::Host => {
            Time::Host(Steering::new(session.moment(), session.machine().board().clock().rate()))
        }
    };
    let mut live = Live { session, host, recorder, time, slice, waiting: None, dying_since: None };
    loop {
        if let Some(ended) = live.step()? {
            live.pass_output()?;
            return Ok(ended);
        }
    }
}

enum Time {
    Virtual(Pacer),
    Host(Steering),
}

struct Live<'a> {
    session: &'a mut Session,
    host: &'a mut dyn Host,
    recorder: Option<&'a mut Recorder>,
    time: Time,
    slice: u64,
    /// Input that the guest had no room for yet.
    waiting: Option<Input>,
    dying_since: Option<Position>,
}

impl Live<'_> {
    /// One slice, or as far as the guest goes.
    fn step(&mut self) -> Result<Option<Ended>, LiveError> {
        self.set_idle_horizon();
        let here = self.session.position().count();
        let mut limit = Position::from_count((here / self.slice + 1).saturating_mul(self.slice));
        if let Some(recorder) = &self.recorder {
            limit = limit.min(recorder.next_stop());
        }
        let stop = self.session.run_until(limit);
        if let (Stop::Limit, Some(recorder)) = (&stop, &mut self.recorder) {
            recorder.look(self.session)?;
        }
        self.pass_output()?;
        if let Some(recorder) = &self.recorder {
            recorder.check()?;
        }
        match stop {
            Stop::Limit => {
                if self.is_dead() {
                    return Ok(Some(Ended::Panic));
                }
                self.steer()?;
            }
            Stop::Breath | Stop::Debugger => {}
            Stop::Idle { until } => {
                if !self.idle(until)? {
                    return Ok(Some(self.fallen_silent()));
                }
            }
            Stop::Dead => return Ok(Some(self.fallen_silent())),
            Stop::PowerOff => return Ok(Some(Ended::PowerOff)),
            Stop::DebugExit(value) => return Ok(Some(Ended::DebugExit(value))),
            Stop::Reset if self.host.verdict() == Verdict::Well => return Ok(Some(Ended::Reset)),
            Stop::Panic | Stop::Reset => return Ok(Some(Ended::Panic)),
            Stop::TripleFault => return Ok(Some(Ended::TripleFault)),
            Stop::Failed(why) => return Err(LiveError::Machine(why)),
        }
        if self.host.wants_stop() {
            return Ok(Some(Ended::Stopped));
        }
        self.take_inputs()?;
        self.host.progress(self.session.moment());
        Ok(None)
    }

    fn fallen_silent(&self) -> Ended {
        if self.host.verdict() == Verdict::Well { Ended::Halted } else { Ended::Panic }
    }

    fn set_idle_horizon(&mut self) {
        let Time::Virtual(pacer) = &self.time else { return };
        let horizon = if self.host.may_give_input() { pacer.horizon() } else { GuestTime::from_ns(u64::MAX) };
        self.session.machine_mut().set_idle_horizon(horizon);
    }

    fn pass_output(&mut self) -> Result<(), LiveError> {
        let output = self.session.take_output();
        if output.is_empty() {
            return Ok(());
        }
        self.stir();
        for (card, frame) in &output.frames {
            self.host.frame(*card, frame);
        }
        if let (Some(recorder), false) = (&mut self.recorder, output.console.is_empty()) {
            recorder.keep_up(self.session)?;
        }
        for (port, bytes) in &output.console {
            self.host.console(*port, bytes)?;
        }
        Ok(())
    }

    fn stir(&mut self) {
        let now = self.session.moment().time;
        if let Time::Virtual(pacer) = &mut self.time {
            pacer.stir(now);
        }
    }

    /// Whether the kernel is dead and has had time to say why.
    fn is_dead(&mut self) -> bool {
        let here = self.session.position();
        match self.host.verdict() {
            Verdict::Well => false,
            Verdict::Dead => true,
            Verdict::Dying => here.since(*self.dying_since.get_or_insert(here)) >= LAST_WORDS,
        }
    }

    fn steer(&mut self) -> Result<(), LiveError> {
        let now = self.session.moment();
        let Time::Host(steering) = &mut self.time else { return Ok(()) };
        if let Some(correction) = steering.steer(now) {
            self.session.machine_mut().inject(Input::Clock(correction))?;
        }
        Ok(())
    }

    /// The guest is idle until `until`: waits for that or for input. False when neither can come.
    fn idle(&mut self, until: Option<GuestTime>) -> Result<bool, LiveError> {
        // The guest may have made room for what it has not got yet.
        if let Some(input) = self.waiting.take()
            && self.deliver(input)?
        {
            return Ok(true);
        }
        let now = self.session.moment().time;
        let may_give_input = self.host.may_give_input() || self.waiting.is_some();
        if until.is_none() && !may_give_input {
            return Ok(false);
        }
        let due = match (&mut self.time, until) {
            (_, None) => None,
            // The source of input has just dried up; nothing is left to wait for.
            (Time::Virtual(_), Some(_)) if !may_give_input => return Ok(true),
            (Time::Virtual(pacer), Some(until)) => Some(pacer.due(now, until)),
            (Time::Host(steering), Some(until)) => Some(steering.due(until)),
        };
        let Some(input) = self.wait(due)? else {
            return self.wake(due, until).map(|()| true);
        };
        self.pass_idle_time(now, until)?;
        self.deliver(input)?;
        Ok(true)
    }

    /// Waits for input, but not beyond `due`.
    fn wait(&mut self, due: Option<Instant>) -> Result<Option<Input>, LiveError> {
        loop {
            let left = due.map_or(NAP, |due| due.saturating_duration_since(Instant::now()));
            let nap = left.min(NAP);
            let input = if self.waiting.is_none() {
                self.hold_frames();
                self.host.input(nap)
            } else {
                std::thread::sleep(nap);
                None
            };
            if input.is_some() || left.is_zero() || self.host.wants_stop() {
                return Ok(input);
            }
            if let Some(recorder) = &self.recorder {
                recorder.check()?;
            }
            if due.is_none() && !self.host.may_give_input() {
                return Ok(None);
            }
        }
    }

    /// Guest time reaches `until` if its time has come.
    fn wake(&mut self, due: Option<Instant>, until: Option<GuestTime>) -> Result<(), LiveError> {
        let (Some(due), Some(until)) = (due, until) else { return Ok(()) };
        if Instant::now() < due {
            return Ok(());
        }
        let now = self.session.moment();
        match &mut self.time {
            Time::Virtual(_) => {
                self.session.machine_mut().pass_idle_time(until);
            }
            Time::Host(steering) => {
                let correction = steering.catch_up(now.time);
                steering.woke(now.position);
                if let Some(correction) = correction {
                    self.session.machine_mut().inject(Input::Clock(correction))?;
                }
            }
        }
        Ok(())
    }

    /// Lets guest time reach the host's before an input that comes now.
    fn pass_idle_time(&mut self, now: GuestTime, until: Option<GuestTime>) -> Result<(), LiveError> {
        let position = self.session.position();
        match &mut self.time {
            Time::Virtual(pacer) => {
                let time = pacer.time(now, until);
                self.session.machine_mut().pass_idle_time(time);
            }
            Time::Host(steering) => {
                let correction = steering.catch_up(now);
                steering.woke(position);
                if let Some(correction) = correction {
                    self.session.machine_mut().inject(Input::Clock(correction))?;
                }
            }
        }
        Ok(())
    }

    /// Tells the host whether the guest has room for frames.
    fn hold_frames(&mut self) {
        if self.session.guest().card.is_some() {
            self.host.hold_frames(!self.session.machine().board().card_has_room(0));
        }
    }

    fn take_inputs(&mut self) -> Result<(), LiveError> {
        for _ in 0..INPUTS_MAX {
            self.hold_frames();
            let Some(input) = self.waiting.take().or_else(|| self.host.input(Duration::ZERO)) else { break };
            self.deliver(input)?;
            if self.waiting.is_some() {
                break;
            }
        }
        Ok(())
    }

    /// Gives an input to the guest, or as much of it as there is room for. Whether there was any.
    fn deliver(&mut self, input: Input) -> Result<bool, LiveError> {
        let machine = self.session.machine_mut();
        let (now, later) = match input {
            Input::Serial { port, bytes } => {
                let (now, later) = split(bytes, machine.board().serial_room(port));
                (
                    now.map(|bytes| Input::Serial { port, bytes }),
                    later.map(|bytes| Input::Serial { port, bytes }),
                )
            }
            Input::Console { port, bytes } => {
                let (now, later) = split(bytes, machine.board().console_room(port));
                (
                    now.map(|bytes| Input::Console { port, bytes }),
                    later.map(|bytes| Input::Console { port, bytes }),
                )
            }
            other => (Some(other), None),
        };
        self.waiting = later;
        let Some(input) = now else { return Ok(false) };
        machine.inject(input)?;
        self.stir();
        Ok(true)
    }
}

/// What fits, and the rest.
fn split(mut bytes: Vec<u8>, room: usize) -> (Option<Vec<u8>>, Option<Vec<u8>>) {
    let later = bytes.split_off(bytes.len().min(room));
    let some = |bytes: Vec<u8>| (!bytes.is_empty()).then_some(bytes);
    (some(bytes), some(later))
}
