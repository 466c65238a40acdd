//! Where the time of a step goes: seconds by kind of work, for a bench that asks.
//!
//! An operation on the processor is over when it returns. On a GPU it is only handed over, and what is counted here
//! means nothing. Only what the thread does that asked is counted: a step on several devices has threads of its own for
//! the others.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// A kind of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Matrix products of the layers, those of adapters and of attention included.
    Products,
    /// Matrix products of the head over the vocabulary.
    Head,
    /// The softmax of attention and its backward.
    Attention,
    /// Norms.
    Norms,
    /// Rotary positions.
    Rotations,
    /// What stands between the products of a feed-forward block.
    Gates,
    /// Figures of logits and the gradient at them.
    Loss,
    /// Residuals, and whatever else is added up.
    Sums,
    /// Norms of gradients.
    Clipping,
    /// The optimizer.
    Optimizer,
}

impl Work {
    /// All kinds.
    pub const ALL: [Self; 10] = [
        Self::Products,
        Self::Head,
        Self::Attention,
        Self::Norms,
        Self::Rotations,
        Self::Gates,
        Self::Loss,
        Self::Sums,
        Self::Clipping,
        Self::Optimizer,
    ];

    /// For people.
    pub fn words(self) -> &'static str {
        match self {
            Self::Products => "matrix products of layers",
            Self::Head => "matrix products of the head",
            Self::Attention => "softmax of attention",
            Self::Norms => "norms",
            Self::Rotations => "rotary positions",
            Self::Gates => "gates",
            Self::Loss => "loss",
            Self::Sums => "residuals and sums",
            Self::Clipping => "norms of gradients",
            Self::Optimizer => "optimizer",
        }
    }
}

/// Where a thread's count stands.
#[derive(Clone, Copy)]
enum Count {
    Off,
    On([Duration; Work::ALL.len()]),
    /// Within some work.
    Within([Duration; Work::ALL.len()]),
}

thread_local! {
    static COUNT: Cell<Count> = const { Cell::new(Count::Off) };
}

/// Counts this thread's work from now on, and from 0.
pub fn begin() {
    COUNT.set(Count::On([Duration::ZERO; Work::ALL.len()]));
}

/// Counts no more. What was counted since [`begin`].
pub fn end() -> Vec<(Work, Duration)> {
    match COUNT.replace(Count::Off) {
        Count::Off => Vec::new(),
        Count::On(spent) | Count::Within(spent) => Work::ALL.into_iter().zip(spent).collect(),
    }
}

/// Does the work. What lies within other work counts as that.
pub(crate) fn on<T>(work: Work, of: impl FnOnce() -> T) -> T {
    let Count::On(mut spent) = COUNT.get() else { return of() };
    COUNT.set(Count::Within(spent));
    let began = Instant::now();
    let done = of();
    spent[work as usize] += began.elapsed();
    COUNT.set(Count::On(spent));
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_within_work_counts_once() {
        begin();
        let wait = || {
            let began = Instant::now();
            while began.elapsed() < Duration::from_millis(2) {
                std::hint::spin_loop();
            }
        };
        on(Work::Loss, || on(Work::Products, wait));
        on(Work::Products, || ());
        let spent = end();
        let of = |kind: Work| spent.iter().find(|(work, _)| *work == kind).map(|(_, time)| *time);
        assert!(of(Work::Loss) >= Some(Duration::from_millis(2)), "{spent:?}");
        assert!(of(Work::Products) < Some(Duration::from_millis(1)), "{spent:?}");
        on(Work::Loss, wait);
        assert!(end().is_empty(), "it has ended");
    }
}
