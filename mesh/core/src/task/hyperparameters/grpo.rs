//! `grpo`: names and defaults of TRL 1.16.0's `GRPOConfig`, and its typed settings.

use serde::Serialize;

use super::{
    Read,
    online::{self, NO_VLLM},
    rows::{ABOVE_ZERO, COUNT, Default, NOT_NEGATIVE, Row, SOME, Type, UNIT, no_effect, only, or_null, works},
    settings::Values,
};
use crate::task::{kind::TaskType, problem::Problems, spec::TaskSpec};

const NO_ADAPTIVE: &str = "`use_adaptive_entropy` is not in this build";
const NO_VESPO: &str = "the loss type `vespo` is not in this build";
const NO_SYNC: &str = "`sync_ref_model` is not in this build: the reference stays as it was";

pub(super) const NAMES: &[Row] = &[
    works("learning_rate", NOT_NEGATIVE, Default::Float(1e-06)),
    works("disable_dropout", Type::Bool, Default::Bool(false)),
    works("num_generations", Type::Int { min: 2, max: 1 << 16 }, Default::Int(8)),
    works("max_completion_length", Type::Int { min: 1, max: 1 << 20 }, Default::Int(512)),
    works("shuffle_dataset", Type::Bool, Default::Bool(true)),
    or_null("generation_batch_size", SOME, Default::Null),
    or_null("steps_per_generation", SOME, Default::Null),
    works("temperature", Type::Float { min: ABOVE_ZERO, max: f64::MAX }, Default::Float(1.0)),
    works("top_p", Type::Float { min: ABOVE_ZERO, max: 1.0 }, Default::Float(1.0)),
    works("top_k", COUNT, Default::Int(0)),
    or_null("min_p", UNIT, Default::Null),
    works("beta", NOT_NEGATIVE, Default::Float(0.0)),
    works("num_iterations", SOME, Default::Int(1)),
    works("epsilon", NOT_NEGATIVE, Default::Float(0.2)),
    or_null("epsilon_high", NOT_NEGATIVE, Default::Null),
    or_null("delta", NOT_NEGATIVE, Default::Null),
    works("importance_sampling_level", Type::Choice(&["token", "sequence"]), Default::Text("token")),
    or_null("reward_weights", Type::Numbers { most: 64 }, Default::Null),
    works(
        "multi_objective_aggregation",
        Type::Choice(&["sum_then_normalize", "normalize_then_sum"]),
        Default::Text("sum_then_normalize"),
    ),
    works("scale_rewards", Type::ChoiceOrBool(&["group", "batch", "none"]), Default::Text("group")),
    works("loss_type", Type::Choice(&["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo"]), Default::Text("dapo")),
    works("mask_truncated_completions", Type::Bool, Default::Bool(false)),
    works("top_entropy_quantile", UNIT, Default::Float(1.0)),
    works("entropy_coef", NOT_NEGATIVE, Default::Float(0.0)),
    works("use_bias_correction_kl", Type::Bool, Default::Bool(true)),
    works("sapo_temperature_neg", Type::Float { min: ABOVE_ZERO, max: f64::MAX }, Default::Float(1.05)),
    works("sapo_temperature_pos", Type::Float { min: ABOVE_ZERO, max: f64::MAX }, Default::Float(1.0)),
    works("log_completions", Type::Bool, Default::Bool(false)),
    or_null("num_completions_to_print", SOME, Default::Null),
    // A name of former versions.
    only("max_prompt_length", Default::Null, "prompts are never cut: set `max_length` to leave longer ones out"),
    no_effect("cast_lm_head_to_fp32", "logits are computed in 32 bits anyway"),
    no_effect("log_multimodal", "there is nothing but text here"),
    no_effect("log_unique_prompts", "it is about tables of another program's"),
    no_effect("num_generations_eval", "held-out data is not used: what is rewarded is measured at every step"),
    no_effect("ref_model_mixup_alpha", NO_SYNC),
    no_effect("ref_model_sync_steps", NO_SYNC),
    no_effect("entropy_coef_min", NO_ADAPTIVE),
    no_effect("entropy_coef_max", NO_ADAPTIVE),
    no_effect("entropy_coef_delta", NO_ADAPTIVE),
    no_effect("entropy_target", NO_ADAPTIVE),
    no_effect("vespo_k_pos", NO_VESPO),
    no_effect("vespo_lambda_pos", NO_VESPO),
    no_effect("vespo_k_neg", NO_VESPO),
    no_effect("vespo_lambda_neg", NO_VESPO),
    no_effect("use_transformers_continuous_batching", NO_VLLM),
    no_effect("transformers_continuous_batching_config", NO_VLLM),
    no_effect("use_transformers_paged", NO_VLLM),
    no_effect("vllm_mode", NO_VLLM),
    no_effect("vllm_model_impl", NO_VLLM),
    no_effect("vllm_enable_sleep_mode", NO_VLLM),
    no_effect("vllm_structured_outputs_regex", NO_VLLM),
    no_effect("vllm_server_base_url", NO_VLLM),
    no_effect("vllm_server_host", NO_VLLM),
    no_effect("vllm_server_port", NO_VLLM),
    no_effect("vllm_server_timeout", NO_VLLM),
    no_effect("vllm_group_port", NO_VLLM),
    no_effect("vllm_gpu_memory_utilization", NO_VLLM),
    no_effect("vllm_max_model_length", NO_VLLM),
    no_effect("vllm_tensor_parallel_size", NO_VLLM),
    no_effect("vllm_importance_sampling_correction", NO_VLLM),
    no_effect("vllm_importance_sampling_mode", NO_VLLM),
    no_effect("vllm_importance_sampling_clip_max", NO_VLLM),
    no_effect("vllm_importance_sampling_clip_min", NO_VLLM),
    no_effect("vllm_importance_sampling_cap", NO_VLLM),
    no_effect("cache_implementation", NO_VLLM),
    no_effect("ds3_gather_for_generation", "there is no DeepSpeed here"),
    only("use_vllm", Default::Bool(false), NO_VLLM),
    only("sync_ref_model", Default::Bool(false), "the reference stays as it was in this build"),
    only("use_adaptive_entropy", Default::Bool(false), "set `entropy_coef`: it stays as it is in this build"),
    only("off_policy_mask_threshold", Default::Null, "off-policy sequences are not masked in this build"),
    only("max_tool_calling_iterations", Default::Null, "completions call no tools in this build"),
    only(
        "generation_kwargs",
        Default::Null,
        "name what it would hold by itself: `temperature`, `top_p`, `top_k`, `min_p`",
    ),
    only("chat_template_kwargs", Default::Null, "chat templates take no variables in this build"),
    only(
        "repetition_penalty",
        Default::Float(1.0),
        "it would make what is sampled another distribution than what is learnt",
    ),
    only("log_completions_hub_repo", Default::Null, "name the hub as `output.destination`"),
];

