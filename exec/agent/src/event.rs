//! What happens in a run. A run's log is its events in order, one line of JSON each, and its clients hear the same.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    message::{Assistant, Message, Usage},
    settings::{Budgets, Patience, ToolChoice},
};

/// Version of a record: raised when a line means something else than before.
pub const VERSION: u32 = 1;

/// An event, its place and its time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// [`VERSION`] of the build that wrote it.
    pub v: u32,
    /// Its place in the log, from 0 on.
    pub n: u64,
    /// When it happened, in milliseconds since 1970.
    pub at: u64,
    /// What happened.
    pub event: Event,
}

/// Names a call within its run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallId {
    /// The answer that asks for it, counted from 1.
    pub step: u32,
    /// Its place in that answer, from 0 on.
    pub place: u32,
}

/// What a run begins with. It is in the log, so that a run ends as it began whatever becomes of the settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Setup {
    /// The agent's name.
    pub agent: String,
    /// The conversation so far: instructions and the input.
    pub messages: Vec<Message>,
    /// What the model may call.
    pub tools: Vec<ToolSpec>,
    /// Names of tools that a person is asked about, or beginnings of names with a `*`.
    #[serde(default)]
    pub approval: Vec<String>,
    /// Whether it begins with a call.
    #[serde(default)]
    pub tool_choice: ToolChoice,
    /// What it may take.
    pub budgets: Budgets,
    /// How often what goes wrong may go wrong.
    pub patience: Patience,
}

/// A tool, as a model sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ToolSpec {
    /// Its name, of the letters OpenAI allows.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// Of its arguments: a JSON schema.
    pub schema: Value,
    /// Called twice is as called once.
    pub idempotent: bool,
}

/// What came of a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// It did what it is for.
    pub ok: bool,
    /// What the model is told.
    pub content: String,
}

/// Why a call was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refused {
    /// There is no such tool.
    UnknownTool,
    /// They do not match its schema.
    BadArguments,
    /// Too many in one answer.
    TooMany,
    /// It has been made again and again, and nothing changed.
    Circle,
}

/// Who said whether a call may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decider {
    /// A person, or a program for one.
    Client,
    /// Nobody did in time.
    Nobody,
}

/// Why a run has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Failure {
    /// Every answer it may have was a call.
    Steps,
    /// It took longer than it may.
    WallTime,
    /// It took more tokens than it may.
    Tokens,
    /// Its model makes the same calls again and again.
    Circle,
    /// Its model calls tools that are not there, or wrongly, again and again.
    BadCalls,
    /// Its model cannot be asked.
    Model,
    /// A client ended it.
    Cancelled,
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Event {
    /// The first.
    RunStarted {
        /// The run.
        run: String,
        /// What it begins with.
        setup: Setup,
        /// What whoever started it wants kept with it.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        metadata: BTreeMap<String, String>,
    },
    /// Another process goes on with it. What was on its way is lost.
    Resumed,
    /// The model is asked for an answer.
    ModelAsked {
        /// Which, from 1 on.
        step: u32,
    },
    /// It answered.
    ModelAnswered {
        /// Which.
        step: u32,
        /// What it said.
        message: Assistant,
        /// What that took, if its server says so.
        usage: Option<Usage>,
        /// Why it stopped, in OpenAI's words.
        finish_reason: Option<String>,
    },
    /// It did not.
    ModelFailed {
        /// Which answer.
        step: u32,
        /// Why.
        message: String,
        /// Asking again may help.
        again: bool,
    },
    /// A person is asked whether a call may be made.
    ApprovalAsked {
        /// The call.
        call: CallId,
        /// The tool.
        tool: String,
        /// Its arguments.
        arguments: Value,
    },
    /// It may, or may not.
    ApprovalGiven {
        /// The call.
        call: CallId,
        /// It may.
        approve: bool,
        /// Who says so.
        by: Decider,
        /// What the model is told about it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        note: Option<String>,
    },
    /// A call is not made.
    ToolRefused {
        /// The call.
        call: CallId,
        /// The tool.
        tool: String,
        /// Why.
        why: Refused,
        /// What the model is told.
        message: String,
    },
    /// A call is about to be made.
    ToolStarted {
        /// The call.
        call: CallId,
        /// The tool.
        tool: String,
        /// Its arguments.
        arguments: Value,
    },
    /// A call has an end.
    ToolFinished {
        /// The call.
        call: CallId,
        /// The tool.
        tool: String,
        /// What came of it.
        outcome: Outcome,
    },
    /// Something a person should know.
    Warned {
        /// What.
        message: String,
    },
    /// The run has its answer.
    Finished {
        /// The answer.
        answer: String,
    },
    /// The run ends without one.
    Failed {
        /// Why, for programs.
        why: Failure,
        /// Why, for people.
        message: String,
    },
}

impl Event {
    /// Its name, as in JSON.
    pub fn name(&self) -> &'static str {
        match self {
            Self::RunStarted { .. } => "run_started",
            Self::Resumed => "resumed",
            Self::ModelAsked { .. } => "model_asked",
            Self::ModelAnswered { .. } => "model_answered",
            Self::ModelFailed { .. } => "model_failed",
            Self::ApprovalAsked { .. } => "approval_asked",
            Self::ApprovalGiven { .. } => "approval_given",
            Self::ToolRefused { .. } => "tool_refused",
            Self::ToolStarted { .. } => "tool_started",
            Self::ToolFinished { .. } => "tool_finished",
            Self::Warned { .. } => "warned",
            Self::Finished { .. } => "finished",
            Self::Failed { .. } => "failed",
        }
    }

    /// It is the last of its run.
    pub fn is_last(&self) -> bool {
        matches!(self, Self::Finished { .. } | Self::Failed { .. })
    }

    /// What comes next needs it to be on disk: the start of a call before the call, its end before anything builds on it.
    /// The rest costs a question to a model when it is lost.
    pub fn must_last(&self) -> bool {
        match self {
            Self::RunStarted { .. }
            | Self::ModelAnswered { .. }
            | Self::ApprovalGiven { .. }
            | Self::ToolStarted { .. }
            | Self::ToolFinished { .. }
            | Self::Finished { .. }
            | Self::Failed { .. } => true,
            Self::Resumed
            | Self::ModelAsked { .. }
            | Self::ModelFailed { .. }
            | Self::ApprovalAsked { .. }
            | Self::ToolRefused { .. }
            | Self::Warned { .. } => false,
        }
    }
}

impl Outcome {
    /// It worked.
    pub fn done(content: impl Into<String>) -> Self {
        Self { ok: true, content: content.into() }
    }

    /// It did not.
    pub fn failed(content: impl Into<String>) -> Self {
        Self { ok: false, content: content.into() }
    }
}

impl std::fmt::Display for CallId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.step, self.place)
    }
}

impl std::str::FromStr for CallId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('.').and_then(|(step, place)| Some((step.parse().ok()?, place.parse().ok()?)));
        let (step, place) = parts.ok_or_else(|| format!("`{text}` is no call: write its step and place, as `3.0`"))?;
        Ok(Self { step, place })
    }
}

impl Serialize for CallId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for CallId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}
