//! Random moves of a debugger in a recording of a real guest, each stop checked against the truth.
//!
//! The truth is a straight replay without checkpoints, walked instruction by instruction through a few
//! windows: registers, and the value of two words under watch, at each position. A client of gdb's
//! protocol then moves at random over `hindsight debug --listen`, and wherever it stops, registers and
//! position have to be what they were, with nothing passed that should have stopped it.
//!
//! `HINDSIGHT_TEST_COUNT` is how many moves (2,000 for the full measure), `SEED` which, and
//! `HINDSIGHT_TEST_RECORDING` a recording to move in instead of a fresh one.

mod place;

use base::{GuestVirt, Position};
use dice::Dice;
use place::Place;
use place::past::open;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;
use timeline::{Pause, Travel, Until};

/// Instructions in a window.
const WINDOW: usize = 6000;
/// A stop that takes longer than this is a hang.
const PATIENCE: Duration = Duration::from_secs(120);

/// General registers in gdb's order, RIP, and RFLAGS.
#[derive(Clone, Copy, PartialEq, Eq)]
struct State([u64; 18]);

impl State {
    fn rip(&self) -> u64 {
        self.0[16]
    }
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|value| write!(f, " {value:x}"))
    }
}

fn state_of(travel: &Travel) -> State {
    let state = travel.session().machine().processor().state();
    let mut values = [0; 18];
    // gdb's order is RAX, RBX, RCX, RDX, RSI, RDI, RBP, RSP, R8 to R15.
    for (value, number) in values.iter_mut().zip([0, 3, 1, 2, 6, 7, 5, 4, 8, 9, 10, 11, 12, 13, 14, 15]) {
        *value = state.gpr[number];
    }
    values[16] = state.rip;
    values[17] = state.rflags & 0xffff_ffff;
    State(values)
}

fn word_at(travel: &Travel, at: u64) -> Option<u64> {
    let mut bytes = [0; 8];
    let phys = travel.physical(GuestVirt(at))?;
    travel.session().machine().board().memory().read(phys, &mut bytes).then(|| u64::from_le_bytes(bytes))
}

/// A piece of history, known instruction by instruction.
struct Window {
    first: u64,
    states: Vec<State>,
    /// Words of kernel memory that change in the window, and their values at each position.
    words: Vec<(u64, Vec<Option<u64>>)>,
}

impl Window {
    fn walk(travel: &mut Travel, first: u64, mut each: impl FnMut(&Travel)) {
        for at in first..first + WINDOW as u64 {
            let until = Until { position: Some(Position::from_count(at)), ..Until::default() };
            if travel.position().count() < at {
                let pause = travel.run_until(&until, &|| false).unwrap();
                assert!(matches!(pause, Pause::Position | Pause::End), "{pause:?}");
            }
            each(travel);
        }
    }

    fn explore(travel: &mut Travel, first: u64, dice: &mut Dice) -> Self {
        let mut states = Vec::new();
        Self::walk(travel, first, |travel| states.push(state_of(travel)));
        // Words of stacks: most of them are written sooner or later.
        let stacks: Vec<u64> =
            states.iter().map(|state| state.0[7] & !7).filter(|sp| sp >> 47 != 0).collect();
        let mut words: Vec<(u64, Vec<Option<u64>>)> = Vec::new();
        for _ in 0..2.min(stacks.len()) {
            words.push((stacks[dice.below(stacks.len())], Vec::new()));
        }
        travel.seek(Position::from_count(first)).unwrap();
        let mut again = Vec::new();
        Self::walk(travel, first, |travel| {
            again.push(state_of(travel));
            words.iter_mut().for_each(|(at, values)| values.push(word_at(travel, *at)));
        });
        assert!(states == again, "two walks differ");
        Self { first, states, words }
    }

    fn state(&self, at: u64) -> Option<&State> {
        self.states.get(usize::try_from(at.checked_sub(self.first)?).ok()?)
    }

    fn last(&self) -> u64 {
        self.first + WINDOW as u64 - 1
    }

    /// Whether the word changes by instruction `at`.
    fn changes(&self, word: usize, at: u64) -> bool {
        let index = (at - self.first) as usize;
        let values = &self.words[word].1;
        matches!((values[index], values.get(index + 1)), (Some(before), Some(Some(after))) if before != *after)
    }
}

