//! Counting tests over every harness that ran.

use std::fmt;

/// How many tests ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Ran, and held.
    pub passed: usize,
    /// Ran, and did not hold, or did not end.
    pub failed: usize,
    /// Said that this machine lacks what they need.
    pub skipped: usize,
}

impl Tally {
    /// Counts one check that is a harness of its own.
    pub fn count(&mut self, held: bool) {
        if held {
            self.passed += 1;
        } else {
            self.failed += 1;
        }
    }

    /// Adds what a harness said, and no less than one failure where it failed without saying so.
    pub fn add(&mut self, succeeded: bool, said: Tally) {
        self.passed += said.passed;
        self.failed += said.failed;
        if !succeeded && said.failed == 0 {
            self.failed += 1;
        }
    }

    /// Moves tests that announced a skip, and were therefore counted as passed, to where they belong.
    pub fn skip(&mut self, skipped: usize) {
        self.passed = self.passed.saturating_sub(skipped);
        self.skipped += skipped;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

/// What `cargo test` says: one line `test result: ok. N passed; N failed; …` a binary.
pub fn of_libtest(text: &str) -> Tally {
    sum(text.lines().filter(|line| line.starts_with("test result: ")))
}

/// What `cargo nextest` says: `Summary [ 0.1s] N tests run: N passed (1 slow), N failed, N timed out, N skipped`.
pub fn of_nextest(text: &str) -> Tally {
    let plain = without_escapes(text);
    sum(plain.lines().filter(|line| line.trim_start().starts_with("Summary [")))
}

fn sum<'a>(lines: impl Iterator<Item = &'a str>) -> Tally {
    let mut tally = Tally::default();
    for line in lines {
        tally.passed += number_before(line, "passed");
        tally.failed +=
            ["failed", "timed out", "exec failed"].map(|word| number_before(line, word)).iter().sum::<usize>();
    }
    tally
}

/// The number directly before `word`, 0 where there is none.
fn number_before(line: &str, word: &str) -> usize {
    let parts = line.split([':', ',', ';', '.']).map(str::trim);
    let number = |part: &str| part.split_once(' ').filter(|(_, rest)| rest.starts_with(word))?.0.parse::<usize>().ok();
    parts.filter_map(number).sum()
}

/// Without the escape sequences of colours.
fn without_escapes(text: &str) -> String {
    let mut plain = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c == '\x1b' {
            chars.find(|c| c.is_ascii_alphabetic());
        } else {
            plain.push(c);
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_harnesses_are_understood() {
        let libtest = "test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.1s\n\
                       test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 1 filtered out; finished in 1s";
        assert_eq!(of_libtest(libtest), Tally { passed: 15, failed: 2, skipped: 0 });
        let nextest = "     Summary [   0.005s] 9 tests run: 5 passed (1 slow), 3 failed, 1 timed out, 4 skipped";
        assert_eq!(of_nextest(nextest), Tally { passed: 5, failed: 4, skipped: 0 });
        let coloured = "\x1b[1m     Summary\x1b[0m [   0.005s] \x1b[1m1\x1b[0m test run: \x1b[1m1\x1b[0m \x1b[32mpassed\x1b[0m, 0 skipped";
        assert_eq!(of_nextest(&coloured.replace("Summary\x1b[0m", "Summary")).passed, 1);
    }

    #[test]
    fn a_harness_that_fails_without_a_number_counts_as_one() {
        let mut tally = Tally::default();
        tally.add(false, of_libtest("error: could not compile"));
        tally.add(true, of_libtest("test result: ok. 2 passed; 0 failed;"));
        tally.skip(1);
        assert_eq!(tally.to_string(), "1 passed, 1 failed, 1 skipped");
    }
}
