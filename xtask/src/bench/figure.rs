//! What was measured, beside what it is measured against, as a table.

use std::fmt::{self, Write as _};
use std::time::Duration;

/// One thing measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Figure {
    /// A span of time.
    Time(Duration),
    /// Memory or a file, in bytes.
    Bytes(u64),
    /// A plain number.
    Count(u64),
}

/// What a figure should be.
#[derive(Clone, Copy, Debug)]
pub enum Aim {
    /// At most this.
    AtMost(Figure),
    /// At most so many times what it is measured against.
    Times(f64),
}

/// A line of the table.
#[derive(Clone, Debug)]
pub struct Row {
    what: String,
    ours: Figure,
    against: Option<(String, Figure)>,
    aims: Vec<Aim>,
}

impl Row {
    /// A row that tells what was measured.
    pub fn new(what: impl Into<String>, ours: Figure) -> Row {
        Row { what: what.into(), ours, against: None, aims: Vec::new() }
    }

    /// What it is measured against, in the same run.
    #[must_use]
    pub fn against(mut self, what: impl Into<String>, figure: Figure) -> Row {
        self.against = Some((what.into(), figure));
        self
    }

    /// What it should be.
    #[must_use]
    pub fn aim(mut self, aim: Aim) -> Row {
        self.aims.push(aim);
        self
    }

    fn ratio(&self) -> Option<f64> {
        let (_, against) = self.against.as_ref()?;
        let against = against.value();
        (against > 0.0).then(|| self.ours.value() / against)
    }

    fn is_met(&self, aim: Aim) -> bool {
        match aim {
            Aim::AtMost(most) => self.ours.value() <= most.value(),
            Aim::Times(most) => self.ratio().is_none_or(|ratio| ratio <= most),
        }
    }

    fn cells(&self) -> [String; 5] {
        let against = self.against.as_ref().map(|(what, figure)| format!("{figure} {what}")).unwrap_or_default();
        let ratio = |ratio| if ratio < 0.1 { format!("{ratio:.4}x") } else { format!("{ratio:.1}x") };
        let ratio = self.ratio().map(ratio).unwrap_or_default();
        let aims: Vec<String> =
            self.aims.iter().map(|aim| format!("{aim} {}", if self.is_met(*aim) { "met" } else { "MISSED" })).collect();
        [self.what.clone(), self.ours.to_string(), against, ratio, aims.join(", ")]
    }
}

impl Figure {
    #[allow(clippy::cast_precision_loss, reason = "figures for people, far below 2^53")]
    fn value(self) -> f64 {
        match self {
            Figure::Time(span) => span.as_secs_f64(),
            Figure::Bytes(number) | Figure::Count(number) => number as f64,
        }
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Figure::Time(span) if *span < Duration::from_micros(1) => write!(f, "{} ns", span.as_nanos()),
            Figure::Time(span) if *span < Duration::from_millis(10) => write!(f, "{} µs", span.as_micros()),
            Figure::Time(span) => write!(f, "{:.1} ms", span.as_secs_f64() * 1e3),
            Figure::Bytes(bytes) if *bytes < 4 << 20 => write!(f, "{} KiB", bytes >> 10),
            Figure::Bytes(_) => write!(f, "{:.1} MiB", self.value() / f64::from(1 << 20)),
            Figure::Count(count) => write!(f, "{count}"),
        }
    }
}

impl fmt::Display for Aim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Aim::AtMost(figure) => write!(f, "≤ {figure}"),
            Aim::Times(most) => write!(f, "≤ {most}x"),
        }
    }
}

/// The rows under a head, in columns.
pub fn table(rows: &[Row]) -> String {
    let head = ["what", "ours", "against", "ratio", "aim"].map(str::to_owned);
    let lines: Vec<[String; 5]> = std::iter::once(head).chain(rows.iter().map(Row::cells)).collect();
    let width = |column: usize| lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..5).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for line in &lines {
        let cells = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        // Writing to a text cannot fail.
        let _written = writeln!(text, "{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_aim_that_is_missed_says_so() {
        let ms = |count| Figure::Time(Duration::from_millis(count));
        let row = |aim| Row::new("a", ms(30)).against("b", ms(10)).aim(aim);
        assert!(table(&[row(Aim::Times(3.0))]).contains("3.0x   ≤ 3x met"));
        assert!(table(&[row(Aim::Times(2.9))]).contains("MISSED"));
        assert!(table(&[row(Aim::AtMost(ms(29)))]).contains("≤ 29.0 ms MISSED"));
    }
}
