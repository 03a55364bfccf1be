//! A real gdb debugs the toy machine, forwards and backwards.

mod driver;
mod toy;

use driver::{Talk, have_gdb, talk};
use gdb::Ended;
use std::fmt::Write;
use toy::{CELL, CODE, DATA, PHYSICAL, SUBROUTINE, Toy};

const LENGTH: usize = 1000;

/// The lines that a script printed as "> …".
fn said(talk: &Talk) -> Vec<&str> {
    let said: Vec<_> = talk.text.lines().filter_map(|line| line.strip_prefix("> ")).collect();
    assert!(!said.is_empty(), "{}\n{}", talk.text, talk.errors);
    said
}

const WHERE: &str = "printf \"> %#lx\\n\", $rip\n";

/// The positions at which an instruction at `address` is next.
fn visits(toy: &Toy, address: u64) -> Vec<usize> {
    (0..toy.history.len()).filter(|at| toy.history[*at].registers.rip == address).collect()
}

/// The positions of the instructions that write the cell.
fn writes(toy: &Toy) -> Vec<usize> {
    let is_write = |at: &usize| {
        toy.history[*at].access.as_ref().is_some_and(|access| access.at == CELL && access.value.is_some())
    };
    (0..toy.history.len()).filter(is_write).collect()
}

#[test]
fn stepping_forth_and_back_comes_to_the_same_places() {
    if !have_gdb() {
        return;
    }
    let script = format!("stepi\n{WHERE}stepi 3\n{WHERE}reverse-stepi\n{WHERE}reverse-stepi 3\n{WHERE}");
    let talk = talk(&mut Toy::new(LENGTH), &script);
    assert_eq!(said(&talk), ["0x1004", "0x1010", "0x100c", "0x1000"]);
}

#[test]
fn breakpoints_of_both_kinds_are_hit_in_both_directions() {
    if !have_gdb() {
        return;
    }
    let mut toy = Toy::new(LENGTH);
    let calls = visits(&toy, SUBROUTINE);
    let ends = visits(&toy, SUBROUTINE + 0x18);
    for (command, kind) in [("break", "Breakpoint"), ("hbreak", "Hardware assisted breakpoint")] {
        let script = format!(
            "{command} *{SUBROUTINE:#x}\ncontinue\n{WHERE}printf \"> %ld\\n\", $rax\ncontinue\n\
             printf \"> %ld\\n\", $rax\nreverse-continue\nprintf \"> %ld\\n\", $rax\n\
             delete\n{command} *{:#x}\ncontinue\nprintf \"> %ld\\n\", $rax\n",
            SUBROUTINE + 0x18
        );
        let talk = talk(&mut toy, &script);
        let rax = |at: usize| toy.history[at].registers.gpr[0].to_string();
        let expected =
            [format!("{SUBROUTINE:#x}"), rax(calls[0]), rax(calls[1]), rax(calls[0]), rax(ends[0])];
        assert_eq!(said(&talk), expected);
        assert!(talk.text.contains(kind), "{}", talk.text);
        gdb::Target::seek(&mut toy, base::Position::START).expect("the start");
    }
}

#[test]
fn a_watchpoint_finds_the_last_writer() {
    if !have_gdb() {
        return;
    }
    let mut toy = Toy::new(LENGTH);
    let writes = writes(&toy);
    let (last, before) = (writes[writes.len() - 1], writes[writes.len() - 2]);
    let script = format!(
        "monitor seek end\nwatch *(long*){CELL:#x}\nreverse-continue\n{WHERE}\
         printf \"> %ld\\n\", *(long*){CELL:#x}\ncontinue\n{WHERE}printf \"> %ld\\n\", *(long*){CELL:#x}\n"
    );
    let talk = talk(&mut toy, &script);
    let rip = |at: usize| format!("{:#x}", toy.history[at].registers.rip);
    let value = |at: usize| (at + 1).to_string();
    assert_eq!(said(&talk), [rip(last), value(before), rip(last + 1), value(last)]);
    assert!(
        talk.text.contains(&format!("Old value = {}\nNew value = {}", last + 1, before + 1)),
        "{}",
        talk.text
    );
}

