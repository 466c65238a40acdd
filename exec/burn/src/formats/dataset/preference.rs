//! Pairs of a chosen and a rejected answer: rows of `chosen` and `rejected`, with the prompt beside them or in both.

use minijinja::Value;
use minijinja::value::ValueKind;

use super::example::{conversation, kind_of, missing, renamed, surrounded};
use super::tokens::with_end;
use super::{Example, LoadOptions};
use crate::formats::chat_template::{Conversation, RenderOptions};
use crate::formats::tokenizer::{TextTokenizer, TokenizerError};

/// A prompt with two answers.
#[derive(Debug, Clone)]
pub struct Preference {
    /// Prompt and answers.
    pub sides: Sides,
    /// By how much the chosen answer is better, where the data says so.
    pub margin: Option<f64>,
    /// Whether the row has columns of [`SCORES`], which nothing is made of: data sets that are made of scores carry them
    /// along, and it is for their user to say whether their difference is the `margin`.
    pub scored: bool,
}

/// Columns of what the two answers were given by a judge, under the names of UltraFeedback and its kin.
pub const SCORES: [&str; 2] = ["score_chosen", "score_rejected"];

/// A prompt and two answers, in one of two forms.
#[derive(Debug, Clone)]
pub enum Sides {
    /// Plain texts, one after the other.
    Texts {
        /// What both begin with.
        prompt: String,
        /// The better continuation.
        chosen: String,
        /// The worse one.
        rejected: String,
    },
    /// Messages.
    Messages {
        /// What both answer.
        prompt: Conversation,
        /// The better answer.
        chosen: Conversation,
        /// The worse one.
        rejected: Conversation,
    },
}

/// What a row says. A prompt that is not there is what both answers begin with, as in the reference.
pub(super) fn of(row: &Value, options: &LoadOptions) -> Result<Preference, String> {
    if row.kind() != ValueKind::Map {
        return Err(format!("expected a JSON object, found {}", kind_of(row)));
    }
    let renamed = renamed(row, options)?;
    let row = renamed.as_ref().unwrap_or(row);
    let column = |name: &str| row.get_attr(name).unwrap_or_default();
    let (prompt, chosen, rejected) = (column("prompt"), column("chosen"), column("rejected"));
    for (name, value) in [("chosen", &chosen), ("rejected", &rejected)] {
        if value.is_undefined() {
            return Err(format!("{}; a row has `chosen` and `rejected`, and may have `prompt`", missing(name, row)));
        }
    }
    let given = !prompt.is_undefined() && !prompt.is_none();
    let kinds = || format!("`chosen` is {} and `rejected` is {}", kind_of(&chosen), kind_of(&rejected));
    let sides = match (chosen.as_str(), rejected.as_str()) {
        (Some(chosen), Some(rejected)) => {
            let prompt = match (given, prompt.as_str()) {
                (false, _) => None,
                (true, Some(prompt)) => Some(prompt),
                (true, None) => return Err(format!("column `prompt` is {}, but {}", kind_of(&prompt), kinds())),
            };
            texts(prompt, chosen, rejected)?
        }
        (None, None) => {
            let prompt = if given { Some(conversation("prompt", &prompt)?) } else { None };
            messages(prompt, &conversation("chosen", &chosen)?, &conversation("rejected", &rejected)?, row)?
        }
        _ => return Err(format!("{}: both must be strings or both lists of messages", kinds())),
    };
    let margin = column("margin");
    let margin = match margin.kind() {
        ValueKind::Undefined | ValueKind::None => None,
        _ => {
            Some(number(&margin).ok_or_else(|| format!("column `margin` is {}, expected a number", kind_of(&margin)))?)
        }
    };
    let scored = SCORES.iter().all(|name| !column(name).is_undefined() && !column(name).is_none());
    Ok(Preference { sides, margin, scored })
}

/// A number, or the text of one as CSV has it.
fn number(value: &Value) -> Option<f64> {
    let number = match value.as_str() {
        Some(text) => text.trim().parse().ok()?,
        None => f64::try_from(value.clone()).ok()?,
    };
    Some(number).filter(|number| number.is_finite())
}

