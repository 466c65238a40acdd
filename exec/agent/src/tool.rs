//! The seam to tools.

use async_trait::async_trait;
use serde_json::Value;

use crate::event::{Outcome, ToolSpec};

pub mod code;
pub mod fence;
pub mod http_tool;
pub mod mcp;
pub mod retrieve;
pub mod template;
pub mod toolbox;

pub use toolbox::Toolbox;

/// What a model can call.
#[async_trait]
pub trait Tool: Send + Sync {
    /// What the model sees of it.
    fn spec(&self) -> &ToolSpec;

    /// Calls it. Its arguments match its schema. A failure is an outcome too: the model is told. Dropped before its end, it
    /// lets go of whatever it holds.
    async fn call(&self, arguments: &Value) -> Outcome;

    /// Lets go of what it holds between calls.
    async fn close(&self) {}
}
