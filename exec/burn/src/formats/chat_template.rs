//! Chat templates: from a list of messages to the text a model was trained on.
//!
//! Model authors write these templates for Python's Jinja2, with the settings of the reference library: `trim_blocks`,
//! `lstrip_blocks`, loop controls, and the extra names `raise_exception`, `strftime_now`, `tojson` and
//! `{% generation %}`. A byte of difference is a different prompt, so all of that is reproduced here.
//!
//! A template arrives with a downloaded model, so it is treated as hostile input: it can reach nothing but its
//! arguments, and the work it may do is bounded.

use std::collections::BTreeMap;
use std::sync::Arc;

use minijinja::value::Kwargs;
use minijinja::{Environment, Error as JinjaError, ErrorKind, Value, syntax::SyntaxConfig};
use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter, PrettyFormatter};

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

/// A conversation as templates see it: a list of `{role, content, …}` objects, and the tools on offer.
///
/// Keys keep the order in which they were written, because templates print tool definitions as JSON and the model
/// sees the order. That is why this is read from JSON text and not from a sorted map.
#[derive(Debug, Clone)]
pub struct Conversation {
    messages: Vec<Value>,
    tools: Option<Value>,
}

impl Conversation {
    /// A conversation of plain text turns, `(role, content)`.
    pub fn from_turns<'a>(turns: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let messages = turns
            .into_iter()
            .map(|(role, content)| Value::from_pairs([("role", role), ("content", content)]))
            .collect();
        Self { messages, tools: None }
    }

    /// Reads a JSON list of messages. Each must be an object with a string `role`.
    ///
    /// # Errors
    /// [`TemplateError::Messages`] says which message is wrong and how.
    pub fn from_json(json: &str) -> Result<Self, TemplateError> {
        let value: Value = serde_json::from_str(json).map_err(|e| TemplateError::Messages(e.to_string()))?;
        Self::from_value(&value)
    }

    /// The same from a value that was already read; see [`Conversation::from_json`].
    ///
    /// # Errors
    /// [`TemplateError::Messages`] says which message is wrong and how.
    pub fn from_value(value: &Value) -> Result<Self, TemplateError> {
        use minijinja::value::ValueKind;
        let wrong = |text: String| Err(TemplateError::Messages(text));
        if value.kind() != ValueKind::Seq {
            return wrong(format!("expected a list of messages, found {}", plain_kind(value)));
        }
        let messages: Vec<Value> = value.try_iter().map_err(|e| TemplateError::Messages(e.to_string()))?.collect();
        if messages.is_empty() {
            return wrong("the list is empty".into());
        }
        for (index, message) in messages.iter().enumerate() {
            if message.kind() != ValueKind::Map {
                return wrong(format!("message {index} is {}, expected an object", plain_kind(message)));
            }
            let role = message.get_attr("role").unwrap_or_default();
            if role.as_str().is_none() {
                return wrong(format!("message {index} has no `role` that is a string"));
            }
            let content = message.get_attr("content").unwrap_or_default();
            // Content may be absent (a message that only calls tools) or a list of parts; a number is a mistake.
            if matches!(content.kind(), ValueKind::Number | ValueKind::Bool | ValueKind::Map) {
                return wrong(format!("message {index}: `content` is {}, expected a string", plain_kind(&content)));
            }
            let calls = message.get_attr("tool_calls").unwrap_or_default();
            if content.is_undefined() && calls.is_undefined() {
                return wrong(format!("message {index} has no `content`"));
            }
        }
        Ok(Self { messages, tools: None })
    }

    /// Adds the tools a template may describe to the model: a JSON list of function definitions.
    ///
    /// # Errors
    /// [`TemplateError::Messages`] when it is not JSON.
    pub fn with_tools_json(mut self, json: &str) -> Result<Self, TemplateError> {
        let tools = serde_json::from_str(json).map_err(|e| TemplateError::Messages(format!("tools: {e}")))?;
        self.tools = Some(tools);
        Ok(self)
    }

    /// The same from a value that was already read.
    #[must_use]
    pub fn with_tools(mut self, tools: Value) -> Self {
        self.tools = Some(tools);
        self
    }

    /// This conversation with `more` after it; the tools stay.
    #[must_use]
    pub fn followed_by(&self, more: &Conversation) -> Self {
        let messages = self.messages.iter().chain(&more.messages).cloned().collect();
        Self { messages, tools: self.tools.clone() }
    }

    /// Takes the last message off: (all before it, it). None when nothing would be left before it.
    pub fn split_last(&self) -> Option<(Self, Self)> {
        let (last, before) = self.messages.split_last()?;
        if before.is_empty() {
            return None;
        }
        let before = Self { messages: before.to_vec(), tools: self.tools.clone() };
        Some((before, Self { messages: vec![last.clone()], tools: None }))
    }

    /// How many messages two conversations begin with alike.
    pub fn common_start(&self, other: &Self) -> usize {
        self.messages.iter().zip(&other.messages).take_while(|(mine, its)| mine == its).count()
    }

    /// The first `count` messages with the tools, and the others.
    pub fn split_at(&self, count: usize) -> (Self, Self) {
        let (first, rest) = self.messages.split_at(count.min(self.messages.len()));
        (Self { messages: first.to_vec(), tools: self.tools.clone() }, Self { messages: rest.to_vec(), tools: None })
    }

    /// The role of the last message, empty when there is none.
    pub fn last_role(&self) -> String {
        self.messages.last().map(role_of).unwrap_or_default()
    }

    /// Number of messages.
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// Whether there is no message.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// `(role, content)` of each message, content empty where it is not a plain string.
    pub fn turns(&self) -> Vec<(String, String)> {
        let text = |m: &Value| m.get_attr("content").ok().and_then(|c| c.as_str().map(str::to_owned));
        self.messages.iter().map(|m| (role_of(m), text(m).unwrap_or_default())).collect()
    }
}

