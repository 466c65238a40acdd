//! The machine of a run: what happened, and what is to be done next. It has no clock, disk or network: time is an argument,
//! and the same records make the same run (`tests/machine.rs`).
//!
//! ```text
//! Ready ─ask→ Asking ─answered, calls→ Calling ─each has its end→ Ready
//!               │ └──answered, none──→ Answered ─→ Over
//!               └────failed──────────→ Ready, or Broken ─→ Over
//! Resumed: Asking → Ready; calls that were on their way are Interrupted
//! ```

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use crate::{
    event::{CallId, Event, Failure, Outcome, Record, Refused, Setup, VERSION},
    message::{Assistant, Message, ToolCall, Usage},
};

mod apply;
mod circle;
mod judge;
mod next;
pub mod schema;

use circle::Trace;
use schema::Arguments;

/// What is to be done next.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Record these; nothing else is to be done for them.
    Note(Vec<Event>),
    /// Record that the model is asked, then ask it.
    Ask(Ask),
    /// Record that each of these begins, then make them all at once.
    Call(Vec<Call>),
    /// Wait for what is on its way, or for a person, but not beyond this time.
    Wait {
        /// Milliseconds since 1970.
        until: u64,
    },
    /// Nothing: it is over.
    Over,
}

/// Whether an answer has calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Calls {
    /// It may not: the last one has to say something.
    None,
    /// As the model likes.
    Allowed,
    /// It must.
    Required,
}

/// A question to a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Ask {
    /// Which answer it will be, from 1 on.
    pub step: u32,
    /// The conversation.
    pub messages: Vec<Message>,
    /// Whether it calls tools.
    pub calls: Calls,
    /// Tokens the answer may have.
    pub max_tokens: u64,
}

/// A call to make.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// Its name in the run.
    pub id: CallId,
    /// The tool.
    pub tool: String,
    /// Its arguments, which match its schema.
    pub arguments: Value,
}

/// What a run has taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Used {
    /// Answers.
    pub steps: u32,
    /// Calls that were made.
    pub calls: u32,
    /// Tokens read.
    pub prompt_tokens: u64,
    /// Tokens written.
    pub completion_tokens: u64,
    /// Time, without that between processes and that in which only a person was waited for.
    pub elapsed_ms: u64,
}

/// Where a run stands, for clients.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum Standing {
    /// A model or a tool is at work.
    Running,
    /// Only a person is waited for.
    WaitingForApproval,
    /// It has its answer.
    Finished {
        /// The answer.
        answer: String,
    },
    /// It has none.
    Failed {
        /// Why, for programs.
        why: Failure,
        /// Why, for people.
        message: String,
    },
}

/// Records that make no run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutOfPlace {
    /// The first is no start.
    #[error("a run begins with run_started, this one with {0}")]
    NoStart(&'static str),
    /// There is none.
    #[error("a run without a record")]
    Empty,
    /// A later build wrote it.
    #[error("record {n} was written by a later build (version {found}, this one reads {VERSION})")]
    Later {
        /// Its place.
        n: u64,
        /// Its version.
        found: u32,
    },
    /// A record is not the next one.
    #[error("record {found} where {wanted} belongs")]
    Number {
        /// What was found.
        found: u64,
        /// What belongs there.
        wanted: u64,
    },
    /// It cannot happen in a run that stands so.
    #[error("record {n}: {event} in a run that is {phase}")]
    Phase {
        /// Its place.
        n: u64,
        /// What happened.
        event: &'static str,
        /// Where the run stood.
        phase: &'static str,
    },
}

/// A run.
#[derive(Debug)]
pub struct Run {
    id: String,
    setup: Setup,
    tools: BTreeMap<String, Arguments>,
    messages: Vec<Message>,
    phase: Phase,
    used: Used,
    /// Tokens of the last answer and its question: the next question is longer.
    last_usage: Usage,
    last_at: u64,
    next_n: u64,
    bad_steps: u32,
    circles: u32,
    model_failures: u32,
    traces: Vec<Trace>,
}

#[derive(Debug)]
enum Phase {
    Ready,
    Asking { step: u32 },
    Calling { calls: Vec<Pending> },
    Answered { answer: String, cut: bool },
    Broken { message: String },
    Over(End),
}

#[derive(Debug, Clone)]
enum End {
    Finished { answer: String },
    Failed { why: Failure, message: String },
}

