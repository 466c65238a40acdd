//! Pieces of a streamed answer → the answer.

use serde::Deserialize;

use super::super::{Answer, ChatError, Delta};
use crate::message::{ToolCall, Usage};

/// Bytes of a whole answer: a model that does not stop is stopped.
const ANSWER_BYTES: usize = 16 << 20;
/// Calls of an answer that are kept apart. A server that counts beyond is broken.
const CALLS_MAX: usize = 128;

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Usage>,
    /// Some servers tell failures so, in the middle of an answer.
    error: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    delta: Piece,
    finish_reason: Option<String>,
}

#[derive(Deserialize, Default)]
struct Piece {
    content: Option<String>,
    #[serde(alias = "reasoning")]
    reasoning_content: Option<String>,
    tool_calls: Option<Vec<CallPiece>>,
}

#[derive(Deserialize)]
struct CallPiece {
    #[serde(default)]
    index: usize,
    id: Option<String>,
    function: Option<FunctionPiece>,
}

#[derive(Deserialize)]
struct FunctionPiece {
    name: Option<String>,
    arguments: Option<String>,
}

/// An answer that is coming.
#[derive(Default)]
pub(super) struct Assembly {
    answer: Answer,
    bytes: usize,
    done: bool,
}

impl Assembly {
    /// Nothing more will come.
    pub fn is_done(&self) -> bool {
        self.done
    }

    pub fn take(&mut self, data: &str, tell: &(dyn Fn(Delta) + Send + Sync)) -> Result<(), ChatError> {
        if self.done || data == "[DONE]" {
            self.done = true;
            return Ok(());
        }
        let chunk: Chunk = serde_json::from_str(data)
            .map_err(|e| ChatError::Fatal(format!("the model's server does not speak OpenAI's API: {e}")))?;
        if let Some(error) = chunk.error {
            let said =
                error.get("message").and_then(|said| said.as_str()).map_or_else(|| error.to_string(), str::to_owned);
            return Err(ChatError::Retryable(format!("the answer broke off: {said}")));
        }
        self.answer.usage = chunk.usage.or(self.answer.usage);
        self.bytes += data.len();
        if self.bytes > ANSWER_BYTES {
            return Err(ChatError::Fatal(format!("an answer of more than {ANSWER_BYTES} bytes")));
        }
        for choice in chunk.choices {
            self.answer.finish_reason = choice.finish_reason.or(self.answer.finish_reason.take());
            if let Some(thought) = choice.delta.reasoning_content.filter(|text| !text.is_empty()) {
                tell(Delta::Thought(thought));
            }
            if let Some(text) = choice.delta.content.filter(|text| !text.is_empty()) {
                self.answer.message.content.push_str(&text);
                tell(Delta::Text(text));
            }
            for call in choice.delta.tool_calls.into_iter().flatten() {
                self.take_call(call)?;
            }
        }
        Ok(())
    }

    fn take_call(&mut self, piece: CallPiece) -> Result<(), ChatError> {
        let calls = &mut self.answer.message.tool_calls;
        if piece.index >= CALLS_MAX {
            return Err(ChatError::Fatal(format!("an answer of more than {CALLS_MAX} calls")));
        }
        while calls.len() <= piece.index {
            calls.push(ToolCall { id: String::new(), name: String::new(), arguments: String::new() });
        }
        let call = &mut calls[piece.index];
        if let Some(id) = piece.id.filter(|id| !id.is_empty()) {
            call.id = id;
        }
        let Some(function) = piece.function else { return Ok(()) };
        if let Some(name) = function.name {
            call.name.push_str(&name);
        }
        if let Some(arguments) = function.arguments {
            call.arguments.push_str(&arguments);
        }
        Ok(())
    }

    /// The answer, if it came to its end.
    pub fn end(mut self) -> Result<Answer, ChatError> {
        if !self.done && self.answer.finish_reason.is_none() {
            return Err(ChatError::Retryable("the answer broke off before its end".to_owned()));
        }
        for (i, call) in self.answer.message.tool_calls.iter_mut().enumerate() {
            // What is said of a call names it by its id.
            if call.id.is_empty() {
                call.id = format!("call_{i}");
            }
        }
        Ok(self.answer)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::message::Assistant;

    fn assembled(data: &[&str]) -> (Result<Answer, ChatError>, Vec<Delta>) {
        let told = Mutex::new(Vec::new());
        let mut assembly = Assembly::default();
        let tell = |delta| told.lock().unwrap().push(delta);
        let taken = data.iter().try_for_each(|one| assembly.take(one, &tell));
        (taken.and_then(|()| assembly.end()), told.into_inner().unwrap())
    }

    #[test]
    fn text_thoughts_and_calls_come_in_pieces() {
        let (answer, told) = assembled(&[
            r#"{"choices":[{"delta":{"role":"assistant","reasoning_content":"hm"}}]}"#,
            r#"{"choices":[{"delta":{"content":"Let me "}}]}"#,
            r#"{"choices":[{"delta":{"content":"look."}}]}"#,
            r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"id":"a","type":"function","function":{"name":"f","arguments":""}}]}}]}"#,
            r#"{"choices":[{"delta":{"tool_calls":[{"index":1,"function":{"name":"g","arguments":"{}"}}]}}]}"#,
            r#"{"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\"x\":1}"}}]}}]}"#,
            r#"{"choices":[{"delta":{},"finish_reason":"tool_calls"}]}"#,
            r#"{"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":5,"total_tokens":12}}"#,
            "[DONE]",
        ]);
        let call = |id: &str, name: &str, arguments: &str| ToolCall {
            id: id.into(),
            name: name.into(),
            arguments: arguments.into(),
        };
        let tool_calls = vec![call("a", "f", r#"{"x":1}"#), call("call_1", "g", "{}")];
        let wanted = Answer {
            message: Assistant { content: "Let me look.".into(), tool_calls },
            usage: Some(Usage { prompt_tokens: 7, completion_tokens: 5 }),
            finish_reason: Some("tool_calls".into()),
        };
        assert_eq!(answer, Ok(wanted));
        let text = |text: &str| Delta::Text(text.into());
        assert_eq!(told, [Delta::Thought("hm".into()), text("Let me "), text("look.")]);
    }

    #[test]
    fn an_answer_without_its_end_is_none() {
        let torn = [r#"{"choices":[{"delta":{"content":"half"}}]}"#];
        assert!(matches!(assembled(&torn).0, Err(ChatError::Retryable(_))));
        let failed = [r#"{"error":{"message":"out of memory"}}"#];
        assert_eq!(assembled(&failed).0, Err(ChatError::Retryable("the answer broke off: out of memory".into())));
        assert!(matches!(assembled(&["<html>"]).0, Err(ChatError::Fatal(_))));
    }
}
