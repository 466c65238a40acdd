//! Grammars made of what a request asks for: calls that must come, calls that are well formed if they come, an answer of
//! some form after a thought, or either of both. In Lark's notation as llguidance reads it, which has JSON schemas inside
//! (`%json`) and tokens by id (`<[7]>`).

use std::collections::BTreeMap;

use mloc_engine::{constrain::bounded, request::Constraint};
use serde_json::{Map, Value, json};

use crate::{
    calls::Format,
    tools::{Choice, Tools},
};

/// What stands around an answer.
#[derive(Debug, Clone, Copy)]
pub struct Around<'c> {
    /// How the model writes calls, where it can.
    pub format: Option<Format>,
    /// Special tokens that mark calls and thoughts.
    pub markers: &'c BTreeMap<u32, String>,
    /// Whether the prompt left a thought open.
    pub thinking: bool,
}

/// The one constraint of an answer, from what it must look like and which calls it must or may have. `None` = none.
///
/// # Errors
/// A grammar of the client's own can't be put behind an open thought or beside calls: which field, and why.
pub fn of(answer: Option<Constraint>, tools: &Tools, around: Around<'_>) -> Result<Option<Constraint>, String> {
    let calls = around.format.filter(|_| !tools.offered.is_empty()).map(|format| Calls { format, tools, around });
    match (answer, calls, &tools.choice) {
        (_, Some(calls), Choice::Required | Choice::Named(_)) => Ok(Some(lark("calls", [calls.rules()], around))),
        (None, Some(calls), Choice::Auto) if tools.offered.iter().any(|tool| tool.strict) => {
            Ok(calls.among_words().map(|words| lark("free", [words, calls.rules()], around)))
        }
        (None, ..) => Ok(None),
        (Some(Constraint::Lark(grammar)), None, _) if !around.thinking => Ok(Some(Constraint::Lark(grammar))),
        (Some(Constraint::Lark(_)), ..) => {
            let why = if around.thinking { "the prompt leaves a thought open" } else { "there are tools on offer" };
            Err(format!("a grammar can't be used where {why}: use a JSON schema, or leave that out"))
        }
        (Some(answer), Some(calls), Choice::Auto) => {
            Ok(Some(lark("( answer | calls )", [answer_rule(&answer), calls.rules()], around)))
        }
        (Some(answer), ..) if around.thinking => Ok(Some(lark("answer", [answer_rule(&answer)], around))),
        (Some(answer), ..) => Ok(Some(answer)),
    }
}

struct Calls<'c> {
    format: Format,
    tools: &'c Tools,
    around: Around<'c>,
}

/// A grammar of this body, after a thought if one is open.
fn lark<const N: usize>(body: &str, more: [String; N], around: Around<'_>) -> Constraint {
    let mut rules = Vec::new();
    if around.thinking {
        rules.push(format!("start: thought gap {body}"));
        rules.push(match token(around.markers, "</think>") {
            Some(token) => format!("thought: /(.|\\n)*/ {token}"),
            None => "thought[lazy]: /(.|\\n)*<\\/think>/".to_owned(),
        });
        rules.push("gap: /\\n{0,2}/".to_owned());
    } else {
        rules.push(format!("start: {body}"));
    }
    rules.extend(more);
    Constraint::Lark(rules.join("\n"))
}

/// A token by its id, where its text is a special token's.
fn token(markers: &BTreeMap<u32, String>, text: &str) -> Option<String> {
    markers.iter().find(|(_, marker)| *marker == text).map(|(id, _)| format!("<[{id}]>"))
}

fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

fn of_schema(schema: Value) -> String {
    format!("%json {}", bounded(schema))
}

fn answer_rule(answer: &Constraint) -> String {
    format!("answer: {}", inline(answer))
}

fn inline(answer: &Constraint) -> String {
    match answer {
        Constraint::JsonObject => of_schema(json!({ "type": "object" })),
        Constraint::JsonSchema(schema) => of_schema(schema.clone()),
        Constraint::Regex(regex) => format!("/{}/", regex.replace('/', "\\/").replace('\n', "\\n")),
        Constraint::Choice(texts) => texts.iter().map(|text| quoted(text)).collect::<Vec<_>>().join(" | "),
        // `of` sees to it that none comes here.
        Constraint::Lark(grammar) => grammar.clone(),
    }
}

