//! The `monitor` commands: moving in time by other means than running.

use crate::stub::Stub;
use crate::{ConsoleLine, Place, Target, TargetError};
use base::GuestPhys;
use std::fmt::Write;

/// Lines that `monitor console` shows when not told how many, and at most.
const CONSOLE_LINES: usize = 20;
const CONSOLE_LINES_MAX: usize = 10_000;
/// Bytes that `monitor xp` shows when not told how many, and at most.
const DUMP_BYTES: usize = 64;
const DUMP_BYTES_MAX: usize = 1 << 16;

const HELP: &str = "\
when                    position and guest time, and how far from the ends of history
seek POS                go there: a count (1234567, 0x12d687), a share (50%), guest time (12.5s),
                        start, end, or a bookmark's name
seek console \"TEXT\"     go to where the first console line with TEXT was printed
console [N]             the last N lines of the console up to here, with their positions
checkpoints             where the checkpoints are
bookmark NAME           name this position; the name is kept in the recording
bookmarks               the names
cpus                    what each processor is doing
info                    the recording and its machine
branch                  leave history here: registers and memory can be written, and running goes on
                        into a future without input from outside; history stays as it is
history                 give the branch up, and be back in history where it began
type \"TEXT\"             in a branch: type this at the console; \\n ends a line
physical on|off         take the addresses of memory commands as physical ones, or virtual again
xp ADDRESS [BYTES]      show physical memory
help                    this text
After a seek, gdb must forget what it knows: `maintenance flush register-cache` (the gdb that
`hindsight debug` starts does that by itself).
";

/// Carries out a command; what gdb is to print.
pub(crate) fn execute(stub: &mut Stub<'_>, command: &str) -> String {
    let mut text = match run(stub, command.trim()) {
        Ok(text) => text,
        Err(error) => format!("{error}\n"),
    };
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

fn run(stub: &mut Stub<'_>, command: &str) -> Result<String, TargetError> {
    let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
    let rest = rest.trim();
    let target = &mut *stub.target;
    match (name, rest) {
        ("when", "") => Ok(when(target)),
        ("seek", place) => seek(target, place),
        ("console", count) => console(target, count),
        ("checkpoints", "") => Ok(checkpoints(target)),
        ("bookmark", "") => Err(TargetError::Failed("bookmark needs a name".into())),
        ("bookmark", name) => {
            let name = unquote(name);
            target.set_bookmark(name)?;
            Ok(format!("{} is now \"{name}\"", target.position()))
        }
        ("bookmarks", "") => bookmarks(target),
        ("cpus", "") => Ok(cpus(target)),
        ("info", "") => Ok(info(target)),
        ("branch", "") => {
            target.begin_branch()?;
            Ok(format!("a branch begins at {}; monitor history gives it up", place(target)))
        }
        ("history", "") if !target.writable() => Err(TargetError::Failed("this is history".into())),
        ("history", "") => {
            target.end_branch()?;
            Ok(format!("back in history at {}", place(target)))
        }
        ("type", "") => Err(TargetError::Failed("type needs a text".into())),
        ("type", text) => {
            let bytes = unescape(unquote(text));
            target.type_bytes(&bytes)?;
            Ok(format!("{} bytes typed", bytes.len()))
        }
        ("physical", "on" | "off") => {
            stub.physical = rest == "on";
            Ok(format!("addresses are {} now", if stub.physical { "physical" } else { "virtual" }))
        }
        ("xp", rest) => dump(target, rest),
        ("help" | "", "") => Ok(HELP.to_owned()),
        _ => target.extra_command(command).unwrap_or_else(|| {
            Err(TargetError::Failed(format!("\"{command}\" is not a command; see monitor help")))
        }),
    }
}

fn unquote(text: &str) -> &str {
    text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text)
}

/// Where a position is, as a line of text.
fn place(target: &dyn Target) -> String {
    let (at, start, end) = (target.position(), target.start(), target.end());
    let share = match end.since(start) {
        0 => String::new(),
        all => format!(", {:.2}%", 100.0 * at.since(start) as f64 / all as f64),
    };
    format!("position {at} ({:#x}){share}, guest time {}", at.count(), target.time())
}

fn when(target: &mut dyn Target) -> String {
    format!("{}; history is {} to {}", place(target), target.start(), target.end())
}

