//! Places in history as people write them.

use crate::{Target, TargetError};
use base::{GuestTime, Position};
use std::str::FromStr;

/// A place, before it is known which position that is.
#[derive(Clone, Debug, PartialEq)]
pub enum Place {
    /// So many instructions after power-on (decimal or hexadecimal).
    Count(u64),
    /// A share of history, 0 to 1.
    Share(f64),
    /// Guest time.
    Time(GuestTime),
    /// The first position.
    Start,
    /// The last position.
    End,
    /// The position of a bookmark.
    Bookmark(String),
}

/// What a place may look like.
const FORMS: &str = "an instruction count (1234567, 0x12d687), a share (50%), guest time (12.5s), start, end, \
                     or a bookmark's name";

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("\"{text}\" is not a place; a place is {FORMS}");
        match text {
            "start" => return Ok(Self::Start),
            "end" => return Ok(Self::End),
            _ => {}
        }
        if !text.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
            return if text.is_empty() || text.starts_with(['-', '+']) {
                Err(wrong())
            } else {
                Ok(Self::Bookmark(text.to_owned()))
            };
        }
        if let Some(digits) = text.strip_prefix("0x") {
            return u64::from_str_radix(digits, 16).map(Self::Count).map_err(|_| wrong());
        }
        if let Some(share) = text.strip_suffix('%').and_then(decimal) {
            return if share <= 100.0 { Ok(Self::Share(share / 100.0)) } else { Err(wrong()) };
        }
        if let Some(seconds) = text.strip_suffix('s').and_then(decimal) {
            // A conversion from a float saturates, so that a silly time is merely far away.
            return Ok(Self::Time(GuestTime::from_ns((seconds * 1e9).round() as u64)));
        }
        text.parse().map(Self::Count).map_err(|_| wrong())
    }
}

/// A number of digits and at most one point: no sign, exponent or name of a special value.
fn decimal(text: &str) -> Option<f64> {
    if text.bytes().all(|b| b.is_ascii_digit() || b == b'.') { text.parse().ok() } else { None }
}

impl Place {
    /// The position that this is in a target's history.
    pub fn resolve(&self, target: &mut dyn Target) -> Result<Position, TargetError> {
        let (start, end) = (target.start(), target.end());
        let at = match self {
            Self::Count(count) => Position::from_count(*count),
            Self::Share(share) => start.after((end.since(start) as f64 * share) as u64).min(end),
            Self::Time(time) => target.position_at(*time)?,
            Self::Start => start,
            Self::End => end,
            Self::Bookmark(name) => {
                let all = target.bookmarks()?;
                let found = all.into_iter().find(|bookmark| bookmark.name == *name);
                found
                    .ok_or_else(|| {
                        TargetError::Failed(format!("there is no bookmark \"{name}\"; a place is {FORMS}"))
                    })?
                    .at
            }
        };
        if at < start || at > end {
            return Err(TargetError::Failed(format!(
                "{at} is outside of history, which is {start} to {end}"
            )));
        }
        Ok(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_as_the_command_line_reads_them() {
        let place = |text: &str| text.parse::<Place>().ok();
        assert_eq!(place("1234567"), Some(Place::Count(1_234_567)));
        assert_eq!(place("0x12d687"), Some(Place::Count(1_234_567)));
        assert_eq!(place("50%"), Some(Place::Share(0.5)));
        assert_eq!(place("12.5s"), Some(Place::Time(GuestTime::from_ns(12_500_000_000))));
        assert_eq!(place("end"), Some(Place::End));
        assert_eq!(place("before-oops"), Some(Place::Bookmark("before-oops".into())));
        for wrong in ["", "-1", "+1", "0x", "0xg", "101%", "1e3", "1..2s", "1 ", "99999999999999999999"] {
            assert_eq!(place(wrong), None, "{wrong}");
        }
    }
}
