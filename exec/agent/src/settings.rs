//! An agent as it is written: its model, tools, budgets. Read once, with every problem at once; past that nobody checks again.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use serde_json::{Map, Value, json};

pub mod names;
mod read;
pub mod tools;

pub use tools::ToolSettings;

use read::Fields;

/// What a run may take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budgets {
    /// Answers of the model. In the last one it is not offered tools, so that it has to answer.
    pub steps: u32,
    /// Seconds of work, without those in which only a person was waited for.
    pub wall_time_s: u64,
    /// Tokens read and written, over all answers. A question is not asked when what is known of it does not fit; what tools
    /// returned since is not known yet.
    pub tokens: u64,
    /// Tokens of one answer.
    pub answer_tokens: Option<u64>,
}

/// How often what goes wrong may go wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Patience {
    /// As many times in a row the same calls with the same results are a circle; the last of them is not made.
    pub repeats: u32,
    /// Answers in a row with calls that do not fit.
    pub bad_calls: u32,
    /// Failures in a row of the model, after its own patience.
    pub model_failures: u32,
    /// Seconds in which a person may say whether a call is made.
    pub approval_s: u64,
}

/// Whether a run begins with a call of a tool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToolChoice {
    /// As the model likes.
    #[default]
    Auto,
    /// Its first answer must be calls; a server that constrains answers sees to it whatever the model would say. What comes
    /// after is as the model likes, or it could never answer.
    Required,
}

/// A model at an address.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelSettings {
    /// Where OpenAI's API is: `http://127.0.0.1:8000/v1`.
    pub url: String,
    /// The model's name there.
    pub name: String,
    /// The variable that holds the key for it.
    pub key_env: Option<String>,
    /// Seconds without a byte after which its server is taken for dead.
    pub silence_s: u64,
}

/// An agent.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Settings {
    /// Instructions, ahead of every conversation.
    pub system: Option<String>,
    /// The model, where it is at an address: an agent may have one in its own process.
    pub model: Option<ModelSettings>,
    /// Further fields of a request to it: `temperature`, `seed`, `reasoning_effort`.
    pub parameters: Map<String, Value>,
    /// Whether a run begins with a call.
    pub tool_choice: ToolChoice,
    /// Where its tools come from.
    pub tools: Vec<ToolSettings>,
    /// Names of tools it may use, or their beginnings with a `*`; without it, all.
    pub allow: Option<Vec<String>>,
    /// Those of them that a person is asked about each time.
    pub approval: Vec<String>,
    /// Hosts its tools may speak to; without it, those that its tools name.
    pub hosts: Option<Vec<String>>,
    /// What a run may take.
    pub budgets: Budgets,
    /// How often what goes wrong may go wrong.
    pub patience: Patience,
    /// Seconds for a call, where its tool says nothing.
    pub tool_timeout_s: u64,
    /// Bytes of a result that the model is shown.
    pub tool_output_bytes: usize,
}

/// What is wrong with settings: where, what was found, what would work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The field, as a path.
    pub path: String,
    /// What was found.
    pub found: String,
    /// What would work.
    pub hint: String,
}

/// A day: whoever is to be asked may be asleep.
const APPROVAL_S: u64 = 24 * 3600;
/// A model that thinks, on a machine that is busy, says nothing for a while.
const SILENCE_S: u64 = 300;
/// A page of text, some eight thousand tokens: more drowns the conversation.
const OUTPUT_BYTES: usize = 32 << 10;
const TIMEOUT_S: u64 = 60;

impl Default for Budgets {
    fn default() -> Self {
        Self { steps: 30, wall_time_s: 1800, tokens: 1_000_000, answer_tokens: None }
    }
}

impl Budgets {
    /// In milliseconds.
    pub fn wall_time_ms(&self) -> u64 {
        self.wall_time_s.saturating_mul(1000)
    }

    /// The lesser of both, field by field: who starts a run may ask for less than the agent has.
    #[must_use]
    pub fn at_most(&self, other: &Self) -> Self {
        let answer_tokens = match (self.answer_tokens, other.answer_tokens) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        Self {
            steps: self.steps.min(other.steps),
            wall_time_s: self.wall_time_s.min(other.wall_time_s),
            tokens: self.tokens.min(other.tokens),
            answer_tokens,
        }
    }
}

impl Default for Patience {
    fn default() -> Self {
        Self { repeats: 3, bad_calls: 3, model_failures: 2, approval_s: APPROVAL_S }
    }
}

