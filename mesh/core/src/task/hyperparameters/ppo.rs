//! `ppo`: names and defaults of TRL 0.29.1's `PPOConfig`, and its typed settings.

use serde::Serialize;

use super::{
    Read,
    online::{self, COMPUTED},
    rows::{ABOVE_ZERO, COUNT, Default, NOT_NEGATIVE, NUMBER, Row, SOME, Type, UNIT, no_effect, only, or_null, works},
    settings::Values,
};
use crate::task::{kind::TaskType, problem::Problems, spec::TaskSpec};

pub(super) const NAMES: &[Row] = &[
    works("learning_rate", NOT_NEGATIVE, Default::Float(3e-06)),
    works("num_mini_batches", SOME, Default::Int(1)),
    or_null("total_episodes", SOME, Default::Null),
    works("local_rollout_forward_batch_size", SOME, Default::Int(64)),
    works("response_length", Type::Int { min: 1, max: 1 << 20 }, Default::Int(53)),
    or_null("stop_token", Type::Choice(&["eos"]), Default::Null),
    or_null("stop_token_id", COUNT, Default::Null),
    works("temperature", Type::Float { min: ABOVE_ZERO, max: f64::MAX }, Default::Float(0.7)),
    or_null("missing_eos_penalty", NUMBER, Default::Null),
    works("num_ppo_epochs", SOME, Default::Int(4)),
    works("whiten_rewards", Type::Bool, Default::Bool(false)),
    works("kl_coef", NUMBER, Default::Float(0.05)),
    works("kl_estimator", Type::Choice(&["k1", "k3"]), Default::Text("k1")),
    works("cliprange", NOT_NEGATIVE, Default::Float(0.2)),
    works("vf_coef", NOT_NEGATIVE, Default::Float(0.1)),
    works("cliprange_value", NOT_NEGATIVE, Default::Float(0.2)),
    works("gamma", UNIT, Default::Float(1.0)),
    works("lam", UNIT, Default::Float(0.95)),
    // Ours: whether values come from one more output of the policy, and not from a model of their own.
    works("value_head", Type::Bool, Default::Bool(false)),
    // Also ours in PPO; the name is GRPO's.
    or_null("reward_weights", Type::Numbers { most: 64 }, Default::Null),
    no_effect("num_sample_generations", "answers to `generation_prompts` are shown before and after training"),
    no_effect("per_device_eval_batch_size", "`local_rollout_forward_batch_size` is for all passes without gradients"),
    no_effect("max_grad_norm", "PPO clips ratios and not gradients, as the reference's trainer does"),
    no_effect("max_steps", "`total_episodes` says how long the run is"),
    only("sft_model_path", Default::Null, "name the model as `spec.model.source`"),
    only("reward_model_path", Default::Null, "name the reward model as `spec.reward.model.source`"),
    only("model_adapter_name", Default::Null, "an adapter has no name here"),
    only("ref_adapter_name", Default::Null, "an adapter has no name here"),
    no_effect("ds3_gather_for_generation", "there is no DeepSpeed here"),
    no_effect("world_size", COMPUTED),
    no_effect("num_total_batches", COMPUTED),
    no_effect("micro_batch_size", COMPUTED),
    no_effect("local_batch_size", COMPUTED),
    no_effect("batch_size", COMPUTED),
    no_effect("local_mini_batch_size", COMPUTED),
    no_effect("mini_batch_size", COMPUTED),
];

/// What `ppo` reads beside what every trainer does.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Ppo {
    /// Parts of a batch that are learnt from one after another.
    pub num_mini_batches: usize,
    /// Responses of the whole run, when given.
    pub total_episodes: Option<u64>,
    /// Rows of a forward pass without gradients, and of a generation.
    pub local_rollout_forward_batch_size: usize,
    /// Tokens of the longest response.
    pub response_length: usize,
    /// Where a response ends.
    pub stop: StopToken,
    /// Logits are divided by it.
    pub temperature: f64,
    /// Taken from the score of a response without the end-of-sequence token.
    pub missing_eos_penalty: Option<f64>,
    /// Passes over each batch.
    pub num_ppo_epochs: usize,
    /// Whether rewards are scaled to variance 1.
    pub whiten_rewards: bool,
    /// Weight of the divergence from the reference.
    pub kl_coef: f64,
    /// `k1` or `k3`.
    pub kl_estimator: String,
    /// Clip range of the ratio.
    pub cliprange: f64,
    /// Weight of the value loss.
    pub vf_coef: f64,
    /// Clip range of the values.
    pub cliprange_value: f64,
    /// Discount.
    pub gamma: f64,
    /// λ of the advantage estimate.
    pub lam: f64,
    /// Whether values come from a head on the policy.
    pub value_head: bool,
    /// One weight a reward function; empty for 1 each.
    pub reward_weights: Vec<f64>,
}

/// Where a response ends, beside its longest length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum StopToken {
    /// Nowhere.
    None,
    /// At the end-of-sequence token.
    Eos,
    /// At this token.
    Id(i64),
}

impl Ppo {
    /// The settings of a checked `ppo` spec.
    pub fn of(spec: &TaskSpec) -> Self {
        let values = Values { spec };
        Self {
            num_mini_batches: values.size("num_mini_batches"),
            total_episodes: values.of("total_episodes").as_u64(),
            local_rollout_forward_batch_size: values.size("local_rollout_forward_batch_size"),
            response_length: values.size("response_length"),
            stop: match (values.of("stop_token").as_str(), values.int("stop_token_id")) {
                (Some(_), _) => StopToken::Eos,
                (None, Some(id)) => StopToken::Id(id),
                (None, None) => StopToken::None,
            },
            temperature: values.float("temperature"),
            missing_eos_penalty: values.optional_float("missing_eos_penalty"),
            num_ppo_epochs: values.size("num_ppo_epochs"),
            whiten_rewards: values.truth("whiten_rewards"),
            kl_coef: values.float("kl_coef"),
            kl_estimator: values.text("kl_estimator"),
            cliprange: values.float("cliprange"),
            vf_coef: values.float("vf_coef"),
            cliprange_value: values.float("cliprange_value"),
            gamma: values.float("gamma"),
            lam: values.float("lam"),
            value_head: values.truth("value_head"),
            reward_weights: values.numbers("reward_weights"),
        }
    }
}

/// What settings must hold together.
pub(super) fn together(read: &Read, problems: &mut Problems) {
    online::together(TaskType::Ppo, read, problems);
    let int = |name: &str| read.value(TaskType::Ppo, name).as_i64();
    let (Some(micro_batch), Some(accumulation), Some(parts)) =
        (int("per_device_train_batch_size"), int("gradient_accumulation_steps"), int("num_mini_batches"))
    else {
        return;
    };
    let batch = micro_batch * accumulation;
    if batch % parts != 0 {
        let found = format!("`{parts}`, and a batch has {batch} responses");
        let expected = "a number that divides those (per_device_train_batch_size × gradient_accumulation_steps)";
        read.problem("num_mini_batches", &found, expected, problems);
    } else if read.value(TaskType::Ppo, "whiten_rewards") == true && batch / parts < 8 {
        let expected = "mini-batches of at least 8 responses: whitening needs some";
        read.problem("whiten_rewards", &format!("true with mini-batches of {}", batch / parts), expected, problems);
    }
    if !read.value(TaskType::Ppo, "stop_token").is_null() && int("stop_token_id").is_some() {
        read.problem("stop_token_id", "both", "one of `stop_token` and `stop_token_id`", problems);
    }
}