#[test]
fn watchpoints_are_for_reads_and_accesses_too_and_of_any_length() {
    if !have_gdb() {
        return;
    }
    let mut toy = Toy::new(LENGTH);
    let first = |wanted: &dyn Fn(&toy::Access) -> bool| {
        (0..LENGTH).find(|at| toy.history[*at].access.as_ref().is_some_and(wanted)).expect("an access")
    };
    let read = first(&|access| access.value.is_none());
    let write = first(&|access| access.at < CELL);
    let script = format!(
        "rwatch *(long*){CELL:#x}\ncontinue\nprintf \"> %ld %#lx\\n\", $rax, $rip\ndelete\nmonitor seek 0\n\
         awatch *(char(*)[200]){DATA:#x}\ncontinue\nprintf \"> %ld %#lx\\n\", $rax, $rip\n"
    );
    let talk = talk(&mut toy, &script);
    let place = |at: usize| {
        let registers = &toy.history[at].registers;
        format!("{} {:#x}", registers.gpr[0], registers.rip)
    };
    assert_eq!(said(&talk), [place(read + 1), place(write + 1)]);
    assert!(talk.text.contains("Hardware read watchpoint"), "{}", talk.text);
    assert!(talk.text.contains("Hardware access (read/write) watchpoint"), "{}", talk.text);
}

#[test]
fn history_has_two_ends() {
    if !have_gdb() {
        return;
    }
    let script = format!("reverse-continue\n{WHERE}continue\n{WHERE}stepi\n{WHERE}reverse-stepi\n{WHERE}");
    let mut toy = Toy::new(LENGTH);
    let talk = talk(&mut toy, &script);
    let rip = |at: usize| format!("{:#x}", toy.history[at].registers.rip);
    assert_eq!(said(&talk), [rip(0), rip(LENGTH), rip(LENGTH), rip(LENGTH - 1)]);
    assert_eq!(talk.text.matches("No more reverse-execution history").count(), 3, "{}", talk.text);
}

/// gdb 13 hangs when the step off a breakpoint is answered with an end of history.
#[test]
fn the_ends_of_history_may_have_breakpoints() {
    if !have_gdb() {
        return;
    }
    let toy = Toy::new(LENGTH);
    let rip = |at: usize| format!("{:#x}", toy.history[at].registers.rip);
    for command in ["break", "hbreak"] {
        let script = format!(
            "{command} *$pc\nreverse-continue\n{WHERE}stepi\n{WHERE}reverse-stepi\nreverse-stepi\n{WHERE}delete\n\
             monitor seek end\n{command} *$pc\ncontinue\n{WHERE}reverse-stepi\n{WHERE}stepi\nstepi\n{WHERE}"
        );
        let talk = talk(&mut Toy::new(LENGTH), &script);
        let expected = [0, 1, 0, LENGTH, LENGTH - 1, LENGTH].map(rip);
        assert_eq!(said(&talk), expected, "{}", talk.text);
        let told = talk.text.matches("No more reverse-execution history").count();
        assert!(told >= 2, "both runs tell of the end:\n{}", talk.text);
    }
}

#[test]
fn every_register_of_the_machine_can_be_seen() {
    if !have_gdb() {
        return;
    }
    let script = "monitor seek 900\nprintf \"> %#lx %#lx %#lx\\n\", $fs_base, $gs_base, $k_gs_base\n\
                  printf \"> %#lx %#lx %#x %#x\\n\", $cr3, (long)$cr0, $cs, $mxcsr\n\
                  printf \"> %.1f %#x\\n\", $st0, $fctrl\n\
                  printf \"> %#lx %#lx\\n\", $xmm3.v2_int64[1], $ymm3.v4_int64[3]\n\
                  info registers\np $efer\n";
    let mut toy = Toy::new(LENGTH);
    let talk = talk(&mut toy, script);
    let byte = u64::from(toy.history[900].registers.ymm[3][0]) * 0x0101_0101_0101_0101;
    assert_ne!(byte, 0);
    let vector = format!("{byte:#x} {byte:#x}");
    let expected =
        ["0x112233445566 0xffff888000001000 0x77", "0x12345000 0x80050033 0x10 0x1f80", "1.0 0x37f", &vector];
    assert_eq!(said(&talk), expected);
    assert!(talk.text.contains("[ SCE LME LMA NXE ]"), "{}", talk.text);
    assert!(talk.text.contains("[ PE MP ET NE WP AM PG ]"), "{}", talk.text);
}

