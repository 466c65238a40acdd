//! `DPOConfig`: names, and what the module of direct preference optimisation reads.

use serde_json::Value;

use super::Read;
use super::rows::{ABOVE_ZERO, BELOW_HALF, Default, NOT_NEGATIVE, Row, SOME, Type, no_effect, only, or_null, works};
use super::settings::Values;
use crate::task::{problem::Problems, spec::TaskSpec};

/// Losses of this build, by TRL's names.
pub const LOSSES: &[&str] = &[
    "sigmoid",
    "sigmoid_norm",
    "hinge",
    "ipo",
    "robust",
    "exo_pair",
    "nca_pair",
    "bco_pair",
    "sppo_hard",
    "apo_zero",
    "apo_down",
];
/// Losses that `label_smoothing` changes.
const SMOOTHED: [&str; 3] = ["sigmoid", "robust", "exo_pair"];

const REFERENCE_KL: &str = "what holds the policy to its reference is the reverse KL divergence";
const NO_SYNC: &str = "the reference stays what it was at the first step";

/// Names that are not every trainer's.
pub(super) const NAMES: &[Row] = &[
    works("learning_rate", NOT_NEGATIVE, Default::Float(1e-6)),
    works("disable_dropout", Type::Bool, Default::Bool(true)),
    works("truncation_mode", Type::Choice(&["keep_start", "keep_end"]), Default::Text("keep_start")),
    works("precompute_ref_log_probs", Type::Bool, Default::Bool(false)),
    or_null("precompute_ref_batch_size", SOME, Default::Null),
    works("loss_type", Type::SomeOf(LOSSES), Default::Text("sigmoid")),
    or_null("loss_weights", Type::Numbers { most: LOSSES.len() }, Default::Null),
    works("label_smoothing", Type::Float { min: 0.0, max: BELOW_HALF }, Default::Float(0.0)),
    works("beta", Type::Float { min: ABOVE_ZERO, max: f64::MAX }, Default::Float(0.1)),
    no_effect("padding_free", "padding is never computed"),
    only("ld_alpha", Default::Null, "every token of an answer counts alike"),
    only("f_divergence_type", Default::Text("reverse_kl"), REFERENCE_KL),
    no_effect("f_alpha_divergence_coef", REFERENCE_KL),
    only("use_weighting", Default::Bool(false), "all pairs count alike"),
    no_effect("discopop_tau", "`loss_type: discopop` is not in this build"),
    only("sync_ref_model", Default::Bool(false), NO_SYNC),
    no_effect("ref_model_mixup_alpha", NO_SYNC),
    no_effect("ref_model_sync_steps", NO_SYNC),
    // Of TRL before 1.0.
    works("reference_free", Type::Bool, Default::Bool(false)),
    or_null("max_prompt_length", SOME, Default::Null),
    or_null("max_completion_length", SOME, Default::Null),
];

/// What is kept of a text that is too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truncation {
    /// Its start.
    KeepStart,
    /// Its end.
    KeepEnd,
}

/// What direct preference optimisation is done with, beside what every trainer reads.
#[derive(Clone, Debug, PartialEq)]
pub struct Dpo {
    /// The losses, by name, and their weights.
    pub losses: Vec<(String, f64)>,
    /// How far the policy may move from the reference.
    pub beta: f64,
    /// The share of pairs that are taken to be the wrong way round.
    pub label_smoothing: f64,
    /// Whether there is no reference.
    pub reference_free: bool,
    /// Whether the reference's log-probabilities are computed before the first step.
    pub precompute_ref_log_probs: bool,
    /// Pairs in a forward pass of that; `None`: as many as in training.
    pub precompute_ref_batch_size: Option<usize>,
    /// Whether adapters drop nothing in training.
    pub disable_dropout: bool,
    /// What is kept of a text longer than `max_length`.
    pub truncation: Truncation,
    /// Tokens of a prompt, of which the last are kept.
    pub max_prompt_length: Option<usize>,
    /// Tokens of an answer, of which the first are kept.
    pub max_completion_length: Option<usize>,
}

