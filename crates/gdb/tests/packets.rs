//! Clients that are not gdb: damaged packets, nonsense, too many of them, gone too early.

mod toy;

use dice::Dice;
use gdb::{Address, Ended, Listener, serve};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use toy::Toy;

fn packet(body: &str) -> Vec<u8> {
    let sum = body.bytes().fold(0u8, |sum, byte| sum.wrapping_add(byte));
    format!("${body}#{sum:02x}").into_bytes()
}

/// A connection, and whether its end was seen.
struct Client(TcpStream, bool);

impl Client {
    fn connect(address: &str) -> Self {
        let stream = TcpStream::connect(address).expect("a connection");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
        Self(stream, false)
    }
    fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).expect("sent");
    }
    /// The next packet's body; empty at the end of the connection.
    fn receive(&mut self) -> String {
        let (mut body, mut byte) = (Vec::new(), [0]);
        let mut state = 0; // before, inside, checksum
        loop {
            if self.0.read(&mut byte).expect("an answer in time") == 0 {
                self.1 = true;
                break;
            }
            match (state, byte[0]) {
                (0, b'$') => state = 1,
                (1, b'#') => state = 2,
                (1, byte) => body.push(byte),
                (2, _) => state = 3,
                (3, _) => break,
                _ => {}
            }
        }
        String::from_utf8_lossy(&body).into_owned()
    }
    fn ask(&mut self, body: &str) -> String {
        self.send(&packet(body));
        self.receive()
    }
}

/// Serves a toy to what `client` does, in a thread.
fn with_client(toy: &mut Toy, client: impl FnOnce(&str) + Send) -> Ended {
    let listener = Listener::bind(&Address::Tcp("127.0.0.1:0".into())).expect("a port");
    let address = listener.address().expect("an address");
    std::thread::scope(|scope| {
        scope.spawn(move || client(&address));
        serve(&listener, toy, &mut |_| {}).expect("a session")
    })
}

#[test]
fn a_packet_that_makes_no_sense_gets_an_error_and_nothing_is_lost() {
    let ended = with_client(&mut Toy::new(100), |address| {
        let mut client = Client::connect(address);
        assert!(client.ask("qSupported:swbreak+;multiprocess+").contains("ReverseContinue+"));
        assert_eq!(client.ask("QStartNoAckMode"), "OK");
        assert_eq!(client.ask("Z0,1008,1"), "OK");
        for nonsense in
            ["mzz,4", "m1000", "m1000,4,4,q", "vCont;x", "vCont;s", "Hg-1", "T-1", "Gxyz", "P", "Z9,", "pq"]
        {
            let answer = client.ask(nonsense);
            assert!(answer.is_empty() || answer.starts_with('E'), "{nonsense}: {answer}");
        }
        client.send(b"$g#00");
        assert_eq!(client.receive(), "E16", "a wrong checksum");
        client.send(&packet(&"a".repeat(100_000)));
        assert_eq!(client.receive(), "E16", "too long");
        // The breakpoint and the negotiated features are still there.
        assert_eq!(client.ask("vCont;c:p1.-1"), "T05thread:p01.01;swbreak:;");
        assert_eq!(client.ask("m7ffffffffffffffe,ffffffffffffffff"), "E0e");
        assert_eq!(client.ask("mffffffffffffffff,8"), "E0e");
        assert_eq!(client.ask("m1000,0"), "");
        assert_eq!(client.ask("D;1"), "OK");
    });
    assert_eq!(ended, Ended::Detached);
}

#[test]
fn an_answer_that_did_not_arrive_is_sent_again() {
    with_client(&mut Toy::new(100), |address| {
        let mut client = Client::connect(address);
        let first = client.ask("qAttached");
        client.send(b"-");
        assert_eq!(client.receive(), first);
        client.send(b"$g#00");
        let mut answer = [0; 1];
        client.0.read_exact(&mut answer).expect("an answer");
        assert_eq!(&answer, b"-", "a damaged packet is asked for again");
    });
}

#[test]
fn a_second_client_is_refused_in_words_and_the_first_is_not_disturbed() {
    let ended = with_client(&mut Toy::new(100), |address| {
        let mut first = Client::connect(address);
        assert_eq!(first.ask("qAttached"), "1");
        let silent: Vec<_> = (0..20).map(|_| Client::connect(address)).collect();
        let mut second = Client::connect(address);
        assert!(second.ask("qSupported").starts_with("E.another gdb is connected"));
        assert_eq!(first.ask("m1000,2"), "9090");
        drop(silent);
        drop(second);
        assert_eq!(first.ask("?"), "T05thread:01;");
        first.send(&packet("k"));
    });
    assert_eq!(ended, Ended::Killed);
}

#[test]
fn a_running_machine_is_interrupted_by_a_client_and_by_its_absence() {
    let mut toy = Toy::new(100);
    toy.endless = true;
    let begin = Instant::now();
    let ended = with_client(&mut toy, |address| {
        let mut client = Client::connect(address);
        // An interrupt in the same breath as the packet must not be lost, one before it must not count.
        for _ in 0..20 {
            let mut bytes = b"\x03".to_vec();
            bytes.extend(packet("vCont;c:1"));
            client.send(&bytes);
            std::thread::sleep(Duration::from_millis(3));
            client.send(b"\x03");
            assert_eq!(client.receive(), "T02thread:01;");
            let mut bytes = packet("bc");
            bytes.push(3);
            client.send(&bytes);
            assert_eq!(client.receive(), "T02thread:01;");
        }
        client.send(&packet("vCont;c:1"));
        client.0.shutdown(Shutdown::Both).expect("gone");
    });
    assert_eq!(ended, Ended::Lost);
    assert!(begin.elapsed() < Duration::from_secs(20));
}

