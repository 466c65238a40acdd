//! Chat templates: from a list of messages to the text a model was trained on.
//!
//! Model authors write these templates for Python's Jinja2, with the settings of the reference library: `trim_blocks`,
//! `lstrip_blocks`, loop controls, and the extra names `raise_exception`, `strftime_now`, `tojson` ([`json`]) and
//! `{% generation %}`. A byte of difference is a different prompt, so all of that is reproduced here, and what the
//! library does to messages first: keys that are null are as good as absent, and reasoning is found under any of its names.
//!
//! Its one liberty: the time of `strftime_now` is the caller's, in UTC, for a resumed run must see the same text.
//!
//! A template arrives with a downloaded model, so it is treated as hostile input: it can reach nothing but its
//! arguments, and the work it may do is bounded.

mod conversation;
mod dates;
mod json;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

pub use self::conversation::Conversation;
use self::dates::strftime;
use minijinja::{Environment, Error as JinjaError, ErrorKind, Value, syntax::SyntaxConfig, value::ValueKind};

/// The most work one rendering may do, in minijinja's unit (about one instruction or 64 bytes of data each).
/// A conversation of a million characters needs a few per cent of it; a template that loops for ever stops in seconds.
const RENDER_FUEL: u64 = 10_000_000;

/// A template that cannot be used, or a conversation that it does not accept.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The template's own text is not valid Jinja.
    #[error("chat template does not parse: {0}")]
    Syntax(String),
    /// The template refused the conversation with `raise_exception`.
    #[error("chat template refuses these messages: {0}")]
    Refused(String),
    /// The template failed while it ran.
    #[error("chat template failed: {0}")]
    Failed(String),
    /// The messages are not a list of objects with a `role`.
    #[error("messages: {0}")]
    Messages(String),
}

/// Around what a generation block printed, while it is looked for. No text has them: Unicode keeps them for uses like this.
const BEGINS: char = '\u{FDD0}';
const ENDS: char = '\u{FDD1}';

/// JSON's own words for what was found.
pub(super) fn plain_kind(value: &Value) -> &'static str {
    match value.kind() {
        ValueKind::Undefined => "nothing",
        ValueKind::None => "null",
        ValueKind::Bool => "a boolean",
        ValueKind::Number => "a number",
        ValueKind::String => "a string",
        ValueKind::Seq => "a list",
        ValueKind::Map => "an object",
        _ => "something else",
    }
}

/// What a rendering depends on besides the messages.
#[derive(Debug, Clone, Copy, Default)]
pub struct RenderOptions {
    /// End with the header of the assistant's turn, so that the model continues with the answer.
    pub add_generation_prompt: bool,
    /// Seconds since 1970 UTC, for templates that print today's date. Training should pass a fixed time.
    pub now_unix: i64,
}

/// The template as it prints, and as it also marks what is to be generated.
const PLAIN: &str = "chat";
const MARKED: &str = "marked";

/// A compiled chat template. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    source: Arc<str>,
    env: Arc<Environment<'static>>,
    /// Whether it says which part of a text the model is to generate.
    marks_answers: bool,
}

impl ChatTemplate {
    /// Compiles a template's source.
    ///
    /// # Errors
    /// [`TemplateError::Syntax`] with the line.
    pub fn new(source: &str) -> Result<Self, TemplateError> {
        let mut env = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        env.set_syntax(syntax.map_err(|e| TemplateError::Syntax(e.to_string()))?);
        env.set_fuel(Some(RENDER_FUEL));
        env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        env.add_filter("tojson", json::tojson);
        env.add_filter("mloc_generation", |text: String| format!("{BEGINS}{text}{ENDS}"));
        env.add_function("raise_exception", |text: String| -> Result<Value, JinjaError> {
            Err(JinjaError::new(ErrorKind::InvalidOperation, "raise_exception").with_source(Raised(text)))
        });
        let (plain, marks_answers) = generation_tags_as(source, "if true", "endif");
        let (marked, _) = generation_tags_as(source, "filter mloc_generation", "endfilter");
        for (name, source) in [(PLAIN, plain), (MARKED, marked)] {
            env.add_template_owned(name, source).map_err(|e| TemplateError::Syntax(one_line(&e)))?;
        }
        Ok(Self { source: source.into(), env: Arc::new(env), marks_answers })
    }

