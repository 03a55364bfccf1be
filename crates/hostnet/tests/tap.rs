//! `--net tap=IF`, in a network namespace of the test's own.

mod support;

use hostnet::{Net, Network};
use std::process::Command;
use support::*;

/// Runs `test` on a thread that is alone in a new network namespace, or skips it.
fn in_new_namespace(test: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // SAFETY: detaches this thread alone from the network; no descriptor is shared by it.
            let alone = unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0;
            let tools = Command::new("ip").arg("-V").output().is_ok();
            if !alone || !tools || !std::path::Path::new("/dev/net/tun").exists() {
                // Ordinary CI has no such rights either, so this is never a failure.
                return eprintln!("skipped: no right to make network namespaces, no ip, or no /dev/net/tun");
            }
            test();
        });
    });
}

fn ip(words: &str) {
    let output = Command::new("ip").args(words.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
}

fn refusal(name: &str) -> String {
    Network::open(&Net::Tap(name.into()), &[], None, || ()).unwrap_err().to_string()
}

#[test]
fn the_host_answers_arp_on_its_tap() {
    in_new_namespace(|| {
        ip("tuntap add t0 mode tap");
        ip("addr add 10.9.8.1/24 dev t0");
        let (wake, rung) = bell();
        let network = Network::open(&Net::Tap("t0".into()), &[], None, wake).unwrap().unwrap();
        // While the interface is down the host refuses frames, which is no reason to end.
        network.send(&arp_request([10, 9, 8, 2], [10, 9, 8, 1]));
        assert_eq!(network.counts().dropped_frames, 1);
        ip("link set t0 up");
        network.send(&arp_request([10, 9, 8, 2], [10, 9, 8, 1]));
        let mac = answer(&network, &rung, |frame| arp_reply(frame, [10, 9, 8, 1]));
        assert_ne!(mac, MAC);
        assert!(refusal("t0").ends_with("another program uses it"));
        ip("link del t0");
        eventually("the interface's end is noticed", || network.failure().is_some());
    });
}

#[test]
fn interfaces_that_cannot_be_used_are_explained() {
    in_new_namespace(|| {
        let message = refusal("nosuch0");
        assert!(
            message.starts_with("--net tap=nosuch0: no interface nosuch0; make one with: ip tuntap"),
            "{message}"
        );
        ip("tuntap add l3 mode tun");
        for name in ["lo", "l3"] {
            assert_eq!(refusal(name), format!("--net tap={name}: not a tap interface with one queue"));
        }
    });
}
