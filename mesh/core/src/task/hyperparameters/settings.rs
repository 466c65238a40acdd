//! Typed settings from a checked spec: what modules read, defaults filled in.

use serde_json::{Map, Value};

use super::find;
pub use super::optimizer::Optimizer;
pub use super::schedule::{Curve, Plateau, Schedule};
pub use super::{
    dpo::{Dpo, Truncation},
    grpo::Grpo,
    inference::{CacheDtype, CacheLayout, Dtype, Inference, Quantization, Reasoning, ToolCalls},
    ppo::{Ppo, StopToken},
    rm::Reward,
};
use crate::task::{kind::TaskType, spec::TaskSpec};

/// What every trainer reads.
#[derive(Clone, Debug, PartialEq)]
pub struct Training {
    /// Passes over the data, fractions allowed, unless `max_steps` says otherwise.
    pub num_train_epochs: f64,
    /// Optimizer steps in all, when given.
    pub max_steps: Option<u64>,
    /// Samples in a forward pass.
    pub per_device_train_batch_size: usize,
    /// Samples in a forward pass over held-out data.
    pub per_device_eval_batch_size: usize,
    /// Forward passes in an optimizer step.
    pub gradient_accumulation_steps: usize,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// How it falls.
    pub lr_scheduler: Schedule,
    /// How it rises.
    pub warmup: Span,
    /// The rule by which weights move.
    pub optimizer: Optimizer,
    /// Weight decay, whatever the optimizer.
    pub weight_decay: f64,
    /// AdamW's first moment.
    pub adam_beta1: f64,
    /// AdamW's second moment.
    pub adam_beta2: f64,
    /// AdamW's epsilon.
    pub adam_epsilon: f64,
    /// Largest global gradient norm; `None` for no clipping.
    pub max_grad_norm: Option<f64>,
    /// Strength of NEFTune's noise on embeddings; `None` for none.
    pub neftune_noise_alpha: Option<f64>,
    /// The share of the loss that is spread over the vocabulary.
    pub label_smoothing_factor: f64,
    /// When a line of the log is written.
    pub logging: Interval,
    /// Whether the first step has a line in any case.
    pub logging_first_step: bool,
    /// When checkpoints are written.
    pub save: Save,
    /// How many checkpoints are kept, but for the best one.
    pub save_total_limit: Option<usize>,
    /// Whether published checkpoints hold nothing but the model.
    pub save_only_model: bool,
    /// When held-out data is looked at.
    pub evaluation: Evaluation,
    /// What of that decides which weights are the best; `None` where nobody asks.
    pub best: Option<Best>,
    /// Whether the best weights are the result, and not the last.
    pub load_best_model_at_end: bool,
    /// When training ends before its last step; `None` for never.
    pub early_stopping: Option<EarlyStopping>,
    /// Seed of everything that is random.
    pub seed: u64,
    /// Tokens after which a sample is cut; `None` for never.
    pub max_length: Option<usize>,
    /// Whether only completions are targets; `None`: as the data has them.
    pub completion_only_loss: Option<bool>,
    /// Whether only what the chat template marks as the assistant's is a target.
    pub assistant_only_loss: bool,
    /// Which end of a sample stays when it is cut.
    pub truncation: Truncation,
    /// How samples to train on are packed.
    pub packing: Option<Packing>,
    /// How samples to measure on are packed.
    pub eval_packing: Option<Packing>,
    /// Whether the data is shuffled once, before it is packed and ordered.
    pub shuffle_dataset: bool,
    /// The column of plain texts, where it has another name than `text`.
    pub dataset_text_field: Option<String>,
    /// Order of the data.
    pub data_order: DataOrder,
    /// Number format of the forward pass.
    pub precision: Precision,
    /// Whether layers are computed anew in the backward pass, for less memory.
    pub gradient_checkpointing: bool,
    /// Prompts answered before and after training.
    pub generation_prompts: Vec<String>,
    /// Longest of those answers, in tokens.
    pub generation_max_new_tokens: usize,
}

/// A number of steps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Span {
    /// So many.
    Steps(u64),
    /// A share of all steps, below 1.
    Share(f64),
}

impl Span {
    fn of(number: f64) -> Self {
        if 0.0 < number && number < 1.0 { Self::Share(number) } else { Self::Steps(number as u64) }
    }

    /// Steps in a run of `total` steps; a share is rounded up, as in the reference.
    pub fn steps(self, total: u64) -> u64 {
        match self {
            Self::Steps(steps) => steps,
            Self::Share(share) => (total as f64 * share).ceil() as u64,
        }
    }
}