#[test]
fn memory_is_read_in_both_address_spaces_and_history_refuses_writes() {
    if !have_gdb() {
        return;
    }
    let script = format!(
        "monitor seek end\nprintf \"> %ld\\n\", *(long*){CELL:#x}\nset var *(long*){CELL:#x} = 1\nset var $rax = 7\n\
         printf \"> %ld\\n\", *(long*){CELL:#x}\nmonitor physical on\nprintf \"> %ld\\n\", *(long*){:#x}\n\
         monitor xp {:#x} 8\nx/1xb 0x20000\n",
        CELL + PHYSICAL,
        CELL + PHYSICAL
    );
    let mut toy = Toy::new(LENGTH);
    let value = (writes(&toy).last().expect("a write") + 1).to_string();
    let talk = talk(&mut toy, &script);
    assert_eq!(said(&talk), [&value; 3]);
    assert!(talk.errors.contains("history cannot be changed: go live"), "{}", talk.errors);
    assert!(talk.errors.contains("Cannot access memory at address 0x20000"), "{}", talk.errors);
    assert_eq!(talk.notices.len(), 2, "{:?}", talk.notices);
}

#[test]
fn a_branch_takes_writes() {
    if !have_gdb() {
        return;
    }
    let mut toy = Toy::new(LENGTH);
    toy.branch = true;
    let script = format!(
        "set var *(long*){CELL:#x} = 0x23242a7d\nset var $rax = 77\nset var $ymm2.v4_int64[3] = 5\nset var $cr3 = 0x5000\n\
         maintenance flush register-cache\n\
         printf \"> %#lx %ld %ld %#lx\\n\", *(long*){CELL:#x}, $rax, $ymm2.v4_int64[3], $cr3\n"
    );
    assert_eq!(said(&talk(&mut toy, &script)), ["0x23242a7d 77 5 0x5000"]);
}

#[test]
fn monitor_commands_move_and_tell() {
    if !have_gdb() {
        return;
    }
    let mut toy = Toy::new(LENGTH);
    let script = "monitor seek 0x100\nmonitor when\nmonitor bookmark here and now\nmonitor seek 25%\nmonitor when\n\
                  monitor seek 0.3s\nmonitor when\nmonitor seek here and now\nmonitor bookmarks\nmonitor seek end\n\
                  monitor when\nmonitor console 2\nmonitor seek console \"line 3 of\"\nmonitor checkpoints\n\
                  monitor cpus\nmonitor info\nmonitor seek 1001\nmonitor nonsense\nmonitor seek nowhere\n\
                  info threads\n";
    let talk = talk(&mut toy, script);
    for expected in [
        "position 256 (0x100), 25.60%",
        "256 is now \"here and now\"",
        "position 250 (0xfa)",
        "position 300 (0x12c)",
        "           256  here and now",
        "position 1000 (0x3e8), 100.00%, guest time 1.000000 s; history is 0 to 1000",
        "           900  line 9 of the console [2J\n          1000  line 10 of",
        "           300  line 3 of",
        "           500        4096 bytes on disk",
        "CPU 0: running at",
        "machine: a toy",
        "cannot be changed",
        "1001 is outside of history, which is 0 to 1000",
        "\"nonsense\" is not a command; see monitor help",
        "there is no bookmark \"nowhere\"",
    ] {
        assert!(talk.errors.contains(expected), "{expected}\n{}", talk.errors);
    }
    assert!(talk.text.contains("CPU#0 running"), "{}", talk.text);
}

#[test]
fn detaching_and_killing_end_the_session() {
    if !have_gdb() {
        return;
    }
    assert_eq!(talk(&mut Toy::new(LENGTH), "detach").ended, Ended::Detached);
    assert_eq!(talk(&mut Toy::new(LENGTH), "kill").ended, Ended::Killed);
    assert_eq!(talk(&mut Toy::new(LENGTH), "disconnect").ended, Ended::Lost);
}

#[test]
fn ten_thousand_breakpoints_do_not_hurt() {
    if !have_gdb() {
        return;
    }
    let mut toy = Toy::new(LENGTH);
    let mut script = String::new();
    for i in 0..10_000 {
        let _ = writeln!(script, "break *{:#x}", 0x2000 + i);
    }
    let _ = write!(script, "break *{SUBROUTINE:#x}\ncontinue\n{WHERE}reverse-continue\n{WHERE}");
    assert_eq!(said(&talk(&mut toy, &script)), [format!("{SUBROUTINE:#x}"), format!("{CODE:#x}")]);
}

#[test]
fn a_watchpoint_compares_with_the_value_where_a_seek_led() {
    if !have_gdb() {
        return;
    }
    let mut toy = Toy::new(LENGTH);
    let first = writes(&toy)[0] + 1;
    let script = format!(
        "watch *(long*){CELL:#x}\ncontinue\nprintf \"> %ld\\n\", *(long*){CELL:#x}\nmonitor seek start\n\
         continue\nprintf \"> %ld\\n\", *(long*){CELL:#x}\n"
    );
    assert_eq!(said(&talk(&mut toy, &script)), [first.to_string(), first.to_string()]);
}