impl Calls<'_> {
    /// Words, then calls or none: whatever is said, a call that begins becomes a whole one. `None` = only the whole answer
    /// tells a call from words.
    fn among_words(&self) -> Option<String> {
        let special = |text: &str| token(self.around.markers, text).is_some();
        // Special tokens are no text: a model that thinks before it speaks may still do so.
        let thoughts = ["<think>", "</think>"].into_iter().filter_map(|text| token(self.around.markers, text));
        let thoughts: String = thoughts.map(|token| format!(" | {token}")).collect();
        match self.format {
            Format::Hermes if special("<tool_call>") => {}
            Format::Mistral if special("[TOOL_CALLS]") => {}
            // Words end where the marker does, and what has none is words to its end.
            Format::Hermes if thoughts.is_empty() => {
                return Some(format!(
                    "free: WORDS | marked inside{}\nmarked[lazy]: /(.|\\n)*<tool_call>/\n\
                     WORDS: /(.|\\n)*/ & ~/(.|\\n)*<tool_call>(.|\\n)*/",
                    self.more()
                ));
            }
            Format::Hermes | Format::Mistral | Format::Llama3 => return None,
        }
        Some(format!("free: words* calls?\nwords: /(.|\\n)+/{thoughts}"))
    }

    /// Further calls of an answer.
    fn more(&self) -> &'static str {
        let one = !self.tools.parallel || matches!(self.tools.choice, Choice::Named(_));
        match self.format {
            _ if one => "",
            Format::Hermes => " ( \"\\n\" call )*",
            Format::Llama3 => " ( \"; \" call )*",
            Format::Mistral => "+",
        }
    }

    fn rules(&self) -> String {
        let mark = |text: &str| token(self.around.markers, text).unwrap_or_else(|| quoted(text));
        let more = self.more();
        match self.format {
            Format::Hermes => {
                let (open, close) = (mark("<tool_call>"), mark("</tool_call>"));
                let body = of_schema(self.leniently(self.objects("arguments")));
                format!("calls: call{more}\ncall: {open} inside\ninside: \"\\n\" body \"\\n\" {close}\nbody: {body}")
            }
            Format::Llama3 => {
                format!("calls: call{more}\ncall: {}", of_schema(self.leniently(self.objects("parameters"))))
            }
            Format::Mistral if token(self.around.markers, "[ARGS]").is_some() => {
                let (open, args) = (mark("[TOOL_CALLS]"), mark("[ARGS]"));
                let rows = self.forced().enumerate();
                let rows = rows.map(|(index, (name, schema))| {
                    let schema = of_schema(self.leniently(Value::Object(schema.clone())));
                    (format!("call_{index}"), format!("call_{index}: {open} {} {args} {schema}", quoted(name)))
                });
                let (names, rules): (Vec<_>, Vec<_>) = rows.unzip();
                format!("calls: call{more}\ncall: {}\n{}", names.join(" | "), rules.join("\n"))
            }
            Format::Mistral => {
                let mut list = self.objects("arguments");
                let definitions = list.as_object_mut().and_then(|list| list.remove("$defs"));
                let mut schema = json!({ "type": "array", "minItems": 1, "items": list, "$defs": definitions });
                if more.is_empty() {
                    schema["maxItems"] = 1.into();
                }
                format!("calls: {} {}", mark("[TOOL_CALLS]"), of_schema(self.leniently(schema)))
            }
        }
    }

    /// Name and parameters of the functions that may be called.
    fn forced(&self) -> impl Iterator<Item = (&str, &Map<String, Value>)> {
        let named = match &self.tools.choice {
            Choice::Named(name) => Some(name.as_str()),
            _ => None,
        };
        let tools = self.tools.offered.iter().filter(move |tool| named.is_none_or(|name| tool.name == name));
        tools.map(|tool| (tool.name.as_str(), &tool.parameters))
    }

    /// The schema of one call, with the functions' own schemas under `$defs`, where their references are right again.
    fn objects(&self, arguments: &str) -> Value {
        let (mut ways, mut definitions) = (Vec::new(), Map::new());
        for (index, (name, parameters)) in self.forced().enumerate() {
            let place = format!("tool_{index}");
            let here = format!("#/$defs/{place}");
            ways.push(json!({
                "type": "object",
                "properties": { "name": { "const": name }, arguments: { "$ref": here } },
                "required": ["name", arguments],
                "additionalProperties": false,
            }));
            let mut schema = Value::Object(parameters.clone());
            moved(&mut schema, &here);
            definitions.insert(place, schema);
        }
        json!({ "anyOf": ways, "$defs": definitions })
    }

    /// What no grammar can say of a schema is left to the model, unless the client wants it to the letter.
    fn leniently(&self, mut schema: Value) -> Value {
        if let Some(map) = schema.as_object_mut()
            && !self.tools.offered.iter().all(|tool| tool.strict)
        {
            map.insert("x-guidance".to_owned(), json!({ "lenient": true }));
        }
        schema
    }
}

