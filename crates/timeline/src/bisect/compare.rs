//! What two machine states differ in.

use crate::ReplayError;
use crate::capture::Capture;
use base::PAGE_SIZE;
use disk::{Content, DiskError, Snapshot};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// Most differing pages whose bytes are shown, and bytes shown of each.
const PAGES_SHOWN: usize = 16;
const BYTES_SHOWN: usize = 16;
/// Most lines shown of one device, and of a kind of difference in a text.
const LINES_SHOWN: usize = 12;

/// A state as people read it.
pub struct Shown {
    /// Registers by name.
    pub registers: Vec<(String, String)>,
    /// Devices by kind, one field a line.
    pub devices: Vec<(String, String)>,
    /// What each processor executes next.
    pub next: Vec<Next>,
}

/// An instruction that is about to be executed.
pub struct Next {
    /// Its linear address.
    pub address: u64,
    /// Its disassembly and bytes.
    pub text: String,
    /// The privilege level.
    pub privilege: u8,
    /// The processor's registers.
    pub registers: Vec<(String, String)>,
}

impl Shown {
    /// Which processor has executed something between `self` and `later`.
    pub fn mover(&self, later: &Shown) -> usize {
        let counts = |(name, _): &&(String, String)| name != "retired";
        let moved =
            |(a, b): (&Next, &Next)| !a.registers.iter().filter(counts).eq(b.registers.iter().filter(counts));
        self.next.iter().zip(&later.next).position(moved).unwrap_or(0)
    }
}

/// One thing that differs, on both sides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// What.
    pub what: String,
    /// On the first side.
    pub first: String,
    /// On the second side.
    pub second: String,
}

/// All that two states differ in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Differences {
    /// Registers.
    pub registers: Vec<Difference>,
    /// Fields of devices, the clock among them.
    pub devices: Vec<Difference>,
    /// Bytes of the first pages of memory that differ.
    pub memory: Vec<Difference>,
    /// How many pages of memory differ.
    pub pages: usize,
    /// Blocks of disks.
    pub disks: Vec<Difference>,
}

impl Differences {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.registers.is_empty() && self.devices.is_empty() && self.pages == 0 && self.disks.is_empty()
    }

    /// Between two captures that have been shown.
    ///
    /// # Errors
    /// When a written block cannot be read back.
    pub(super) fn between(a: (&Capture, &Shown), b: (&Capture, &Shown)) -> Result<Self, ReplayError> {
        let (memory, pages) = memory(a.0, b.0)?;
        Ok(Self {
            registers: named(&a.1.registers, &b.1.registers),
            devices: devices(&a.1.devices, &b.1.devices),
            memory,
            pages,
            disks: disks(a.0, b.0)?,
        })
    }
}

fn named(a: &[(String, String)], b: &[(String, String)]) -> Vec<Difference> {
    let pairs = a.iter().zip(b).filter(|(a, b)| a.1 != b.1);
    pairs.map(|(a, b)| difference(a.0.clone(), a.1.clone(), b.1.clone())).collect()
}

fn difference(what: String, first: String, second: String) -> Difference {
    Difference { what, first, second }
}

fn devices(a: &[(String, String)], b: &[(String, String)]) -> Vec<Difference> {
    let mut list = Vec::new();
    for ((kind, a), (_, b)) in a.iter().zip(b) {
        let (a, b): (Vec<&str>, Vec<&str>) = (a.lines().collect(), b.lines().collect());
        let text = |line: &&str| line.trim().trim_end_matches(',').to_owned();
        if a.len() == b.len() {
            let pairs = a.iter().zip(&b).filter(|(a, b)| a != b).take(LINES_SHOWN);
            list.extend(pairs.map(|(a, b)| difference(kind.clone(), text(a), text(b))));
            continue;
        }
        // Something is longer on one side: what both begin and end with is left out.
        let begin = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
        let rest = a.len().min(b.len()) - begin;
        let end = a.iter().rev().zip(b.iter().rev()).take(rest).take_while(|(a, b)| a == b).count();
        let middle = |lines: &[&str]| {
            let lines = &lines[begin..lines.len() - end];
            lines.iter().take(LINES_SHOWN).map(text).collect::<Vec<_>>().join(" ")
        };
        list.push(difference(kind.clone(), middle(&a), middle(&b)));
    }
    list
}

