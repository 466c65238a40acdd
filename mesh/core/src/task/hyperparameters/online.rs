//! What `ppo` and `grpo` share: both learn from what the model itself writes.

use super::{
    Read,
    rows::{Default, Row, SOME, only, or_null},
};
use crate::task::{kind::TaskType, problem::Problems};

/// Names of `TrainingArguments` that mean something else here, or nothing.
pub(super) const NAMES: &[Row] = &[
    // Longer prompts are left out; the reference has no such bound.
    or_null("max_length", SOME, Default::Null),
    only("eval_strategy", Default::Text("no"), "held-out data is not used: what is rewarded is measured at every step"),
    only(
        "eval_on_start",
        Default::Bool(false),
        "held-out data is not used: what is rewarded is measured at every step",
    ),
    only("label_smoothing_factor", Default::Float(0.0), "completions are not targets"),
    only("neftune_noise_alpha", Default::Null, "NEFTune is for supervised fine-tuning"),
];

/// What holds for both.
pub(super) fn together(task_type: TaskType, read: &Read, problems: &mut Problems) {
    if read.value(task_type, "data_order") == "group_by_length" {
        let expected = "given or shuffled: prompts are not brought together by length";
        read.problem("data_order", "`group_by_length`", expected, problems);
    }
}

/// Why nothing of vLLM's has an effect.
pub(super) const NO_VLLM: &str = "generation runs in the trainer itself";
/// Why a size is not taken.
pub(super) const COMPUTED: &str = "it is computed from the other batch sizes";
