//! A conversation as a run keeps it, and as OpenAI's API writes it.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// One message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "role", rename_all = "lowercase")]
pub enum Message {
    /// What holds for all that follows.
    System {
        /// The text.
        content: String,
    },
    /// A person's words.
    User {
        /// The text.
        content: String,
    },
    /// A model's.
    Assistant(Assistant),
    /// What came of a call.
    Tool {
        /// The call's id, as the model wrote it.
        tool_call_id: String,
        /// The text.
        content: String,
    },
}

/// A model's message: text, calls, or both.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assistant {
    /// The text.
    #[serde(default)]
    pub content: String,
    /// The calls, in their order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
}

/// A call a model wants made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCall {
    /// The model's id for it.
    pub id: String,
    /// The tool.
    pub name: String,
    /// JSON, if the model wrote JSON.
    pub arguments: String,
}

/// Tokens of one answer, as the server counted them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Read.
    pub prompt_tokens: u64,
    /// Written.
    pub completion_tokens: u64,
}

/// Bytes of a token, where a server does not count them: low, so that a budget holds.
const TOKEN_BYTES: u64 = 3;

impl Message {
    /// As OpenAI's API writes it.
    pub fn to_openai(&self) -> Value {
        match self {
            Self::System { content } => json!({ "role": "system", "content": content }),
            Self::User { content } => json!({ "role": "user", "content": content }),
            Self::Tool { tool_call_id, content } => {
                json!({ "role": "tool", "tool_call_id": tool_call_id, "content": content })
            }
            Self::Assistant(said) if said.tool_calls.is_empty() => {
                json!({ "role": "assistant", "content": said.content })
            }
            Self::Assistant(said) => {
                let content = if said.content.is_empty() { Value::Null } else { said.content.as_str().into() };
                let calls: Vec<Value> = said.tool_calls.iter().map(ToolCall::to_openai).collect();
                json!({ "role": "assistant", "content": content, "tool_calls": calls })
            }
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::System { content } | Self::User { content } | Self::Tool { content, .. } => content.len(),
            Self::Assistant(said) => said.bytes(),
        }
    }
}

impl Assistant {
    fn bytes(&self) -> usize {
        let calls = self.tool_calls.iter().map(|call| call.name.len() + call.arguments.len());
        self.content.len() + calls.sum::<usize>()
    }
}

impl ToolCall {
    fn to_openai(&self) -> Value {
        let function = json!({ "name": self.name, "arguments": self.arguments });
        json!({ "id": self.id, "type": "function", "function": function })
    }
}

impl Usage {
    /// What an answer took, from its bytes.
    pub fn estimate(prompt: &[Message], answer: &Assistant) -> Self {
        let tokens = |bytes: usize| (bytes as u64).div_ceil(TOKEN_BYTES);
        Self {
            prompt_tokens: tokens(prompt.iter().map(Message::bytes).sum()),
            completion_tokens: tokens(answer.bytes()),
        }
    }
}
