//! What an answer must match: at each token, which tokens may come next. By llguidance.
//!
//! A grammar only ever sees tokens that are part of the answer, so there is nothing to take back after a wrong guess or a
//! preemption.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use llguidance::api::TopLevelGrammar;
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{
    ApproximateTokEnv, INVALID_TOKEN, InferenceCapabilities, SimpleVob, TokEnv, TokRxInfo, TokTrie,
};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};

use crate::request::{Constraint, RequestError};
use crate::vocabulary::Vocabulary;

/// Makes grammars for one vocabulary.
pub struct Grammars {
    factory: ParserFactory,
}

/// A grammar, and where an answer stands in it.
pub struct Grammar {
    matcher: Matcher,
}

/// What may come next.
pub enum Next {
    /// One of these tokens: a bit each. End tokens are among them where the answer may end.
    Tokens(SimpleVob),
    /// Nothing: the answer is whole.
    Nothing,
}

impl Grammars {
    /// Sorts the vocabulary's bytes, which takes some ten milliseconds.
    ///
    /// # Errors
    /// llguidance's words.
    pub fn new(vocabulary: &dyn Vocabulary) -> Result<Self, String> {
        let ends = vocabulary.ends();
        let size = vocabulary.size() as u32;
        let word = |id| if ends.contains(&id) { None } else { vocabulary.bytes(id) };
        // A word without bytes is never allowed but where it ends the answer.
        let words: Vec<Vec<u8>> = (0..size).map(|id| word(id).unwrap_or_default()).collect();
        let ends: Vec<u32> = ends.iter().copied().filter(|end| *end < size).collect();
        let info = TokRxInfo::new(size, ends.first().copied().unwrap_or(INVALID_TOKEN));
        let mut trie = TokTrie::from(&info, &words);
        if !ends.is_empty() {
            trie = trie.with_eos_tokens(&ends);
        }
        // Any way of writing an allowed text as tokens is allowed: only the tokenizer knows its own.
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let slices = SlicedBiasComputer::general_slices();
        let mut factory = ParserFactory::new(&environment, InferenceCapabilities::default(), &slices)
            .map_err(|error| error.to_string())?;
        factory.quiet();
        factory.limits_mut().verbose_errors = false;
        Ok(Self { factory })
    }

    /// A grammar at its beginning.
    ///
    /// # Errors
    /// [`RequestError::Invalid`] with llguidance's words.
    pub fn compile(&self, constraint: &Constraint) -> Result<Grammar, RequestError> {
        let invalid = |detail: String| RequestError::Invalid { field: field(constraint), detail };
        let grammar = match constraint {
            Constraint::JsonObject => TopLevelGrammar::from_json_schema(bounded(json!({ "type": "object" }))),
            Constraint::JsonSchema(schema) => TopLevelGrammar::from_json_schema(bounded(schema.clone())),
            Constraint::Regex(expression) => TopLevelGrammar::from_regex(expression),
            Constraint::Lark(grammar) => TopLevelGrammar::from_lark(grammar.clone()),
            Constraint::Choice(texts) => {
                if texts.is_empty() || texts.iter().any(String::is_empty) {
                    return Err(invalid("needs at least one text, and none may be empty".to_owned()));
                }
                // As expressions, for a string of Lark knows fewer characters.
                let texts: Vec<String> = texts.iter().map(|text| format!("(?:{})", literal(text))).collect();
                TopLevelGrammar::from_regex(&texts.join("|"))
            }
        };
        // A grammar comes from outside: what llguidance didn't foresee in it is its fault alone.
        let parser = catch_unwind(AssertUnwindSafe(|| self.factory.create_parser(grammar)));
        let parser = parser.map_err(|_| invalid("llguidance can't make a parser of it".to_owned()))?;
        let parser = parser.map_err(|error| invalid(format!("{error:#}").trim_end().to_owned()))?;
        Ok(Grammar { matcher: Matcher::new(Ok(parser)) })
    }
}

/// White space between the parts of JSON: a space, or the end of a line with what the next is indented by. Without a bound a
/// model that has lost its way writes nothing else up to the end of its tokens.
const WHITE_SPACE: &str = r" |\r?\n[ \t]{0,32}";