impl Settings {
    /// Reads them.
    ///
    /// # Errors
    /// Every problem.
    pub fn read(value: &Value) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        let read = Self::fields(Fields::of("", value, &mut problems));
        match (read, problems.is_empty()) {
            (Some(settings), true) => Ok(settings),
            (_, _) => Err(problems),
        }
    }

    fn fields(mut all: Fields<'_>) -> Option<Self> {
        let system = all.take("system", "a text");
        let given: Option<Value> = all.take("model", "a section with url and name");
        let model = given.and_then(|value| model(all.below("model", &value)));
        let parameters: Map<String, Value> = all.or("parameters", "a section", Map::new());
        for ours in ["messages", "tools", "tool_choice", "stream", "stream_options", "model"] {
            if parameters.contains_key(ours) {
                all.problem(&format!("parameters.{ours}"), "the agent sets it itself".into(), "leave it out");
            }
        }
        let tool_choice = all.or("tool_choice", "auto or required", ToolChoice::Auto);
        let hosts: Option<Vec<String>> = all.take("hosts", "a list of hosts");
        let listed: Vec<Value> = all.or("tools", "a list", Vec::new());
        let mut listed_tools = Vec::new();
        for (i, one) in listed.iter().enumerate() {
            listed_tools.push(tools::read(all.below(&format!("tools[{i}]"), one), hosts.as_deref()));
        }
        let allow: Option<Vec<String>> = all.take("allow", "a list of names of tools, or of beginnings with a *");
        let approval: Vec<String> = all.or("approval", "a list of names of tools, or of beginnings with a *", vec![]);
        let budgets = all.or("budgets", "a section", json!({}));
        let budgets = read_budgets(all.below("budgets", &budgets));
        let patience = all.or("patience", "a section", json!({}));
        let patience = read_patience(all.below("patience", &patience));
        let tool_timeout_s = all.at_least("tool_timeout_s", 1, TIMEOUT_S);
        let tool_output_bytes = all.at_least("tool_output_bytes", 256, OUTPUT_BYTES as u64);
        if tool_choice == ToolChoice::Required && listed.is_empty() {
            all.problem("tool_choice", "there is no tool to call".into(), "name tools, or leave it out");
        }
        for name in tools::named_twice(&listed_tools) {
            all.problem("tools", format!("`{name}` is there twice"), "give each its own name");
        }
        all.end();
        Some(Self {
            system,
            model,
            parameters,
            tool_choice,
            tools: listed_tools.into_iter().collect::<Option<_>>()?,
            allow,
            approval,
            hosts,
            budgets,
            patience,
            tool_timeout_s,
            tool_output_bytes: usize::try_from(tool_output_bytes).unwrap_or(usize::MAX),
        })
    }
}

fn model(mut fields: Fields<'_>) -> Option<ModelSettings> {
    let url = fields.url("url");
    let name = fields.need("name", "the model's name, as /v1/models lists it");
    let key_env = fields.take("key_env", "the name of a variable");
    let silence_s = fields.at_least("silence_s", 1, SILENCE_S);
    fields.end();
    Some(ModelSettings { url: url?, name: name?, key_env, silence_s })
}

fn read_budgets(mut fields: Fields<'_>) -> Budgets {
    let default = Budgets::default();
    let steps = fields.at_least("steps", 1, default.steps.into());
    let budgets = Budgets {
        steps: u32::try_from(steps).unwrap_or(u32::MAX),
        wall_time_s: fields.at_least("wall_time_s", 1, default.wall_time_s),
        tokens: fields.at_least("tokens", 1, default.tokens),
        answer_tokens: fields.take("answer_tokens", "a number of tokens"),
    };
    fields.end();
    budgets
}

fn read_patience(mut fields: Fields<'_>) -> Patience {
    let default = Patience::default();
    let mut count = |name, least: u32, default: u32| {
        u32::try_from(fields.at_least(name, least.into(), default.into())).unwrap_or(u32::MAX)
    };
    let repeats = count("repeats", 2, default.repeats);
    let bad_calls = count("bad_calls", 0, default.bad_calls);
    let model_failures = count("model_failures", 0, default.model_failures);
    let patience = Patience {
        repeats,
        bad_calls,
        model_failures,
        approval_s: fields.at_least("approval_s", 1, default.approval_s),
    };
    fields.end();
    patience
}

impl<'de> Deserialize<'de> for Settings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        Self::read(&value).map_err(|problems| {
            let told: Vec<String> = problems.iter().map(Problem::to_string).collect();
            D::Error::custom(told.join("\n"))
        })
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}\nhint: {}", self.path, self.found, self.hint)
    }
}

/// Names of variables by names of headers.
pub type HeadersFromEnv = BTreeMap<String, String>;