fn role_of(message: &Value) -> String {
    message.get_attr("role").ok().and_then(|r| r.as_str().map(str::to_owned)).unwrap_or_default()
}

/// JSON's own words for what was found.
pub(super) fn plain_kind(value: &Value) -> &'static str {
    use minijinja::value::ValueKind;
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

/// A compiled chat template. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    source: Arc<str>,
    env: Arc<Environment<'static>>,
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
        env.add_filter("tojson", tojson);
        env.add_function("raise_exception", |text: String| -> Result<Value, JinjaError> {
            Err(JinjaError::new(ErrorKind::InvalidOperation, "raise_exception").with_source(Raised(text)))
        });
        let plain = without_generation_tags(source);
        env.add_template_owned("chat", plain).map_err(|e| TemplateError::Syntax(one_line(&e)))?;
        Ok(Self { source: source.into(), env: Arc::new(env) })
    }

    /// The source as it was given, for writing it back.
    pub fn source(&self) -> &str {
        &self.source
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
        let now = options.now_unix;
        let strftime = Value::from_function(move |format: String| strftime(now, &format));
        let mut names: Vec<(String, Value)> = special.iter().map(|(k, v)| (k.clone(), v.as_str().into())).collect();
        names.push(("messages".into(), Value::from(conversation.messages.clone())));
        names.push(("tools".into(), conversation.tools.clone().unwrap_or(Value::from(()))));
        names.push(("documents".into(), Value::from(())));
        names.push(("add_generation_prompt".into(), options.add_generation_prompt.into()));
        names.push(("strftime_now".into(), strftime));
        let template = self.env.get_template("chat").map_err(|e| TemplateError::Failed(one_line(&e)))?;
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

/// `{% generation %}` marks the assistant's part for loss masks and prints nothing: a branch always taken does the
/// same, and keeps what the tag does to the white space around it.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        let Some(end) = tag.find("%}") else {
            out.push_str(tag);
            return out;
        };
        let (tag, after) = tag.split_at(end + 2);
        let word = tag.trim_start_matches(['{', '%', '-', '+']).trim_end_matches(['}', '%', '-', '+']).trim();
        match word {
            "generation" => out.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endif")),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

/// Python's `json.dumps` as the reference library calls it: no escaping for HTML, `", "` and `": "` between items,
/// text other than ASCII left alone.
fn tojson(value: &Value, indent: Option<usize>, options: Kwargs) -> Result<Value, JinjaError> {
    let indent = match indent {
        Some(n) => Some(n),
        None => options.get::<Option<usize>>("indent")?,
    };
    let ensure_ascii = options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let sort_keys = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    let separators = options.get::<Option<Vec<String>>>("separators")?;
    options.assert_all_used()?;
    let text = match (indent, separators.as_deref()) {
        // A thousand spaces an indent is past any use and would only cost memory.
        (Some(n), _) => json(value, sort_keys, PrettyFormatter::with_indent(" ".repeat(n.min(1000)).as_bytes())),
        (None, Some([item, key])) if item == "," && key == ":" => json(value, sort_keys, CompactFormatter),
        (None, None) => json(value, sort_keys, PythonFormatter),
        (None, Some(other)) => {
            let text = format!("tojson separators {other:?} are not supported, only (',', ':')");
            return Err(JinjaError::new(ErrorKind::InvalidOperation, text));
        }
    };
    let text = text.map_err(|e| JinjaError::new(ErrorKind::InvalidOperation, format!("tojson: {e}")))?;
    Ok(Value::from(if ensure_ascii { ascii_only(&text) } else { text }))
}

fn json(value: &Value, sort_keys: bool, formatter: impl Formatter) -> Result<String, serde_json::Error> {
    let mut out = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, formatter);
    if sort_keys {
        sorted(serde_json::to_value(value)?).serialize(&mut serializer)?;
    } else {
        value.serialize(&mut serializer)?;
    }
    String::from_utf8(out).map_err(serde::ser::Error::custom)
}

