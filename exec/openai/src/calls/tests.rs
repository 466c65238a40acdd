use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// Content, and calls as (name, arguments).
type Heard = (String, Vec<(String, String)>);

fn tools() -> Vec<String> {
    ["get_weather", "add"].map(str::to_owned).to_vec()
}

fn gather(pieces: impl IntoIterator<Item = Piece>) -> Heard {
    let (mut content, mut calls) = (String::new(), Vec::<(String, String)>::new());
    for piece in pieces {
        match piece {
            Piece::Content(text) => content.push_str(&text),
            Piece::Call { index, name } => {
                assert_eq!(index, calls.len(), "calls begin in order");
                calls.push((name, String::new()));
            }
            Piece::Arguments { index, text } => {
                assert_eq!(index + 1, calls.len(), "arguments belong to the call that began last");
                calls[index].1.push_str(&text);
            }
        }
    }
    (content, calls)
}

fn hear(format: Format, pieces: &[&str]) -> Heard {
    let mut parser = Parser::new(format, tools());
    let mut heard: Vec<Piece> = pieces.iter().flat_map(|piece| parser.push(piece)).collect();
    heard.extend(parser.finish());
    gather(heard)
}

#[track_caller]
fn check(format: Format, text: &str, content: &str, calls: &[(&str, &str)]) {
    let (heard, found) = hear(format, &[text]);
    let calls: Vec<(String, String)> = calls.iter().map(|(n, a)| ((*n).to_owned(), (*a).to_owned())).collect();
    assert_eq!((heard.as_str(), &found), (content, &calls), "{format:?} {text}");
}

const PARIS: &str = r#"{"city": "Paris"}"#;

