//! What a model is rewarded for: a reward model, functions, or both.

use serde::{Deserialize, Serialize};

use super::spec::{Code, Location};

/// Where rewards come from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reward {
    /// A sequence classifier with one label: its logit at the last token is the reward.
    pub model: Option<Location>,
    /// At least one; their rewards are added up.
    pub funcs: Vec<RewardFunc>,
    /// What the commands among them are started in; an empty folder when absent.
    pub code: Option<Code>,
}

/// One reward function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RewardFunc {
    /// Its name in logs; each is there once.
    pub name: String,
    /// How it judges.
    pub judge: Judge,
}

/// How a completion is judged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Judge {
    /// 1 where the pattern is found, else 0.
    Regex {
        /// Of the `regex` crate: no look-around, no back-references.
        pattern: String,
    },
    /// 1 where it equals a column of the data, white space around both left aside, else 0.
    ExactMatch {
        /// The column, of texts or numbers; a completion in messages is its last message's content.
        column: String,
    },
    /// 1 where it is JSON (an object with these keys, if there are any), else 0.
    Json {
        /// Keys that must be there.
        keys: Vec<String>,
    },
    /// 1 from `min` to `max`; below `length / min`, above `max / length`.
    Length {
        /// Shortest.
        min: Option<u32>,
        /// Longest.
        max: Option<u32>,
        /// What is counted.
        unit: LengthUnit,
    },
    /// The reward model.
    Model,
    /// What a program of the user's own says.
    Command {
        /// The program and its arguments; never empty.
        argv: Vec<String>,
    },
}

/// What a length counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LengthUnit {
    /// Characters of the text.
    Characters,
    /// Tokens of the model, the one that ended it included.
    Tokens,
}

impl Judge {
    /// Its name after `type:`.
    pub fn name(&self) -> &'static str {
        match self {
            Judge::Regex { .. } => "regex",
            Judge::ExactMatch { .. } => "exact_match",
            Judge::Json { .. } => "json",
            Judge::Length { .. } => "length",
            Judge::Model => "model",
            Judge::Command { .. } => "command",
        }
    }

    /// All such names.
    pub const NAMES: [&str; 6] = ["regex", "exact_match", "json", "length", "model", "command"];
}

impl Reward {
    /// Whether programs of the user's own are run, so that a node must offer that.
    pub fn runs_programs(&self) -> bool {
        self.funcs.iter().any(|func| matches!(func.judge, Judge::Command { .. }))
    }
}