fn seek(target: &mut dyn Target, rest: &str) -> Result<String, TargetError> {
    let mut found = String::new();
    let to = if let Some(text) = rest.strip_prefix("console").filter(|text| !text.trim().is_empty()) {
        let text = unquote(text.trim());
        let line = target
            .find_console(text)?
            .ok_or_else(|| TargetError::Failed(format!("the console never shows a line with \"{text}\"")))?;
        found = format!("{}\n", show_line(&line));
        line.at
    } else {
        rest.parse::<Place>().map_err(TargetError::Failed)?.resolve(target)?
    };
    target.seek(to)?;
    Ok(format!("{found}{}", place(target)))
}

fn show_line(line: &ConsoleLine) -> String {
    // The guest's control characters must not reach the terminal.
    let text: String = line.text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    format!("{:>14}  {text}", line.at.count())
}

fn console(target: &mut dyn Target, count: &str) -> Result<String, TargetError> {
    let count = match count {
        "" => CONSOLE_LINES,
        count => {
            count.parse().map_err(|_| TargetError::Failed(format!("\"{count}\" is not a number of lines")))?
        }
    };
    let lines = target.console(count.min(CONSOLE_LINES_MAX))?;
    if lines.is_empty() {
        return Ok("nothing was printed yet".into());
    }
    Ok(lines.iter().map(|line| show_line(line) + "\n").collect())
}

fn checkpoints(target: &mut dyn Target) -> String {
    let all = target.checkpoints();
    let mut text = String::new();
    for checkpoint in &all {
        let _ = write!(text, "{:>14}", checkpoint.at.count());
        let _ = match checkpoint.disk_bytes {
            Some(bytes) => writeln!(text, "  {:>10} bytes on disk", bytes),
            None => writeln!(text, "  in memory"),
        };
    }
    let _ = writeln!(text, "{} checkpoints", all.len());
    text
}

fn bookmarks(target: &mut dyn Target) -> Result<String, TargetError> {
    let all = target.bookmarks()?;
    if all.is_empty() {
        return Ok("no bookmarks; set one with monitor bookmark NAME".into());
    }
    Ok(all.iter().map(|bookmark| format!("{:>14}  {}\n", bookmark.at.count(), bookmark.name)).collect())
}

fn cpus(target: &mut dyn Target) -> String {
    let mut text = String::new();
    for cpu in 0..target.cpus() {
        let _ = match target.registers(cpu) {
            Ok(registers) => {
                let level = registers.cs & 3;
                let activity = target.activity(cpu);
                writeln!(text, "CPU {cpu}: {activity} at {:#018x}, privilege level {level}", registers.rip)
            }
            Err(error) => writeln!(text, "CPU {cpu}: {error}"),
        };
    }
    text
}

fn info(target: &mut dyn Target) -> String {
    let mut text = when(target) + "\n";
    for (name, value) in target.info() {
        let _ = writeln!(text, "{name}: {value}");
    }
    text += if target.writable() {
        "this is a branch: registers and memory may be changed; monitor history gives it up\n"
    } else {
        "this is history: registers and memory cannot be changed; monitor branch begins a branch here\n"
    };
    text
}

/// A text with `\n`, `\t`, `\r` and `\\` as in C.
fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'\\' => match rest.next() {
                Some(b'n') => b'\n',
                Some(b't') => b'\t',
                Some(b'r') => b'\r',
                Some(other) => other,
                None => b'\\',
            },
            other => other,
        });
    }
    bytes
}

fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

fn dump(target: &mut dyn Target, rest: &str) -> Result<String, TargetError> {
    let wrong = || TargetError::Failed("xp takes an address and a number of bytes".into());
    let mut words = rest.split_whitespace();
    let at = words.next().and_then(number).ok_or_else(wrong)?;
    let bytes = match words.next() {
        None => DUMP_BYTES,
        Some(count) => number(count).and_then(|count| usize::try_from(count).ok()).ok_or_else(wrong)?,
    };
    let mut buffer = vec![0; bytes.clamp(1, DUMP_BYTES_MAX)];
    let count = target.read_physical(GuestPhys(at), &mut buffer)?.min(buffer.len());
    let mut text = String::new();
    for (i, row) in buffer[..count].chunks(16).enumerate() {
        let _ = write!(text, "{:#014x}:", at.wrapping_add(16 * i as u64));
        for byte in row {
            let _ = write!(text, " {byte:02x}");
        }
        text.push('\n');
    }
    Ok(text)
}
