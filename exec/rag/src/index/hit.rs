//! What a search found.

use serde::{Deserialize, Serialize};

use super::fuse::{Arm, fused};
use crate::{parse::Metadata, span::Span};

/// A chunk, and why it is here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hit {
    /// Its document.
    pub document_id: String,
    /// The document's name.
    pub document_name: String,
    /// The document's, of these very bytes: another version has another.
    pub document_hash: String,
    /// Which of the document's chunks.
    pub ordinal: u32,
    /// Where in the document's text, in chars.
    pub chars: Span,
    /// The same in bytes.
    pub bytes: Span,
    /// First and last page.
    pub pages: Option<(u32, u32)>,
    /// From the outermost inward.
    pub headings: Vec<String>,
    /// The document's text there.
    pub text: String,
    /// Its document's, and its record's over it.
    pub metadata: Metadata,
    /// What the vectors say, where they were asked and named it.
    pub dense: Option<Arm>,
    /// What the words say, where they were asked and named it.
    pub words: Option<Arm>,
    /// Cosine to the query, whoever named it; `None` = no vector was asked with.
    pub cosine: Option<f32>,
    /// Reciprocal-rank fusion of both.
    pub fused: f32,
    /// The reranker's number.
    pub rerank: Option<f32>,
}

impl Hit {
    /// Whether it is the same chunk.
    pub fn is(&self, other: &Self) -> bool {
        self.document_id == other.document_id && self.ordinal == other.ordinal
    }
}

/// Brings hits into their order: by reranker where it was asked, else by fusion; among equals by document and place.
pub fn order(hits: &mut [Hit]) {
    hits.sort_by(|one, other| {
        let by = |hit: &Hit| (hit.rerank.unwrap_or(f32::NEG_INFINITY), hit.fused);
        let ((rank, sum), (other_rank, other_sum)) = (by(one), by(other));
        (other_rank.total_cmp(&rank))
            .then(other_sum.total_cmp(&sum))
            .then_with(|| one.document_id.cmp(&other.document_id))
            .then(one.ordinal.cmp(&other.ordinal))
    });
}

/// Gives ranks anew by the arms' scores, and fuses them: for hits that come from several shards. Each arm has named its
/// `depth` best then, and what nobody has named is gone.
pub fn rank_anew(hits: &mut Vec<Hit>, depth: usize) {
    let arms: [fn(&mut Hit) -> &mut Option<Arm>; 2] = [|hit| &mut hit.dense, |hit| &mut hit.words];
    for arm in arms {
        let mut named: Vec<&mut Option<Arm>> = hits.iter_mut().map(arm).filter(|arm| arm.is_some()).collect();
        let score = |arm: &Option<Arm>| arm.map_or(f32::NEG_INFINITY, |arm| arm.score);
        named.sort_by(|one, other| score(other).total_cmp(&score(one)));
        for (arm, rank) in named.into_iter().zip(1..) {
            *arm = arm.filter(|_| rank as usize <= depth).map(|arm| Arm { rank, ..arm });
        }
    }
    hits.retain(|hit| hit.dense.is_some() || hit.words.is_some());
    for hit in hits.iter_mut() {
        hit.fused = fused(&[hit.dense, hit.words]);
    }
    order(hits);
}
