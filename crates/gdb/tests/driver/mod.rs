//! A real gdb, driven by a script.

use crate::toy::Toy;
use gdb::{Address, Ended, Listener, serve, startup_script};
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;

/// Whether gdb is there; where it must be, its absence is a failure.
pub fn have_gdb() -> bool {
    let there = Command::new("gdb").arg("--version").output().is_ok_and(|output| output.status.success());
    assert!(there || std::env::var("CI").as_deref() != Ok("true"), "gdb must be installed in CI");
    if !there {
        eprintln!("skipped: gdb is not installed");
    }
    there
}

pub struct Talk {
    /// What gdb printed.
    pub text: String,
    pub errors: String,
    pub ended: Ended,
    pub notices: Vec<String>,
}

/// Runs commands in gdb against a toy, as if typed: an error in one does not keep the next from running.
pub fn talk(toy: &mut Toy, commands: &str) -> Talk {
    let folder = tempfile::tempdir().expect("a folder");
    let listener = Listener::bind(&Address::Tcp("127.0.0.1:0".into())).expect("a port");
    let script = folder.path().join("script.gdb");
    let start = startup_script(&listener.address().expect("an address"), &[]);
    std::fs::write(&script, format!("{start}set confirm off\nset prompt\n")).expect("a script");
    let typed = folder.path().join("typed.gdb");
    // An empty line would repeat the last command.
    std::fs::write(&typed, format!("{}\n", commands.trim_end())).expect("commands");
    let typed = Stdio::from(std::fs::File::open(typed).expect("commands"));
    let output: Mutex<Option<Output>> = Mutex::new(None);
    let stopper = listener.stopper();
    let mut notices = Vec::new();
    let ended = std::thread::scope(|scope| {
        let output = &output;
        scope.spawn(move || {
            let mut gdb = Command::new("timeout");
            gdb.args(["120", "gdb", "-nx", "-q", "-x"]).arg(script).env("LC_ALL", "C").stdin(typed);
            let done = gdb.output().expect("gdb runs");
            *output.lock().expect("not poisoned") = Some(done);
            stopper.stop();
        });
        serve(&listener, toy, &mut |text| notices.push(text.to_owned())).expect("a session")
    });
    let output = output.into_inner().expect("not poisoned").expect("gdb ran");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Talk { text: text(&output.stdout), errors: text(&output.stderr), ended, notices }
}
