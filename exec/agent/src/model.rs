//! The seam to a model.

use async_trait::async_trait;

use crate::{
    event::ToolSpec,
    message::{Assistant, Usage},
    run::Ask,
};

pub mod openai;
pub mod scripted;
pub mod sse;

pub use openai::OpenAi;

/// A piece of an answer, as it comes. It is for whoever looks on; what counts is the whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delta {
    /// Of its text.
    Text(String),
    /// Of what it thinks first.
    Thought(String),
}

/// A whole answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// What it says.
    pub message: Assistant,
    /// What it took, if its server counts.
    pub usage: Option<Usage>,
    /// Why it stopped, in OpenAI's words.
    pub finish_reason: Option<String>,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChatError {
    /// Asking again may help: the line broke, or its server is busy.
    #[error("{0}")]
    Retryable(String),
    /// It will not.
    #[error("{0}")]
    Fatal(String),
}

/// What can be asked.
#[async_trait]
pub trait Chat: Send + Sync {
    /// Asks, and tells pieces as they come.
    async fn answer(
        &self,
        ask: &Ask,
        tools: &[ToolSpec],
        tell: &(dyn Fn(Delta) + Send + Sync),
    ) -> Result<Answer, ChatError>;
}