/// When something is done again and again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Interval {
    /// Never.
    No,
    /// Every so many optimizer steps.
    Steps(Span),
    /// After each epoch.
    Epoch,
}

impl Interval {
    /// Whether it is time, `step` optimizer steps into a run.
    pub fn is_due(self, step: u64, steps_per_epoch: u64, total: u64) -> bool {
        match self {
            Self::No => false,
            Self::Steps(every) => step.is_multiple_of(every.steps(total).max(1)),
            // The last epoch may be cut short, and ends all the same.
            Self::Epoch => step.is_multiple_of(steps_per_epoch.max(1)) || step == total,
        }
    }
}

/// When held-out data is looked at in training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation {
    /// When.
    pub interval: Interval,
    /// Not before so many steps, or epochs where the interval is one.
    pub delay: f64,
    /// Whether also before the first step.
    pub on_start: bool,
}

/// Which weights are the best.
#[derive(Clone, Debug, PartialEq)]
pub struct Best {
    /// The metric, without `eval_`.
    pub metric: String,
    /// Whether more of it is better.
    pub greater_is_better: bool,
}

/// When training ends early.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EarlyStopping {
    /// After so many evaluations in a row that were no better.
    pub patience: u64,
    /// By how much one must be better.
    pub threshold: f64,
}

/// When checkpoints are written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Save {
    /// At an interval.
    At(Interval),
    /// Whenever an evaluation is better than all before it.
    Best,
}

/// Order of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataOrder {
    /// As the files have it, each epoch.
    Given,
    /// Shuffled anew each epoch, from the seed.
    Shuffled,
    /// The same, then samples of like length brought together.
    GroupedByLength,
}

/// How several examples share a sample of `max_length` tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// Best fit decreasing; longer ones are cut.
    Bfd,
    /// The same; longer ones are split.
    BfdSplit,
    /// One after another, cut wherever a sample is full.
    Wrapped,
}

/// Number format of matrix products, and of frozen weights. What is trained, its optimizer's state, norms, softmax and
/// losses are in 32 bits whatever it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// 32 bits.
    F32,
    /// 16 bits, IEEE.
    F16,
    /// 16 bits, bfloat.
    Bf16,
}

/// The shape of a model made from nothing; names as in `LlamaConfig`.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// Tokens of the tokenizer that is trained first.
    pub vocab_size: usize,
    /// Width.
    pub hidden_size: usize,
    /// Width of the feed-forward layer; 8/3 of `hidden_size`, rounded up to 32, when not given.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Heads.
    pub num_attention_heads: usize,
    /// Heads of keys and values; as many as heads when not given.
    pub num_key_value_heads: usize,
    /// Longest text the positions are made for.
    pub max_position_embeddings: usize,
    /// Base of the rotary embedding.
    pub rope_theta: f64,
    /// Epsilon of the norms.
    pub rms_norm_eps: f64,
    /// Whether the output layer is the embedding.
    pub tie_word_embeddings: bool,
    /// Standard deviation of the first weights.
    pub initializer_range: f64,
}

/// What `echo` does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Echo {
    /// How many steps it counts.
    pub steps: u64,
    /// How long a step takes, in milliseconds.
    pub step_ms: u64,
    /// What it says at each.
    pub message: String,
    /// Steps between two checkpoints.
    pub save_steps: u64,
    /// Where it fails, and how.
    pub fail: Option<(u64, EchoFailure)>,
}

/// How `echo` fails when it is told to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EchoFailure {
    /// With an error that no retry mends.
    Fatal,
    /// With an error that a retry may mend.
    Retryable,
    /// By a panic.
    Panic,
    /// By a signal.
    Abort,
    /// By never coming back.
    Hang,
}

