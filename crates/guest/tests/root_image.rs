//! A root image, made from Debian's packages and booted.

mod boot;

use boot::{Boot, small_guest};
use guest::Flavour;
use guest::image::{ImageOptions, is_root, make};
use guest::job::{Job, Mode, Report};
use std::fs::File;

#[test]
fn a_fresh_debian_runs_a_command_and_powers_off() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let disk = folder.path().join("root.img");
    let options = ImageOptions {
        out: disk.clone(),
        bytes: 1 << 30,
        packages: vec!["sqlite3".into()],
        suite: "bookworm".into(),
        mirror: None,
        replace: false,
    };
    make(&options, &mut |line| eprintln!("{line}")).unwrap();
    assert!(is_root(&File::open(&disk).unwrap()));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "something was left behind");

    let guest = small_guest(Flavour::Cloud);
    let script = "cat /proc/1/comm; sqlite3 :memory: 'select 6 * 7'; systemctl --failed --no-legend --plain; \
                  stat -c '%U %a' / /etc /root; touch /written && exit 7";
    let append = "console=ttyS0 quiet loglevel=1 systemd.show_status=false root=/dev/vda rw";
    let job = Job { script: script.to_owned(), mode: Mode::Batch };
    let in_archive = Boot { append, job: Some(job.clone()), input: b"", disk: Some(&disk) }.run(&guest);
    let console = String::from_utf8_lossy(&in_archive.console).into_owned();
    assert_eq!(console, "systemd\n42\nroot 755\nroot 755\nroot 700\n");
    assert_eq!(in_archive.reports, [Report::Ready, Report::Exit(7)]);

    // The same command from the kernel's command line, for guests that boot without our initramfs.
    let append = format!("{append} {}", job.kernel_parameters().unwrap());
    let on_line = Boot { append: &append, job: None, input: b"", disk: Some(&disk) }.run(&guest);
    assert_eq!(String::from_utf8_lossy(&on_line.console), console);
    assert_eq!(on_line.reports, in_archive.reports);
}
