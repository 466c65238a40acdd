//! How well a search finds answers that are known: recall and mean reciprocal rank.

use serde::{Deserialize, Serialize};

use crate::{index::Hit, span::Span};

/// A question, and where its answer stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Question {
    /// In words.
    pub question: String,
    /// The document's id.
    pub document: String,
    /// In it, in chars.
    pub answer: Span,
}

impl Question {
    /// The place, from 1, of the first hit that holds the whole answer.
    pub fn rank(&self, hits: &[Hit]) -> Option<usize> {
        let holds = |hit: &Hit| hit.document_id == self.document && hit.chars.covers(self.answer);
        hits.iter().position(holds).map(|at| at + 1)
    }
}

/// What many questions say together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Measured {
    /// Questions.
    pub questions: usize,
    /// The part of them whose answer was the first hit.
    pub recall_at_1: f64,
    /// The part of them whose answer was among the first five.
    pub recall_at_5: f64,
    /// Mean of one over the answer's rank, nothing where it was not found.
    pub mrr: f64,
}

/// Out of each question's rank.
pub fn measured(ranks: &[Option<usize>]) -> Measured {
    let mean = |value: fn(usize) -> f64| {
        ranks.iter().flatten().map(|rank| value(*rank)).sum::<f64>() / ranks.len().max(1) as f64
    };
    Measured {
        questions: ranks.len(),
        recall_at_1: mean(|rank| f64::from(u8::from(rank <= 1))),
        recall_at_5: mean(|rank| f64::from(u8::from(rank <= 5))),
        mrr: mean(|rank| 1.0 / rank as f64),
    }
}

impl std::fmt::Display for Measured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { questions, recall_at_1, recall_at_5, mrr } = self;
        write!(f, "recall@1 {recall_at_1:.3}  recall@5 {recall_at_5:.3}  MRR {mrr:.3}  ({questions} questions)")
    }
}