    /// The source as it was given, for writing it back.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether it has a `{% generation %}` block, so that [`Self::render_marked`] finds answers.
    pub fn marks_answers(&self) -> bool {
        self.marks_answers
    }

    /// Renders a conversation. `special` holds the tokenizer's special tokens by name (`bos_token`, `eos_token`, …).
    ///
    /// # Errors
    /// [`TemplateError::Refused`] when the template raises, [`TemplateError::Failed`] on any other trouble.
    pub fn render(
        &self,
        conversation: &Conversation,
        special: &BTreeMap<String, String>,
        options: RenderOptions,
    ) -> Result<String, TemplateError> {
        self.render_as(PLAIN, conversation, special, options)
    }

    /// As [`Self::render`], and which characters of the text `{% generation %}` blocks printed, in order.
    ///
    /// # Errors
    /// As [`Self::render`]; and [`TemplateError::Messages`] for a text with one of the two characters that mark the
    /// blocks, which Unicode reserves as no characters.
    pub fn render_marked(
        &self,
        conversation: &Conversation,
        special: &BTreeMap<String, String>,
        options: RenderOptions,
    ) -> Result<(String, Vec<Range<usize>>), TemplateError> {
        let plain = self.render_as(PLAIN, conversation, special, options)?;
        if let Some(found) = plain.chars().find(|c| [BEGINS, ENDS].contains(c)) {
            let text = format!("U+{:04X} is no character, and answers cannot be told apart with it", u32::from(found));
            return Err(TemplateError::Messages(text));
        }
        let marked = self.render_as(MARKED, conversation, special, options)?;
        let mut text = String::with_capacity(marked.len());
        let (mut at, mut began, mut answers) = (0, None, Vec::new());
        for c in marked.chars() {
            match c {
                BEGINS => began = Some(at),
                ENDS => answers.extend(began.take().map(|from| from..at)),
                c => {
                    text.push(c);
                    at += 1;
                }
            }
        }
        Ok((text, answers))
    }

    fn render_as(
        &self,
        name: &str,
        conversation: &Conversation,
        special: &BTreeMap<String, String>,
        options: RenderOptions,
    ) -> Result<String, TemplateError> {
        let now = options.now_unix;
        let strftime = Value::from_function(move |format: String| strftime(now, &format));
        let mut names: Vec<(String, Value)> = special.iter().map(|(k, v)| (k.clone(), v.as_str().into())).collect();
        names.push(("messages".into(), Value::from(conversation.messages.clone())));
        names.push(("tools".into(), conversation.tools.clone().unwrap_or(Value::from(()))));
        names.push(("documents".into(), Value::from(())));
        names.push(("add_generation_prompt".into(), options.add_generation_prompt.into()));
        names.push(("strftime_now".into(), strftime));
        names.extend(conversation.variables.iter().cloned());
        let template = self.env.get_template(name).map_err(|e| TemplateError::Failed(one_line(&e)))?;
        template.render(Value::from_pairs(names)).map_err(|e| match raised(&e) {
            Some(text) => TemplateError::Refused(text),
            None => TemplateError::Failed(one_line(&e)),
        })
    }
}

/// The message of `raise_exception`, carried through the engine's own error type.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn raised(error: &JinjaError) -> Option<String> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(error);
    while let Some(inner) = cause {
        if let Some(Raised(text)) = inner.downcast_ref::<Raised>() {
            return Some(text.clone());
        }
        cause = inner.source();
    }
    None
}