/// Rebuilds every object in key order, whichever map serde_json was compiled with.
fn sorted(value: serde_json::Value) -> serde_json::Value {
    match value {
        serde_json::Value::Object(map) => {
            let ordered: BTreeMap<String, serde_json::Value> = map.into_iter().collect();
            serde_json::Value::Object(ordered.into_iter().map(|(k, v)| (k, sorted(v))).collect())
        }
        serde_json::Value::Array(items) => serde_json::Value::Array(items.into_iter().map(sorted).collect()),
        other => other,
    }
}

fn ascii_only(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_ascii() {
            out.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    out
}

/// One line, a space after every comma and colon.
struct PythonFormatter;

impl Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, out: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, out: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, out: &mut W) -> std::io::Result<()> {
        out.write_all(b": ")
    }
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// C's `strftime` in UTC, for the directives that templates use; an unknown one is left as it stands.
fn strftime(now_unix: i64, format: &str) -> String {
    let (days, second) = (now_unix.div_euclid(86_400), now_unix.rem_euclid(86_400));
    let (year, month, day) = civil_from_days(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let weekday = WEEKDAYS[days.rem_euclid(7) as usize];
    let month_name = MONTHS[(month - 1) as usize];
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('Y') => out.push_str(&year.to_string()),
            Some('y') => out.push_str(&format!("{:02}", year.rem_euclid(100))),
            Some('m') => out.push_str(&format!("{month:02}")),
            Some('B') => out.push_str(month_name),
            Some('b') => out.push_str(&month_name[..3]),
            Some('d') => out.push_str(&format!("{day:02}")),
            Some('A') => out.push_str(weekday),
            Some('a') => out.push_str(&weekday[..3]),
            Some('H') => out.push_str(&format!("{hour:02}")),
            Some('I') => out.push_str(&format!("{:02}", (hour + 11) % 12 + 1)),
            Some('M') => out.push_str(&format!("{minute:02}")),
            Some('S') => out.push_str(&format!("{second:02}")),
            Some('p') => out.push_str(if hour < 12 { "AM" } else { "PM" }),
            Some('%') => out.push('%'),
            Some(other) => out.extend(['%', other]),
            None => out.push('%'),
        }
    }
    out
}

/// Days since 1970-01-01 to (year, month 1–12, day 1–31) of the Gregorian calendar.
/// Years are counted from March, so that the leap day is the last of its year and months follow one formula.
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
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
        assert_eq!(render("{{ [1, true, none] | tojson(separators=(',', ':')) }}", &hello()).unwrap(), "[1,true,null]");
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
