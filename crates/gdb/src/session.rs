//! A conversation with one gdb.
//!
//! gdbstub ends a session at the first packet that it cannot make sense of. A debugger's user would
//! lose breakpoints and place for one bad packet, so this file starts gdbstub anew instead: what
//! the client had negotiated (the features, no acknowledgements, the current thread) is said again
//! with the answers thrown away, and the bad packet is answered with an error.

use crate::framing::{self, PACKET_BYTES_MAX};
use crate::stub::Stub;
use crate::wire::{self, Event, QUEUE_MAX, Signals};
use crate::{Listener, Target};
use gdbstub::conn::Connection;
use gdbstub::stub::state_machine::GdbStubStateMachine;
use gdbstub::stub::{DisconnectReason, GdbStub};
use std::cell::RefCell;
use std::convert::Infallible;
use std::rc::Rc;
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::{io, thread};

/// The longest piece of memory that one packet can ask for; its hexadecimal fits into a packet.
const READ_BYTES_MAX: u64 = (PACKET_BYTES_MAX / 2 - 16) as u64;

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// gdb detached.
    Detached,
    /// gdb asked to end the machine.
    Killed,
    /// The connection broke off.
    Lost,
    /// A branch's machine ended with this status, and gdb was told.
    Exited(u8),
    /// [`crate::Listener::stopper`] asked for it.
    Stopped,
}