const SAME: &str = "`chosen` and `rejected` are the same: there is nothing to prefer";

fn texts(prompt: Option<&str>, chosen: &str, rejected: &str) -> Result<Sides, String> {
    if chosen == rejected {
        return Err(SAME.into());
    }
    let sides = |prompt: &str, chosen: &str, rejected: &str| Sides::Texts {
        prompt: prompt.to_owned(),
        chosen: chosen.to_owned(),
        rejected: rejected.to_owned(),
    };
    if let Some(prompt) = prompt {
        return Ok(sides(prompt, chosen, rejected));
    }
    let same = chosen.chars().zip(rejected.chars()).take_while(|(c, r)| c == r);
    let mut at: usize = same.map(|(c, _)| c.len_utf8()).sum();
    // A space before an answer belongs to the answer.
    if chosen[..at].ends_with(' ') {
        at -= 1;
    }
    Ok(sides(&chosen[..at], &chosen[at..], &rejected[at..]))
}

fn messages(
    prompt: Option<Conversation>,
    chosen: &Conversation,
    rejected: &Conversation,
    row: &Value,
) -> Result<Sides, String> {
    let same = chosen.common_start(rejected);
    if same == chosen.len() && same == rejected.len() {
        return Err(SAME.into());
    }
    let (prompt, chosen, rejected) = match prompt {
        Some(prompt) => (prompt, chosen.clone(), rejected.clone()),
        None => {
            let (prompt, chosen) = chosen.split_at(same);
            (prompt, chosen, rejected.split_at(same).1)
        }
    };
    Ok(Sides::Messages { prompt: surrounded(prompt, row)?, chosen, rejected })
}

/// A pair in tokens.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TokenizedPair {
    /// What both rows begin with.
    pub prompt: Vec<u32>,
    /// The chosen completion.
    pub chosen: Vec<u32>,
    /// The rejected completion.
    pub rejected: Vec<u32>,
    /// By how much the chosen answer is better, where the data says so.
    pub margin: Option<f64>,
}

