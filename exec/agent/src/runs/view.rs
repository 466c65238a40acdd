//! A run, for clients.

use serde::Serialize;
use serde_json::Value;

use crate::{
    event::{CallId, Record},
    run::{OutOfPlace, Run, Standing, Used},
};

/// A run, for clients.
#[derive(Clone, Debug, Serialize)]
pub struct View {
    /// Its name.
    pub id: String,
    /// Its agent.
    pub agent: String,
    /// When it began, in milliseconds since 1970.
    pub created_at: u64,
    /// Where it stands.
    pub state: Standing,
    /// A process is at it. One that is neither over nor live goes on when its agent starts again.
    pub live: bool,
    /// What it has taken.
    pub used: Used,
    /// Calls a person is asked about.
    pub approvals: Vec<Asked>,
    /// Records in its log.
    pub events: u64,
}

/// A call a person is asked about.
#[derive(Clone, Debug, Serialize)]
pub struct Asked {
    /// Its name in the run.
    pub call_id: CallId,
    /// The tool.
    pub tool: String,
    /// Its arguments.
    pub arguments: Value,
}

impl View {
    /// From its records.
    pub(super) fn of(id: &str, records: &[Record], live: bool) -> Result<Self, OutOfPlace> {
        let run = Run::restore(records)?;
        let asked = run.asked().into_iter().map(|(call_id, call)| Asked {
            call_id,
            tool: call.name.clone(),
            arguments: serde_json::from_str(&call.arguments).unwrap_or_default(),
        });
        Ok(Self {
            id: id.to_owned(),
            agent: run.setup().agent.clone(),
            created_at: records.first().map_or(0, |first| first.at),
            state: run.standing(),
            live,
            used: run.used(),
            approvals: asked.collect(),
            events: records.len() as u64,
        })
    }
}
