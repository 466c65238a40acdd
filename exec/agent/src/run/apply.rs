//! What happened → where the run stands. One place for all moves.

use super::{End, OutOfPlace, Pending, Phase, Run, Stage, Trace, is_cut};
use crate::{
    event::{CallId, Event, Outcome, Record, Refused, VERSION},
    message::{Assistant, Message, Usage},
};

impl Run {
    /// Takes note of what happened.
    ///
    /// # Errors
    /// When it cannot have happened; the run stands as before.
    pub fn apply(&mut self, record: &Record) -> Result<(), OutOfPlace> {
        if record.v > VERSION {
            return Err(OutOfPlace::Later { n: record.n, found: record.v });
        }
        if record.n != self.next_n {
            return Err(OutOfPlace::Number { found: record.n, wanted: self.next_n });
        }
        // Nobody worked between two processes, and the clock stands still where only a person is waited for.
        let elapsed_ms =
            if matches!(record.event, Event::Resumed) { self.used.elapsed_ms } else { self.elapsed_ms(record.at) };
        if !self.moved(&record.event, record.at) {
            let event = record.event.name();
            return Err(OutOfPlace::Phase { n: record.n, event, phase: self.phase.name() });
        }
        self.used.elapsed_ms = elapsed_ms;
        self.last_at = self.last_at.max(record.at);
        self.next_n += 1;
        Ok(())
    }

    /// Whether it could happen; then it has.
    fn moved(&mut self, event: &Event, at: u64) -> bool {
        match (&mut self.phase, event) {
            (Phase::Over(_), _) | (_, Event::RunStarted { .. }) => return false,
            (_, Event::Warned { .. }) => {}
            (_, Event::Failed { why, message }) => {
                self.phase = Phase::Over(End::Failed { why: *why, message: message.clone() });
            }
            (phase, Event::Resumed) => {
                if phase.interrupt() {
                    self.used.steps -= 1;
                }
            }
            (Phase::Answered { .. }, Event::Finished { answer }) => {
                self.phase = Phase::Over(End::Finished { answer: answer.clone() });
            }
            (Phase::Ready, Event::ModelAsked { step }) if *step == self.used.steps + 1 => {
                self.used.steps = *step;
                self.phase = Phase::Asking { step: *step };
            }
            (Phase::Asking { step: asked }, Event::ModelAnswered { step, message, usage, finish_reason })
                if step == asked =>
            {
                self.answered(message, *usage, finish_reason.as_deref());
            }
            (Phase::Asking { step: asked }, Event::ModelFailed { step, message, again }) if step == asked => {
                self.used.steps -= 1;
                self.model_failures += 1;
                let again = *again && self.model_failures <= self.setup.patience.model_failures;
                self.phase = if again { Phase::Ready } else { Phase::Broken { message: message.clone() } };
            }
            (
                Phase::Calling { .. },
                Event::ApprovalAsked { call, .. }
                | Event::ApprovalGiven { call, .. }
                | Event::ToolRefused { call, .. }
                | Event::ToolStarted { call, .. }
                | Event::ToolFinished { call, .. },
            ) => return self.call_moved(*call, event, at),
            (
                Phase::Ready
                | Phase::Asking { .. }
                | Phase::Answered { .. }
                | Phase::Broken { .. }
                | Phase::Calling { .. },
                Event::Finished { .. }
                | Event::ModelAsked { .. }
                | Event::ModelAnswered { .. }
                | Event::ModelFailed { .. }
                | Event::ApprovalAsked { .. }
                | Event::ApprovalGiven { .. }
                | Event::ToolRefused { .. }
                | Event::ToolStarted { .. }
                | Event::ToolFinished { .. },
            ) => return false,
        }
        true
    }

    fn answered(&mut self, message: &Assistant, usage: Option<Usage>, finish_reason: Option<&str>) {
        let usage = usage.unwrap_or_else(|| Usage::estimate(&self.messages, message));
        self.used.prompt_tokens = self.used.prompt_tokens.saturating_add(usage.prompt_tokens);
        self.used.completion_tokens = self.used.completion_tokens.saturating_add(usage.completion_tokens);
        self.last_usage = usage;
        self.model_failures = 0;
        self.messages.push(Message::Assistant(message.clone()));
        self.phase = if message.tool_calls.is_empty() {
            Phase::Answered { answer: message.content.clone(), cut: is_cut(finish_reason, message) }
        } else {
            let calls = message.tool_calls.iter().map(|call| Pending { call: call.clone(), stage: Stage::Wanted });
            Phase::Calling { calls: calls.collect() }
        };
    }