impl Training {
    /// The settings of a checked spec.
    pub fn of(spec: &TaskSpec) -> Self {
        let values = Values { spec };
        let packing = Some(match values.text("packing_strategy").as_str() {
            "bfd_split" => Packing::BfdSplit,
            "wrapped" => Packing::Wrapped,
            _ => Packing::Bfd,
        });
        let (peak, schedule) = (values.float("learning_rate"), values.text("lr_scheduler_type"));
        let lr_scheduler = Schedule::parse(&schedule, &values.map("lr_scheduler_kwargs"), peak);
        let optimizer = Optimizer::parse(&values.text("optim"), &values.text("optim_args"));
        let early_stopping = values.optional_size("early_stopping_patience").map(|patience| EarlyStopping {
            patience: patience as u64,
            threshold: values.float("early_stopping_threshold"),
        });
        // `max_length` wins; `validate` has refused two that differ.
        let said = spec.hyperparameters.contains_key("max_length");
        let preprocessing = spec.dataset.as_ref().and_then(|d| d.max_seq_length).filter(|_| !said);
        Self {
            num_train_epochs: values.float("num_train_epochs"),
            max_steps: u64::try_from(values.int("max_steps").unwrap_or(-1)).ok().filter(|steps| *steps > 0),
            per_device_train_batch_size: values.size("per_device_train_batch_size"),
            per_device_eval_batch_size: values.size("per_device_eval_batch_size"),
            gradient_accumulation_steps: values.size("gradient_accumulation_steps"),
            learning_rate: values.float("learning_rate"),
            // `validate` has refused arguments that are none.
            lr_scheduler: lr_scheduler.unwrap_or(Schedule::Linear),
            warmup: Span::of(values.float("warmup_steps")),
            optimizer: optimizer.unwrap_or(Optimizer::AdamW),
            weight_decay: values.float("weight_decay"),
            adam_beta1: values.float("adam_beta1"),
            adam_beta2: values.float("adam_beta2"),
            adam_epsilon: values.float("adam_epsilon"),
            max_grad_norm: Some(values.float("max_grad_norm")).filter(|norm| *norm > 0.0),
            neftune_noise_alpha: values.of("neftune_noise_alpha").as_f64().filter(|alpha| *alpha > 0.0),
            label_smoothing_factor: values.float("label_smoothing_factor"),
            logging: values.interval("logging_strategy", "logging_steps"),
            logging_first_step: values.truth("logging_first_step"),
            save: match values.text("save_strategy").as_str() {
                "best" => Save::Best,
                _ => Save::At(values.interval("save_strategy", "save_steps")),
            },
            save_total_limit: values.optional_size("save_total_limit"),
            save_only_model: values.truth("save_only_model"),
            evaluation: Evaluation {
                // As often as the log has a line, unless said.
                interval: match values.of("eval_steps").is_null() {
                    true => values.interval("eval_strategy", "logging_steps"),
                    false => values.interval("eval_strategy", "eval_steps"),
                },
                delay: values.float("eval_delay"),
                on_start: values.truth("eval_on_start"),
            },
            best: best(&values),
            load_best_model_at_end: values.truth("load_best_model_at_end"),
            early_stopping,
            seed: values.count("seed"),
            max_length: match preprocessing {
                Some(length) => Some(length as usize),
                None => values.optional_size("max_length"),
            },
            completion_only_loss: values.of("completion_only_loss").as_bool(),
            assistant_only_loss: values.truth("assistant_only_loss"),
            truncation: match values.text("truncation_mode").as_str() {
                "keep_end" => Truncation::KeepEnd,
                _ => Truncation::KeepStart,
            },
            packing: packing.filter(|_| values.truth("packing")),
            eval_packing: packing.filter(|_| values.of("eval_packing").as_bool().unwrap_or(values.truth("packing"))),
            shuffle_dataset: values.truth("shuffle_dataset"),
            dataset_text_field: Some(values.text("dataset_text_field")).filter(|name| name != "text"),
            data_order: match values.text("data_order").as_str() {
                "given" => DataOrder::Given,
                "group_by_length" => DataOrder::GroupedByLength,
                _ => DataOrder::Shuffled,
            },
            precision: match (values.truth("fp16"), values.truth("bf16")) {
                (true, _) => Precision::F16,
                (false, true) => Precision::Bf16,
                (false, false) => Precision::F32,
            },
            gradient_checkpointing: values.truth("gradient_checkpointing"),
            generation_prompts: values.texts("generation_prompts"),
            generation_max_new_tokens: values.size("generation_max_new_tokens"),
        }
    }
}

/// What decides which weights are the best, where something depends on it. The defaults are the reference's: the loss,
/// and more is better of all that is not called a loss.
fn best(values: &Values<'_>) -> Option<Best> {
    let asked = values.of("metric_for_best_model").as_str().map(str::to_owned);
    let schedule = values.text("lr_scheduler_type") == "reduce_lr_on_plateau";
    let needed = values.truth("load_best_model_at_end")
        || !values.of("early_stopping_patience").is_null()
        || values.text("save_strategy") == "best"
        || schedule;
    if asked.is_none() && !needed {
        return None;
    }
    let metric = asked.unwrap_or_else(|| "loss".to_owned());
    let metric = metric.strip_prefix("eval_").unwrap_or(&metric).to_owned();
    let greater_is_better = values.of("greater_is_better").as_bool().unwrap_or(!metric.ends_with("loss"));
    Some(Best { metric, greater_is_better })
}

