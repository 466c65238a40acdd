//! Embedders (encoders, and decoders without their heads) and rerankers behind the API's seam. They compute on the thread
//! that asks, one request at a time.

use std::{
    path::Path,
    sync::{Mutex, PoisonError},
};

use mloc_burn::{
    device::DeviceChoice,
    embedding::{Embedder, EmbeddingError, Reranker},
    formats::tokenizer::TextTokenizer,
    model::EncoderConfig,
};
use mloc_engine::{
    forward::AdapterId,
    request::{Request, RequestError, RequestId, Sampling, Sink},
};
use mloc_openai::{
    Model,
    model::{Card, Chat, Load, ModelError, Prompt, Token},
};

use crate::{open::ServeError, settings::Settings, talk};

/// A model that serves vectors or scores, and no text.
pub struct Encoder {
    card: Card,
    tokenizer: TextTokenizer,
    /// Products use all threads: two requests at once would be slower than one after the other.
    kind: Mutex<Kind>,
}

enum Kind {
    Embeds(Embedder),
    Ranks(Reranker),
}

impl Encoder {
    /// Opens a folder: one whose model has a score head ranks, any other embeds.
    ///
    /// # Errors
    /// What is wrong with its files.
    pub fn open(folder: &Path, settings: &Settings) -> Result<Self, ServeError> {
        let model = |error: EmbeddingError| ServeError::Model(error.to_string());
        let device = DeviceChoice::Cpu.open().map_err(|error| ServeError::Model(error.to_string()))?;
        let ranks = EncoderConfig::from_folder(folder).is_ok_and(|config| config.num_labels.is_some());
        let kind = if ranks {
            Kind::Ranks(Reranker::open(folder, &device).map_err(model)?)
        } else {
            Kind::Embeds(Embedder::open(folder, &device).map_err(model)?)
        };
        let (longest, tokenizer, embedding) = match &kind {
            Kind::Embeds(embedder) => (embedder.backbone.longest(), embedder.tokenizer.clone(), Some(embedder.width())),
            Kind::Ranks(reranker) => {
                (reranker.encoder.config.max_position_embeddings, reranker.tokenizer.clone(), None)
            }
        };
        // What is too long is refused by the server, with its length.
        let tokenizer = tokenizer.uncut().map_err(|error| ServeError::Model(error.to_string()))?;
        let said = tokenizer.model_max_length().map_or(longest, |length| length.min(longest));
        let card = Card {
            served_name: settings.served_name.clone(),
            root: settings.root.clone(),
            created: settings.created,
            max_length: settings.max_length.map_or(said, |length| length.min(said)),
            defaults: Sampling::default(),
            generates: false,
            calls: None,
            thinks: false,
            markers: Default::default(),
            embedding,
            embedding_shortens: false,
            reranks: ranks,
            tokenizer: talk::info(&tokenizer),
            // A word it has never seen is one token, however long.
            token_bytes: None,
        };
        Ok(Self { card, tokenizer, kind: Mutex::new(kind) })
    }

    fn generates_nothing<T>(&self) -> Result<T, ModelError> {
        Err(ModelError::Asked(format!("{} makes no text: name a model that does", self.card.served_name)))
    }
}

impl Model for Encoder {
    fn card(&self) -> &Card {
        &self.card
    }

    fn render(&self, _: &Chat) -> Result<Prompt, ModelError> {
        self.generates_nothing()
    }

    fn tokenize(&self, text: &str, special: bool) -> Vec<u32> {
        self.tokenizer.encode(text, special).unwrap_or_default()
    }

    fn detokenize(&self, ids: &[u32]) -> String {
        self.tokenizer.decode(ids, true).unwrap_or_default()
    }

    fn token(&self, id: u32) -> Option<Token> {
        self.tokenizer.token_text(id).map(|text| Token { bytes: text.into_bytes() })
    }

    fn submit(&self, _: Request, _: Sink) -> Result<RequestId, RequestError> {
        Err(RequestError::Invalid { field: "model", detail: "it makes no text".to_owned() })
    }

    fn cancel(&self, _: RequestId) {}

    fn load_adapter(&self, _: &str) -> Result<AdapterId, ModelError> {
        Err(ModelError::Asked("adapters are of language models".to_owned()))
    }

    fn unload_adapter(&self, _: AdapterId) {}

    fn embed(&self, prompts: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, ModelError> {
        match &*self.kind.lock().unwrap_or_else(PoisonError::into_inner) {
            Kind::Embeds(embedder) => {
                let mut vectors = embedder.embed_ids(prompts).map_err(|error| match error {
                    EmbeddingError::Row(row) => ModelError::Asked(row.to_string()),
                    other => ModelError::Failed(other.to_string()),
                })?;
                vectors.iter_mut().for_each(|vector| to_unit_length(vector));
                Ok(vectors)
            }
            Kind::Ranks(_) => {
                Err(ModelError::Asked(format!("{} makes no embeddings, it ranks", self.card.served_name)))
            }
        }
    }

    fn rerank(&self, query: &str, documents: &[String]) -> Result<(Vec<f32>, usize), ModelError> {
        match &*self.kind.lock().unwrap_or_else(PoisonError::into_inner) {
            Kind::Ranks(reranker) => {
                let failed = |error: EmbeddingError| ModelError::Failed(error.to_string());
                let pairs: Vec<(&str, &str)> = documents.iter().map(|document| (query, document.as_str())).collect();
                let mut tokens = 0;
                for (index, (query, document)) in pairs.iter().enumerate() {
                    // By the tokenizer that cuts nothing.
                    let encoded = self.tokenizer.encode_pair(query, Some(document));
                    let length = encoded.map_err(|error| failed(error.into()))?.0.len();
                    if length > self.card.max_length {
                        let most = self.card.max_length;
                        let text = format!(
                            "documents[{index}]: {length} tokens with the query, and {most} fit: send less of it"
                        );
                        return Err(ModelError::Asked(text));
                    }
                    tokens += length;
                }
                let scores = reranker.score(&pairs).map_err(failed)?;
                Ok((scores.iter().map(|labels| relevance(labels)).collect(), tokens))
            }
            Kind::Embeds(_) => {
                Err(ModelError::Asked(format!("{} ranks no documents, it embeds", self.card.served_name)))
            }
        }
    }

    fn load(&self) -> Load {
        Load::default()
    }

    fn health(&self) -> Result<(), ModelError> {
        Ok(())
    }
}

/// Zeros stay zeros.
fn to_unit_length(vector: &mut [f32]) {
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|x| *x /= length);
    }
}

/// Of what leaves a score head: the sigmoid of one label; of several the last one's share, as rerankers of two classes
/// have "relevant" last.
pub fn relevance(labels: &[f32]) -> f32 {
    match labels {
        [] => 0.0,
        [one] => 1.0 / (1.0 + (-one).exp()),
        several => {
            let most = several.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
            let sum: f32 = several.iter().map(|label| (label - most).exp()).sum();
            several.last().map_or(0.0, |last| (last - most).exp() / sum)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relevance_is_a_share() {
        assert_eq!(relevance(&[0.0]), 0.5);
        assert_eq!(relevance(&[3.0, 3.0]), 0.5);
        assert!(relevance(&[-100.0, 100.0]) > 0.999 && relevance(&[200.0, -200.0]) < 0.001);
        let mut vector = [3.0, 4.0];
        to_unit_length(&mut vector);
        assert_eq!(vector, [0.6, 0.8]);
    }
}
