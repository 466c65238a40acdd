//! Whether a call may be made. A refusal says what was found and what would work: the model reads it.

use serde_json::Value;

use super::{Pending, Run, circle};
use crate::{event::Refused, settings::names};

/// Calls of one answer. More are not an answer but a flood.
pub(super) const CALLS_MAX: usize = 32;

/// What becomes of a call.
#[derive(Debug)]
pub(super) enum Verdict {
    Refuse(Refused, String),
    AskFirst(Value),
    Make(Value),
}

impl Run {
    /// The calls of this answer are the same again and nothing changed: after how many answers.
    pub(super) fn circle(&self, calls: &[Pending]) -> Option<usize> {
        circle::period(&self.traces, circle::calls(calls), self.setup.patience.repeats)
    }

    pub(super) fn judge(&self, place: usize, calls: &[Pending], circle: Option<usize>) -> Verdict {
        let call = &calls[place].call;
        if place >= CALLS_MAX {
            let message = format!("error: not made: an answer may have {CALLS_MAX} calls. Make it in your next answer");
            return Verdict::Refuse(Refused::TooMany, message);
        }
        let Some(tool) = self.tools.get(&call.name) else { return self.unknown(&call.name) };
        let arguments = match arguments_of(&call.arguments).and_then(|found| tool.check(&found).map(|()| found)) {
            Ok(arguments) => arguments,
            Err(found) => {
                let name = &call.name;
                let message = format!("error: the arguments of `{name}` do not fit:\n{found}\n{}", tool.wanted());
                return Verdict::Refuse(Refused::BadArguments, message);
            }
        };
        if let Some(period) = circle {
            let times = self.setup.patience.repeats;
            let which = if period == 1 { "these calls".to_owned() } else { format!("this circle of {period} answers") };
            let message = format!(
                "error: not made: {which} came {times} times in a row, and the results were the same each time. Do \
                 something else, or answer with what you know"
            );
            return Verdict::Refuse(Refused::Circle, message);
        }
        if self.repeated_before(place, calls) {
            let message =
                "error: not made: the same call is in this answer already, more than once. Use its result".to_owned();
            return Verdict::Refuse(Refused::TooMany, message);
        }
        if names::any_matches(&self.setup.approval, &call.name) {
            return Verdict::AskFirst(arguments);
        }
        Verdict::Make(arguments)
    }

    fn unknown(&self, name: &str) -> Verdict {
        let known: Vec<&str> = self.tools.keys().map(String::as_str).collect();
        let hint = match names::nearest(name, &known) {
            Some(near) => format!("did you mean `{near}`?"),
            None if known.is_empty() => "there are none: answer without".to_owned(),
            None => format!("there are: {}", known.join(", ")),
        };
        Verdict::Refuse(Refused::UnknownTool, format!("error: there is no tool `{name}`: {hint}"))
    }

    /// As often as may be in a row, all in one answer.
    fn repeated_before(&self, place: usize, calls: &[Pending]) -> bool {
        let wanted = circle::call(&calls[place].call);
        let same = calls[..place].iter().filter(|one| circle::call(&one.call) == wanted).count();
        same + 1 >= self.setup.patience.repeats as usize
    }
}

/// Arguments as a model wrote them. Nothing at all is an object without fields.
pub(super) fn arguments_of(text: &str) -> Result<Value, String> {
    if text.trim().is_empty() {
        return Ok(Value::Object(serde_json::Map::new()));
    }
    match serde_json::from_str(text) {
        Ok(found @ Value::Object(_)) => Ok(found),
        Ok(_) => Err("they are JSON, but no object".to_owned()),
        Err(e) => Err(format!("they are not JSON: {e}")),
    }
}
