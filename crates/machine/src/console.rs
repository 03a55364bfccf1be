//! Watching what the guest prints, from outside the machine.

/// Finds the kernel's panic line in a console's bytes, however they are split.
#[derive(Clone, Debug, Default)]
pub struct PanicLine {
    /// How many bytes of the pattern the last bytes seen match.
    matched: usize,
    seen: bool,
}

impl PanicLine {
    /// What Linux prints first when it panics.
    const PATTERN: &'static [u8] = b"Kernel panic - not syncing";

    /// A matcher that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Looks at more bytes; whether the line has appeared, now or before.
    pub fn feed(&mut self, bytes: &[u8]) -> bool {
        for &byte in bytes {
            if byte != Self::PATTERN[self.matched] {
                // No proper prefix of the pattern that could restart here is longer than one byte.
                self.matched = 0;
            }
            if byte == Self::PATTERN[self.matched] {
                self.matched += 1;
            }
            if self.matched == Self::PATTERN.len() {
                self.seen = true;
                self.matched = 0;
            }
        }
        self.seen
    }

    /// Whether the line has appeared.
    pub fn seen(&self) -> bool {
        self.seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_panic_line_is_found_across_pieces_and_after_false_starts() {
        let mut line = PanicLine::new();
        assert!(!line.feed(b"[    1.0] KKernel panic - not synKernel pan"));
        assert!(!line.feed(b"ic - not"));
        assert!(line.feed(b" syncing: VFS"));
        assert!(line.feed(b"later"));
        assert!(!PanicLine::new().feed(b"kernel panic - not syncing"));
    }

    #[test]
    fn no_border_of_the_pattern_makes_the_simple_restart_wrong() {
        let pattern = PanicLine::PATTERN;
        for length in 1..pattern.len() {
            for border in 1..length {
                assert_ne!(pattern[..border], pattern[length - border..length], "a border of {border}");
            }
        }
    }
}