impl Dpo {
    /// The settings of a checked `dpo` spec.
    pub fn of(spec: &TaskSpec) -> Self {
        let values = Values { spec };
        let names = losses(&values.of("loss_type"));
        let weights = values.of("loss_weights");
        let weight = |at: usize| weights.get(at).and_then(Value::as_f64).unwrap_or(1.0);
        Self {
            losses: names.into_iter().enumerate().map(|(at, name)| (name, weight(at))).collect(),
            beta: values.float("beta"),
            label_smoothing: values.float("label_smoothing"),
            reference_free: values.truth("reference_free"),
            precompute_ref_log_probs: values.truth("precompute_ref_log_probs"),
            precompute_ref_batch_size: values.optional_size("precompute_ref_batch_size"),
            disable_dropout: values.truth("disable_dropout"),
            truncation: match values.text("truncation_mode").as_str() {
                "keep_end" => Truncation::KeepEnd,
                _ => Truncation::KeepStart,
            },
            max_prompt_length: values.optional_size("max_prompt_length"),
            max_completion_length: values.optional_size("max_completion_length"),
        }
    }
}

/// One name, or a list of them.
fn losses(value: &Value) -> Vec<String> {
    match value {
        Value::Array(names) => names.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        name => name.as_str().into_iter().map(str::to_owned).collect(),
    }
}

/// What settings must hold together.
pub(super) fn together(read: &Read, problems: &mut Problems) {
    let losses = read.values.get("loss_type").map_or_else(|| vec!["sigmoid".to_owned()], losses);
    if let Some(weights) = read.values.get("loss_weights").and_then(Value::as_array)
        && weights.len() != losses.len()
    {
        let (found, expected) =
            (format!("a list of {}", weights.len()), format!("a list of {}, as loss_type has", losses.len()));
        read.problem("loss_weights", &found, &expected, problems);
    }
    let smoothing = read.values.get("label_smoothing").and_then(Value::as_f64).unwrap_or(0.0);
    if losses.iter().any(|name| name == "exo_pair") && smoothing == 0.0 {
        let (name, found, expected) = match read.typed.contains_key("label_smoothing") {
            true => ("label_smoothing", "0 with exo_pair", "a number above 0, such as 0.001"),
            false => {
                ("loss_type", "exo_pair without label_smoothing", "with it a label_smoothing above 0, such as 0.001")
            }
        };
        read.problem(name, found, expected, problems);
    } else if smoothing > 0.0 && !losses.iter().any(|name| SMOOTHED.contains(&name.as_str())) {
        let expected = format!("0, or one of {} among the losses", SMOOTHED.join(", "));
        read.problem("label_smoothing", &format!("{smoothing} with {}", losses.join(", ")), &expected, problems);
    }
    let is_true = |name: &str| read.values.get(name) == Some(&Value::Bool(true));
    if is_true("reference_free") && is_true("precompute_ref_log_probs") {
        let expected = "one of the two: without a reference there is nothing to compute";
        read.problem("precompute_ref_log_probs", "true with reference_free", expected, problems);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::parse;

    fn dpo(hyperparameters: &str) -> Dpo {
        let head = "apiVersion: mloc/v1\nkind: TrainingTask\nmetadata: {name: x}\nspec:\n  taskType: dpo\n  \
                    model: {source: {type: local, path: v/m}}\n  dataset: {source: {type: local, path: v/d}}\n";
        let parsed = parse(&format!("{head}  hyperparameters: {hyperparameters}\n"), "t.yaml");
        Dpo::of(&parsed.unwrap_or_else(|problems| panic!("{problems}")).spec)
    }

    #[test]
    fn losses_are_one_or_some_with_weights() {
        let losses = |typed: &str| dpo(typed).losses;
        assert_eq!(losses("{}"), [("sigmoid".to_owned(), 1.0)]);
        assert_eq!(losses("{loss_type: ipo}"), [("ipo".to_owned(), 1.0)]);
        assert_eq!(losses("{loss_type: [hinge]}"), [("hinge".to_owned(), 1.0)]);
        let both = [("sigmoid".to_owned(), 0.8), ("bco_pair".to_owned(), 0.2)];
        assert_eq!(losses("{loss_type: [sigmoid, bco_pair], loss_weights: [0.8, 0.2]}"), both);
    }

    #[test]
    fn defaults_are_the_references() {
        let settings = dpo("{}");
        assert_eq!((settings.beta, settings.label_smoothing, settings.disable_dropout), (0.1, 0.0, true));
        assert_eq!((settings.reference_free, settings.precompute_ref_log_probs), (false, false));
        assert_eq!((settings.truncation, settings.max_prompt_length), (Truncation::KeepStart, None));
        assert_eq!(dpo("{truncation_mode: keep_end}").truncation, Truncation::KeepEnd);
    }
}
