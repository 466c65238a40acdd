//! `RewardConfig`: names, and what a reward model's module reads.

use super::rows::{Default, NOT_NEGATIVE, Row, Type, only, or_null, works};
use super::settings::Values;
use crate::task::spec::TaskSpec;

/// Names that are not every trainer's. `max_length` is one of all: here it leaves pairs out, and cuts none.
pub(super) const NAMES: &[Row] = &[
    works("learning_rate", NOT_NEGATIVE, Default::Float(1e-4)),
    works("disable_dropout", Type::Bool, Default::Bool(true)),
    or_null("center_rewards_coefficient", NOT_NEGATIVE, Default::Null),
    only("generation_prompts", Default::Nothing, "a reward model gives scores and no text"),
];

/// What a reward model is trained with, beside what every trainer reads.
#[derive(Clone, Debug, PartialEq)]
pub struct Reward {
    /// How strongly scores are drawn towards a mean of 0.
    pub center_rewards_coefficient: Option<f64>,
    /// Whether adapters drop nothing in training.
    pub disable_dropout: bool,
}

impl Reward {
    /// The settings of a checked `rm` spec.
    pub fn of(spec: &TaskSpec) -> Self {
        let values = Values { spec };
        Self {
            center_rewards_coefficient: values.of("center_rewards_coefficient").as_f64(),
            disable_dropout: values.truth("disable_dropout"),
        }
    }
}