/// The pair, and whether its prompt lost tokens of its own.
///
/// # Errors
/// What the chat template or the tokenizer refuses; two sides of the same tokens; an example that is no pair.
pub(super) fn tokenize(
    example: &Example,
    tokenizer: &TextTokenizer,
    now_unix: i64,
) -> Result<(TokenizedPair, bool), String> {
    let Example::Preference(preference) = example else {
        return Err("it is no pair of a chosen and a rejected answer".into());
    };
    let said = |e: TokenizerError| e.to_string();
    let (mut prompt, mut chosen, mut rejected) = match &preference.sides {
        Sides::Texts { prompt, chosen, rejected } => {
            let whole = |answer: &str| tokenizer.encode(&with_end(&format!("{prompt}{answer}"), tokenizer), true);
            (
                tokenizer.encode(prompt, true).map_err(said)?,
                whole(chosen).map_err(said)?,
                whole(rejected).map_err(said)?,
            )
        }
        Sides::Messages { prompt, chosen, rejected } => {
            let chat = |talk: &Conversation, add_generation_prompt: bool| {
                tokenizer.encode_chat(talk, RenderOptions { add_generation_prompt, now_unix }).map_err(said)
            };
            let whole = |answer: &Conversation| chat(&prompt.followed_by(answer), false);
            let alone = if prompt.is_empty() { Vec::new() } else { chat(prompt, true)? };
            (alone, whole(chosen)?, whole(rejected)?)
        }
    };
    if chosen == rejected {
        return Err("both sides have the same tokens: there is nothing to prefer".into());
    }
    // Tokens may merge across the end of the prompt, and a template may end a prompt in another way: the completion
    // begins where one of the two departs from the prompt, as in the reference.
    let common = |whole: &[u32]| prompt.iter().zip(whole).take_while(|(p, w)| p == w).count();
    let given = common(&chosen).min(common(&rejected));
    let merged = given < prompt.len();
    prompt.truncate(given);
    Ok((
        TokenizedPair {
            chosen: chosen.split_off(given),
            rejected: rejected.split_off(given),
            prompt,
            margin: preference.margin,
        },
        merged,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Preference, String> {
        of(&serde_json::from_str(json).unwrap(), &LoadOptions::default())
    }

    fn shown(json: &str) -> [String; 3] {
        match read(json).unwrap().sides {
            Sides::Texts { prompt, chosen, rejected } => [prompt, chosen, rejected],
            Sides::Messages { prompt, chosen, rejected } => [prompt, chosen, rejected].map(|talk| {
                talk.turns().into_iter().map(|(role, text)| format!("{role}: {text}")).collect::<Vec<_>>().join(" | ")
            }),
        }
    }

    #[test]
    fn a_prompt_is_given_or_what_both_begin_with() {
        assert_eq!(shown(r#"{"prompt": "Up?", "chosen": " Yes", "rejected": " No"}"#), ["Up?", " Yes", " No"]);
        assert_eq!(shown(r#"{"chosen": "Up? Yes", "rejected": "Up? No"}"#), ["Up?", " Yes", " No"]);
        assert_eq!(shown(r#"{"chosen": "é1", "rejected": "é2"}"#), ["é", "1", "2"]);
        assert_eq!(shown(r#"{"chosen": "Yes.", "rejected": "Yes", "prompt": null}"#), ["Yes", ".", ""]);
        let ask = r#"{"role": "user", "content": "Up?"}"#;
        let say = |text: &str| format!(r#"{{"role": "assistant", "content": "{text}"}}"#);
        let want = ["user: Up?", "assistant: Yes", "assistant: No"];
        let apart = format!(r#"{{"prompt": [{ask}], "chosen": [{}], "rejected": [{}]}}"#, say("Yes"), say("No"));
        let whole = format!(r#"{{"chosen": [{ask}, {}], "rejected": [{ask}, {}]}}"#, say("Yes"), say("No"));
        assert_eq!((shown(&apart), shown(&whole)), (want.map(str::to_owned), want.map(str::to_owned)));
    }

    #[test]
    fn margins_are_numbers() {
        let margin = |value: &str| {
            read(&format!(r#"{{"chosen": "a", "rejected": "b", "margin": {value}}}"#)).map(|pair| pair.margin)
        };
        assert_eq!(margin("null"), Ok(None));
        assert_eq!((margin("2"), margin("0.5"), margin("\"1.5\"")), (Ok(Some(2.0)), Ok(Some(0.5)), Ok(Some(1.5))));
        assert_eq!(margin("[1]").unwrap_err(), "column `margin` is a list, expected a number");
        assert_eq!(margin("\"much\"").unwrap_err(), "column `margin` is a string, expected a number");
    }

    #[test]
    fn what_is_no_pair_is_said() {
        let said = |json: &str| read(json).unwrap_err();
        assert_eq!(
            said(r#"{"prompt": "p", "completion": "c"}"#),
            "no column `chosen`, found prompt, completion; a row has `chosen` and `rejected`, and may have `prompt`"
        );
        assert_eq!(said(r#"{"chosen": "a", "rejected": "a"}"#), SAME);
        let talk = r#"[{"role": "assistant", "content": "a"}]"#;
        assert_eq!(said(&format!(r#"{{"chosen": {talk}, "rejected": {talk}}}"#)), SAME);
        assert_eq!(
            said(&format!(r#"{{"chosen": {talk}, "rejected": "a"}}"#)),
            "`chosen` is a list and `rejected` is a string: both must be strings or both lists of messages"
        );
        assert_eq!(
            said(&format!(r#"{{"prompt": {talk}, "chosen": "b", "rejected": "a"}}"#)),
            "column `prompt` is a list, but `chosen` is a string and `rejected` is a string"
        );
        assert_eq!(said(r#"{"chosen": [], "rejected": [1]}"#), "column `chosen`: the list is empty");
    }
}