/// A client of gdb's protocol, without acknowledgements.
struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    /// Connects as soon as the one before is gone: there is room for one.
    fn connect(address: &str) -> Self {
        for _ in 0..600 {
            if let Some(client) = Self::try_connect(address) {
                return client;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("the server does not notice that its client is gone");
    }

    fn try_connect(address: &str) -> Option<Self> {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        let mut client = Self { stream: BufReader::new(stream) };
        client.send("qSupported:multiprocess+;swbreak+;hwbreak+");
        // Whoever comes too early is told so, and hung up on.
        match client.try_answer() {
            Ok(answer) if !answer.contains("another gdb") => {}
            Ok(_) => return None,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => panic!("no answer in time"),
            Err(_) => return None,
        }
        client.send("QStartNoAckMode");
        assert_eq!(client.answer(), "OK");
        client.stream.get_mut().write_all(b"+").unwrap();
        Some(client)
    }

    fn send(&mut self, body: &str) {
        let sum = body.bytes().fold(0u8, u8::wrapping_add);
        self.stream.get_mut().write_all(format!("${body}#{sum:02x}").as_bytes()).unwrap();
    }

    fn interrupt(&mut self) {
        self.stream.get_mut().write_all(&[3]).unwrap();
    }

    /// The next packet, undone of its run-length encoding.
    fn answer(&mut self) -> String {
        self.try_answer().unwrap_or_else(|error| panic!("no answer: {error}"))
    }

    fn try_answer(&mut self) -> std::io::Result<String> {
        let mut raw = Vec::new();
        self.stream.read_until(b'$', &mut raw)?;
        if raw.last() != Some(&b'$') {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        raw.clear();
        self.stream.read_until(b'#', &mut raw)?;
        self.stream.read_exact(&mut [0; 2])?;
        raw.pop();
        let mut text = Vec::new();
        let mut bytes = raw.into_iter();
        while let Some(byte) = bytes.next() {
            match byte {
                b'*' => {
                    let count = bytes.next().unwrap() - 29;
                    let last = *text.last().unwrap();
                    text.extend(std::iter::repeat_n(last, count.into()));
                }
                b'}' => text.push(bytes.next().unwrap() ^ 0x20),
                byte => text.push(byte),
            }
        }
        Ok(String::from_utf8(text).unwrap())
    }

    fn ask(&mut self, body: &str) -> String {
        self.send(body);
        self.answer()
    }

    /// The stop that ends a run; console output on the way is skipped.
    fn stop(&mut self) -> String {
        loop {
            let answer = self.answer();
            if !answer.starts_with('O') {
                return answer;
            }
        }
    }

    fn monitor(&mut self, command: &str) -> String {
        let hex = command.bytes().fold(String::new(), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        });
        self.send(&format!("qRcmd,{hex}"));
        let mut text = String::new();
        loop {
            let answer = self.answer();
            match answer.strip_prefix('O') {
                Some("K") => return text,
                Some(hex) => text += &String::from_utf8_lossy(&unhex(hex)),
                None => panic!("{command}: {answer}"),
            }
        }
    }

    fn position(&mut self) -> u64 {
        let text = self.monitor("when");
        let number = text.strip_prefix("position ").and_then(|rest| rest.split([' ', ',']).next());
        number.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{text}"))
    }

    fn state(&mut self) -> State {
        let bytes = unhex(&self.ask("g"));
        let mut values = [0; 18];
        for (value, chunk) in values.iter_mut().zip(bytes[..17 * 8].chunks_exact(8)) {
            *value = u64::from_le_bytes(chunk.try_into().unwrap());
        }
        values[17] = u32::from_le_bytes(bytes[17 * 8..][..4].try_into().unwrap()).into();
        State(values)
    }
}

fn unhex(hex: &str) -> Vec<u8> {
    let pairs = hex.as_bytes().chunks_exact(2);
    pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap_or(0)).collect()
}

/// A server of a recording.
struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start(place: &Place, recording: &Path) -> Self {
        let words = ["debug", recording.to_str().unwrap(), "--listen", "127.0.0.1:0"];
        let mut child = place.command(&words).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        let address = loop {
            line.clear();
            assert_ne!(lines.read_line(&mut line).unwrap(), 0, "the server has ended");
            if let Some((_, address)) = line.trim_end().split_once("target remote ") {
                break address.to_owned();
            }
        };
        // What it says later must not fill the pipe.
        std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
        Self { child, address }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Somebody who moves at random in a window.
struct Walker<'a> {
    server: &'a Server,
    client: Client,
    window: &'a Window,
    end: u64,
    breakpoints: BTreeSet<(u64, bool)>,
    /// The word that is watched, by which packet.
    watch: Option<(usize, u8)>,
    /// What was done, for a failure.
    done: Vec<String>,
}