/// A call of the last answer.
#[derive(Debug)]
struct Pending {
    call: ToolCall,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Wanted,
    Asked { since: u64 },
    Approved,
    Started { times: u32 },
    Interrupted { times: u32 },
    Done { outcome: Outcome, refused: Option<Refused> },
}

impl Run {
    /// A run from all its records.
    ///
    /// # Errors
    /// When they are no run's.
    pub fn restore<'a>(records: impl IntoIterator<Item = &'a Record>) -> Result<Self, OutOfPlace> {
        let mut records = records.into_iter();
        let first = records.next().ok_or(OutOfPlace::Empty)?;
        let mut run = Self::start(first)?;
        for record in records {
            run.apply(record)?;
        }
        Ok(run)
    }

    /// A run from its first record.
    ///
    /// # Errors
    /// When that is no start.
    pub fn start(first: &Record) -> Result<Self, OutOfPlace> {
        if first.v > VERSION {
            return Err(OutOfPlace::Later { n: first.n, found: first.v });
        }
        let Event::RunStarted { run, setup, .. } = &first.event else {
            return Err(OutOfPlace::NoStart(first.event.name()));
        };
        let tools = setup.tools.iter().map(|tool| (tool.name.clone(), Arguments::of(tool)));
        Ok(Self {
            id: run.clone(),
            tools: tools.collect(),
            messages: setup.messages.clone(),
            setup: setup.clone(),
            phase: Phase::Ready,
            used: Used::default(),
            last_usage: Usage::default(),
            last_at: first.at,
            next_n: first.n + 1,
            bad_steps: 0,
            circles: 0,
            model_failures: 0,
            traces: Vec::new(),
        })
    }

    /// Its name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What it began with.
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// The conversation so far.
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// The place of its next record.
    pub fn next_n(&self) -> u64 {
        self.next_n
    }

    /// When the last thing happened.
    pub fn last_at(&self) -> u64 {
        self.last_at
    }

    /// What it has taken, up to its last record.
    pub fn used(&self) -> Used {
        self.used
    }

    /// It has its end.
    pub fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Over(_))
    }

    /// The calls a person is asked about.
    pub fn asked(&self) -> Vec<(CallId, &ToolCall)> {
        let Phase::Calling { calls } = &self.phase else { return Vec::new() };
        let asked = calls.iter().enumerate().filter(|(_, one)| matches!(one.stage, Stage::Asked { .. }));
        asked.map(|(place, one)| (self.call_id(place), &one.call)).collect()
    }

    /// Where it stands.
    pub fn standing(&self) -> Standing {
        match &self.phase {
            Phase::Over(End::Finished { answer }) => Standing::Finished { answer: answer.clone() },
            Phase::Over(End::Failed { why, message }) => Standing::Failed { why: *why, message: message.clone() },
            Phase::Calling { calls } if only_asked(calls) => Standing::WaitingForApproval,
            Phase::Ready
            | Phase::Asking { .. }
            | Phase::Calling { .. }
            | Phase::Answered { .. }
            | Phase::Broken { .. } => Standing::Running,
        }
    }

    fn call_id(&self, place: usize) -> CallId {
        CallId { step: self.used.steps, place: u32::try_from(place).unwrap_or(u32::MAX) }
    }

    /// Only a person is waited for: the clock of the run stands still.
    fn is_paused(&self) -> bool {
        matches!(&self.phase, Phase::Calling { calls } if only_asked(calls))
    }

    fn elapsed_ms(&self, now: u64) -> u64 {
        let since = if self.is_paused() { 0 } else { now.saturating_sub(self.last_at) };
        self.used.elapsed_ms.saturating_add(since)
    }

    fn tokens(&self) -> u64 {
        self.used.prompt_tokens.saturating_add(self.used.completion_tokens)
    }
}

fn only_asked(calls: &[Pending]) -> bool {
    let stands = |one: &Pending| matches!(one.stage, Stage::Asked { .. } | Stage::Done { .. });
    calls.iter().all(stands) && calls.iter().any(|one| matches!(one.stage, Stage::Asked { .. }))
}

impl Phase {
    fn name(&self) -> &'static str {
        match self {
            Self::Ready => "about to ask its model",
            Self::Asking { .. } => "asking its model",
            Self::Calling { .. } => "making calls",
            Self::Answered { .. } => "about to finish",
            Self::Broken { .. } => "about to fail",
            Self::Over(_) => "over",
        }
    }
}

/// An answer that is more than its calls may be.
fn is_cut(finish_reason: Option<&str>, message: &Assistant) -> bool {
    finish_reason == Some("length") && message.tool_calls.is_empty()
}
