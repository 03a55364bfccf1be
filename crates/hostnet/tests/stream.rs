//! `--net unix=PATH`: a peer that speaks QEMU's framing, well or badly.

mod support;

use hostnet::{FRAME_BYTES, Net, NetError, Network};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};
use support::{PATIENCE, answer, bell, eventually};

struct Rig {
    network: Network,
    rung: Receiver<()>,
    peer: UnixStream,
    _folder: tempfile::TempDir,
}

fn rig() -> Rig {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a socket");
    let listener = UnixListener::bind(&path).unwrap();
    let (wake, rung) = bell();
    let network = Network::open(&Net::Unix(path), &[], None, wake).unwrap().unwrap();
    let (peer, _) = listener.accept().unwrap();
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    Rig { network, rung, peer, _folder: folder }
}

fn framed(frame: &[u8]) -> Vec<u8> {
    [&(frame.len() as u32).to_be_bytes()[..], frame].concat()
}

fn read_frame(mut stream: &UnixStream) -> Vec<u8> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).unwrap();
    let mut frame = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut frame).unwrap();
    frame
}

/// Waits for the end of the network, as a machine that is only woken would learn of it.
fn failure(rig: &Rig) -> String {
    let end = Instant::now() + PATIENCE;
    while rig.network.failure().is_none() {
        rig.rung.recv_timeout(end.saturating_duration_since(Instant::now())).expect("woken at the failure");
    }
    rig.network.failure().unwrap().to_string()
}

#[test]
fn frames_pass_both_ways_whole_however_they_are_cut() {
    let mut rig = rig();
    let frames = [vec![1; *FRAME_BYTES.start()], vec![2; 1514], vec![3; *FRAME_BYTES.end()]];
    for frame in &frames {
        rig.network.send(frame);
        assert_eq!(&read_frame(&rig.peer), frame);
    }
    for frame in &frames {
        let bytes = framed(frame);
        for part in [&bytes[..2], &bytes[2..5], &bytes[5..]] {
            rig.peer.write_all(part).unwrap();
            std::thread::sleep(Duration::from_millis(2));
        }
        assert_eq!(&answer(&rig.network, &rig.rung, |frame| Some(frame.to_vec())), frame);
    }
    let counts = rig.network.counts();
    assert_eq!((counts.sent_frames, counts.received_frames), (3, 3));
    assert_eq!((counts.dropped_frames, counts.odd_frames), (0, 0));
}

#[test]
fn what_can_be_no_frame_is_counted_and_goes_nowhere() {
    let mut rig = rig();
    rig.network.send(&vec![0; FRAME_BYTES.end() + 1]);
    rig.network.send(&[0; 13]);
    rig.network.send(&[9; 60]);
    assert_eq!(read_frame(&rig.peer), [9; 60]);
    rig.peer.write_all(&[framed(&[]), framed(&[1; 13]), framed(&[8; 14])].concat()).unwrap();
    assert_eq!(answer(&rig.network, &rig.rung, |frame| Some(frame.to_vec())), [8; 14]);
    assert_eq!(rig.network.counts().odd_frames, 4);
}

#[test]
fn an_impossible_length_ends_the_network_and_what_came_before_it_is_received() {
    let mut rig = rig();
    rig.peer.write_all(&[&framed(&[5; 60])[..], b"HTTP/1.1 400 Bad Request"].concat()).unwrap();
    let message = failure(&rig);
    assert!(message.contains("announced a frame of 1213486160 bytes, the most is 65549"), "{message}");
    assert_eq!(rig.network.receive(), Some(vec![5; 60]));
    assert_eq!(rig.network.receive(), None);
    rig.network.send(&[0; 60]);
    assert_eq!(rig.network.counts().dropped_frames, 1);
}

#[test]
fn a_peer_that_leaves_is_reported_with_where_it_left() {
    let rig_between = rig();
    rig_between.peer.shutdown(Shutdown::Both).unwrap();
    assert!(failure(&rig_between).ends_with("a socket closed the network connection"));

    let mut rig_within = rig();
    rig_within.peer.write_all(&framed(&[0; 100])[..50]).unwrap();
    rig_within.peer.shutdown(Shutdown::Write).unwrap();
    let message = failure(&rig_within);
    assert!(message.ends_with("within a frame: 54 bytes are missing"), "{message}");
}

#[test]
fn a_peer_that_does_not_read_costs_frames_but_never_time() {
    let rig = rig();
    let frame = |i: u32| [&[0; 14][..], &i.to_be_bytes(), &[0; 9000]].concat();
    let begin = Instant::now();
    let mut offered = 0;
    while rig.network.counts().dropped_frames < 100 {
        rig.network.send(&frame(offered));
        offered += 1;
        assert!(begin.elapsed() < PATIENCE, "nothing is dropped: the queue has no bound");
    }
    let counts = rig.network.counts();
    assert_eq!(counts.sent_frames + counts.dropped_frames, u64::from(offered));
    // Nothing that was taken gets lost, reordered or torn.
    for i in 0..counts.sent_frames as u32 {
        assert_eq!(read_frame(&rig.peer), frame(i), "{i}");
    }
    rig.network.send(&frame(offered));
    assert_eq!(read_frame(&rig.peer), frame(offered));
}

#[test]
fn a_guest_that_does_not_read_stops_the_peer_and_loses_nothing() {
    const FRAMES: u32 = 20_000;
    let rig = rig();
    let mut peer = rig.peer.try_clone().unwrap();
    let frame = |i: u32| [&[0; 14][..], &i.to_be_bytes(), &[0; 1000]].concat();
    let writer =
        std::thread::spawn(move || (0..FRAMES).for_each(|i| peer.write_all(&framed(&frame(i))).unwrap()));
    // It stands still well before the end, then goes on as the guest reads.
    eventually("frames arrive", || rig.network.counts().received_frames > 1000);
    std::thread::sleep(Duration::from_millis(300));
    let stopped_at = rig.network.counts().received_frames;
    assert!(stopped_at < 8000, "{stopped_at} frames taken in");
    assert!(!writer.is_finished());
    let mut next = 0;
    while next < FRAMES {
        let got = answer(&rig.network, &rig.rung, |frame| Some(frame.to_vec()));
        assert_eq!(got, frame(next));
        next += 1;
    }
    writer.join().unwrap();
}

#[test]
fn dropping_the_network_closes_the_connection_at_once() {
    let Rig { network, mut peer, .. } = rig();
    let begin = Instant::now();
    drop(network);
    assert_eq!(peer.read(&mut [0; 10]).unwrap(), 0);
    assert!(begin.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_socket_that_is_not_there_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("none");
    let error = Network::open(&Net::Unix(path.clone()), &[], None, || ()).unwrap_err();
    assert!(matches!(error, NetError::Unix { .. }));
    let begin = format!("--net unix={}: No such file", path.display());
    assert!(error.to_string().starts_with(&begin), "{error}");
}