/// What `grpo` reads beside what every trainer does.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Grpo {
    /// Whether the adapter's dropout is off.
    pub disable_dropout: bool,
    /// Completions of each prompt.
    pub num_generations: usize,
    /// Tokens of the longest completion.
    pub max_completion_length: usize,
    /// Completions that are generated together; a multiple of `num_generations`.
    pub generation_batch_size: usize,
    /// Micro-batches that they are split into.
    pub steps_per_generation: usize,
    /// Logits are divided by it.
    pub temperature: f64,
    /// Share of the probability that is sampled from.
    pub top_p: f64,
    /// So many of the most probable tokens are sampled from; 0 for all.
    pub top_k: usize,
    /// Least probability, as a share of the highest; 0 for none.
    pub min_p: f64,
    /// Weight of the divergence from the reference.
    pub beta: f64,
    /// How often each completion is learnt from.
    pub num_iterations: usize,
    /// Lower clip bound, below 1.
    pub epsilon: f64,
    /// Upper clip bound, above 1 (`cispo`: the bound itself).
    pub epsilon_high: f64,
    /// Bound of the ratio for bad completions.
    pub delta: Option<f64>,
    /// `token` or `sequence`.
    pub importance_sampling_level: String,
    /// One weight a reward function; empty for 1 each.
    pub reward_weights: Vec<f64>,
    /// `sum_then_normalize` or `normalize_then_sum`.
    pub multi_objective_aggregation: String,
    /// `group`, `batch` or `none`.
    pub scale_rewards: String,
    /// The loss.
    pub loss_type: String,
    /// Whether completions that met the limit are left out.
    pub mask_truncated_completions: bool,
    /// Share of tokens, of the highest entropy, that are learnt from.
    pub top_entropy_quantile: f64,
    /// Weight of the entropy that is rewarded.
    pub entropy_coef: f64,
    /// Whether the divergence is weighted with the ratio.
    pub use_bias_correction_kl: bool,
    /// `sapo`'s temperature for good completions.
    pub sapo_temperature_pos: f64,
    /// And for bad ones.
    pub sapo_temperature_neg: f64,
    /// How many completions of each generation the attempt's log shows; 0 for none.
    pub completions_shown: usize,
    /// Whether prompts keep the order of their files.
    pub given_order: bool,
}

