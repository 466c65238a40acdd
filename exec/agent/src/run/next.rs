//! Where the run stands → what is to be done next. Every limit of a run is decided here and in `judge`.

use serde_json::Value;

use super::{
    Action, Ask, Call, Calls, Phase, Run, Stage,
    judge::{Verdict, arguments_of},
};
use crate::{
    event::{Decider, Event, Failure, Outcome},
    settings::ToolChoice,
};

/// Processes that may die in the same idempotent call before it is the call that is suspected.
const INTERRUPTIONS_MAX: u32 = 3;

impl Run {
    /// What is to be done at this time.
    pub fn next(&self, now: u64) -> Action {
        match &self.phase {
            Phase::Over(_) => Action::Over,
            Phase::Answered { answer, cut } => {
                let warned = Event::Warned { message: "the answer was cut at the limit on its tokens".into() };
                let finished = Event::Finished { answer: answer.clone() };
                Action::Note(if *cut { vec![warned, finished] } else { vec![finished] })
            }
            Phase::Broken { message } => failed(Failure::Model, message.clone()),
            Phase::Ready | Phase::Asking { .. } | Phase::Calling { .. }
                if self.elapsed_ms(now) >= self.setup.budgets.wall_time_ms() =>
            {
                let seconds = self.setup.budgets.wall_time_s;
                failed(Failure::WallTime, format!("it took longer than its {seconds} seconds (budgets.wall_time_s)"))
            }
            Phase::Ready => self.next_answer(),
            Phase::Asking { .. } => Action::Wait { until: self.deadline(now) },
            Phase::Calling { .. } => self.next_calls(now),
        }
    }

    fn next_answer(&self) -> Action {
        let (budgets, patience) = (&self.setup.budgets, &self.setup.patience);
        if self.circles > 1 {
            return failed(
                Failure::Circle,
                "its model makes the same calls again and again, also after it was told".to_owned(),
            );
        }
        if self.bad_steps > patience.bad_calls {
            let times = self.bad_steps;
            return failed(
                Failure::BadCalls,
                format!("{times} answers in a row called tools that are not there, or with arguments that do not fit"),
            );
        }
        if self.used.steps >= budgets.steps {
            return failed(Failure::Steps, out_of_steps(budgets.steps));
        }
        // The next question holds all of the last one and its answer.
        let known = self.last_usage.prompt_tokens.saturating_add(self.last_usage.completion_tokens);
        let left = budgets.tokens.saturating_sub(self.tokens()).saturating_sub(known);
        if left == 0 {
            return failed(Failure::Tokens, out_of_tokens(budgets.tokens));
        }
        let step = self.used.steps + 1;
        let calls = match self.setup.tool_choice {
            _ if step >= budgets.steps || self.setup.tools.is_empty() => Calls::None,
            ToolChoice::Required if step == 1 => Calls::Required,
            ToolChoice::Required | ToolChoice::Auto => Calls::Allowed,
        };
        Action::Ask(Ask {
            step,
            messages: self.messages.clone(),
            calls,
            max_tokens: budgets.answer_tokens.map_or(left, |most| left.min(most)),
        })
    }

    fn next_calls(&self, now: u64) -> Action {
        let Phase::Calling { calls } = &self.phase else { return Action::Wait { until: now } };
        // Nobody could be told what came of them.
        if self.used.steps >= self.setup.budgets.steps {
            return failed(Failure::Steps, out_of_steps(self.setup.budgets.steps));
        }
        if self.tokens() >= self.setup.budgets.tokens {
            return failed(Failure::Tokens, out_of_tokens(self.setup.budgets.tokens));
        }
        let (mut notes, mut to_make) = (Vec::new(), Vec::new());
        let circle = self.circle(calls);
        for (place, pending) in calls.iter().enumerate() {
            let (call, tool) = (self.call_id(place), pending.call.name.clone());
            match &pending.stage {
                Stage::Wanted => match self.judge(place, calls, circle) {
                    Verdict::Refuse(why, message) => notes.push(Event::ToolRefused { call, tool, why, message }),
                    Verdict::AskFirst(arguments) => notes.push(Event::ApprovalAsked { call, tool, arguments }),
                    Verdict::Make(arguments) => to_make.push(Call { id: call, tool, arguments }),
                },
                Stage::Asked { since } if now >= self.asked_until(*since) => {
                    notes.push(Event::ApprovalGiven { call, approve: false, by: Decider::Nobody, note: None });
                }
                Stage::Approved => to_make.push(Call { id: call, tool, arguments: made_of(&pending.call.arguments) }),
                Stage::Interrupted { times } if self.is_idempotent(&tool) && *times < INTERRUPTIONS_MAX => {
                    to_make.push(Call { id: call, tool, arguments: made_of(&pending.call.arguments) });
                }
                Stage::Interrupted { .. } => {
                    notes.push(Event::ToolFinished { call, tool, outcome: Outcome::failed(UNKNOWN) });
                }
                Stage::Asked { .. } | Stage::Started { .. } | Stage::Done { .. } => {}
            }
        }
        if !notes.is_empty() {
            return Action::Note(notes);
        }
        if !to_make.is_empty() {
            return Action::Call(to_make);
        }
        Action::Wait { until: self.deadline(now) }
    }

    /// The time at which something is to be decided even if nothing happens.
    fn deadline(&self, now: u64) -> u64 {
        let left = self.setup.budgets.wall_time_ms().saturating_sub(self.elapsed_ms(now));
        let of_run = if self.is_paused() { u64::MAX } else { now.saturating_add(left) };
        let Phase::Calling { calls } = &self.phase else { return of_run };
        let asked = calls.iter().filter_map(|one| match one.stage {
            Stage::Asked { since } => Some(self.asked_until(since)),
            Stage::Wanted
            | Stage::Approved
            | Stage::Started { .. }
            | Stage::Interrupted { .. }
            | Stage::Done { .. } => None,
        });
        asked.fold(of_run, u64::min)
    }

    fn asked_until(&self, since: u64) -> u64 {
        since.saturating_add(self.setup.patience.approval_s.saturating_mul(1000))
    }

    fn is_idempotent(&self, tool: &str) -> bool {
        self.tools.get(tool).is_some_and(|known| known.idempotent)
    }
}

/// What a model is told of a call that was on its way when its process was killed.
const UNKNOWN: &str = "error: the outcome of this call is unknown: the agent was interrupted while it was under way. It may have had \
     its effect. Find out before you call it again";

fn failed(why: Failure, message: String) -> Action {
    Action::Note(vec![Event::Failed { why, message }])
}

fn out_of_steps(steps: u32) -> String {
    format!("no answer in {steps} steps (budgets.steps)")
}

fn out_of_tokens(tokens: u64) -> String {
    format!("its {tokens} tokens are spent (budgets.tokens)")
}

/// They were judged before.
fn made_of(arguments: &str) -> Value {
    arguments_of(arguments).unwrap_or_default()
}
