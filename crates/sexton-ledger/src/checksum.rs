//! The checksum that every row carries.
//!
//! It is there against bytes that changed on the disk or under somebody's editor, not against an attacker: whoever
//! can write the file can write the sum. Own, because it is 20 lines, must never change, and a row is hashed at every
//! start: eight bytes a step instead of the one of FNV or table-driven CRC.
//!
//! Each step maps (state, word) to `(rotl(state) ^ word) * odd`, a bijection in the state for a given word and in the
//! word for a given state. So a change inside one word is always noticed, and any other with probability 1 - 2⁻⁶⁴.

/// Odd, from the golden ratio; its multiples spread over the high bits, which the rotation brings back down.
const ODD: u64 = 0x9e37_79b9_7f4a_7c15;

/// A checksum in the making, over a sequence of columns.
///
/// Lengths and kinds are hashed too, so that moving a byte from one column to the next is a change.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sum(u64);

impl Sum {
    /// Begins the sum of a row of `table`, so that a row moved to another table does not match there.
    pub(crate) fn of(table: &str) -> Sum {
        Sum(0).text(table)
    }

    fn word(self, word: u64) -> Sum {
        Sum((self.0.rotate_left(29) ^ word).wrapping_mul(ODD))
    }

    /// Adds a text column.
    pub(crate) fn text(self, text: &str) -> Sum {
        let (words, tail) = text.as_bytes().as_chunks::<8>();
        let mut sum = self.word(u64::try_from(text.len()).unwrap_or(u64::MAX) | 1 << 63);
        for word in words {
            sum = sum.word(u64::from_le_bytes(*word));
        }
        sum.word(tail.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte)))
    }

    /// Adds a text column that may be NULL.
    pub(crate) fn text_or_null(self, text: Option<&str>) -> Sum {
        match text {
            Some(text) => self.text(text),
            None => self.word(1 << 62),
        }
    }

    /// Adds an integer column.
    pub(crate) fn int(self, value: i64) -> Sum {
        self.word(1 << 61).word(value.cast_unsigned())
    }

    /// Adds an integer column that may be NULL.
    pub(crate) fn int_or_null(self, value: Option<i64>) -> Sum {
        match value {
            Some(value) => self.int(value),
            None => self.word(1 << 62),
        }
    }

    /// The sum as SQLite keeps it.
    pub(crate) fn finish(self) -> i64 {
        (self.0 ^ self.0 >> 32).cast_signed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_of_given_columns_never_changes() {
        let sum = Sum::of("entry").text("vm-1").text_or_null(None).int(-1).int_or_null(Some(7)).finish();
        assert_eq!(sum, FIXED, "ledgers on disk carry sums made by this function");
    }

    const FIXED: i64 = -8_885_695_438_126_969_080;

    #[test]
    fn every_single_bit_counts() {
        let text = "a row of some length, with a tail".to_owned();
        let whole = Sum::of("entry").text(&text).finish();
        for at in 0..text.len() {
            for bit in 0..7 {
                let mut bytes = text.clone().into_bytes();
                bytes[at] ^= 1 << bit;
                let flipped = String::from_utf8(bytes).expect("seven bits are ASCII");
                assert_ne!(Sum::of("entry").text(&flipped).finish(), whole, "byte {at}, bit {bit}");
            }
        }
    }

    #[test]
    fn columns_do_not_run_into_each_other() {
        let sums = [
            Sum::of("t").text("ab").text("c"),
            Sum::of("t").text("a").text("bc"),
            Sum::of("t").text("abc").text(""),
            Sum::of("t").text("abc").text_or_null(None),
            Sum::of("t").text("abc"),
            Sum::of("t").text("abc").int(0),
            Sum::of("u").text("ab").text("c"),
        ];
        for (i, a) in sums.iter().enumerate() {
            for b in sums.iter().skip(i + 1) {
                assert_ne!(a.finish(), b.finish(), "{a:?} {b:?}");
            }
        }
    }
}