/// A schema that was a document of its own, at another place in a larger one.
fn moved(schema: &mut Value, here: &str) {
    match schema {
        Value::Object(map) => {
            for (name, value) in map.iter_mut() {
                match (name.as_str(), &mut *value) {
                    ("$ref", Value::String(target)) if target.starts_with('#') => {
                        *target = format!("{here}{}", &target[1..]);
                    }
                    ("const" | "enum" | "default" | "examples", _) => {}
                    _ => moved(value, here),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| moved(item, here)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools::Tool;

    fn tools(choice: Choice) -> Tools {
        let tool = |name: &str, parameters: Value| Tool {
            name: name.into(),
            parameters: parameters.as_object().cloned().unwrap(),
            strict: false,
            shown: Value::Null,
        };
        let offered = vec![
            tool(
                "add",
                json!({ "type": "object", "properties": { "b": { "type": "integer" }, "a": { "$ref": "#/$defs/n" } }, "required": ["a"], "$defs": { "n": { "type": "integer" } } }),
            ),
            tool("now", json!({ "type": "object", "properties": {} })),
        ];
        Tools { offered, choice, parallel: true }
    }

    fn strict(mut tools: Tools) -> Tools {
        tools.offered.iter_mut().for_each(|tool| tool.strict = true);
        tools
    }

    fn said(
        answer: Option<Constraint>,
        tools: &Tools,
        format: Format,
        special: &[(u32, &str)],
        thinking: bool,
    ) -> String {
        let markers = special.iter().map(|(id, text)| (*id, (*text).to_owned())).collect();
        match of(answer, tools, Around { format: Some(format), markers: &markers, thinking }) {
            Ok(Some(Constraint::Lark(grammar))) => grammar,
            other => format!("{other:?}"),
        }
    }

    /// Of a text's bytes, whether all can be the beginning of an answer.
    fn takes(grammar: &str, text: &str) -> Result<bool, String> {
        use llguidance::{ParserFactory, api::TopLevelGrammar, toktrie::ApproximateTokEnv};
        let factory = ParserFactory::new_simple(&ApproximateTokEnv::single_byte_env()).map_err(|e| e.to_string())?;
        let mut parser =
            factory.create_parser(TopLevelGrammar::from_lark(grammar.to_owned())).map_err(|e| e.to_string())?;
        parser.start_without_prompt();
        let tokens: Vec<u32> = text.bytes().map(u32::from).collect();
        Ok(parser.validate_tokens_raw(&tokens).map_err(|e| e.to_string())? == tokens.len())
    }

    #[test]
    fn grammars_take_calls_and_nothing_else() {
        let call = |name: &str, arguments: &str| {
            format!("<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {arguments}}}\n</tool_call>")
        };
        let (add, now) = (call("add", r#"{"b": 2, "a": 1}"#), call("now", "{}"));
        let required = said(None, &tools(Choice::Required), Format::Hermes, &[], false);
        let named = said(None, &tools(Choice::Named("now".into())), Format::Hermes, &[], false);
        let thinking = said(None, &tools(Choice::Required), Format::Hermes, &[], true);
        let schema =
            Some(Constraint::JsonSchema(json!({ "type": "object", "properties": { "x": { "type": "null" } } })));
        let either = said(schema, &tools(Choice::Auto), Format::Hermes, &[], false);
        let llama = said(None, &tools(Choice::Required), Format::Llama3, &[], false);
        let free = said(None, &strict(tools(Choice::Auto)), Format::Hermes, &[], false);
        for (grammar, text, right) in [
            (&required, add.as_str(), true),
            (&required, &format!("{add}\n{now}"), true),
            (&required, &call("add", r#"{"b": 2}"#), false),
            (&required, &call("add", r#"{"a": "one"}"#), false),
            (&required, &call("other", "{}"), false),
            (&required, "Hello", false),
            (&required, "<tool_call>\n{\n  \"name\": ", true),
            (&required, "<tool_call>\n{  ", false),
            (&named, &now, true),
            (&named, &add, false),
            (&named, &format!("{now}\n{now}"), false),
            (&thinking, &format!("so, add.\n</think>\n\n{add}"), true),
            (&thinking, "so, add.\n</think>\n\nHello", false),
            (&either, r#"{"x": null}"#, true),
            (&either, &add, true),
            (&either, r#"{"x": 1}"#, false),
            (&llama, r#"{"name": "add", "parameters": {"a": 1}}; {"name": "now", "parameters": {}}"#, true),
            (&llama, r#"{"name": "add", "parameters": {}}"#, false),
            (&free, "Hello, <tool_cal", true),
            (&free, &format!("I add.\n{add}\n{now}"), true),
            (&free, &add, true),
            (&free, &format!("So: {}", call("add", r#"{"b": 2}"#)), false),
            (&free, "<tool_call>Hello", false),
        ] {
            assert_eq!(takes(grammar, text), Ok(right), "{text}\n{grammar}");
        }
    }

    #[test]
    fn what_a_grammar_cannot_say_is_left_out_of_it_unless_it_must_not_be() {
        let schema = json!({ "type": "object", "properties": { "a": { "type": "array", "uniqueItems": true } } });
        let of = |strict: bool| {
            let parameters = schema.as_object().cloned().unwrap();
            let tool = Tool { name: "add".into(), parameters, strict, shown: Value::Null };
            let tools = Tools { offered: vec![tool], choice: Choice::Required, parallel: true };
            takes(
                &said(None, &tools, Format::Hermes, &[], false),
                "<tool_call>\n{\"name\":\"add\",\"arguments\":{\"a\":[1]}}",
            )
        };
        assert_eq!(of(false), Ok(true));
        assert!(of(true).is_err_and(|words| words.contains("uniqueItems")));
    }

    #[test]
    fn grammars() {
        let required = tools(Choice::Required);
        let named = tools(Choice::Named("now".into()));
        let one = Tools { parallel: false, ..tools(Choice::Required) };
        let schema = || Some(Constraint::JsonSchema(json!({ "type": "object" })));
        let table = [
            ("hermes, required", said(None, &required, Format::Hermes, &[], false)),
            (
                "hermes, named, special tokens, after a thought",
                said(None, &named, Format::Hermes, &[(7, "<tool_call>"), (8, "</tool_call>")], true),
            ),
            ("llama, one", said(None, &one, Format::Llama3, &[], false)),
            ("mistral, required", said(None, &required, Format::Mistral, &[(5, "[TOOL_CALLS]")], false)),
            ("mistral, newer", said(None, &required, Format::Mistral, &[(5, "[TOOL_CALLS]"), (6, "[ARGS]")], false)),
            ("schema or calls", said(schema(), &tools(Choice::Auto), Format::Hermes, &[], false)),
            ("schema after a thought", said(schema(), &Tools::default(), Format::Hermes, &[(9, "</think>")], true)),
            (
                "choice after a thought",
                said(
                    Some(Constraint::Choice(vec!["a\"b".into(), "c".into()])),
                    &Tools::default(),
                    Format::Hermes,
                    &[],
                    true,
                ),
            ),
            (
                "regex after a thought",
                said(Some(Constraint::Regex("a/b".into())), &Tools::default(), Format::Hermes, &[], true),
            ),
            ("schema alone", said(schema(), &Tools::default(), Format::Hermes, &[], false)),
            (
                "grammar beside calls",
                said(Some(Constraint::Lark("start: \"a\"".into())), &tools(Choice::Auto), Format::Hermes, &[], false),
            ),
            ("nothing", said(None, &tools(Choice::Auto), Format::Hermes, &[], false)),
            ("words, or words and calls", said(None, &strict(tools(Choice::Auto)), Format::Hermes, &[], false)),
            (
                "words, or words and calls, special tokens",
                said(None, &strict(tools(Choice::Auto)), Format::Hermes, &[(7, "<tool_call>"), (9, "<think>")], false),
            ),
            ("no marker", said(None, &strict(tools(Choice::Auto)), Format::Llama3, &[], false)),
        ];
        // Those of special tokens need a tokenizer that has them: they are only compiled.
        for (what, grammar) in table.iter().filter(|(_, grammar)| grammar.starts_with("start:")) {
            takes(grammar, "").unwrap_or_else(|error| panic!("{what}: {error}"));
        }
        insta::assert_snapshot!(table.map(|(what, grammar)| format!("# {what}\n{grammar}")).join("\n\n"));
    }
}
