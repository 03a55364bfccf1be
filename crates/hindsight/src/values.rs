//! Values on the command line: sizes, places in a run; networks and forwards are [`hostnet`]'s.

use guest::Cache;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

pub use hostnet::{Forward, Net};

/// Why a value is not one; clap puts the option's name in front.
pub type ValueError = String;

/// A number of bytes: `512M`, `2G`, `1048576`. The suffixes K, M, G, T are powers of 1024 and may
/// be followed by `iB` or `B`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// The number of bytes.
    pub bytes: u64,
}

impl FromStr for Size {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let wrong = || "a size is a number with K, M, G or T, such as 512M".to_owned();
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, suffix) = text.split_at(digits);
        let shift = match suffix.trim_end_matches("iB").trim_end_matches('B').to_ascii_uppercase().as_str() {
            "" => 0,
            "K" => 10,
            "M" => 20,
            "G" => 30,
            "T" => 40,
            _ => return Err(wrong()),
        };
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let bytes = number.checked_mul(1 << shift).ok_or("that many bytes cannot be counted")?;
        Ok(Self { bytes })
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(40, "T"), (30, "G"), (20, "M"), (10, "K")] {
            if self.bytes >= 1 << shift && self.bytes.is_multiple_of(1 << shift) {
                return write!(f, "{}{unit}", self.bytes >> shift);
            }
        }
        write!(f, "{}", self.bytes)
    }
}

/// Seeds, first and last: `1..200`, or one alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seeds {
    /// The first one.
    pub first: u64,
    /// The last one; not before the first.
    pub last: u64,
}

impl FromStr for Seeds {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let wrong = || "seeds are a number or two, such as 7 or 1..200".to_owned();
        let (first, last) = text.split_once("..").unwrap_or((text, text));
        let number = |word: &str| word.parse::<u64>().ok().filter(|_| !word.starts_with('+'));
        let (first, last) = (number(first).ok_or_else(wrong)?, number(last).ok_or_else(wrong)?);
        // The one after the last must be a number too.
        if first > last || last == u64::MAX {
            return Err(wrong());
        }
        Ok(Self { first, last })
    }
}

/// A place in a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pos {
    /// After this many instructions.
    Count(u64),
    /// This share of the run's instructions, 0 to 1.
    Share(f64),
    /// This much guest time after power-on.
    Time(Duration),
    /// Where the recording ends.
    End,
}

impl FromStr for Pos {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let wrong = || "a place is an instruction count, a share (50%), guest time (12.5s) or end".to_owned();
        // Rust's own parsers also take signs, exponents and words such as "inf".
        let decimal = |number: &str| {
            let plain = number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
            number.parse::<f64>().ok().filter(|value| plain && value.is_finite()).ok_or_else(wrong)
        };
        if text == "end" {
            return Ok(Pos::End);
        }
        if let Some(percent) = text.strip_suffix('%') {
            let percent = decimal(percent)?;
            return if percent <= 100.0 { Ok(Pos::Share(percent / 100.0)) } else { Err(wrong()) };
        }
        if let Some(seconds) = text.strip_suffix('s') {
            return Duration::try_from_secs_f64(decimal(seconds)?).map(Pos::Time).map_err(|_| wrong());
        }
        let count = match text.strip_prefix("0x") {
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
                u64::from_str_radix(digits, 16)
            }
            None if text.bytes().all(|byte| byte.is_ascii_digit()) => text.parse(),
            _ => return Err(wrong()),
        };
        count.map(Pos::Count).map_err(|_| wrong())
    }
}

impl fmt::Display for Pos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pos::Count(count) => write!(f, "{count}"),
            Pos::Share(share) => write!(f, "{}%", share * 100.0),
            Pos::Time(time) => write!(f, "{}s", time.as_secs_f64()),
            Pos::End => f.write_str("end"),
        }
    }
}

/// A place in a recording, REC@POS: the last `@` parts them.
#[derive(Clone, Debug, PartialEq)]
pub struct RecPos {
    /// A path or a name; the latest recording, when left out.
    pub recording: Option<String>,
    /// Where in it.
    pub at: Pos,
}

impl FromStr for RecPos {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let (recording, at) = text.rsplit_once('@').ok_or("a place in a recording is REC@POS")?;
        let recording = (!recording.is_empty()).then(|| recording.to_owned());
        Ok(Self { recording, at: at.parse()? })
    }
}