impl Grpo {
    /// The settings of a checked `grpo` spec.
    pub fn of(spec: &TaskSpec) -> Self {
        let values = Values { spec };
        let (micro_batch, accumulation) =
            (values.size("per_device_train_batch_size"), values.size("gradient_accumulation_steps"));
        let steps_per_generation =
            match (values.optional_size("generation_batch_size"), values.optional_size("steps_per_generation")) {
                (_, Some(steps)) => steps,
                (Some(size), None) => size / micro_batch.max(1),
                (None, None) => accumulation,
            };
        let epsilon = values.float("epsilon");
        let scale = values.of("scale_rewards");
        let shown = values.optional_size("num_completions_to_print").unwrap_or(usize::MAX);
        Self {
            disable_dropout: values.truth("disable_dropout"),
            num_generations: values.size("num_generations"),
            max_completion_length: values.size("max_completion_length"),
            generation_batch_size: micro_batch * steps_per_generation,
            steps_per_generation,
            temperature: values.float("temperature"),
            top_p: values.float("top_p"),
            top_k: values.size("top_k"),
            min_p: values.float("min_p"),
            beta: values.float("beta"),
            num_iterations: values.size("num_iterations"),
            epsilon,
            epsilon_high: values.optional_float("epsilon_high").unwrap_or(epsilon),
            delta: values.optional_float("delta"),
            importance_sampling_level: values.text("importance_sampling_level"),
            reward_weights: values.numbers("reward_weights"),
            multi_objective_aggregation: values.text("multi_objective_aggregation"),
            scale_rewards: match scale.as_bool() {
                Some(true) => "group".to_owned(),
                Some(false) => "none".to_owned(),
                None => values.text("scale_rewards"),
            },
            loss_type: values.text("loss_type"),
            mask_truncated_completions: values.truth("mask_truncated_completions"),
            top_entropy_quantile: values.float("top_entropy_quantile"),
            entropy_coef: values.float("entropy_coef"),
            use_bias_correction_kl: values.truth("use_bias_correction_kl"),
            sapo_temperature_pos: values.float("sapo_temperature_pos"),
            sapo_temperature_neg: values.float("sapo_temperature_neg"),
            completions_shown: if values.truth("log_completions") { shown } else { 0 },
            given_order: !values.truth("shuffle_dataset") || values.text("data_order") == "given",
        }
    }
}

/// What sizes must hold together.
pub(super) fn together(read: &Read, problems: &mut Problems) {
    online::together(TaskType::Grpo, read, problems);
    let int = |name: &str| read.value(TaskType::Grpo, name).as_i64();
    let (Some(micro_batch), Some(accumulation), Some(group)) =
        (int("per_device_train_batch_size"), int("gradient_accumulation_steps"), int("num_generations"))
    else {
        return;
    };
    let (size, steps) = (int("generation_batch_size"), int("steps_per_generation"));
    if size.is_some() && steps.is_some() {
        let expected = "one of `generation_batch_size` and `steps_per_generation`: each gives the other";
        read.problem("steps_per_generation", "both", expected, problems);
        return;
    }
    if let Some(size) = size
        && size % micro_batch != 0
    {
        let expected = format!("a multiple of per_device_train_batch_size, {micro_batch}");
        read.problem("generation_batch_size", &format!("`{size}`"), &expected, problems);
        return;
    }
    let generated = size.unwrap_or(micro_batch * steps.unwrap_or(accumulation));
    if generated % group != 0 {
        let found = format!("`{group}`, and {generated} completions are generated together");
        let expected = "a number that divides those, for whole groups are compared: generation_batch_size, or \
                        per_device_train_batch_size × steps_per_generation (gradient_accumulation_steps unless given)";
        let typed = ["num_generations", "generation_batch_size", "steps_per_generation", "per_device_train_batch_size"]
            .into_iter()
            .find(|name| read.typed.contains_key(*name));
        read.problem(typed.unwrap_or("num_generations"), &found, expected, problems);
    }
}
