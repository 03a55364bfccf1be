//! The tutorial, as it stands in docs/tutorial.md: the module is built, the guest dies, gdb finds out.

mod place;

use place::{Place, have, missing};
use std::path::Path;

#[test]
fn the_last_writer_of_a_broken_list_is_found_as_the_tutorial_says() {
    let Some(place) = Place::new() else { return };
    if !["gdb", "make", "gcc"].into_iter().all(have) {
        return;
    }
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    let sources = docs.join("tutorial");
    let script = std::fs::read_to_string(sources.join("session.gdb")).unwrap();
    let text = std::fs::read_to_string(docs.join("tutorial.md")).unwrap();
    let shown: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("(gdb) ")).collect();
    assert_eq!(shown, script.lines().collect::<Vec<_>>(), "the tutorial and its script differ");

    let built = place.hindsight(&["guest", "module", sources.to_str().unwrap()]);
    if built.status != Some(0) {
        return missing(&format!("the module is not built: {}", built.stderr));
    }
    let work = sources.join("work.sh");
    // Without checkpoints the way back begins at power-on, before there are page tables.
    let record = ["record", "-o", "./ledger", "--checkpoint-every", "100000000000", "--file", "ledger.ko"];
    let job = ["--file", work.to_str().unwrap(), "--", "sh", "work.sh"];
    let recorded = place.hindsight(&[&record[..], &job].concat()).with_status(3);
    let console = String::from_utf8_lossy(&recorded.stdout);
    assert!(
        console.contains("Fatal exception in interrupt") && !console.contains("all is well"),
        "{console}"
    );

    let told = place.piped(&["debug", "./ledger", "--symbols", "ledger.ko"], script.as_bytes()).told();
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