impl Walker<'_> {
    fn at(&mut self) -> u64 {
        self.client.position()
    }

    #[track_caller]
    fn check(&mut self, why: &str) -> u64 {
        let at = self.at();
        let state = self.client.state();
        if let Some(expected) = self.window.state(at) {
            assert!(
                state == *expected,
                "{why} at {at}:{state:?}\ninstead of{expected:?}\n{:#?}",
                self.tail()
            );
        }
        at
    }

    fn tail(&self) -> &[String] {
        &self.done[self.done.len().saturating_sub(12)..]
    }

    /// Whether a run stops at the state of `at`, having executed or being about to execute `instruction`.
    fn stops(&self, at: u64, instruction: u64) -> bool {
        let here = self.window.state(at).is_some_and(|state| {
            self.breakpoints.contains(&(state.rip(), true))
                || self.breakpoints.contains(&(state.rip(), false))
        });
        here || self.watch.is_some_and(|(word, kind)| kind != b'3' && self.window.changes(word, instruction))
    }

    fn run(&mut self, dice: &mut Dice, back: bool) {
        let from = self.at();
        let inside = self.window.state(from).is_some();
        // Out of the window there is nothing to compare with, and it may take long.
        let range = if back { self.window.first..from } else { from + 1..self.window.last() };
        let hit = |at: u64| self.stops(at, if back { at } else { at - 1 });
        let expected =
            if back { range.rev().find(|at| hit(*at)) } else { range.into_iter().find(|at| hit(*at)) };
        let Some(expected) = expected.filter(|_| inside) else { return self.far(dice, back) };
        self.done.push(format!("{} from {from}, to {expected} at most", if back { "bc" } else { "c" }));
        self.client.send(if back { "bc" } else { "c" });
        let stop = self.client.stop();
        let at = self.check("a run stops");
        let on_the_way = if back { expected..=from - 1 } else { from + 1..=expected };
        assert!(on_the_way.contains(&at), "{stop} at {at}, passed {expected}\n{:#?}", self.tail());
        // Only an access that leaves the word as it was may stop earlier than a change does.
        assert!(at == expected || stop.contains("watch:"), "{stop} at {at}\n{:#?}", self.tail());
    }

    /// Runs somewhere far and interrupts that, or lets it reach the end of history.
    fn far(&mut self, dice: &mut Dice, back: bool) {
        if dice.below(4) != 0 {
            return;
        }
        let from = self.at();
        self.done.push(format!("far {} from {from}", if back { "bc" } else { "c" }));
        self.client.send(if back { "bc" } else { "c" });
        std::thread::sleep(Duration::from_millis(dice.below(60) as u64));
        self.client.interrupt();
        let stop = self.client.stop();
        let (at, state) = (self.check("an interrupt stops"), self.client.state());
        assert!(if back { at <= from } else { at >= from }, "{stop} at {at}\n{:#?}", self.tail());
        // The place is what it is, wherever one comes from.
        let elsewhere = self.window.first + dice.below(WINDOW) as u64;
        self.seek(elsewhere);
        // A breakpoint in a handler may hold the machine behind the position's state.
        if stop.contains("T02") {
            self.client.monitor(&format!("seek {at}"));
            assert_eq!(self.client.state(), state, "at {at}\n{:#?}", self.tail());
            self.seek(elsewhere);
        }
    }

    fn step(&mut self, back: bool) {
        let from = self.at();
        self.done.push(format!("{} from {from}", if back { "bs" } else { "s" }));
        self.client.send(if back { "bs" } else { "s" });
        let stop = self.client.stop();
        let at = self.check("a step");
        let expected = if back { from.saturating_sub(1) } else { (from + 1).min(self.end) };
        assert_eq!(at, expected, "{stop}\n{:#?}", self.tail());
    }

    fn seek(&mut self, to: u64) {
        self.done.push(format!("seek {to}"));
        self.client.monitor(&format!("seek {to}"));
        assert_eq!(self.check("a seek"), to, "{:#?}", self.tail());
    }

    fn breakpoint(&mut self, dice: &mut Dice) {
        let kind = dice.below(2) == 0;
        let number = usize::from(!kind);
        if self.breakpoints.len() < 3 {
            let at = self.window.states[dice.below(WINDOW)].rip();
            self.done.push(format!("Z{number} {at:x}"));
            assert_eq!(self.client.ask(&format!("Z{number},{at:x},1")), "OK");
            self.breakpoints.insert((at, kind));
        } else if let Some((at, kind)) = self.breakpoints.pop_first() {
            self.done.push(format!("z {at:x}"));
            assert_eq!(self.client.ask(&format!("z{},{at:x},1", u8::from(!kind))), "OK");
        }
    }

    fn watchpoint(&mut self, dice: &mut Dice) {
        let words = &self.window.words;
        match self.watch.take() {
            Some((word, kind)) => {
                self.done.push("no watch".into());
                let packet = format!("z{},{:x},8", char::from(kind), words[word].0);
                assert_eq!(self.client.ask(&packet), "OK");
            }
            None if !words.is_empty() => {
                let (word, kind) = (dice.below(words.len()), [b'2', b'3', b'4'][dice.below(3)]);
                self.done.push(format!("watch {:x} kind {}", words[word].0, char::from(kind)));
                let packet = format!("Z{},{:x},8", char::from(kind), words[word].0);
                assert_eq!(self.client.ask(&packet), "OK");
                self.watch = Some((word, kind));
            }
            None => {}
        }
    }

    /// What does not move.
    fn look(&mut self, dice: &mut Dice) {
        let at = self.at();
        match dice.below(6) {
            0 => assert!(self.client.monitor("checkpoints").contains("checkpoints")),
            1 => {
                self.client.monitor(&format!("bookmark place-{}", at % 10));
                assert!(self.client.monitor("bookmarks").contains(&at.to_string()));
            }
            2 => assert!(self.client.monitor("info").contains("this is history")),
            3 => {
                let refused = self.client.ask("P0=0000000000000000");
                assert!(refused.starts_with('E'), "a register was written in history: {refused}");
            }
            4 => {
                let Some((word, values)) = self.window.words.first() else { return };
                let Some(index) = at.checked_sub(self.window.first).filter(|i| *i < WINDOW as u64) else {
                    return;
                };
                let Some(expected) = values[index as usize] else { return };
                let bytes = unhex(&self.client.ask(&format!("m{word:x},8")));
                assert_eq!(bytes, expected.to_le_bytes(), "memory at {at}\n{:#?}", self.tail());
            }
            _ => self.reconnect(),
        }
        assert_eq!(self.check("looking around"), at, "looking around moves\n{:#?}", self.tail());
    }

    /// The connection breaks off, and another client comes.
    fn reconnect(&mut self) {
        self.done.push("reconnect".into());
        self.client.stream.get_mut().shutdown(std::net::Shutdown::Both).unwrap();
        self.client = Client::connect(&self.server.address);
        self.breakpoints.clear();
        self.watch = None;
    }

    fn go(&mut self, dice: &mut Dice) {
        match dice.below(20) {
            0..4 => self.step(false),
            4..8 => self.step(true),
            8..11 => self.run(dice, false),
            11..14 => self.run(dice, true),
            14 => {
                let to = self.window.first + dice.below(WINDOW) as u64;
                self.seek(to);
            }
            15 | 16 => self.breakpoint(dice),
            17 => self.watchpoint(dice),
            18 => self.look(dice),
            _ if dice.below(10) == 0 => {
                let to = dice.below(self.end as usize) as u64;
                self.seek(to);
                let back = self.window.first + dice.below(WINDOW) as u64;
                self.seek(back);
            }
            _ => self.step(false),
        }
    }
}

