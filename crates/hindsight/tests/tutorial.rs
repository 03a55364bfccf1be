//! The tutorial, as it stands in docs/tutorial.md: the module is built, the guest dies, gdb finds out.

mod support;

use std::path::Path;
use std::process::Stdio;
use support::{Place, in_ci};

#[test]
fn the_last_writer_of_a_broken_list_is_found_as_the_tutorial_says() {
    let Some(place) = Place::new() else { return };
    for tool in ["gdb", "make", "gcc"] {
        if std::process::Command::new(tool).arg("--version").stdout(Stdio::null()).status().is_err() {
            assert!(!in_ci(), "{tool} is missing");
            eprintln!("skipped, {tool} is missing");
            return;
        }
    }
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    let sources = docs.join("tutorial");
    let script = std::fs::read_to_string(sources.join("session.gdb")).unwrap();
    let text = std::fs::read_to_string(docs.join("tutorial.md")).unwrap();
    let shown: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("(gdb) ")).collect();
    assert_eq!(shown, script.lines().collect::<Vec<_>>(), "the tutorial and its script differ");

    let built = place.command(&["guest", "module", sources.to_str().unwrap()]).output().unwrap();
    if !built.status.success() {
        let told = String::from_utf8_lossy(&built.stderr);
        assert!(!in_ci(), "the module is not built: {told}");
        eprintln!("skipped, the module is not built: {told}");
        return;
    }
    let work = sources.join("work.sh");
    let record = ["record", "-o", "./ledger", "--file", "ledger.ko", "--file", work.to_str().unwrap(), "--"];
    let recorded = place.hindsight(&[&record[..], &["sh", "work.sh"]].concat(), 3);
    let console = String::from_utf8_lossy(&recorded.stdout);
    assert!(
        console.contains("Fatal exception in interrupt") && !console.contains("all is well"),
        "{console}"
    );

    let output = place
        .command(&["debug", "./ledger", "--symbols", "ledger.ko"])
        .stdin(std::fs::File::open(sources.join("session.gdb")).unwrap())
        .output()
        .unwrap();
    let told = [output.stdout, output.stderr].concat();
    let told = String::from_utf8_lossy(&told).replace('\n', " ");
    let words: Vec<&str> = told.split_whitespace().collect();
    let told = words.join(" ");
    for expected in [
        // Where it died: through modules, an exception and an interrupt.
        "in pvpanic_panic_notify ()",
        "in panic ()",
        "<signal handler called> #8 ledger_audit (timer=",
        "in call_timer_fn ()",
        "account = 0xffff",
        "total = 100",
        // The list when the audit begins.
        "$1 = {name = \"alice\\000",
        "$2 = {name = \"robert-of-huntin\"",
        // The last writer.
        "Hardware watchpoint 2: -location",
        "66 account->name[i] = new[i];",
        "in ledger_write (",
        "i = 20",
        // The cause, and the remedy.
        "\"robert-of-huntingdon\"",
        "is now \"the-cause\"",
        "a branch begins at position",
        "the guest has powered off; the branch ends here",
        "all is well",
        "back in history at position",
    ] {
        assert!(told.contains(expected), "{expected} is missing:\n{told}");
    }
}
