//! The API's seam, answered by an engine.

use std::{path::Path, sync::Arc};

use mloc_burn::{formats::tokenizer::TextTokenizer, model::DecoderConfig};
use mloc_engine::{
    forward::AdapterId,
    request::{Request, RequestError, RequestId, Sink},
    run::Handle,
    vocabulary::Vocabulary,
};
use mloc_openai::{
    Model,
    model::{Card, Chat, Load, ModelError, Prompt, Token},
    server::unix_now,
};

use crate::{adapters::AdapterRoom, talk, vocabulary::TokenizerVocabulary};

/// A language model behind an engine.
pub struct Generator {
    pub(crate) card: Card,
    pub(crate) config: DecoderConfig,
    pub(crate) tokenizer: Arc<TextTokenizer>,
    pub(crate) vocabulary: Arc<TokenizerVocabulary>,
    pub(crate) handle: Handle,
    pub(crate) adapters: Arc<dyn AdapterRoom>,
}

impl Generator {
    /// The engine's.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Its special tokens' texts.
    pub fn special_tokens(&self) -> Vec<String> {
        let ids = (0..self.config.vocab_size as u32).filter(|id| self.vocabulary.bytes(*id).is_none());
        ids.filter_map(|id| self.tokenizer.token_text(id)).collect()
    }

    fn encoded(&self, text: &str, special: bool) -> Vec<u32> {
        // A tokenizer of a model has an id or several for any text.
        self.tokenizer.encode(text, special).unwrap_or_default()
    }
}

impl Model for Generator {
    fn card(&self) -> &Card {
        &self.card
    }

    fn render(&self, chat: &Chat) -> Result<Prompt, ModelError> {
        let now = i64::try_from(unix_now()).unwrap_or(i64::MAX);
        talk::render(&self.tokenizer, chat, now)
    }

    fn tokenize(&self, text: &str, special: bool) -> Vec<u32> {
        self.encoded(text, special)
    }

    fn detokenize(&self, ids: &[u32]) -> String {
        self.vocabulary.decode(ids)
    }

    fn token(&self, id: u32) -> Option<Token> {
        let bytes = self.vocabulary.bytes(id).or_else(|| self.tokenizer.token_text(id).map(String::into_bytes))?;
        Some(Token { bytes })
    }

    fn submit(&self, request: Request, sink: Sink) -> Result<RequestId, RequestError> {
        self.handle.submit(request, sink)
    }

    fn cancel(&self, request: RequestId) {
        self.handle.cancel(request);
    }

    fn load_adapter(&self, path: &str) -> Result<AdapterId, ModelError> {
        let folder = Path::new(path);
        if !folder.is_dir() {
            return Err(ModelError::Missing(format!("{path} is no folder on the machine that serves the model")));
        }
        let loaded = self.adapters.load(folder, &self.config);
        let id = loaded.map_err(|error| ModelError::Asked(format!("{path}: {error}")))?;
        let model = self.adapters.clone();
        let release = Box::new(move |id| model.unload(id));
        // Names are the server's: here an id is a name of its own.
        match self.handle.adapters().add(&id.0.to_string(), id, release) {
            Ok(()) => Ok(id),
            Err(error) => {
                self.adapters.unload(id);
                Err(ModelError::Failed(error.to_string()))
            }
        }
    }

    fn unload_adapter(&self, adapter: AdapterId) {
        // One that is gone already is no error.
        let _ = self.handle.adapters().remove(adapter);
    }

    fn embed(&self, _: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, ModelError> {
        Err(ModelError::Asked(format!("{} makes no embeddings: name a model that does", self.card.served_name)))
    }

    fn rerank(&self, _: &str, _: &[String]) -> Result<(Vec<f32>, usize), ModelError> {
        Err(ModelError::Asked(format!("{} ranks no documents: name a model that does", self.card.served_name)))
    }

    fn load(&self) -> Load {
        let stats = self.handle.stats();
        Load {
            running: stats.running,
            waiting: stats.waiting,
            blocks: stats.blocks,
            resident_blocks: stats.resident_blocks,
            prefix_queries: stats.prefix_queries,
            prefix_hits: stats.prefix_hits,
            preemptions: stats.preemptions,
            steps: stats.steps,
            step_tokens: stats.step_tokens,
            out_of_memory: stats.out_of_memory,
            drafts: stats.drafts,
            draft_tokens: stats.draft_tokens,
            accepted_tokens: stats.accepted_tokens,
        }
    }

    fn health(&self) -> Result<(), ModelError> {
        match self.handle.is_open() {
            true => Ok(()),
            false => Err(ModelError::Failed("the engine has ended".to_owned())),
        }
    }
}