/// The socket failed; nothing that a client does leads here.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Waiting for a client.
    #[error("cannot wait for gdb: {0}")]
    Accept(#[source] io::Error),
    /// Starting the thread that reads.
    #[error("cannot start a thread for gdb's connection: {0}")]
    Thread(#[source] io::Error),
}

/// Waits for a gdb and serves it until it leaves; others are told that the place is taken.
/// `notice` gets what people should know and gdb has no way to show at once: a connection, and
/// why a request was refused.
pub fn serve(
    listener: &Listener,
    target: &mut dyn Target,
    notice: &mut dyn FnMut(&str),
) -> Result<Ended, ServeError> {
    let Some(client) = listener.wait().map_err(ServeError::Accept)? else { return Ok(Ended::Stopped) };
    let signals = Signals::default();
    let (sender, queue) = sync_channel(QUEUE_MAX);
    thread::scope(|scope| {
        let (client, signals) = (&client, &signals);
        thread::Builder::new()
            .name("gdb reader".into())
            .spawn_scoped(scope, move || wire::read(listener, client, signals, &sender))
            .map_err(ServeError::Thread)?;
        let send = |bytes: &[u8]| client.write_all(bytes);
        let ended = Session::new(target, &send, signals, notice).converse(&queue);
        signals.finish();
        listener.stopper().wake();
        Ok(if listener.stopper().asked() { Ended::Stopped } else { ended })
    })
}

/// Where gdbstub writes: collected, so that an answer is sent whole or not at all.
#[derive(Clone, Default)]
struct Outbox(Rc<RefCell<Vec<u8>>>);

impl Outbox {
    fn take(&self) -> Vec<u8> {
        self.0.take()
    }
}

impl Connection for Outbox {
    type Error = Infallible;

    fn write(&mut self, byte: u8) -> Result<(), Infallible> {
        self.0.borrow_mut().push(byte);
        Ok(())
    }
    fn write_all(&mut self, bytes: &[u8]) -> Result<(), Infallible> {
        self.0.borrow_mut().extend_from_slice(bytes);
        Ok(())
    }
    fn flush(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
}

type Machine<'t> = GdbStubStateMachine<'static, Stub<'t>, Outbox>;

/// What is said again to a new gdbstub.
#[derive(Default)]
struct Negotiated {
    supported: Option<Vec<u8>>,
    no_ack: bool,
    memory_thread: Option<Vec<u8>>,
    resume_thread: Option<Vec<u8>>,
}

/// One conversation, from whole packets to answers.
pub(crate) struct Session<'t, 'c> {
    stub: Stub<'t>,
    /// Sends bytes to the client.
    client: &'c dyn Fn(&[u8]) -> io::Result<()>,
    signals: &'c Signals,
    notice: &'c mut dyn FnMut(&str),
    outbox: Outbox,
    /// `None` only while it is being used.
    machine: Option<Machine<'t>>,
    negotiated: Negotiated,
    /// The last answer, for a client that did not get it.
    last: Vec<u8>,
    /// What gdb is to print when it next can.
    notes: Vec<String>,
}

impl<'t, 'c> Session<'t, 'c> {
    pub fn new(
        target: &'t mut dyn Target,
        client: &'c dyn Fn(&[u8]) -> io::Result<()>,
        signals: &'c Signals,
        notice: &'c mut dyn FnMut(&str),
    ) -> Self {
        Self {
            stub: Stub::new(target),
            client,
            signals,
            notice,
            outbox: Outbox::default(),
            machine: None,
            negotiated: Negotiated::default(),
            last: Vec::new(),
            notes: Vec::new(),
        }
    }

    fn converse(&mut self, queue: &Receiver<Event>) -> Ended {
        loop {
            let event = match queue.try_recv() {
                Ok(event) => event,
                Err(TryRecvError::Empty) if !self.signals.closed() => match queue.recv() {
                    Ok(event) => event,
                    Err(_) => return Ended::Lost,
                },
                Err(_) => return Ended::Lost,
            };
            if let Some(ended) = self.handle(event) {
                return ended;
            }
        }
    }

    /// Answers what came; `Some` when the session is over.
    pub fn handle(&mut self, event: Event) -> Option<Ended> {
        let ended = match event {
            Event::Closed => Some(Ended::Lost),
            Event::Nack => self.send(self.last.clone()),
            Event::Damaged if self.negotiated.no_ack => self.send(framing::invalid()),
            Event::Damaged => self.write(b"-"),
            Event::Packet(body, number) => self.packet(body, number),
        };
        if ended.is_some() {
            self.stub.reset();
        }
        ended
    }

    /// Sends an answer; `Some` when the client is gone.
    fn send(&mut self, answer: Vec<u8>) -> Option<Ended> {
        let ended = self.write(&answer);
        self.last = answer;
        ended
    }

    fn write(&self, bytes: &[u8]) -> Option<Ended> {
        if bytes.is_empty() || (self.client)(bytes).is_ok() { None } else { Some(Ended::Lost) }
    }

    /// Answers a packet; `Some` when the session is over.
    fn packet(&mut self, body: Vec<u8>, number: u64) -> Option<Ended> {
        let Some(body) = tame(body) else { return self.reject() };
        self.stub.refusal = None;
        let machine = match self.machine.take() {
            Some(machine) => machine,
            None => match start(&mut self.stub, &self.outbox, &self.negotiated) {
                Some(machine) => machine,
                None => return self.reject(),
            },
        };
        match feed(machine, &mut self.stub, &body) {
            Some(machine) => {
                self.remember(&body);
                self.proceed(machine, number)
            }
            None => self.reject(),
        }
    }

    /// Answers a packet that makes no sense.
    fn reject(&mut self) -> Option<Ended> {
        self.outbox.take();
        let mut answer = if self.negotiated.no_ack { Vec::new() } else { b"+".to_vec() };
        answer.extend(framing::invalid());
        self.send(answer)
    }

    /// Keeps what a new gdbstub would have to be told.
    fn remember(&mut self, body: &[u8]) {
        let negotiated = &mut self.negotiated;
        if body.starts_with(b"qSupported") {
            negotiated.supported = Some(body.to_vec());
        } else if body.starts_with(b"Hg") {
            negotiated.memory_thread = Some(body.to_vec());
        } else if body.starts_with(b"Hc") {
            negotiated.resume_thread = Some(body.to_vec());
        } else if body == b"QStartNoAckMode" {
            negotiated.no_ack = true;
        }
    }

    /// Sends what gdbstub answered, and runs the machine while it wants that.
    fn proceed(&mut self, mut machine: Machine<'t>, number: u64) -> Option<Ended> {
        loop {
            match machine {
                GdbStubStateMachine::Idle(_) => {
                    self.machine = Some(machine);
                    return self.answer();
                }
                GdbStubStateMachine::Running(running) => {
                    if let Some(ended) = self.answer() {
                        return Some(ended);
                    }
                    let reason = self.run(number);
                    machine = match running.report_stop(&mut self.stub, reason) {
                        Ok(machine) => machine,
                        Err(_) => return self.reject(),
                    };
                }
                GdbStubStateMachine::CtrlCInterrupt(interrupt) => {
                    let none = None::<gdbstub::stub::MultiThreadStopReason<u64>>;
                    machine = match interrupt.interrupt_handled(&mut self.stub, none) {
                        Ok(machine) => machine,
                        Err(_) => return self.reject(),
                    };
                }
                GdbStubStateMachine::Disconnected(gone) => {
                    let ended = match gone.get_reason() {
                        DisconnectReason::Disconnect => Ended::Detached,
                        DisconnectReason::Kill => {
                            // gdb's vKill waits for an answer; a bare `k` takes none amiss.
                            self.outbox.0.borrow_mut().extend(framing::encode(b"OK"));
                            Ended::Killed
                        }
                        DisconnectReason::TargetExited(status) => Ended::Exited(status),
                        DisconnectReason::TargetTerminated(_) => Ended::Exited(1),
                    };
                    return self.answer().or(Some(ended));
                }
            }
        }
    }

    /// Runs the machine as gdb asked.
    fn run(&mut self, number: u64) -> gdbstub::stub::MultiThreadStopReason<u64> {
        for note in std::mem::take(&mut self.notes) {
            let _ = self.write(&framing::console(&format!("{note}\n")));
        }
        let signals = self.signals;
        let stop = self.stub.run(&|| signals.should_stop(number));
        match stop {
            Ok(stop) => self.stub.reason(stop),
            Err(error) => {
                (self.notice)(&error.to_string());
                let _ = self.write(&framing::console(&format!("{error}\n")));
                self.stub.failure()
            }
        }
    }

    /// Sends what is in the outbox, with the words of a refusal in place of its number.
    fn answer(&mut self) -> Option<Ended> {
        let mut answer = self.outbox.take();
        if let Some(text) = self.stub.refusal.take() {
            (self.notice)(&text);
            // Only writes are refused so; an error to a read must keep its number.
            if answer.ends_with(&framing::encode(b"E1e")) {
                answer.truncate(answer.len() - framing::encode(b"E1e").len());
                answer.extend(framing::error(&text));
                self.notes.push(text);
            }
        }
        if answer.is_empty() { None } else { self.send(answer) }
    }
}

/// Feeds a whole packet to gdbstub; `None` when it gave up.
fn feed<'t>(mut machine: Machine<'t>, stub: &mut Stub<'t>, body: &[u8]) -> Option<Machine<'t>> {
    for byte in framing::encode(body) {
        machine = match machine {
            GdbStubStateMachine::Idle(idle) => idle.incoming_data(stub, byte).ok()?,
            // It was whole packets so far, so that nothing else can be in the middle of one.
            other => other,
        };
    }
    Some(machine)
}

/// A new gdbstub that knows what was negotiated.
fn start<'t>(stub: &mut Stub<'t>, outbox: &Outbox, negotiated: &Negotiated) -> Option<Machine<'t>> {
    let builder = GdbStub::builder(outbox.clone()).packet_buffer_size(PACKET_BYTES_MAX);
    let mut machine = builder.build().ok()?.run_state_machine(stub).ok()?;
    let no_ack = negotiated.no_ack.then(|| b"QStartNoAckMode".to_vec());
    let again = [&negotiated.supported, &no_ack, &negotiated.memory_thread, &negotiated.resume_thread];
    for body in again.into_iter().flatten() {
        machine = feed(machine, stub, body)?;
    }
    outbox.take();
    Some(machine)
}

/// Bounds what a packet can ask for: a read's length, and an end within the address space.
fn tame(body: Vec<u8>) -> Option<Vec<u8>> {
    let Some(rest) = body.strip_prefix(b"m") else { return Some(body) };
    let text = std::str::from_utf8(rest).ok()?;
    let (at, length) = text.split_once(',')?;
    let at = u64::from_str_radix(at, 16).ok()?;
    let length =
        u64::from_str_radix(length, 16).ok()?.min(READ_BYTES_MAX).min((u64::MAX - at).saturating_add(1));
    Some(format!("m{at:x},{length:x}").into_bytes())
}