    fn call_moved(&mut self, id: CallId, event: &Event, at: u64) -> bool {
        let Phase::Calling { calls } = &mut self.phase else { return false };
        if id.step != self.used.steps {
            return false;
        }
        let Some(pending) = calls.get_mut(id.place as usize) else { return false };
        let Some(stage) = pending.stage.after(event, at) else { return false };
        if matches!(stage, Stage::Started { .. }) {
            self.used.calls += 1;
        }
        pending.stage = stage;
        if calls.iter().all(|one| matches!(one.stage, Stage::Done { .. })) {
            self.close_step();
        }
        true
    }

    /// Every call has its end: the model is told.
    fn close_step(&mut self) {
        let Phase::Calling { calls } = std::mem::replace(&mut self.phase, Phase::Ready) else { return };
        let refused = |why: Refused| calls.iter().any(|one| one.stage.refused() == Some(why));
        let is_circle = refused(Refused::Circle);
        let is_bad = refused(Refused::UnknownTool) || refused(Refused::BadArguments);
        self.bad_steps = if is_bad { self.bad_steps + 1 } else { 0 };
        self.circles = if is_circle { self.circles + 1 } else { 0 };
        if !is_circle {
            // What was refused for its repetition is no new step: made once more, it is the same again.
            self.traces.push(Trace::of(&calls));
        }
        for Pending { call, stage } in calls {
            if let Stage::Done { outcome, .. } = stage {
                self.messages.push(Message::Tool { tool_call_id: call.id, content: outcome.content });
            }
        }
    }
}

impl Phase {
    /// What was on its way is lost; whether that was an answer.
    fn interrupt(&mut self) -> bool {
        match self {
            Self::Asking { .. } => {
                *self = Self::Ready;
                true
            }
            Self::Calling { calls } => {
                for one in calls {
                    if let Stage::Started { times } = one.stage {
                        one.stage = Stage::Interrupted { times };
                    }
                }
                false
            }
            Self::Ready | Self::Answered { .. } | Self::Broken { .. } | Self::Over(_) => false,
        }
    }
}

impl Stage {
    /// Where a call stands after an event, if that can happen to it.
    fn after(&self, event: &Event, at: u64) -> Option<Self> {
        let done = |outcome: Outcome| Some(Self::Done { outcome, refused: None });
        match (self, event) {
            (Self::Wanted, Event::ApprovalAsked { .. }) => Some(Self::Asked { since: at }),
            (Self::Wanted, Event::ToolRefused { why, message, .. }) => {
                Some(Self::Done { outcome: Outcome::failed(message.clone()), refused: Some(*why) })
            }
            (Self::Asked { .. }, Event::ApprovalGiven { approve: true, .. }) => Some(Self::Approved),
            (Self::Asked { .. }, Event::ApprovalGiven { note, .. }) => done(denied(note.as_deref())),
            (Self::Wanted | Self::Approved, Event::ToolStarted { .. }) => Some(Self::Started { times: 1 }),
            (Self::Interrupted { times }, Event::ToolStarted { .. }) => Some(Self::Started { times: times + 1 }),
            (Self::Started { .. } | Self::Interrupted { .. }, Event::ToolFinished { outcome, .. }) => {
                done(outcome.clone())
            }
            (
                Self::Wanted
                | Self::Asked { .. }
                | Self::Approved
                | Self::Started { .. }
                | Self::Interrupted { .. }
                | Self::Done { .. },
                _,
            ) => None,
        }
    }

    fn refused(&self) -> Option<Refused> {
        match self {
            Self::Done { refused, .. } => *refused,
            Self::Wanted | Self::Asked { .. } | Self::Approved | Self::Started { .. } | Self::Interrupted { .. } => {
                None
            }
        }
    }
}

fn denied(note: Option<&str>) -> Outcome {
    let said = "error: this call was not approved, and was not made. Go on without it";
    Outcome::failed(match note {
        Some(note) => format!("{said}. The reason given: {note}"),
        None => said.to_owned(),
    })
}