#[test]
fn hermes_calls() {
    let h = Format::Hermes;
    check(h, "Hello  there\n", "Hello  there\n", &[]);
    let one = r#"<tool_call>
{"name": "get_weather", "arguments": {"city": "Paris"}}
</tool_call>"#;
    check(h, one, "", &[("get_weather", PARIS)]);
    check(h, &format!("Let me see.\n\n{one}\n{one}\n"), "Let me see.", &[("get_weather", PARIS); 2]);
    check(h, &format!("{one} And now?"), " And now?", &[("get_weather", PARIS)]);
    // A closing marker inside a string, and braces.
    let tricky = r#"<tool_call>{"name":"add","arguments":{"s":"}</tool_call>\"{"}}</tool_call>"#;
    check(h, tricky, "", &[("add", r#"{"s":"}</tool_call>\"{"}"#)]);
    // Keys the other way round, more keys, arguments as text, none.
    check(
        h,
        r#"<tool_call>{"arguments": {"a": [1, {}]}, "name": "add", "id": 7}</tool_call>"#,
        "",
        &[("add", r#"{"a": [1, {}]}"#)],
    );
    check(h, r#"<tool_call>{"name": "add", "arguments": "{\"a\": 1}"}</tool_call>"#, "", &[("add", r#"{"a": 1}"#)]);
    check(h, r#"<tool_call>{"name": "add"}</tool_call>"#, "", &[("add", "{}")]);
    check(h, r#"<tool_call>{"name": "add", "arguments": null}</tool_call>"#, "", &[("add", "{}")]);
    // Two objects in one block; no closing marker; a missing last brace.
    check(
        h,
        r#"<tool_call>{"name":"add","arguments":{}}{"name":"add","arguments":{"b":2}}</tool_call>"#,
        "",
        &[("add", "{}"), ("add", r#"{"b":2}"#)],
    );
    check(h, r#"<tool_call>{"name":"add","arguments":{"b":2}}"#, "", &[("add", r#"{"b":2}"#)]);
    check(h, r#"<tool_call>{"name":"add","arguments":{"b":2}</tool_call>"#, "", &[("add", r#"{"b":2}"#)]);
}

#[test]
fn what_is_no_hermes_call_is_content() {
    let h = Format::Hermes;
    for text in [
        "<tool_call>\nsorry </tool_call>",
        "<tool_call",
        "a < b, <tool <tool_calls>",
        "<tool_call> ",
        r#"<tool_call>{"name": "add", "argu"#,
        r#"<tool_call>{"name": "add", "arguments": [1]}</tool_call>"#,
        r#"<tool_call>{"name": 3, "arguments": {}}</tool_call>"#,
        r#"<tool_call>{"name": "add" "arguments": {}}</tool_call>"#,
        r#"<tool_call>{"arguments": {}}</tool_call>"#,
    ] {
        check(h, text, text, &[]);
    }
    let after = r#"<tool_call>no<tool_call>{"name":"add","arguments":{}}</tool_call>"#;
    check(h, after, "<tool_call>no", &[("add", "{}")]);
}

#[test]
fn arguments_that_break_off_or_are_no_json_are_the_models_own_words() {
    check(Format::Hermes, r#"<tool_call>{"name":"add","arguments":{"a": 1"#, "", &[("add", r#"{"a": 1"#)]);
    let wrong = r#"<tool_call>{"name":"add","arguments":{"a": one}}</tool_call>ok"#;
    check(Format::Hermes, wrong, "ok", &[("add", r#"{"a": one}}"#)]);
    check(Format::Llama3, r#"{"name":"add","parameters":{"a": one}}"#, "", &[("add", r#"{"a": one}}"#)]);
    check(
        Format::Mistral,
        r#"[TOOL_CALLS]add[ARGS]{"a": one}[TOOL_CALLS]add[ARGS]{}"#,
        "",
        &[("add", r#"{"a": one}"#), ("add", "{}")],
    );
}

#[test]
fn llama_calls() {
    let l = Format::Llama3;
    check(l, r#"{"name": "get_weather", "parameters": {"city": "Paris"}}"#, "", &[("get_weather", PARIS)]);
    check(l, "\n<|python_tag|>{\"type\": \"function\", \"name\": \"add\", \"parameters\": {}}", "", &[("add", "{}")]);
    check(
        l,
        r#"{"name": "add", "parameters": {}}; {"name": "get_weather", "arguments": {"city": "Paris"}}"#,
        "",
        &[("add", "{}"), ("get_weather", PARIS)],
    );
    check(l, r#"Let me see. <|python_tag|>{"name": "add", "parameters": {}}"#, "Let me see.", &[("add", "{}")]);
    check(l, r#"{"name": "add", "parameters": {}} and so on"#, " and so on", &[("add", "{}")]);
    for text in [
        "Hello",
        " {\"answer\": 42}",
        r#"{"name": "Ada", "parameters": {"born": 1815}}"#,
        "<|python_tag|>print(1)",
        "<|python",
        "{",
    ] {
        check(l, text, text, &[]);
    }
}

#[test]
fn mistral_calls() {
    let m = Format::Mistral;
    check(
        m,
        r#"[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Paris"}}, {"name": "add", "arguments": {}}]"#,
        "",
        &[("get_weather", PARIS), ("add", "{}")],
    );
    check(
        m,
        r#"[TOOL_CALLS]get_weather[ARGS]{"city": "Paris"}[TOOL_CALLS]add[CALL_ID]a1b2c3d4e[ARGS]{}"#,
        "",
        &[("get_weather", PARIS), ("add", "{}")],
    );
    check(m, r#"[TOOL_CALLS]get_weather{"city": "Paris"}"#, "", &[("get_weather", PARIS)]);
    check(m, r#"[TOOL_CALLS]{"name": "add", "arguments": {}}"#, "", &[("add", "{}")]);
    check(m, r#"Sure. [TOOL_CALLS][{"name": "add", "arguments": {}}]"#, "Sure.", &[("add", "{}")]);
    for text in [
        "[TOOL_CALL",
        "[TOOL_CALLS] [1, 2]",
        "[TOOL_CALLS]what is that? ",
        "[TOOL_CALLS]",
        "a [x] b",
        "[TOOL_CALLS] [{\"name\": 1}]",
    ] {
        check(m, text, text, &[]);
    }
}

#[test]
fn pieces_go_out_as_early_as_they_are_known() {
    let mut parser = Parser::new(Format::Hermes, tools());
    let mut step = |text: &str| parser.push(text);
    assert_eq!(step("Hi"), [Piece::Content("Hi".into())]);
    assert_eq!(step(" <tool"), []);
    assert_eq!(step("_call>\n{\"name\": \"add\", \"argu"), []);
    let begun = [Piece::Call { index: 0, name: "add".into() }, Piece::Arguments { index: 0, text: "{\"a\":".into() }];
    assert_eq!(step("ments\": {\"a\":"), begun);
    assert_eq!(step(" 1"), [Piece::Arguments { index: 0, text: " 1".into() }]);
    assert_eq!(step("}"), [Piece::Arguments { index: 0, text: "}".into() }]);
    assert_eq!(step("}\n</tool_call>"), []);
}

/// What models write, whole and in ruins.
fn text() -> impl Strategy<Value = String> {
    let token = prop_oneof![
        Just("<tool_call>".to_owned()),
        Just("</tool_call>".to_owned()),
        Just("[TOOL_CALLS]".to_owned()),
        Just("[ARGS]".to_owned()),
        Just("<|python_tag|>".to_owned()),
        Just("{\"name\": \"add\", \"arguments\": ".to_owned()),
        Just("{\"name\":\"get_weather\",\"parameters\":".to_owned()),
        Just("{\"a\": \"}{\\\"\"}".to_owned()),
        Just("}".to_owned()),
        Just("[".to_owned()),
        Just("]".to_owned()),
        Just("{".to_owned()),
        Just("add".to_owned()),
        Just(";".to_owned()),
        Just(", ".to_owned()),
        Just("\n".to_owned()),
        "[ -~é🦀]{0,3}",
    ];
    prop::collection::vec(token, 0..14).prop_map(|tokens| tokens.concat())
}

fn format() -> impl Strategy<Value = Format> {
    prop_oneof![Just(Format::Hermes), Just(Format::Llama3), Just(Format::Mistral)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_cut_gives_the_same(format in format(), text in text(), cuts in prop::collection::vec(0usize..200, 0..12)) {
        let whole = hear(format, &[&text]);
        let letters: Vec<String> = text.chars().map(String::from).collect();
        let letters: Vec<&str> = letters.iter().map(String::as_str).collect();
        prop_assert_eq!(&hear(format, &letters), &whole, "letter by letter: {}", text);
        let mut cuts: Vec<usize> = cuts.into_iter().filter(|at| text.is_char_boundary(*at)).collect();
        cuts.extend([0, text.len()]);
        cuts.sort_unstable();
        let pieces: Vec<&str> = cuts.windows(2).map(|w| &text[w[0]..w[1]]).collect();
        prop_assert_eq!(hear(format, &pieces), whole);
    }

    #[test]
    fn without_a_call_every_byte_is_content(format in format(), text in text()) {
        let (content, calls) = hear(format, &[&text]);
        if calls.is_empty() {
            prop_assert_eq!(content, text);
        }
    }

    #[test]
    fn calls_come_back_as_they_were_written(
        format in format(),
        calls in prop::collection::vec((0usize..2, arguments()), 1..4),
        pretty: bool,
    ) {
        let calls: Vec<(String, Value)> = calls.into_iter().map(|(tool, arguments)| (tools()[tool].clone(), arguments)).collect();
        let write = |value: &Value| if pretty { serde_json::to_string_pretty(value) } else { serde_json::to_string(value) }.unwrap();
        let key = if format == Format::Llama3 { "parameters" } else { "arguments" };
        let objects: Vec<String> = calls.iter().map(|(name, a)| write(&json!({ "name": name, key: a }))).collect();
        let text = match format {
            Format::Hermes => objects.iter().map(|o| format!("<tool_call>\n{o}\n</tool_call>\n")).collect(),
            Format::Llama3 => objects.join("; "),
            Format::Mistral => format!("[TOOL_CALLS][{}]", objects.join(", ")),
        };
        let (content, heard) = hear(format, &[&text]);
        prop_assert_eq!(content, "");
        let heard: Vec<(String, Value)> = heard.into_iter().map(|(n, a)| (n, serde_json::from_str(&a).unwrap())).collect();
        prop_assert_eq!(heard, calls);
    }
}

fn arguments() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        any::<i32>().prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        ".{0,12}".prop_map(Value::from)
    ];
    prop::collection::vec(("[a-z\"\\\\<é]{1,6}", leaf), 0..4)
        .prop_map(|pairs| Value::Object(pairs.into_iter().collect()))
}
