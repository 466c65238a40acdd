//! The seam to what is served: a model behind an engine, or a script in tests.

use std::{collections::BTreeMap, path::PathBuf};

use mloc_engine::{
    forward::AdapterId,
    request::{Request, RequestError, RequestId, Sampling, Sink},
};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::calls::Format;

/// What a model says of itself, once.
#[derive(Debug, Clone, PartialEq)]
pub struct Card {
    /// Its name at the API.
    pub served_name: String,
    /// Where it is from, as clients are told.
    pub root: String,
    /// Since when it is served, in seconds since 1970.
    pub created: u64,
    /// Tokens of prompt and answer together.
    pub max_length: usize,
    /// What holds where a request says nothing: the model's generation_config.json.
    pub defaults: Sampling,
    /// Whether it continues prompts: a model of embeddings does not.
    pub generates: bool,
    /// How it writes tool calls; `None` = its template takes no tools.
    pub calls: Option<Format>,
    /// Whether `<think>…</think>` is taken out of answers.
    pub thinks: bool,
    /// Special tokens whose text the readers of calls and thoughts have to see: `[TOOL_CALLS]`, `<|python_tag|>`, and
    /// where they are special `<tool_call>`, `</think>`. The engine's text leaves them out.
    pub markers: BTreeMap<u32, String>,
    /// Numbers an embedding has; `None` = it makes none.
    pub embedding: Option<usize>,
    /// Whether an embedding's beginning is an embedding too (Matryoshka), so that `dimensions` may cut it.
    pub embedding_shortens: bool,
    /// Whether it scores documents.
    pub reranks: bool,
    /// Of its tokenizer.
    pub tokenizer: TokenizerInfo,
    /// Bytes of text of its longest token; `None` = a token may stand for any number of them.
    pub token_bytes: Option<usize>,
}

/// What a client wants to know that leaves tokenizing to the server. Names are those of tokenizer_config.json.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct TokenizerInfo {
    /// The text of the token that begins a text.
    pub bos_token: Option<String>,
    /// Of the one that ends it.
    pub eos_token: Option<String>,
    /// Of the one that fills up a batch.
    pub pad_token: Option<String>,
    /// The chat template's source.
    pub chat_template: Option<String>,
}

/// A conversation to be rendered, as chat templates take it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Chat {
    /// Objects with `role` and `content`; `tool_calls` have their arguments as objects.
    pub messages: Vec<Value>,
    /// Tools on offer, as they were given.
    pub tools: Option<Vec<Value>>,
    /// Whether the header of the assistant's turn comes last.
    pub add_generation_prompt: bool,
    /// Whether the last message goes on instead.
    pub continue_final_message: bool,
    /// Names of the template's own, such as `enable_thinking`.
    pub variables: Map<String, Value>,
}

impl Chat {
    /// Bytes of what users say, which templates write as it is.
    pub fn asked_bytes(&self) -> usize {
        let asked = self.messages.iter().filter(|message| message["role"] == "user");
        asked.filter_map(|message| message["content"].as_str()).map(str::len).sum()
    }
}

/// A rendered conversation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prompt {
    /// Its ids.
    pub ids: Vec<u32>,
    /// Whether it ends inside an open `<think>`.
    pub thinking: bool,
}

/// A token by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// Its bytes; a special token's name, as bytes.
    pub bytes: Vec<u8>,
}

/// What goes on in the engine, now and since its start.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Load {
    /// Requests being computed.
    pub running: usize,
    /// Requests that wait.
    pub waiting: usize,
    /// Prompt tokens looked up in the prefix cache, ever.
    pub prefix_queries: u64,
    /// Of those, found.
    pub prefix_hits: u64,
    /// Requests put back from running to waiting, ever.
    pub preemptions: u64,
    /// Cache blocks there are.
    pub blocks: usize,
    /// Of those, held by requests.
    pub resident_blocks: usize,
    /// Steps computed, ever.
    pub steps: u64,
    /// Tokens computed in them.
    pub step_tokens: u64,
    /// Steps for which the device had no memory, ever.
    pub out_of_memory: u64,
    /// Times that tokens were guessed ahead, ever.
    pub drafts: u64,
    /// Tokens guessed.
    pub draft_tokens: u64,
    /// And right.
    pub accepted_tokens: u64,
}

/// Why something but a generation failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModelError {
    /// What the client asked for can't be: what was found and what would work.
    #[error("{0}")]
    Asked(String),
    /// Something isn't there.
    #[error("{0}")]
    Missing(String),
    /// The model or its device failed.
    #[error("{0}")]
    Failed(String),
}

/// What the server needs of a model. All calls may block for as long as their work takes; the server makes those that
/// compute or read files on threads for blocking.
pub trait Model: Send + Sync + 'static {
    /// What it says of itself.
    fn card(&self) -> &Card;

    /// A conversation's ids by the chat template.
    ///
    /// # Errors
    /// [`ModelError::Asked`] when the template refuses it.
    fn render(&self, chat: &Chat) -> Result<Prompt, ModelError>;

    /// A text's ids. `special`: with what the tokenizer puts around a text, such as a token that begins it.
    fn tokenize(&self, text: &str, special: bool) -> Vec<u32>;

    /// The text of ids, special tokens left out.
    fn detokenize(&self, ids: &[u32]) -> String;

    /// A token by itself; `None` = there is no such id.
    fn token(&self, id: u32) -> Option<Token>;

    /// Begins a generation; its events go to the sink, from another thread.
    ///
    /// # Errors
    /// When it isn't even tried.
    fn submit(&self, request: Request, sink: Sink) -> Result<RequestId, RequestError>;

    /// Ends a generation and frees what it holds. One that has ended is no error.
    fn cancel(&self, request: RequestId);

    /// Loads an adapter from a folder on this machine.
    ///
    /// # Errors
    /// When there is none, or it doesn't fit the model.
    fn load_adapter(&self, path: &str) -> Result<AdapterId, ModelError>;

    /// Lets an adapter go; requests that run with it go on.
    fn unload_adapter(&self, adapter: AdapterId);

    /// An embedding of each prompt, [`Card::embedding`] numbers of unit length each.
    ///
    /// # Errors
    /// When a prompt is too long, or the model failed.
    fn embed(&self, prompts: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, ModelError>;

    /// How well each document answers the query, 0 to 1, and the tokens it took.
    ///
    /// # Errors
    /// When a pair is too long, or the model failed.
    fn rerank(&self, query: &str, documents: &[String]) -> Result<(Vec<f32>, usize), ModelError>;

    /// What goes on.
    fn load(&self) -> Load;

    /// Whether it can answer.
    ///
    /// # Errors
    /// Why not.
    fn health(&self) -> Result<(), ModelError>;
}

/// An adapter that is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adapter {
    /// Its name; at the API it is `served_name:name`.
    pub name: String,
    /// In the engine.
    pub id: AdapterId,
    /// Where it is from.
    pub path: PathBuf,
    /// Since when it is served, in seconds since 1970.
    pub created: u64,
}
