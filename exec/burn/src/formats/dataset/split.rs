//! Splits and their slices, with the arithmetic of the `datasets` library.

use std::fmt;
use std::ops::Range;

/// One split, or a slice of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The split's name.
    pub name: String,
    /// Which of its rows; all when absent.
    pub slice: Option<Slice>,
}

impl Part {
    /// All of a split.
    pub fn whole(name: &str) -> Self {
        Self { name: name.to_owned(), slice: None }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        let Some(Slice { from, to, percent }) = self.slice else { return Ok(()) };
        let bound = |n: Option<i64>| n.map(|n| format!("{n}{}", if percent { "%" } else { "" })).unwrap_or_default();
        write!(f, "[{}:{}]", bound(from), bound(to))
    }
}

/// From one row to another; negative bounds count from the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slice {
    /// The first row; the very first when absent.
    pub from: Option<i64>,
    /// The row after the last one; the end when absent.
    pub to: Option<i64>,
    /// Whether the bounds are percent of the rows. They are rounded to the nearest row, and to the even one of two.
    pub percent: bool,
}

impl Slice {
    /// Which of so many rows.
    pub fn rows(&self, all: usize) -> Range<usize> {
        let bound = |n: i64| {
            let n = if self.percent { (n as f64 * all as f64 / 100.0).round_ties_even() as i64 } else { n };
            let rows = i64::try_from(all).unwrap_or(i64::MAX);
            let n = if n < 0 { rows.saturating_add(n).max(0) } else { n.min(rows) };
            usize::try_from(n).unwrap_or(0)
        };
        let from = self.from.map_or(0, bound);
        from..self.to.map_or(all, bound).max(from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each of these was computed by `datasets` 5.2.0 (`ReadInstruction.to_absolute`).
    #[test]
    fn slices_are_those_of_the_datasets_library() {
        let slice = |from, to, percent| Slice { from, to, percent };
        for (slice, all, want) in [
            (slice(None, Some(10), true), 15, 0..2),
            (slice(Some(10), None, true), 15, 2..15),
            (slice(None, Some(10), true), 25, 0..2),
            (slice(None, Some(10), true), 35, 0..4),
            (slice(Some(-10), None, true), 25, 23..25),
            (slice(Some(33), Some(66), true), 10, 3..7),
            (slice(None, Some(100), false), 7, 0..7),
            (slice(Some(-3), None, false), 7, 4..7),
            (slice(Some(-30), Some(-2), false), 7, 0..5),
            (slice(None, None, false), 7, 0..7),
        ] {
            assert_eq!(slice.rows(all), want, "{slice:?} of {all}");
        }
        assert!(slice(Some(5), Some(3), false).rows(7).is_empty());
        assert!(slice(Some(9), None, false).rows(7).is_empty());
    }
}