#[test]
fn clients_that_leave_early_or_never_come_do_not_hang_us() {
    for bytes in [&b""[..], b"$", b"$qSupp", b"$g#6", b"+++\x03"] {
        let ended = with_client(&mut Toy::new(10), |address| Client::connect(address).send(bytes));
        assert_eq!(ended, Ended::Lost);
    }
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("gdb.sock");
    let listener = Listener::bind(&Address::Unix(path.clone())).expect("a socket");
    let stopper = listener.stopper();
    let ended = std::thread::scope(|scope| {
        scope.spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            stopper.stop();
        });
        serve(&listener, &mut Toy::new(10), &mut |_| {}).expect("a session")
    });
    assert_eq!(ended, Ended::Stopped);
    assert!(UnixStream::connect(&path).is_ok());
    drop(listener);
    assert!(!path.exists(), "the socket is removed");
}

/// Bodies that lead deep into the protocol, to be damaged.
const SEEDS: &[&str] = &[
    "qSupported:multiprocess+;swbreak+;hwbreak+",
    "QStartNoAckMode",
    "?",
    "g",
    "p10",
    "P10=0010000000000000",
    "m1000,40",
    "M8000,4:00112233",
    "X8000,4:abcd",
    "Z0,1010,1",
    "z0,1010,1",
    "Z2,8040,8",
    "Z4,8000,ffffffff",
    "vCont?",
    "vCont;s:p1.1;c:p1.-1",
    "vCont;r1000,1020:p1.1;c",
    "bs",
    "bc",
    "c",
    "s",
    "Hg1",
    "Hc-1",
    "qfThreadInfo",
    "qThreadExtraInfo,p1.1",
    "qXfer:features:read:target.xml:0,1000",
    "qRcmd,7768656e",
    "qRcmd,7365656b20353025",
    "T1",
    "vMustReplyEmpty",
    "D",
    "k",
];

/// One of the seeds, damaged more or less.
fn damaged(dice: &mut Dice) -> Vec<u8> {
    let mut body = dice.pick(SEEDS).as_bytes().to_vec();
    for _ in 0..dice.below(4) {
        let place = dice.below(body.len() + 1);
        match dice.below(3) {
            0 => body.insert(place, dice.byte()),
            1 if place < body.len() => drop(body.remove(place)),
            _ => body.truncate(place),
        }
    }
    body
}

/// What the fuzz target `gdb` does, from seeds.
#[test]
fn random_conversations_are_answered_in_whole_packets_to_their_end() {
    let mut ends = std::collections::BTreeMap::<String, u32>::new();
    for seed in 0..600 {
        let mut dice = Dice::new(seed, 0);
        let mut bytes = Vec::new();
        for _ in 0..1 + dice.below(30) {
            if dice.percent(10) {
                bytes.push(0);
                bytes.extend((0..dice.below(40)).map(|_| dice.pick(b"$#+-\x03}*g0aZ")));
            } else {
                bytes.extend(damaged(&mut dice));
            }
            bytes.push(b'\n');
        }
        let ended = gdb::probe::conversation(&bytes, &mut Toy::new(64));
        *ends.entry(format!("{ended:?}")).or_default() += 1;
    }
    assert!(ends["None"] > 100, "they get somewhere: {ends:?}");
}

#[test]
fn random_and_damaged_packets_neither_crash_nor_silence_it() {
    let seed = 7;
    let mut dice = Dice::new(seed, 0);
    let mut toy = Toy::new(200);
    let ended = with_client(&mut toy, |address| {
        let mut client = Client::connect(address);
        assert_eq!(client.ask("QStartNoAckMode"), "OK");
        for round in 0..400 {
            let mut bytes = Vec::new();
            for _ in 0..8 {
                let body = damaged(&mut dice);
                if matches!(body.first(), Some(b'k' | b'D')) {
                    continue; // a client may well leave
                }
                let sum = body.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
                bytes.push(b'$');
                bytes.extend(&body);
                bytes.extend(format!("#{sum:02x}").bytes());
            }
            bytes.extend((0..dice.below(3000)).map(|_| dice.byte()).collect::<Vec<_>>());
            bytes.extend(b"$#00");
            // However that ended, the next question has an answer.
            bytes.extend(packet(&format!("qRcmd,{:02x}", b'#')));
            client.send(&bytes);
            let told = format!("O{}", hex("\"#\" is not a command; see monitor help\n"));
            loop {
                let answer = client.receive();
                assert!(!client.1, "it hung up in round {round}, seed {seed}");
                if answer == told {
                    break;
                }
            }
            assert_eq!(client.receive(), "OK", "round {round}, seed {seed}");
        }
    });
    assert_eq!(ended, Ended::Lost);
}

fn hex(text: &str) -> String {
    text.bytes().map(|byte| format!("{byte:02x}")).collect()
}
