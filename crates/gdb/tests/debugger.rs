//! A real gdb debugs the toy machine, forwards and backwards.

mod toy;

use gdb::Ended;
use toy::driver::{have_gdb, talk};
use toy::{CELL, CODE, DATA, SUBROUTINE, Toy};

/// The lines that a script printed with `echo` or `printf` as "> …".
fn said(text: &str) -> Vec<&str> {
    text.lines().filter_map(|line| line.strip_prefix("> ")).collect()
}

const WHERE: &str = "printf \"> %#lx\\n\", $rip\n";

#[test]
fn stepping_forth_and_back_comes_to_the_same_places() {
    if !have_gdb() {
        return;
    }
    let script = format!("stepi\n{WHERE}stepi 3\n{WHERE}reverse-stepi\n{WHERE}reverse-stepi 3\n{WHERE}");
    let talk = talk(&mut Toy::new(100), &script);
    assert_eq!(said(&talk.text), ["0x1004", "0x1010", "0x100c", "0x1000"], "{}{}", talk.text, talk.errors);
}
#[test]
fn show() {
    let script = "info registers\np $xmm3\np $ymm3\np $fs_base\np $cr3\np $cr0\np $efer\np $st0\nx/4xg 0x8000\ninfo threads\nmonitor when\nmonitor info\nmonitor cpus\nset var *(long*)0x8000=1\nset var $rax=1\nmonitor help\nx/2xg 0x20000\nx/2i $rip\nbt\nbreak *0x1100\nc\nwatch *(long*)0x8040\nc\nrc\nrc\nrc\nrc\nrc\nkill";
    let talk = talk(&mut Toy::new(1000), script);
    println!("{}\n---\n{}\n{:?} {:?}", talk.text, talk.errors, talk.ended, talk.notices);
}