impl Shape {
    /// The settings of a checked `pretrain` spec.
    pub fn of(spec: &TaskSpec) -> Self {
        let values = Values { spec };
        let hidden_size = values.size("hidden_size");
        let heads = values.size("num_attention_heads");
        Self {
            vocab_size: values.size("vocab_size"),
            hidden_size,
            intermediate_size: values
                .optional_size("intermediate_size")
                .unwrap_or_else(|| (hidden_size * 8 / 3).next_multiple_of(32)),
            num_hidden_layers: values.size("num_hidden_layers"),
            num_attention_heads: heads,
            num_key_value_heads: values.optional_size("num_key_value_heads").unwrap_or(heads),
            max_position_embeddings: values.size("max_position_embeddings"),
            rope_theta: values.float("rope_theta"),
            rms_norm_eps: values.float("rms_norm_eps"),
            tie_word_embeddings: values.truth("tie_word_embeddings"),
            initializer_range: values.float("initializer_range"),
        }
    }
}

impl Echo {
    /// The settings of a checked `echo` spec.
    pub fn of(spec: &TaskSpec) -> Self {
        let values = Values { spec };
        let failure = match values.text("fail_with").as_str() {
            "retryable" => EchoFailure::Retryable,
            "panic" => EchoFailure::Panic,
            "abort" => EchoFailure::Abort,
            "hang" => EchoFailure::Hang,
            _ => EchoFailure::Fatal,
        };
        Self {
            steps: values.count("steps"),
            step_ms: values.count("step_ms"),
            message: values.text("message"),
            save_steps: values.count("save_steps"),
            fail: values.optional_size("fail_at_step").map(|step| (step as u64, failure)),
        }
    }
}

/// Values of a spec under canonical names, or their defaults. `validate` has checked types, so what has another
/// type here is as good as absent.
pub(super) struct Values<'a> {
    pub(super) spec: &'a TaskSpec,
}

impl Values<'_> {
    pub(super) fn of(&self, name: &str) -> Value {
        let given = self.spec.hyperparameters.get(name).cloned();
        given.unwrap_or_else(|| self.default(self.spec.task_type, name))
    }

    fn default(&self, task_type: TaskType, name: &str) -> Value {
        let row = find(task_type, name).or_else(|| find(TaskType::Sft, name));
        debug_assert!(row.is_some(), "{name} is in no table");
        row.map_or(Value::Null, |row| row.default.value())
    }

    pub(super) fn int(&self, name: &str) -> Option<i64> {
        self.of(name).as_i64()
    }

    pub(super) fn count(&self, name: &str) -> u64 {
        self.of(name).as_u64().unwrap_or_default()
    }

    pub(super) fn size(&self, name: &str) -> usize {
        self.optional_size(name).unwrap_or_default()
    }

    pub(super) fn optional_size(&self, name: &str) -> Option<usize> {
        self.of(name).as_u64().and_then(|value| usize::try_from(value).ok())
    }

    pub(super) fn float(&self, name: &str) -> f64 {
        self.of(name).as_f64().unwrap_or_default()
    }

    pub(super) fn optional_float(&self, name: &str) -> Option<f64> {
        self.of(name).as_f64()
    }

    pub(super) fn numbers(&self, name: &str) -> Vec<f64> {
        self.of(name).as_array().into_iter().flatten().filter_map(Value::as_f64).collect()
    }

    pub(super) fn truth(&self, name: &str) -> bool {
        self.of(name).as_bool().unwrap_or_default()
    }

    pub(super) fn text(&self, name: &str) -> String {
        self.of(name).as_str().unwrap_or_default().to_owned()
    }

    fn map(&self, name: &str) -> Map<String, Value> {
        self.of(name).as_object().cloned().unwrap_or_default()
    }

    fn interval(&self, strategy: &str, steps: &str) -> Interval {
        match self.text(strategy).as_str() {
            "steps" => Interval::Steps(Span::of(self.float(steps))),
            "epoch" => Interval::Epoch,
            _ => Interval::No,
        }
    }

    fn texts(&self, name: &str) -> Vec<String> {
        let value = self.of(name);
        let texts = value.as_array().into_iter().flatten().filter_map(Value::as_str);
        texts.map(str::to_owned).collect()
    }
}