/// A schema as llguidance is given it, with a bound on white space where it says none itself.
pub fn bounded(schema: Value) -> Value {
    let mut schema = match schema {
        // Anything at all.
        Value::Bool(true) => json!({}),
        other => other,
    };
    if let Some(map) = schema.as_object_mut() {
        let options = map.entry("x-guidance").or_insert_with(|| json!({}));
        if let Some(options) = options.as_object_mut()
            && !["whitespace_flexible", "whitespace_pattern"].iter().any(|name| options.contains_key(*name))
        {
            options.insert("whitespace_pattern".to_owned(), WHITE_SPACE.into());
        }
    }
    schema
}

fn field(constraint: &Constraint) -> &'static str {
    match constraint {
        Constraint::JsonObject | Constraint::JsonSchema(_) => "response_format",
        Constraint::Regex(_) => "structured_outputs.regex",
        Constraint::Lark(_) => "structured_outputs.grammar",
        Constraint::Choice(_) => "structured_outputs.choice",
    }
}

/// An expression that matches this text alone.
fn literal(text: &str) -> String {
    let mut out = String::new();
    for character in text.chars() {
        match character {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            _ if character.is_ascii_control() => out.push_str(&format!("\\x{:02x}", u32::from(character))),
            _ if character.is_ascii_punctuation() => out.extend(['\\', character]),
            _ => out.push(character),
        }
    }
    out
}

/// The first line of an error; the rest tells llguidance's makers where its parser stood.
fn plain(error: &impl ToString) -> String {
    let words = error.to_string();
    let reason = words.lines().next().unwrap_or_default();
    match reason {
        "NoExtensionBias" => "no token of this model goes on as the grammar wants".to_owned(),
        _ => reason.to_owned(),
    }
}

impl Grammar {
    /// What may come next.
    ///
    /// # Errors
    /// llguidance's words: a limit of what it computes was met, or no token of the vocabulary goes on as the grammar
    /// wants, which can't be where there is a token for each byte.
    pub fn allowed(&mut self) -> Result<Next, String> {
        if self.is_whole() {
            return Ok(Next::Nothing);
        }
        match self.matcher.compute_mask() {
            Ok(mask) => Ok(Next::Tokens(mask)),
            Err(error) => Err(plain(&error)),
        }
    }

    /// The answer has this token, which was allowed and ends nothing.
    ///
    /// # Errors
    /// llguidance's words.
    pub fn push(&mut self, id: u32) -> Result<(), String> {
        self.matcher.consume_token(id).map_err(|error| plain(&error))
    }

    /// Whether nothing can follow.
    pub fn is_whole(&self) -> bool {
        self.matcher.is_stopped() && self.matcher.stop_reason().is_ok()
    }

