//! A model that is a function: what it was told so far → what it says. For tests, and to see a loop without a model.

use async_trait::async_trait;

use super::{Answer, Chat, ChatError, Delta};
use crate::{
    event::ToolSpec,
    message::{Assistant, Message, ToolCall, Usage},
    run::Ask,
};

/// What it does when it is asked.
#[derive(Clone, Debug)]
pub enum Turn {
    /// It says this, and is done.
    Say(String),
    /// It calls these tools: names and arguments.
    Call(Vec<(String, String)>),
    /// It fails.
    Fail(ChatError),
    /// It never answers.
    Hang,
}

/// A scripted model.
pub struct Scripted<F> {
    script: F,
}

impl<F: Fn(&Ask) -> Turn + Send + Sync> Scripted<F> {
    /// With its script.
    pub fn new(script: F) -> Self {
        Self { script }
    }
}

#[async_trait]
impl<F: Fn(&Ask) -> Turn + Send + Sync> Chat for Scripted<F> {
    async fn answer(
        &self,
        ask: &Ask,
        _: &[ToolSpec],
        tell: &(dyn Fn(Delta) + Send + Sync),
    ) -> Result<Answer, ChatError> {
        let message = match (self.script)(ask) {
            Turn::Hang => std::future::pending().await,
            Turn::Fail(error) => return Err(error),
            Turn::Say(content) => {
                for word in content.split_inclusive(' ') {
                    tell(Delta::Text(word.to_owned()));
                }
                Assistant { content, tool_calls: Vec::new() }
            }
            Turn::Call(calls) => {
                let call = |(i, (name, arguments)): (usize, (String, String))| ToolCall {
                    id: format!("call_{}_{i}", ask.step),
                    name,
                    arguments,
                };
                Assistant { content: String::new(), tool_calls: calls.into_iter().enumerate().map(call).collect() }
            }
        };
        let usage = Usage { prompt_tokens: 10 * ask.messages.len() as u64, completion_tokens: 10 };
        Ok(Answer { message, usage: Some(usage), finish_reason: None })
    }
}

/// What came of the last calls, in order: what a script decides by.
pub fn last_results(ask: &Ask) -> Vec<&str> {
    let results = ask.messages.iter().rev().map_while(|message| match message {
        Message::Tool { content, .. } => Some(content.as_str()),
        Message::System { .. } | Message::User { .. } | Message::Assistant(_) => None,
    });
    let mut results: Vec<&str> = results.collect();
    results.reverse();
    results
}
