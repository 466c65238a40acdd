//! A question to a service: candidates, then rerank, floor and an end to the list.

use serde::{Deserialize, Serialize};

use super::{Service, ServiceError};
use crate::{
    index::{Arms, Filter, Hit, Query, Statistics, hit::order},
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

/// A question. Shards ask it of each other as JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
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
    /// As the service's embedder made it already.
    pub vector: Option<Vec<f32>>,
    /// What the words are weighed by; `None` = by what this shard counts.
    pub statistics: Option<Statistics>,
}

impl Ask {
    /// In words, of everything.
    pub fn new(query: &str) -> Self {
        let query = query.to_owned();
        let (filter, rerank) = (Filter::default(), true);
        Self { query, filter, top_k: None, floor: None, arms: None, rerank, vector: None, statistics: None }
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
    /// Makes the question's vector, and counts for its words: what is the same for all shards, or is added up over them. A
    /// question that is not about words has nothing to count.
    ///
    /// # Errors
    /// The filter's, the embedder's or the disk's.
    pub fn counted(&self, mut ask: Ask) -> Result<Ask, ServiceError> {
        ask.filter.check().map_err(|(field, message)| ServiceError::Field { field, message })?;
        ask.vector = Some(self.vector_of(&ask)?);
        if self.counts(&ask) {
            ask.statistics = Some(self.index.statistics(&ask.query)?);
        }
        Ok(ask)
    }

    /// Whether a question is about words, which are weighed by how rare they are.
    pub fn counts(&self, ask: &Ask) -> bool {
        ask.arms.unwrap_or(self.settings.arms).words
    }

    fn vector_of(&self, ask: &Ask) -> Result<Vec<f32>, ServiceError> {
        let embed = || -> anyhow::Result<Vec<f32>> {
            let vectors = self.models.embedder.embed(std::slice::from_ref(&ask.query), Side::Query)?;
            vectors.into_iter().next().ok_or_else(|| anyhow::anyhow!("it made no vector"))
        };
        match &ask.vector {
            Some(vector) => Ok(vector.clone()),
            None => embed().map_err(ServiceError::Embedder),
        }
    }

    /// How many candidates an arm names.
    pub fn depth(&self, ask: &Ask) -> usize {
        self.settings.depth.max(ask.top_k.unwrap_or(self.settings.top_k))
    }

    /// Each arm's candidates, fused: what a shard answers another with.
    ///
    /// # Errors
    /// The filter's, the embedder's or the disk's.
    pub fn candidates(&self, ask: &Ask) -> Result<Vec<Hit>, ServiceError> {
        ask.filter.check().map_err(|(field, message)| ServiceError::Field { field, message })?;
        // Also for the words alone: their hits' cosines tell whether they are above the floor.
        let vector = Some(self.vector_of(ask)?);
        let query = Query {
            text: ask.query.clone(),
            vector,
            filter: ask.filter.clone(),
            depth: self.depth(ask),
            arms: ask.arms.unwrap_or(self.settings.arms),
            statistics: ask.statistics.clone(),
        };
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
