//! Guessing what comes next from what was there before: answers repeat their prompt and themselves. What is guessed is
//! checked by the model in one step, so that the answer is the same with and without.

use serde::{Deserialize, Serialize};

/// Prompt lookup: the newest tokens are looked for in the sequence itself, and what followed them is the guess.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guessing {
    /// Tokens that are guessed at once, at most.
    pub tokens: usize,
    /// Newest tokens that are looked for, at most; the longest match counts.
    pub longest: usize,
    /// And at least, at least 1.
    pub shortest: usize,
}

impl Default for Guessing {
    /// A guess that is wrong costs the tokens of a step, so a match of one token is not enough.
    fn default() -> Self {
        Self { tokens: 4, longest: 4, shortest: 2 }
    }
}

/// Tokens looked back at, so that a step's own work stays small beside the model's.
const WINDOW: usize = 8192;

impl Guessing {
    /// What may follow these tokens; nothing where they are new.
    pub fn guess(&self, tokens: &[u32]) -> Vec<u32> {
        let tokens = &tokens[tokens.len().saturating_sub(WINDOW)..];
        let Some((newest, before)) = tokens.split_last() else { return Vec::new() };
        let mut best = (self.shortest.max(1) - 1, 0);
        // The latest of the longest matches: what was said last is likelier to be said again.
        for end in (1..=before.len()).rev().filter(|end| before[end - 1] == *newest) {
            let equal = before[..end].iter().rev().zip(tokens.iter().rev());
            let length = equal.take(self.longest).take_while(|(a, b)| a == b).count();
            if length > best.0 {
                best = (length, end);
            }
            if length == self.longest {
                break;
            }
        }
        match best {
            (_, 0) => Vec::new(),
            (_, end) => tokens[end..].iter().take(self.tokens).copied().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_match_counts_and_of_equal_ones_the_latest() {
        let guessing = Guessing { tokens: 2, longest: 3, shortest: 1 };
        assert_eq!(guessing.guess(&[1, 2, 3, 9, 9, 3, 7, 7, 1, 2, 3]), [9, 9]);
        assert_eq!(guessing.guess(&[3, 5, 5, 3, 6, 6, 3]), [6, 6]);
        assert_eq!(guessing.guess(&[4, 4]), [4]);
        assert!(guessing.guess(&[1, 2, 3]).is_empty());
        assert!(guessing.guess(&[]).is_empty());
    }

    #[test]
    fn a_match_that_is_too_short_is_none() {
        let guessing = Guessing { tokens: 4, longest: 4, shortest: 2 };
        assert!(guessing.guess(&[1, 2, 3, 9, 2]).is_empty());
        assert_eq!(guessing.guess(&[1, 2, 3, 9, 1, 2]), [3, 9, 1, 2]);
    }
}
