//! Answers that come again. An answer is the same when its calls are, and a circle counts only while its results stay the
//! same too: who asks whether something is ready and hears something new each time is not lost.

use std::hash::{DefaultHasher, Hash, Hasher};

use serde_json::Value;

use super::{Pending, Stage};
use crate::message::ToolCall;

/// Answers in the longest circle that is seen.
const PERIOD_MAX: usize = 4;

/// An answer with calls, and what came of them, as numbers to compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Trace {
    pub calls: u64,
    pub results: u64,
}

impl Trace {
    pub fn of(pending: &[Pending]) -> Self {
        let mut hasher = DefaultHasher::new();
        for one in pending {
            if let Stage::Done { outcome, .. } = &one.stage {
                outcome.content.hash(&mut hasher);
            }
        }
        Self { calls: calls(pending), results: hasher.finish() }
    }
}

/// All calls of an answer.
pub(super) fn calls(pending: &[Pending]) -> u64 {
    let mut hasher = DefaultHasher::new();
    pending.iter().for_each(|one| call(&one.call).hash(&mut hasher));
    hasher.finish()
}

/// One call: the order of its arguments' fields does not matter.
pub(super) fn call(call: &ToolCall) -> u64 {
    let mut hasher = DefaultHasher::new();
    call.name.hash(&mut hasher);
    match serde_json::from_str(&call.arguments) {
        Ok(arguments) => hash_value(&arguments, &mut hasher),
        Err(_) => call.arguments.hash(&mut hasher),
    }
    hasher.finish()
}

fn hash_value(value: &Value, hasher: &mut DefaultHasher) {
    match value {
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_by_key(|(name, _)| *name);
            "{".hash(hasher);
            for (name, value) in fields {
                name.hash(hasher);
                hash_value(value, hasher);
            }
        }
        Value::Array(items) => {
            "[".hash(hasher);
            items.len().hash(hasher);
            items.iter().for_each(|item| hash_value(item, hasher));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.to_string().hash(hasher),
    }
}

/// With these calls an answer would come `times` times in a row, or a circle of a few answers would. How long it is.
pub(super) fn period(before: &[Trace], calls: u64, times: u32) -> Option<usize> {
    (1..=PERIOD_MAX).find(|&period| {
        let Some(earlier) = (period * times as usize).checked_sub(1) else { return false };
        let Some(from) = before.len().checked_sub(earlier) else { return false };
        let tail = &before[from..];
        let same = |i: usize| tail[i] == tail[i + period];
        earlier >= period && (0..earlier - period).all(same) && tail[earlier - period].calls == calls
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Letters are calls; a digit after one is its result, 0 if there is none.
    fn seen(text: &str, calls: char, times: u32) -> Option<usize> {
        let text: Vec<char> = text.chars().collect();
        let result =
            |i: usize| text.get(i + 1).filter(|c| c.is_ascii_digit()).map_or(u64::from(b'0'), |c| u64::from(*c));
        let letters = text.iter().enumerate().filter(|(_, c)| c.is_alphabetic());
        let before: Vec<Trace> = letters.map(|(i, c)| Trace { calls: u64::from(*c), results: result(i) }).collect();
        period(&before, u64::from(calls), times)
    }

    #[test]
    fn circles_are_seen_and_progress_is_not_one() {
        let cases = [
            ("", 'a', 3, None),
            ("a", 'a', 3, None),
            ("aa", 'a', 3, Some(1)),
            ("aa", 'b', 3, None),
            ("baa", 'a', 3, Some(1)),
            ("aba", 'a', 3, None),
            ("a1a2", 'a', 3, None),
            ("a1a1", 'a', 3, Some(1)),
            ("ababa", 'b', 3, Some(2)),
            ("abab", 'a', 3, None),
            ("ab1ab2a", 'b', 3, None),
            ("abcabcab", 'c', 3, Some(3)),
            ("abcdabcdabc", 'd', 3, Some(4)),
            ("abcdeabcdeabcd", 'e', 3, None),
            ("a", 'a', 2, Some(1)),
        ];
        for (before, calls, times, wanted) in cases {
            assert_eq!(seen(before, calls, times), wanted, "{before} then {calls}, {times} times");
        }
    }

    #[test]
    fn the_order_of_fields_and_white_space_do_not_make_another_call() {
        let one =
            |arguments: &str| call(&ToolCall { id: String::new(), name: "t".into(), arguments: arguments.into() });
        assert_eq!(one(r#"{"a":1,"b":[1,2]}"#), one(r#"{ "b": [1, 2], "a": 1 }"#));
        assert_ne!(one(r#"{"a":1,"b":[1,2]}"#), one(r#"{"a":1,"b":[2,1]}"#));
        assert_ne!(one(r#"{"a":"#), one(r#"{"b":"#));
    }
}