/// A span of the host's time: `90`, `1.5`, `90s`, `5m`, `1h`.
pub fn duration(text: &str) -> Result<Duration, ValueError> {
    let wrong = || "a time is a number of seconds, such as 90 or 1.5, or has s, m or h".to_owned();
    let (number, unit) = match text.strip_suffix(['s', 'm', 'h']) {
        Some(number) if text.ends_with('m') => (number, 60.0),
        Some(number) if text.ends_with('h') => (number, 3600.0),
        Some(number) => (number, 1.0),
        None => (text, 1.0),
    };
    if !number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return Err(wrong());
    }
    let seconds = number.parse::<f64>().map_err(|_| wrong())? * unit;
    let time = Duration::try_from_secs_f64(seconds).map_err(|_| wrong())?;
    if time.is_zero() { Err("the time must be more than zero".to_owned()) } else { Ok(time) }
}

/// Where the guest's console goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConsoleTo {
    /// To standard output, with standard input as the keyboard.
    Stdio,
    /// To a file, replaced if it exists.
    File(PathBuf),
    /// Nowhere.
    None,
}

impl FromStr for ConsoleTo {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match text {
            "" => Err("a console is stdio, none or a file's name".to_owned()),
            "stdio" => Ok(ConsoleTo::Stdio),
            "none" => Ok(ConsoleTo::None),
            path => Ok(ConsoleTo::File(path.into())),
        }
    }
}

/// Where translated code is kept for later runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TranslationsIn {
    /// In a folder.
    Folder(PathBuf),
    /// Nowhere.
    Nowhere,
}

impl FromStr for TranslationsIn {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match text {
            "" => Err("translations are kept in a folder, or off".to_owned()),
            "off" => Ok(TranslationsIn::Nowhere),
            folder => Ok(TranslationsIn::Folder(folder.into())),
        }
    }
}

impl TranslationsIn {
    /// The folder, which is in the user's cache unless `chosen`.
    pub fn folder(chosen: Option<&Self>) -> Option<PathBuf> {
        match chosen {
            Some(TranslationsIn::Folder(folder)) => Some(folder.clone()),
            Some(TranslationsIn::Nowhere) => None,
            None => Some(Cache::of_user().ok()?.path("translations")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024_or_refused() {
        let bytes = |text: &str| text.parse::<Size>().map(|size| size.bytes).ok();
        assert_eq!(bytes("512M"), Some(512 << 20));
        assert_eq!(bytes("2g"), Some(2 << 30));
        assert_eq!(bytes("3KiB"), Some(3072));
        assert_eq!(bytes("1048576"), Some(1 << 20));
        for wrong in ["", "M", "-1M", "1.5G", "1X", "99999999999T", "18446744073709551616", "1M2", "+5"] {
            assert_eq!(bytes(wrong), None, "{wrong}");
        }
        assert_eq!(Size { bytes: 3 << 19 }.to_string(), "1536K");
    }

    #[test]
    fn places_in_a_run() {
        let pos = |text: &str| text.parse::<Pos>().ok();
        assert_eq!(pos("1234567"), Some(Pos::Count(1_234_567)));
        assert_eq!(pos("0x12d687"), Some(Pos::Count(1_234_567)));
        assert_eq!(pos("50%"), Some(Pos::Share(0.5)));
        assert_eq!(pos("12.5s"), Some(Pos::Time(Duration::from_millis(12_500))));
        assert_eq!(pos("end"), Some(Pos::End));
        for wrong in
            ["", "-1", "+1", "0x", "0xg", "101%", "-1%", "nan%", "infs", "1e3", "s", "%", "1 ", "start"]
        {
            assert_eq!(pos(wrong), None, "{wrong}");
        }
        assert_eq!(pos("99999999999999999999"), None);
    }

    #[test]
    fn places_in_a_recording() {
        let from = |text: &str| text.parse::<RecPos>().ok().map(|from| (from.recording, from.at));
        assert_eq!(from("a@50%"), Some((Some("a".into()), Pos::Share(0.5))));
        assert_eq!(from("./x@y/rec@end"), Some((Some("./x@y/rec".into()), Pos::End)));
        assert_eq!(from("@0x10"), Some((None, Pos::Count(16))));
        for wrong in ["", "rec", "50%", "rec@", "@", "rec@here"] {
            assert_eq!(from(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn times() {
        assert_eq!(duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(duration("1h"), Ok(Duration::from_secs(3600)));
        for wrong in ["", "0", "-1", "inf", "1d", "s", "1e400", "9999999999999999999999"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
