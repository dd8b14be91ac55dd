//! Measuring the same thing many times.

use std::time::{Duration, Instant};

use anyhow::Result;

/// Rounds that only warm caches, and are not counted.
const WARM_UP: usize = 5;

/// Spans of time, sorted.
#[derive(Clone, Debug)]
pub struct Samples(Vec<Duration>);

impl Samples {
    /// The span that `percent` of all do not exceed; zero without any.
    pub fn percentile(&self, percent: usize) -> Duration {
        let index = (self.0.len() * percent).div_ceil(100).saturating_sub(1);
        self.0.get(index).copied().unwrap_or_default()
    }

    /// The median.
    pub fn median(&self) -> Duration {
        self.percentile(50)
    }
}

impl From<Vec<Duration>> for Samples {
    fn from(mut spans: Vec<Duration>) -> Samples {
        spans.sort_unstable();
        Samples(spans)
    }
}

/// How long `work` takes, and what it gives.
///
/// # Errors
/// Those of `work`.
pub fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<(Duration, T)> {
    let began = Instant::now();
    let given = work()?;
    Ok((began.elapsed(), given))
}

/// What one round of one side is: it gives the span that counts, so that making ready and clearing up do not.
pub type Side<'a> = &'a mut dyn FnMut(usize) -> Result<Duration>;

/// Measures all sides in turns, `rounds` times each.
///
/// # Errors
/// The first of any side.
pub fn in_turns<const N: usize>(rounds: usize, sides: [Side<'_>; N]) -> Result<[Samples; N]> {
    let mut spans = [const { Vec::new() }; N];
    let mut sides = sides;
    for round in 0..rounds + WARM_UP {
        for (side, spans) in sides.iter_mut().zip(&mut spans) {
            let span = side(round)?;
            if round >= WARM_UP {
                spans.push(span);
            }
        }
    }
    Ok(spans.map(Samples::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_what_was_measured() {
        let ms = Duration::from_millis;
        let samples = Samples::from((1..=100).rev().map(ms).collect::<Vec<_>>());
        assert_eq!([50, 90, 99, 100].map(|p| samples.percentile(p)), [ms(50), ms(90), ms(99), ms(100)]);
        assert_eq!(Samples::from(vec![ms(7)]).median(), ms(7));
        let [a, b] = in_turns(20, [&mut |_| Ok(ms(1)), &mut |_| Ok(ms(2))]).unwrap();
        assert_eq!((a.0.len(), a.median(), b.median()), (20, ms(1), ms(2)));
    }
}
