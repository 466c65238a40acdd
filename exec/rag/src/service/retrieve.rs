//! A question to a service: candidates, then rerank, floor and an end to the list.

use serde::{Deserialize, Serialize};

use super::{Service, ServiceError};
use crate::{
    index::{Arms, Filter, Hit, Query, hit::order},
    seams::Side,
};

/// What a hit must reach, as any one of these says; where none says anything every hit is one.
///
/// After reranking its number alone counts, where a floor is set for it. Which cosine parts answers from other text is the
/// embedder's to say, which number the reranker's: there is no floor that fits all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Floor {
    /// Cosine to the query.
    pub cosine: Option<f32>,
    /// BM25.
    pub words: Option<f32>,
    /// The reranker's number.
    pub rerank: Option<f32>,
}

impl Floor {
    /// Whether a hit reaches it.
    pub fn reached(&self, hit: &Hit) -> bool {
        if let (Some(floor), Some(number)) = (self.rerank, hit.rerank) {
            return number >= floor;
        }
        let cosine = self.cosine.map(|floor| hit.cosine.is_some_and(|cosine| cosine >= floor));
        let words = self.words.map(|floor| hit.words.is_some_and(|arm| arm.score >= floor));
        match (cosine, words) {
            (None, None) => true,
            (cosine, words) => cosine == Some(true) || words == Some(true),
        }
    }
}

/// A question.
#[derive(Clone, Debug, PartialEq)]
pub struct Ask {
    /// In words.
    pub query: String,
    /// Of which documents.
    pub filter: Filter,
    /// Hits, at most; `None` = the service's setting.
    pub top_k: Option<usize>,
    /// `None` = the service's setting.
    pub floor: Option<Floor>,
    /// Which arms; `None` = the service's setting.
    pub arms: Option<Arms>,
    /// Whether the reranker is asked, where there is one.
    pub rerank: bool,
}

impl Ask {
    /// In words, of everything.
    pub fn new(query: &str) -> Self {
        Self { query: query.to_owned(), filter: Filter::default(), top_k: None, floor: None, arms: None, rerank: true }
    }
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    /// Best first, above the floor.
    pub hits: Vec<Hit>,
    /// How many lay below the floor.
    pub below: usize,
    /// What was not as it should have been, for people.
    pub notes: Vec<String>,
}

impl Found {
    /// Whether the honest answer is that there is none.
    pub fn not_in_documents(&self) -> bool {
        self.hits.is_empty()
    }
}

impl Service {
    /// Each arm's candidates, fused: what a shard answers another with.
    ///
    /// # Errors
    /// The filter's, the embedder's or the disk's.
    pub fn candidates(&self, ask: &Ask) -> Result<Vec<Hit>, ServiceError> {
        ask.filter.check().map_err(|(field, message)| ServiceError::Field { field, message })?;
        let embed = || -> anyhow::Result<Vec<f32>> {
            let vectors = self.models.embedder.embed(std::slice::from_ref(&ask.query), Side::Query)?;
            vectors.into_iter().next().ok_or_else(|| anyhow::anyhow!("it made no vector"))
        };
        // Also for the words alone: their hits' cosines tell whether they are above the floor.
        let vector = Some(embed().map_err(ServiceError::Embedder)?);
        let arms = ask.arms.unwrap_or(self.settings.arms);
        let depth = self.settings.depth.max(ask.top_k.unwrap_or(self.settings.top_k));
        let query = Query { text: ask.query.clone(), vector, filter: ask.filter.clone(), depth, arms };
        Ok(self.index.search(&query)?)
    }

    /// Candidates, of one shard or of all, to what is answered with.
    pub fn finish(&self, ask: &Ask, mut hits: Vec<Hit>) -> Found {
        let mut notes = Vec::new();
        if let Some(reranker) = self.models.reranker.as_ref().filter(|_| ask.rerank && !hits.is_empty()) {
            hits.truncate(self.settings.rerank.max(ask.top_k.unwrap_or(self.settings.top_k)));
            let passages: Vec<String> = hits.iter().map(|hit| hit.text.clone()).collect();
            match reranker.rank(&ask.query, &passages) {
                Ok(numbers) if numbers.len() == hits.len() => {
                    hits.iter_mut().zip(numbers).for_each(|(hit, number)| hit.rerank = Some(number));
                    order(&mut hits);
                }
                Ok(numbers) => {
                    notes.push(format!("not reranked: {} numbers for {} passages", numbers.len(), hits.len()))
                }
                Err(error) => notes.push(format!("not reranked: {error:#}")),
            }
        }
        let floor = ask.floor.unwrap_or(self.settings.floor);
        let all = hits.len();
        hits.retain(|hit| floor.reached(hit));
        let below = all - hits.len();
        hits.truncate(ask.top_k.unwrap_or(self.settings.top_k));
        Found { hits, below, notes }
    }

    /// Both, for a service that is not cut into shards.
    ///
    /// # Errors
    /// As [`Service::candidates`].
    pub fn retrieve(&self, ask: &Ask) -> Result<Found, ServiceError> {
        Ok(self.finish(ask, self.candidates(ask)?))
    }
}
