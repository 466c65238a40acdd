//! Typed settings from a checked spec: what modules read, defaults filled in.

use serde_json::Value;

use super::find;
pub use super::{
    dpo::{Dpo, Truncation},
    grpo::Grpo,
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
    pub warmup: Warmup,
    /// AdamW's decay.
    pub weight_decay: f64,
    /// AdamW's first moment.
    pub adam_beta1: f64,
    /// AdamW's second moment.
    pub adam_beta2: f64,
    /// AdamW's epsilon.
    pub adam_epsilon: f64,
    /// Largest global gradient norm; `None` for no clipping.
    pub max_grad_norm: Option<f64>,
    /// Optimizer steps between two lines of the log.
    pub logging_steps: u64,
    /// When checkpoints are written.
    pub save: Save,
    /// How many checkpoints are kept.
    pub save_total_limit: Option<usize>,
    /// Seed of everything that is random.
    pub seed: u64,
    /// Tokens after which a sample is cut; `None` for never.
    pub max_length: Option<usize>,
    /// Whether only completions are targets; `None`: as the data has them.
    pub completion_only_loss: Option<bool>,
    /// Order of the data.
    pub data_order: DataOrder,
    /// Number format of the forward pass.
    pub precision: Precision,
    /// Prompts answered before and after training.
    pub generation_prompts: Vec<String>,
    /// Longest of those answers, in tokens.
    pub generation_max_new_tokens: usize,
}

/// How the learning rate falls after its warmup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// To 0 in a line.
    Linear,
    /// To 0 along half a cosine.
    Cosine,
    /// Not at all, and no warmup.
    Constant,
    /// Not at all.
    ConstantWithWarmup,
}

/// How long the learning rate rises.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Warmup {
    /// So many steps.
    Steps(u64),
    /// A share of all steps, below 1.
    Share(f64),
}

impl Warmup {
    /// Steps of warmup in a run of `total` steps; a share is rounded up, as in the reference.
    pub fn steps(self, total: u64) -> u64 {
        match self {
            Warmup::Steps(steps) => steps,
            Warmup::Share(share) => (total as f64 * share).ceil() as u64,
        }
    }
}

/// When checkpoints are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Save {
    /// Never.
    No,
    /// Every so many optimizer steps.
    Steps(u64),
    /// After each epoch.
    Epoch,
}

/// Order of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataOrder {
    /// As the files have it, each epoch.
    Given,
    /// Shuffled anew each epoch, from the seed.
    Shuffled,
}

/// Number format of the forward pass.
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
        let warmup = values.float("warmup_steps");
        let share = 0.0 < warmup && warmup < 1.0;
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
            lr_scheduler: match values.text("lr_scheduler_type").as_str() {
                "cosine" => Schedule::Cosine,
                "constant" => Schedule::Constant,
                "constant_with_warmup" => Schedule::ConstantWithWarmup,
                _ => Schedule::Linear,
            },
            warmup: if share { Warmup::Share(warmup) } else { Warmup::Steps(warmup as u64) },
            weight_decay: values.float("weight_decay"),
            adam_beta1: values.float("adam_beta1"),
            adam_beta2: values.float("adam_beta2"),
            adam_epsilon: values.float("adam_epsilon"),
            max_grad_norm: Some(values.float("max_grad_norm")).filter(|norm| *norm > 0.0),
            logging_steps: values.count("logging_steps"),
            save: match values.text("save_strategy").as_str() {
                "no" => Save::No,
                "epoch" => Save::Epoch,
                _ => Save::Steps(values.count("save_steps")),
            },
            save_total_limit: values.optional_size("save_total_limit"),
            seed: values.count("seed"),
            max_length: match preprocessing {
                Some(length) => Some(length as usize),
                None => values.optional_size("max_length"),
            },
            completion_only_loss: values.of("completion_only_loss").as_bool(),
            data_order: match values.text("data_order").as_str() {
                "given" => DataOrder::Given,
                _ => DataOrder::Shuffled,
            },
            precision: match (values.truth("fp16"), values.truth("bf16")) {
                (true, _) => Precision::F16,
                (false, true) => Precision::Bf16,
                (false, false) => Precision::F32,
            },
            generation_prompts: values.texts("generation_prompts"),
            generation_max_new_tokens: values.size("generation_max_new_tokens"),
        }
    }
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

    fn count(&self, name: &str) -> u64 {
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

    fn texts(&self, name: &str) -> Vec<String> {
        let value = self.of(name);
        let texts = value.as_array().into_iter().flatten().filter_map(Value::as_str);
        texts.map(str::to_owned).collect()
    }
}