#[test]
fn random_moves_stop_where_they_should() {
    let Some(place) = Place::new() else { return };
    let number = |name: &str, or: u64| std::env::var(name).map_or(or, |text| text.parse().unwrap());
    let (count, seed) = (number("HINDSIGHT_TEST_COUNT", 240), number("SEED", 3));
    let mut dice = Dice::new(seed, 0);
    let recording = place.recorded();
    let mut travel = open(&recording);
    let end = travel.end().count();
    // Early in the run, where the kernel starts; then where processes run.
    let mut places: Vec<u64> = (0..3).map(|_| dice.below(end as usize - 2 * WINDOW) as u64).collect();
    places.sort_unstable();
    let windows: Vec<Window> =
        places.iter().map(|first| Window::explore(&mut travel, *first, &mut dice)).collect();
    let server = Server::start(&place, &recording);
    let mut moves = 0;
    while moves < count {
        let window = &windows[dice.below(windows.len())];
        let client = Client::connect(&server.address);
        let (breakpoints, watch) = (BTreeSet::new(), None);
        let mut walker =
            Walker { server: &server, client, window, end, breakpoints, watch, done: Vec::new() };
        walker.seek(window.first + dice.below(WINDOW) as u64);
        for _ in 0..60.min(count - moves) {
            walker.go(&mut dice);
            moves += 1;
        }
    }
    eprintln!("{moves} moves with seed {seed} in windows at {places:?}");
}