fn one_line(error: &JinjaError) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// `{% generation %}` is no tag of this engine: it is put as another pair of tags, which keeps what the pair does to the
/// white space around it. As a branch always taken it prints its content, as a filter it marks it. Also says whether there
/// was one.
fn generation_tags_as(source: &str, begin: &str, end: &str) -> (String, bool) {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    let mut found = false;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        let Some(close) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let (tag, after) = tag.split_at(close + 2);
        let word = tag.trim_start_matches(['{', '%', '-', '+']).trim_end_matches(['}', '%', '-', '+']).trim();
        match word {
            "generation" => {
                found = true;
                out.push_str(&tag.replace("generation", begin));
            }
            "endgeneration" => out.push_str(&tag.replace("endgeneration", end)),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    (out, found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn render(source: &str, conversation: &Conversation) -> Result<String, TemplateError> {
        let special = BTreeMap::from([("bos_token".to_owned(), "<s>".to_owned())]);
        // 2026-02-03 04:05:06 UTC, a Tuesday.
        let options = RenderOptions { add_generation_prompt: true, now_unix: 1_770_091_506 };
        ChatTemplate::new(source)?.render(conversation, &special, options)
    }

    fn hello() -> Conversation {
        Conversation::from_turns([("user", "<a> & \"b\" é"), ("assistant", "ok")])
    }

    #[test]
    fn block_tags_leave_no_white_space() {
        let source = "{{ bos_token }}\n{% for m in messages %}\n    {% if true %}\n{{ m.role }}\n    {% endif %}\n{% endfor %}\n";
        assert_eq!(render(source, &hello()).unwrap(), "<s>\nuser\nassistant\n");
    }

    #[test]
    fn text_is_not_escaped_and_json_is_pythons() {
        assert_eq!(render("{{ messages[0].content }}", &hello()).unwrap(), "<a> & \"b\" é");
        let json = "{\"role\": \"user\", \"content\": \"<a> & \\\"b\\\" é\"}";
        assert_eq!(render("{{ messages[0] | tojson }}", &hello()).unwrap(), json);
        assert_eq!(
            render("{{ messages[0].content[-1] | tojson(ensure_ascii=true) }}", &hello()).unwrap(),
            "\"\\u00e9\""
        );
        let cases = [
            ("{{ [1, true, none] | tojson(separators=(',', ':')) }}", "[1,true,null]"),
            ("{{ [1, {'a': 1e-7}] | tojson(separators=(' ; ', '=')) }}", "[1 ; {\"a\"=1e-07}]"),
            (
                "{{ {'b': [], 'a': [1, {'c': {}}]} | tojson(indent='\t') }}",
                "{\n\t\"b\": [],\n\t\"a\": [\n\t\t1,\n\t\t{\n\t\t\t\"c\": {}\n\t\t}\n\t]\n}",
            ),
            ("{{ [1, [2, 3], {}] | tojson(indent=0) }}", "[\n1,\n[\n2,\n3\n],\n{}\n]"),
        ];
        for (source, want) in cases {
            assert_eq!(render(source, &hello()).unwrap(), want, "{source}");
        }
        assert_eq!(
            render("{{ {'b': 1, 'a': [2]} | tojson(indent=2) }}", &hello()).unwrap(),
            "{\n  \"b\": 1,\n  \"a\": [\n    2\n  ]\n}"
        );
        assert_eq!(
            render("{{ {'b': 1, 'a': 2} | tojson(sort_keys=true) }}", &hello()).unwrap(),
            "{\"a\": 2, \"b\": 1}"
        );
    }

    #[test]
    fn tools_keep_the_order_they_were_written_in() {
        let tools = r#"[{"type": "function", "name": "z", "arguments": {"b": 1, "a": 2}}]"#;
        let talk = hello().with_tools_json(tools).unwrap();
        assert_eq!(render("{% if tools %}{{ tools | tojson }}{% endif %}", &talk).unwrap(), tools);
        assert_eq!(render("{% if tools is none %}no tools{% endif %}", &hello()).unwrap(), "no tools");
    }

    #[test]
    fn pythons_methods_and_slices_work() {
        let source = "{% set ns = namespace(n=0) %}{% for m in messages[1:] %}{% set ns.n = ns.n + 1 %}{% endfor %}\
                      {{ ns.n }} {{ ' x '.strip() }} {{ messages[0].get('name', 'none') }} {{ 'a-b'.split('-')[-1] }} {{ true }}";
        assert_eq!(render(source, &hello()).unwrap(), "1 x none b True");
    }

    #[test]
    fn a_generation_block_prints_its_content() {
        let source = "{% for m in messages %}{%- generation %}\n{{ m.role }}{% endgeneration -%}  {% endfor %}";
        assert_eq!(render(source, &hello()).unwrap(), "userassistant");
    }

    #[test]
    fn answers_are_found_where_generation_blocks_printed_them() {
        let source = "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' %}{% generation %}{{ m.content }}</s>\n\
                      {%- endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}";
        let template = ChatTemplate::new(source).unwrap();
        assert!(template.marks_answers());
        let talk = Conversation::from_turns([("user", "é?"), ("assistant", "ñ!"), ("user", "x"), ("assistant", "")]);
        let marked = |talk: &Conversation| {
            template.render_marked(talk, &BTreeMap::new(), RenderOptions { add_generation_prompt: false, now_unix: 0 })
        };
        let (text, answers) = marked(&talk).unwrap();
        assert_eq!(text, template.render(&talk, &BTreeMap::new(), RenderOptions::default()).unwrap());
        let chars: Vec<char> = text.chars().collect();
        let said: Vec<String> = answers.into_iter().map(|range| chars[range].iter().collect()).collect();
        assert_eq!(said, ["ñ!</s>", "</s>"]);
        let forged = Conversation::from_turns([("user", "\u{FDD0}all of it\u{FDD1}"), ("assistant", "a")]);
        let error = marked(&forged).unwrap_err().to_string();
        assert_eq!(error, "messages: U+FDD0 is no character, and answers cannot be told apart with it");
        assert!(!ChatTemplate::new("{{ messages[0].content }}").unwrap().marks_answers());
    }

    #[test]
    fn messages_are_those_that_the_reference_library_hands_over() {
        let json = r#"[{"role": "user", "name": null, "content": "q"},
                       {"role": "assistant", "content": null, "thinking": "hm", "tool_calls": [{"name": "f"}]}]"#;
        let talk = Conversation::from_json(json).unwrap();
        let source =
            "{{ messages[0] | tojson }} {{ messages[1].content is defined }} {{ messages[1].reasoning_content }}";
        assert_eq!(render(source, &talk).unwrap(), "{\"role\": \"user\", \"content\": \"q\"} False hm");
        let talk = talk.with_variables(vec![("enable_thinking".into(), false.into())]);
        assert_eq!(render("{{ enable_thinking is defined and not enable_thinking }}", &talk).unwrap(), "True");
        assert_eq!(render("{{ enable_thinking is defined }} {{ documents }}", &hello()).unwrap(), "False None");
    }

    #[test]
    fn dates_come_from_the_caller() {
        let source = "{{ strftime_now('%d %b %Y, %A %H:%M:%S %I %p %y %B %%') }}";
        assert_eq!(render(source, &hello()).unwrap(), "03 Feb 2026, Tuesday 04:05:06 04 AM 26 February %");
        assert_eq!(strftime(951_782_400, "%Y-%m-%d"), "2000-02-29");
        assert_eq!(strftime(-1, "%Y-%m-%d %H"), "1969-12-31 23");
    }

    #[test]
    fn errors_say_what_is_wrong() {
        let refused = render("{{ raise_exception('roles must alternate') }}", &hello()).unwrap_err();
        assert_eq!(refused.to_string(), "chat template refuses these messages: roles must alternate");
        assert!(matches!(ChatTemplate::new("{% if %}").unwrap_err(), TemplateError::Syntax(_)));
        let cases = [
            ("3", "messages: expected a list of messages, found a number"),
            ("[]", "messages: the list is empty"),
            ("[1]", "messages: message 0 is a number, expected an object"),
            (r#"[{"content": "x"}]"#, "messages: message 0 has no `role` that is a string"),
            (r#"[{"role": "user"}]"#, "messages: message 0 has no `content`"),
            (r#"[{"role": "user", "content": 5}]"#, "messages: message 0: `content` is a number, expected a string"),
        ];
        for (json, message) in cases {
            assert_eq!(Conversation::from_json(json).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn a_template_that_loops_without_end_is_stopped() {
        let source =
            "{% for a in range(99999) %}{% for b in range(99999) %}{% set c = a * b %}{% endfor %}{% endfor %}";
        assert!(matches!(render(source, &hello()).unwrap_err(), TemplateError::Failed(_)));
    }
}
