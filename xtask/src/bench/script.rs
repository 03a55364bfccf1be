//! The shell text of a boot's rows, and the marks it leaves on the console.
//!
//! ```text
//! @hs up                   user space is there
//! @hs begin ROW            the clock starts when this line arrives at the host
//! @hs end ROW STATUS       and stops when this one does
//! @hs sum ROW SUM          what the job wrote, as md5sum sees it
//! @hs error ROW TEXT       what a failed job complained about
//! ```

use super::rows::Row;

/// The first line of every script.
pub const UP: &str = "echo '@hs up'";

/// The text that runs `rows`, where `$B` and `$W` are set.
pub fn rows(rows: &[Row], quick: bool) -> String {
    let mut text = String::new();
    for row in rows.iter().filter(|row| !row.is_boot()) {
        let amount = row.amount[usize::from(quick)].to_string();
        let [setup, command] = [row.setup, row.command].map(|part| part.replace("@N", &amount));
        let name = row.name;
        if !setup.is_empty() {
            text +=
                &format!("{{ {setup}; }} >/dev/null 2>$W/setup || sed 's/^/@hs error {name} /' $W/setup\n");
        }
        text += &format!(
            "echo '@hs begin {name}'\n\
             {{ {command}; }} >$W/out 2>$W/err </dev/null\n\
             status=$?\n\
             echo \"@hs end {name} $status\"\n\
             [ $status = 0 ] || sed 's/^/@hs error {name} /' $W/err\n\
             echo \"@hs sum {name} $(md5sum <$W/out)\"\n\
             rm -f $W/out $W/err\n"
        );
        if !row.teardown.is_empty() {
            text += &format!("{{ {}; }} >/dev/null 2>&1\n", row.teardown);
        }
    }
    text
}

/// One mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mark {
    /// User space is there.
    Up,
    /// A job begins.
    Begin(String),
    /// A job ended with this status.
    End(String, i32),
    /// The checksum of what a job wrote.
    Sum(String, String),
    /// A line of a failed job's complaint.
    Error(String, String),
}

impl Mark {
    /// Reads a line of the console.
    pub fn of_line(line: &str) -> Option<Mark> {
        let at = line.find("@hs ")?;
        let mut words = line[at + 4..].trim_end().splitn(3, ' ');
        let (what, row) = (words.next()?, words.next());
        let rest = words.next().unwrap_or_default().to_owned();
        let row = || row.map(str::to_owned);
        match what {
            "up" => Some(Mark::Up),
            "begin" => Some(Mark::Begin(row()?)),
            "end" => Some(Mark::End(row()?, rest.parse().ok()?)),
            "sum" => Some(Mark::Sum(row()?, rest)),
            "error" => Some(Mark::Error(row()?, rest)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::rows::choose;
    use super::*;
    use std::process::Command;

    #[test]
    fn a_job_is_bracketed_and_its_output_summed() {
        let folder = std::env::temp_dir().join(format!("xtask-bench-script-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let mut good = choose(&["fib".to_owned()]).unwrap();
        good[0].command = "printf '%s' @N";
        let bad = Row { command: "echo no >&2; false", name: "bad", ..good[0] };
        good.push(bad);
        let output = Command::new("sh").arg("-c").arg(rows(&good, true)).env("W", &folder).output().unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let marks: Vec<_> = text.lines().filter_map(Mark::of_line).collect();
        let md5 = |text: &str| {
            let line = format!("printf '{text}' | md5sum");
            let output = Command::new("sh").arg("-c").arg(line).output().unwrap();
            String::from_utf8(output.stdout).unwrap().trim().to_owned()
        };
        let begin = |row: &str| Mark::Begin(row.to_owned());
        let end = |row: &str, status| Mark::End(row.to_owned(), status);
        let sum = |row: &str, text: &str| Mark::Sum(row.to_owned(), md5(text));
        let expected = [
            begin("fib"),
            end("fib", 0),
            sum("fib", "120"),
            begin("bad"),
            end("bad", 1),
            Mark::Error("bad".into(), "no".into()),
            sum("bad", ""),
        ];
        assert_eq!(marks, expected);
    }

    #[test]
    fn other_lines_are_no_marks() {
        for line in ["", "fib", "@hs", "@hs end fib", "@hs end fib x", "@hs begin", "@hs walk fib"] {
            assert_eq!(Mark::of_line(line), None, "{line}");
        }
        assert_eq!(Mark::of_line("[ 1.0] noise @hs up\r\n"), Some(Mark::Up));
    }
}