fn memory(a: &Capture, b: &Capture) -> Result<(Vec<Difference>, usize), recording::Error> {
    let mut differing = Vec::new();
    a.ram.differences(&b.ram, &mut |page| differing.push(page));
    let (mut first, mut second) = ([0; PAGE_SIZE], [0; PAGE_SIZE]);
    let mut list = Vec::new();
    let mut pages = 0;
    for page in differing {
        a.ram.read(page, &mut first)?;
        b.ram.read(page, &mut second)?;
        let (a, b) = (&first, &second);
        let Some(first) = a.iter().zip(b).position(|(a, b)| a != b) else { continue };
        pages += 1;
        if list.len() >= PAGES_SHOWN {
            continue;
        }
        let count = a.iter().zip(b).filter(|(a, b)| a != b).count();
        let start = first / BYTES_SHOWN * BYTES_SHOWN;
        let bytes = |page: &[u8; PAGE_SIZE]| {
            let bytes = &page[start..start + BYTES_SHOWN];
            bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
        };
        let what = format!("page {page:#x} at {start:#05x} ({count} bytes of the page differ)");
        list.push(difference(what, bytes(a), bytes(b)));
    }
    Ok((list, pages))
}

/// What stands in each block that was written, as far as a comparison needs it.
fn blocks(snapshot: &Snapshot) -> Result<BTreeMap<u64, String>, DiskError> {
    let mut found = BTreeMap::new();
    for change in snapshot.changes_since(None) {
        let text = match &change.content {
            Content::Base => continue,
            Content::Zero => "discarded".to_owned(),
            Content::Data(block) => {
                let mut bytes = [0; disk::BLOCK_SIZE];
                block.read(0, &mut bytes)?;
                format!("blake3 {}", &blake3::hash(&bytes).to_hex()[..16])
            }
        };
        (change.first..change.first + change.blocks).for_each(|block| {
            found.insert(block, text.clone());
        });
    }
    Ok(found)
}

fn disks(a: &Capture, b: &Capture) -> Result<Vec<Difference>, DiskError> {
    let mut list = Vec::new();
    for (n, (a, b)) in a.disks.iter().zip(&b.disks).enumerate() {
        if a.hash()? == b.hash()? {
            continue;
        }
        let (a, b) = (blocks(a)?, blocks(b)?);
        let all = a.keys().chain(b.keys().filter(|block| !a.contains_key(block)));
        for block in all.filter(|block| a.get(block) != b.get(block)).take(LINES_SHOWN) {
            let text = |blocks: &BTreeMap<u64, String>| {
                blocks.get(block).cloned().unwrap_or_else(|| "as in the image".to_owned())
            };
            list.push(difference(format!("disk {n} block {block}"), text(&a), text(&b)));
        }
    }
    Ok(list)
}

impl fmt::Display for Differences {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds = [
            ("register", &self.registers),
            ("device", &self.devices),
            ("memory", &self.memory),
            ("", &self.disks),
        ];
        for (kind, list) in kinds {
            for difference in list {
                writeln!(f, "  {kind} {}", difference.what)?;
                writeln!(f, "    first   {}", difference.first)?;
                writeln!(f, "    second  {}", difference.second)?;
            }
        }
        if self.pages > self.memory.len() {
            writeln!(f, "  memory: {} pages differ in all", self.pages)?;
        }
        if self.is_empty() {
            writeln!(f, "  nothing")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(text: &str) -> Vec<(String, String)> {
        vec![("uart".to_owned(), text.to_owned())]
    }

    #[test]
    fn differing_fields_are_paired_and_a_longer_list_is_shown_as_a_whole() {
        let same = devices(&device("a: 1,\nb: 2\n"), &device("a: 1,\nb: 2\n"));
        assert!(same.is_empty());
        let paired = devices(&device("a: 1,\nb: 2\n"), &device("a: 1,\nb: 3\n"));
        assert_eq!(paired, [difference("uart".into(), "b: 2".into(), "b: 3".into())]);
        let longer = devices(&device("[\n  1,\n]\nz"), &device("[\n  1,\n  2,\n]\nz"));
        assert_eq!(longer, [difference("uart".into(), String::new(), "2".into())]);
    }
}