    /// Another answer's, at the same place.
    pub fn fork(&self) -> Self {
        Self { matcher: self.matcher.deep_clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Single bytes, then an end token.
    struct Bytes;

    impl Vocabulary for Bytes {
        fn size(&self) -> usize {
            258
        }

        fn decode(&self, ids: &[u32]) -> String {
            let bytes: Vec<u8> = ids.iter().filter_map(|id| self.bytes(*id)).flatten().collect();
            String::from_utf8_lossy(&bytes).into_owned()
        }

        fn bytes(&self, id: u32) -> Option<Vec<u8>> {
            u8::try_from(id).ok().map(|byte| vec![byte])
        }

        fn encode(&self, text: &str) -> Vec<u32> {
            text.bytes().map(u32::from).collect()
        }

        fn ends(&self) -> &[u32] {
            &[257]
        }
    }

    /// Whether a text can be written token by token, and whether it can end then.
    fn reads(constraint: &Constraint, text: &str) -> Result<bool, usize> {
        let mut grammar = Grammars::new(&Bytes).expect("grammars").compile(constraint).expect("a grammar");
        for (at, id) in Bytes.encode(text).into_iter().enumerate() {
            match grammar.allowed().expect("no limit is met") {
                Next::Tokens(mask) if mask.is_allowed(id) => grammar.push(id).expect("allowed"),
                Next::Tokens(_) | Next::Nothing => return Err(at),
            }
        }
        Ok(match grammar.allowed().expect("no limit is met") {
            Next::Tokens(mask) => mask.is_allowed(257),
            Next::Nothing => true,
        })
    }

    #[test]
    fn each_kind_allows_what_matches_and_ends_where_it_may() {
        assert_eq!(reads(&Constraint::JsonObject, r#"{"a": [1, "é"]}"#), Ok(true));
        assert_eq!(reads(&Constraint::JsonObject, r#"{"a""#), Ok(false));
        assert_eq!(reads(&Constraint::JsonObject, "[1]"), Err(0));
        let schema = json!({ "type": "object", "properties": { "z": { "type": "integer" }, "a": { "enum": ["x"] } },
            "required": ["z", "a"], "additionalProperties": false });
        assert_eq!(reads(&Constraint::JsonSchema(schema.clone()), r#"{"z": 3, "a": "x"}"#), Ok(true));
        assert_eq!(reads(&Constraint::JsonSchema(schema), r#"{"z": "3"}"#), Err(6));
        assert_eq!(reads(&Constraint::Regex("a+b".to_owned()), "aab"), Ok(true));
        assert_eq!(reads(&Constraint::Regex("a+b".to_owned()), "b"), Err(0));
        assert_eq!(reads(&Constraint::Lark("start: \"x\" start | \"y\"".to_owned()), "xxy"), Ok(true));
        let texts = ["a.b/c\"\n\u{1}é👩", "a.b", "[x]{2}|^-$"].map(str::to_owned);
        for text in &texts {
            assert_eq!(reads(&Constraint::Choice(texts.to_vec()), text), Ok(true), "{text:?}");
        }
        assert_eq!(reads(&Constraint::Choice(texts.to_vec()), "axb"), Err(1));
    }

    #[test]
    fn white_space_has_a_bound() {
        let schema = json!({ "type": "object", "properties": { "a": { "type": "integer" } }, "required": ["a"] });
        for constraint in [Constraint::JsonObject, Constraint::JsonSchema(schema.clone())] {
            for text in ["{\"a\":1}", "{ \"a\": 1 }", "{\n    \"a\": 1\n}", "{\r\n\t\"a\": 1\r\n}"] {
                assert_eq!(reads(&constraint, text), Ok(true), "{text:?}");
            }
            for (text, at) in [("{  ", 2), ("{\n\n", 2), ("{\"a\":1} ", 7), (" {", 0)] {
                assert_eq!(reads(&constraint, text), Err(at), "{text:?}");
            }
            assert_eq!(reads(&constraint, &format!("{{\n{}", " ".repeat(40))), Err(34));
        }
        let mut dense = schema;
        dense["x-guidance"] = json!({ "whitespace_flexible": false });
        assert_eq!(reads(&Constraint::JsonSchema(dense), "{ "), Err(1), "who says it has it as said");
        assert_eq!(reads(&Constraint::JsonSchema(json!(true)), "[1,  "), Err(4));
    }

    #[test]
    fn a_bad_grammar_is_refused_with_the_reason() {
        let grammars = Grammars::new(&Bytes).expect("grammars");
        let refused = |constraint| match grammars.compile(&constraint) {
            Ok(_) => panic!("{constraint:?} is no grammar"),
            Err(error) => error.to_string(),
        };
        let cases = [
            (Constraint::Regex("a(".to_owned()), "structured_outputs.regex: "),
            (Constraint::Lark("start: nowhere".to_owned()), "structured_outputs.grammar: "),
            (Constraint::JsonSchema(json!({ "type": "nothing" })), "response_format: "),
            (Constraint::Choice(Vec::new()), "structured_outputs.choice: needs at least one text"),
        ];
        for (constraint, beginning) in cases {
            let words = refused(constraint);
            assert!(words.starts_with(beginning) && words.len() > beginning.len(), "{words}");
        }
    }

    #[test]
    fn a_fork_goes_its_own_way() {
        let grammars = Grammars::new(&Bytes).expect("grammars");
        let mut one = grammars.compile(&Constraint::Regex("ab|ac".to_owned())).expect("a grammar");
        one.push(u32::from(b'a')).expect("allowed");
        let mut other = one.fork();
        one.push(u32::from(b'b')).expect("allowed");
        assert!(one.is_whole() && !other.is_whole());
        other.push(u32::from(b'c')).expect("allowed");
        assert!(other.is_whole());
    }
}
