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

    /// Targets that some token of the same row comes before: the predictions that count.
    pub fn num_targets(&self) -> usize {
        let rows = self.labels.iter().zip(&self.attention_mask);
        rows.flat_map(|(labels, mask)| labels.iter().zip(mask).filter(|(_, m)| **m != 0).skip(1))
            .filter(|(label, _)| **label != IGNORED)
            .count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_padded_on_the_right_and_first_tokens_are_no_targets() {
        let batch = Batch::collate(&[(vec![5, 6, 7], vec![5, 6, 7]), (vec![8, 9], vec![IGNORED, 9])], 0);
        assert_eq!(batch.input_ids, [[5, 6, 7], [8, 9, 0]]);
        assert_eq!(batch.attention_mask, [[1, 1, 1], [1, 1, 0]]);
        assert_eq!(batch.labels, [[5, 6, 7], [IGNORED, 9, IGNORED]]);
        assert_eq!((batch.num_tokens(), batch.num_targets()), (5, 3));
    }

    #[test]
    fn the_first_real_token_of_a_left_padded_row_is_no_target() {
        let batch = Batch {
            input_ids: vec![vec![0, 4, 5]],
            attention_mask: vec![vec![0, 1, 1]],
            labels: vec![vec![IGNORED, 4, 5]],
        };
        assert_eq!(batch.num_targets(), 1);
    }
}
