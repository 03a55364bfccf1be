//! A real gdb makes 2,000 random moves, and must always arrive where a model says.

mod driver;
mod toy;

use base::Position;
use dice::Dice;
use driver::{have_gdb, talk};
use std::fmt::Write;
use toy::{CELL, CODE, DATA, LOOP, SUBROUTINE, Toy};

const LENGTH: usize = 3000;
const MOVES: usize = 2000;

/// What is watched: a range, whether reads count, whether writes count.
type Watch = (u64, u64, bool, bool);

struct Model<'a> {
    toy: &'a Toy,
    at: usize,
    breakpoints: Vec<u64>,
    watch: Option<Watch>,
}

impl Model<'_> {
    /// Whether instruction `at` accesses what is watched.
    fn watched(&self, at: usize) -> bool {
        let (Some((start, bytes, reads, writes)), Some(access)) = (self.watch, &self.toy.history[at].access)
        else {
            return false;
        };
        let overlaps = access.at < start + bytes && start < access.at + access.bytes;
        overlaps && if access.value.is_some() { writes } else { reads }
    }

    fn stops(&self, at: usize, instruction: usize) -> bool {
        self.watched(instruction) || self.breakpoints.contains(&self.toy.history[at].registers.rip)
    }

    fn forward(&mut self, most: usize) {
        let end = LENGTH.min(self.at.saturating_add(most));
        self.at = (self.at + 1..=end).find(|at| self.stops(*at, at - 1)).unwrap_or(end);
    }

    fn back(&mut self, most: usize) {
        let end = self.at.saturating_sub(most);
        self.at = (end..self.at).rev().find(|at| self.stops(*at, *at)).unwrap_or(end);
    }

    fn state(&self, memory: &[u8]) -> String {
        let registers = &self.toy.history[self.at].registers;
        let word = u64::from_le_bytes(memory[CELL as usize..][..8].try_into().expect("eight bytes"));
        format!("{:#x} {} {} {word}", registers.rip, registers.gpr[0], registers.gpr[3])
    }
}

/// The next move as gdb commands, carried out in the model too.
fn choose(dice: &mut Dice, model: &mut Model<'_>) -> String {
    match dice.below(12) {
        0 => {
            model.forward(1);
            "stepi\n".into()
        }
        1 => {
            model.back(1);
            "reverse-stepi\n".into()
        }
        2 => {
            let count = 1 + dice.below(30);
            model.forward(count);
            format!("stepi {count}\n")
        }
        3 => {
            let count = 1 + dice.below(30);
            model.back(count);
            format!("reverse-stepi {count}\n")
        }
        4..6 => {
            model.forward(usize::MAX);
            "continue\n".into()
        }
        6..8 => {
            model.back(usize::MAX);
            "reverse-continue\n".into()
        }
        8 => {
            model.at = dice.below(LENGTH + 1);
            format!("monitor seek {}\n", model.at)
        }
        9 => {
            model.breakpoints.clear();
            model.watch = None;
            "delete\n".into()
        }
        10 if model.breakpoints.len() < 4 => {
            let place = dice.below(LOOP as usize + 7) as u64;
            let at = if place < LOOP { CODE + 4 * place } else { SUBROUTINE + 4 * (place - LOOP) };
            if model.breakpoints.contains(&at) {
                return String::new();
            }
            model.breakpoints.push(at);
            let command = if dice.below(2) == 0 { "break" } else { "hbreak" };
            format!("{command} *{at:#x}\n")
        }
        11 if model.watch.is_none() => {
            let (start, bytes) = if dice.below(2) == 0 { (CELL, 8) } else { (DATA, 32) };
            let (command, reads, writes) =
                [("watch", false, true), ("rwatch", true, false), ("awatch", true, true)][dice.below(3)];
            model.watch = Some((start, bytes, reads, writes));
            format!("{command} *(char(*)[{bytes}]){start:#x}\n")
        }
        _ => String::new(),
    }
}

#[test]
fn two_thousand_random_moves_arrive_where_they_should() {
    if !have_gdb() {
        return;
    }
    let seed: u64 = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(4);
    let mut dice = Dice::new(seed, 0);
    let mut toy = Toy::new(LENGTH);
    gdb::Target::seek(&mut toy, Position::from_count(1500)).expect("a place in history");
    let mut model = Model { toy: &toy, at: 1500, breakpoints: Vec::new(), watch: None };
    let (mut script, mut expected) = (String::new(), Vec::new());
    for number in 0..MOVES {
        let commands = choose(&mut dice, &mut model);
        let state = model.state(&model.toy.memory_at(model.at));
        expected.push((format!("{number} {state}"), commands.clone()));
        let _ = writeln!(
            script,
            "{commands}printf \"> {number} %#lx %lu %lu %lu\\n\", $rip, $rax, $rbx, *(unsigned long*){CELL:#x}"
        );
    }
    let talk = talk(&mut toy, &script);
    let said: Vec<_> = talk.text.lines().filter_map(|line| line.strip_prefix("> ")).collect();
    for (i, (state, commands)) in expected.iter().enumerate() {
        let before: String =
            expected[i.saturating_sub(8)..i].iter().map(|(s, c)| format!("{c}  {s}\n")).collect();
        assert_eq!(
            said.get(i),
            Some(&state.as_str()),
            "seed {seed}, after\n{before}{commands}\n{}",
            talk.errors
        );
    }
}
