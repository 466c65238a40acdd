//! Batches of token ids with right padding.

/// The label of a position that is no target.
pub const IGNORED: i64 = -100;

/// Rows of equal length.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Batch {
    /// Token ids; anything at padding.
    pub input_ids: Vec<Vec<i64>>,
    /// 1 at real tokens, 0 at padding.
    pub attention_mask: Vec<Vec<i64>>,
    /// The token itself where it is a target, [`IGNORED`] elsewhere; not shifted.
    pub labels: Vec<Vec<i64>>,
}

impl Batch {
    /// Pads rows of (ids, labels) on the right to the longest; both lists of a row must have the same length.
    pub fn collate(rows: &[(Vec<i64>, Vec<i64>)], pad_id: i64) -> Self {
        let width = rows.iter().map(|(ids, _)| ids.len()).max().unwrap_or(0);
        let padded = |values: &[i64], filler: i64| {
            let mut row = values.to_vec();
            row.resize(width, filler);
            row
        };
        Self {
            input_ids: rows.iter().map(|(ids, _)| padded(ids, pad_id)).collect(),
            attention_mask: rows.iter().map(|(ids, _)| padded(&vec![1; ids.len()], 0)).collect(),
            labels: rows.iter().map(|(_, l)| padded(l, IGNORED)).collect(),
        }
    }

    /// One row without targets, for looking at logits.
    pub fn single(ids: &[i64]) -> Self {
        Self {
            input_ids: vec![ids.to_vec()],
            attention_mask: vec![vec![1; ids.len()]],
            labels: vec![vec![IGNORED; ids.len()]],
        }
    }

    /// Real tokens.
    pub fn num_tokens(&self) -> usize {
        self.attention_mask.iter().flatten().filter(|m| **m != 0).count()
    }

    /// Positions whose successor is a target: the predictions that count.
    pub fn num_targets(&self) -> usize {
        self.labels.iter().flat_map(|row| row.iter().skip(1)).filter(|l| **l != IGNORED).count()
    }
}
