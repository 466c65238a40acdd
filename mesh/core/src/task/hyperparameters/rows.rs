//! The tables: name, type, default, and what this build does with it.

use serde_json::Value;

use super::{dpo, engine_args, grpo, inference, online, optimizer, ppo, rm, schedule};
use crate::task::kind::TaskType;

/// One name.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The name in a file.
    pub name: &'static str,
    /// What its value may be.
    pub kind: Type,
    /// What it is when nobody says.
    pub default: Default,
    /// Whether `null` is a value.
    pub nullable: bool,
    /// What this build does with it.
    pub status: Status,
}

/// What a value may be; bounds are included.
#[derive(Clone, Copy, Debug)]
pub enum Type {
    /// `true` or `false`.
    Bool,
    /// A whole number.
    Int {
        /// Least.
        min: i64,
        /// Most.
        max: i64,
    },
    /// A number.
    Float {
        /// Least.
        min: f64,
        /// Most.
        max: f64,
    },
    /// A text.
    Text,
    /// One of some words.
    Choice(&'static [&'static str]),
    /// One of some words that have other names too.
    Word(&'static Words),
    /// One of some whole numbers.
    OneOf(&'static [i64]),
    /// One of some words, or a truth value that stands for one.
    ChoiceOrBool(&'static [&'static str]),
    /// A number of steps: a whole one, or below 1 a share of all of them.
    Steps,
    /// Names with values.
    Map,
    /// One of some words, or a list of different ones.
    SomeOf(&'static [&'static str]),
    /// A list of numbers.
    Numbers {
        /// Longest list.
        most: usize,
    },
    /// A list of texts.
    Texts {
        /// Longest list.
        most: usize,
    },
    /// Anything: the module checks.
    Any,
}

/// Words, and what else people write.
#[derive(Clone, Copy, Debug)]
pub struct Words {
    /// Those that count.
    pub choices: &'static [&'static str],
    /// Other names, each with the word that it stands for.
    pub same: &'static [(&'static str, &'static str)],
    /// Words of the reference that are none here, each with the reason.
    pub refused: &'static [(&'static str, &'static str)],
}

impl Words {
    fn meant(&self, word: &str) -> Option<&'static str> {
        let same = || self.same.iter().find(|(other, _)| *other == word).map(|(_, meant)| *meant);
        self.choices.iter().copied().find(|choice| *choice == word).or_else(same)
    }
}

/// A default.
#[derive(Clone, Copy, Debug)]
pub enum Default {
    /// `null`.
    Null,
    /// A truth value.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A number.
    Float(f64),
    /// A text.
    Text(&'static str),
    /// An empty list.
    Nothing,
}

/// What this build does with a name.
#[derive(Clone, Copy, Debug)]
pub enum Status {
    /// It does what it says.
    Works,
    /// Another name of a setting.
    OldName(&'static str, Translate),
    /// It changes nothing here, and the user is told why.
    NoEffect(&'static str),
    /// It holds a secret, and a task is no place for one; its value is not even shown.
    Secret(&'static str),
    /// Its default is taken; any other value is refused with the reason.
    OnlyDefault(&'static str),
}

/// How a value moves to the canonical name.
#[derive(Clone, Copy, Debug)]
pub enum Translate {
    /// As it is.
    Same,
    /// `sequential` and `random` to `given` and `shuffled`.
    SamplingOrder,
    /// `true` and `false` to `group_by_length` and `shuffled`.
    Grouping,
}

impl Default {
    /// As a value.
    pub fn value(self) -> Value {
        match self {
            Default::Null => Value::Null,
            Default::Bool(value) => Value::Bool(value),
            Default::Int(value) => Value::from(value),
            Default::Float(value) => Value::from(value),
            Default::Text(value) => Value::from(value),
            Default::Nothing => Value::Array(Vec::new()),
        }
    }
}

impl Type {
    /// Whether it is a number with a fraction.
    pub fn is_float(self) -> bool {
        matches!(self, Type::Float { .. })
    }

    /// Whether a value is of this type and within its bounds.
    pub fn takes(self, value: &Value) -> bool {
        match self {
            Type::Bool => value.is_boolean(),
            Type::Int { min, max } => value.as_i64().is_some_and(|v| (min..=max).contains(&v)),
            Type::Float { min, max } => value.as_f64().is_some_and(|v| (min..=max).contains(&v)),
            Type::Text => value.is_string(),
            Type::Choice(choices) => value.as_str().is_some_and(|v| choices.contains(&v)),
            Type::Word(words) => value.as_str().is_some_and(|v| words.meant(v).is_some()),
            Type::OneOf(numbers) => value.as_i64().is_some_and(|v| numbers.contains(&v)),
            Type::ChoiceOrBool(choices) => value.is_boolean() || Type::Choice(choices).takes(value),
            Type::Steps => value.as_f64().is_some_and(|v| 0.0 < v && (v < 1.0 || v.fract() == 0.0) && v <= STEPS_MOST),
            Type::Map => value.is_object(),
            Type::SomeOf(choices) => match value {
                Value::Array(list) => {
                    let known = list.iter().all(|v| Type::Choice(choices).takes(v));
                    let twice = |at: usize| list[..at].contains(&list[at]);
                    known && !list.is_empty() && !(0..list.len()).any(twice)
                }
                one => Type::Choice(choices).takes(one),
            },
            Type::Numbers { most } => {
                value.as_array().is_some_and(|list| list.len() <= most && list.iter().all(Value::is_number))
            }
            Type::Texts { most } => {
                value.as_array().is_some_and(|list| list.len() <= most && list.iter().all(Value::is_string))
            }
            Type::Any => true,
        }
    }

    /// A right value in its canonical form, so that equal settings are equal values.
    pub fn canonical(self, value: Value) -> Value {
        match (self, value.as_str()) {
            (Type::Word(words), Some(word)) => words.meant(word).map_or(value, Value::from),
            _ => value,
        }
    }

    /// What a message says is expected.
    pub fn expected(self) -> String {
        match self {
            Type::Bool => "true or false".to_owned(),
            Type::Int { min, max: i64::MAX } => format!("a whole number, at least {min}"),
            Type::Int { min, max } => format!("a whole number from {min} to {max}"),
            Type::Float { min, max } if min == f64::MIN && max == f64::MAX => "a number".to_owned(),
            Type::Float { min, max } if min == ABOVE_ZERO && max == f64::MAX => "a number above 0".to_owned(),
            Type::Float { min, max } if min == ABOVE_ZERO => format!("a number above 0, at most {max}"),
            Type::Float { min, max } if max == f64::MAX => format!("a number, at least {min}"),
            Type::Float { min, max } if max == BELOW_ONE => format!("a number from {min} to below 1"),
            Type::Float { min, max } if max == BELOW_HALF => format!("a number from {min} to below 0.5"),
            Type::Float { min, max } => format!("a number from {min} to {max}"),
            Type::Text => "a text".to_owned(),
            Type::Choice(choices) => format!("one of {}", choices.join(", ")),
            Type::Word(words) => format!("one of {}", words.choices.join(", ")),
            Type::OneOf(numbers) => {
                let list: Vec<String> = numbers.iter().map(ToString::to_string).collect();
                format!("one of {}", list.join(", "))
            }
            Type::ChoiceOrBool(choices) => format!("one of {}, or true or false", choices.join(", ")),
            Type::Steps => "a whole number of steps from 1, or a share of all steps, above 0 and below 1".to_owned(),
            Type::Map => "a map of names with values".to_owned(),
            Type::SomeOf(choices) => format!("one of {}, or a list of different ones", choices.join(", ")),
            Type::Numbers { most } => format!("a list of at most {most} numbers"),
            Type::Texts { most } => format!("a list of at most {most} texts"),
            Type::Any => "a value".to_owned(),
        }
    }
}

pub(super) const ABOVE_ZERO: f64 = f64::MIN_POSITIVE;
pub(super) const BELOW_HALF: f64 = 0.5 - f64::EPSILON;
pub(super) const BELOW_ONE: f64 = 1.0 - f64::EPSILON;
/// Beyond any run.
const STEPS_MOST: f64 = (1u64 << 40) as f64;
/// A whole number, none included.
pub(super) const COUNT: Type = Type::Int { min: 0, max: i64::MAX };
/// A whole number from one on. Bounded, for products of such counts must not overflow.
pub(super) const SOME: Type = Type::Int { min: 1, max: 1 << 31 };
/// Any number.
pub(super) const NUMBER: Type = Type::Float { min: f64::MIN, max: f64::MAX };
pub(super) const NOT_NEGATIVE: Type = Type::Float { min: 0.0, max: f64::MAX };
/// A share, all included.
pub(super) const UNIT: Type = Type::Float { min: 0.0, max: 1.0 };
pub(super) const SHARE: Type = Type::Float { min: 0.0, max: BELOW_ONE };

pub(super) const fn works(name: &'static str, kind: Type, default: Default) -> Row {
    Row { name, kind, default, nullable: false, status: Status::Works }
}

pub(super) const fn or_null(name: &'static str, kind: Type, default: Default) -> Row {
    Row { name, kind, default, nullable: true, status: Status::Works }
}

pub(super) const fn no_effect(name: &'static str, reason: &'static str) -> Row {
    Row { name, kind: Type::Any, default: Default::Null, nullable: true, status: Status::NoEffect(reason) }
}

pub(super) const fn only(name: &'static str, default: Default, reason: &'static str) -> Row {
    Row { name, kind: Type::Any, default, nullable: true, status: Status::OnlyDefault(reason) }
}

pub(super) const fn secret(name: &'static str, reason: &'static str) -> Row {
    Row { name, kind: Type::Any, default: Default::Null, nullable: true, status: Status::Secret(reason) }
}

/// What people write from habit, and what they mean: for hints only.
pub(super) const HABITS: &[(&str, &str)] = &[
    ("lr", "learning_rate"),
    ("epochs", "num_train_epochs"),
    ("num_epochs", "num_train_epochs"),
    ("batch_size", "per_device_train_batch_size"),
    ("train_batch_size", "per_device_train_batch_size"),
    ("eval_batch_size", "per_device_eval_batch_size"),
    ("grad_accum", "gradient_accumulation_steps"),
    ("clip", "max_grad_norm"),
    ("scheduler", "lr_scheduler_type"),
    ("warmup", "warmup_steps"),
    ("max_seq_len", "max_length"),
    ("steps", "max_steps"),
    ("optimizer", "optim"),
    ("label_smoothing", "label_smoothing_factor"),
    ("evaluation_strategy", "eval_strategy"),
    ("patience", "early_stopping_patience"),
    ("max_length", "max_model_len"),
    ("max_seq_len", "max_model_len"),
    ("max_seq_length", "max_model_len"),
    ("context_length", "max_model_len"),
    ("n_ctx", "max_model_len"),
    ("batch_size", "max_num_seqs"),
    ("max_batch_size", "max_num_seqs"),
    ("kv_cache_bytes", "kv_cache_memory_bytes"),
    ("max_queue_size", "max_num_waiting"),
];

pub(super) const fn old(name: &'static str, kind: Type, new: &'static str, translate: Translate) -> Row {
    Row { name, kind, default: Default::Null, nullable: false, status: Status::OldName(new, translate) }
}

/// The tables of a task type, the first that has a name winning: its own, then what all trainers share.
pub fn tables(task_type: TaskType) -> &'static [&'static [Row]] {
    match task_type {
        TaskType::Echo => &[ECHO],
        TaskType::Sft => &[SFT, TRAINER],
        TaskType::Pretrain => &[PRETRAIN, SFT, TRAINER],
        TaskType::Rm => &[rm::NAMES, TRAINER],
        TaskType::Dpo => &[dpo::NAMES, TRAINER],
        TaskType::Grpo => &[grpo::NAMES, online::NAMES, TRAINER],
        TaskType::Ppo => &[ppo::NAMES, online::NAMES, TRAINER],
        TaskType::Inference | TaskType::RagInference | TaskType::Agent => &[inference::NAMES, engine_args::NAMES],
        TaskType::Command => &[],
    }
}

const ONE_DEVICE: &str =
    "a training task runs on one worker in this build, and shares its steps among that worker's GPUs by itself";
/// When something is done again and again.
const INTERVALS: &[&str] = &["no", "steps", "epoch"];
const RESUMES: &str = "the mesh resumes by itself, from the last whole checkpoint";
const NO_HUB: &str = "name the hub as `output.destination`";
const SEEN_IN_MLOC: &str = "the mesh shows progress and logs itself";
const IN_4BITS: &str =
    "weights in 4 bits carry an adapter and are not trained themselves: write `model.adapter: {type: qlora}`";
const OWN_LOADER: &str = "this build reads data its own way";

/// What every trainer shares: `TrainingArguments` of transformers 5.23, with the defaults of TRL's base config.
const TRAINER: &[Row] = &[
    works("num_train_epochs", Type::Float { min: ABOVE_ZERO, max: 1e6 }, Default::Float(3.0)),
    works("max_steps", Type::Int { min: -1, max: 1 << 40 }, Default::Int(-1)),
    works("per_device_train_batch_size", SOME, Default::Int(8)),
    works("per_device_eval_batch_size", SOME, Default::Int(8)),
    works("gradient_accumulation_steps", SOME, Default::Int(1)),
    works("learning_rate", NOT_NEGATIVE, Default::Float(5e-5)),
    works("lr_scheduler_type", Type::Choice(schedule::NAMES), Default::Text("linear")),
    or_null("lr_scheduler_kwargs", Type::Map, Default::Null),
    // A number below 1 is a share of all steps, as in the reference.
    works("warmup_steps", NOT_NEGATIVE, Default::Float(0.0)),
    old("warmup_ratio", SHARE, "warmup_steps", Translate::Same),
    works("weight_decay", NOT_NEGATIVE, Default::Float(0.0)),
    works("adam_beta1", SHARE, Default::Float(0.9)),
    works("adam_beta2", SHARE, Default::Float(0.999)),
    works("adam_epsilon", Type::Float { min: ABOVE_ZERO, max: 1.0 }, Default::Float(1e-8)),
    // 0 turns clipping off.
    works("max_grad_norm", NOT_NEGATIVE, Default::Float(1.0)),
    works("optim", Type::Choice(optimizer::NAMES), Default::Text("adamw_torch")),
    or_null("optim_args", Type::Text, Default::Null),
    or_null("neftune_noise_alpha", NOT_NEGATIVE, Default::Null),
    works("label_smoothing_factor", SHARE, Default::Float(0.0)),
    works("logging_strategy", Type::Choice(INTERVALS), Default::Text("steps")),
    works("logging_steps", Type::Steps, Default::Int(10)),
    works("logging_first_step", Type::Bool, Default::Bool(false)),
    works("save_strategy", Type::Choice(&["no", "steps", "epoch", "best"]), Default::Text("steps")),
    works("save_steps", Type::Steps, Default::Int(500)),
    or_null("save_total_limit", SOME, Default::Null),
    // What the mesh goes on from stays whole; this is about what is published.
    works("save_only_model", Type::Bool, Default::Bool(false)),
    works("eval_strategy", Type::Choice(INTERVALS), Default::Text("no")),
    or_null("eval_steps", Type::Steps, Default::Null),
    works("eval_delay", NOT_NEGATIVE, Default::Float(0.0)),
    works("eval_on_start", Type::Bool, Default::Bool(false)),
    works("load_best_model_at_end", Type::Bool, Default::Bool(false)),
    or_null("metric_for_best_model", Type::Text, Default::Null),
    or_null("greater_is_better", Type::Bool, Default::Null),
    works("seed", COUNT, Default::Int(42)),
    or_null("max_length", SOME, Default::Int(1024)),
    old("max_seq_length", SOME, "max_length", Translate::Same),
    works("fp16", Type::Bool, Default::Bool(false)),
    or_null("bf16", Type::Bool, Default::Null),
    works("data_order", Type::Choice(&["given", "shuffled", "group_by_length"]), Default::Text("shuffled")),
    old(
        "train_sampling_strategy",
        Type::Choice(&["random", "sequential", "group_by_length"]),
        "data_order",
        Translate::SamplingOrder,
    ),
    old("group_by_length", Type::Bool, "data_order", Translate::Grouping),
    no_effect("output_dir", "the worker chooses its own folder, and artifacts go to `output.destination`"),
    no_effect("overwrite_output_dir", "the worker chooses its own folder"),
    // The reference's default is true. Results are the same to the bit; here a layer keeps little anyhow.
    works("gradient_checkpointing", Type::Bool, Default::Bool(false)),
    no_effect("gradient_checkpointing_kwargs", "layers are computed anew one by one, the same way on each device"),
    old("activation_checkpointing", Type::Bool, "gradient_checkpointing", Translate::Same),
    no_effect("activation_checkpointing_kwargs", "layers are computed anew one by one, the same way on each device"),
    no_effect("activation_offloading", "activations stay on the device: `gradient_checkpointing` keeps fewer of them"),
    no_effect("use_liger_kernel", "kernels are this build's own"),
    no_effect("liger_kernel_config", "kernels are this build's own"),
    no_effect("torch_compile", "there is no torch here"),
    no_effect("torch_compile_backend", "there is no torch here"),
    no_effect("torch_compile_mode", "there is no torch here"),
    no_effect("torch_empty_cache_steps", "there is no torch here"),
    no_effect("tf32", "there is no torch here"),
    no_effect("use_cache", "training keeps no generation cache"),
    no_effect("use_cpu", "`resources.hardware` decides the device"),
    no_effect("report_to", SEEN_IN_MLOC),
    no_effect("run_name", SEEN_IN_MLOC),
    no_effect("project", "`metadata.project` is what counts"),
    no_effect("disable_tqdm", SEEN_IN_MLOC),
    no_effect("log_level", SEEN_IN_MLOC),
    no_effect("log_level_replica", SEEN_IN_MLOC),
    no_effect("log_on_each_node", SEEN_IN_MLOC),
    no_effect("logging_dir", SEEN_IN_MLOC),
    no_effect("logging_nan_inf_filter", "a loss that is not a number ends the task"),
    no_effect("include_num_input_tokens_seen", "`num_tokens` is always logged"),
    no_effect("do_train", "the task type says what is done"),
    no_effect("do_eval", "held-out data is used when `dataset.eval` is given"),
    no_effect("debug", "there is no torch here"),
    no_effect("bf16_full_eval", "held-out loss is computed in the precision of the training"),
    no_effect("fp16_full_eval", "held-out loss is computed in the precision of the training"),
    no_effect("eval_accumulation_steps", "only sums of losses are kept"),
    no_effect("eval_do_concat_batches", "only sums of losses are kept"),
    no_effect("batch_eval_metrics", "only sums of losses are kept"),
    no_effect("enable_jit_checkpoint", RESUMES),
    no_effect("restore_callback_states_from_checkpoint", RESUMES),
    no_effect("prediction_loss_only", "only losses are computed"),
    no_effect("skip_memory_metrics", "`peak_memory_bytes` is always logged"),
    only("load_in_4bit", Default::Bool(false), IN_4BITS),
    only("load_in_8bit", Default::Bool(false), IN_4BITS),
    no_effect("dataloader_num_workers", OWN_LOADER),
    no_effect("dataloader_pin_memory", OWN_LOADER),
    no_effect("dataloader_persistent_workers", OWN_LOADER),
    no_effect("dataloader_prefetch_factor", OWN_LOADER),
    no_effect("dataset_num_proc", OWN_LOADER),
    no_effect("dataloader_multiprocessing_context", OWN_LOADER),
    no_effect("dataloader_in_order", OWN_LOADER),
    no_effect("length_column_name", OWN_LOADER),
    no_effect("label_names", OWN_LOADER),
    no_effect("remove_unused_columns", OWN_LOADER),
    no_effect("pad_to_multiple_of", "padding is masked and changes no result"),
    no_effect("average_tokens_across_devices", ONE_DEVICE),
    no_effect("ddp_timeout", ONE_DEVICE),
    no_effect("ddp_find_unused_parameters", ONE_DEVICE),
    no_effect("ddp_bucket_cap_mb", ONE_DEVICE),
    no_effect("ddp_broadcast_buffers", ONE_DEVICE),
    no_effect("ddp_static_graph", ONE_DEVICE),
    no_effect("save_on_each_node", ONE_DEVICE),
    no_effect("eval_use_gather_object", ONE_DEVICE),
    no_effect("local_rank", ONE_DEVICE),
    no_effect("full_determinism", "the same CPU features and threads give the same bits anyway"),
    only("optim_target_modules", Default::Null, "GaLore and APOLLO are not in this build"),
    only("do_predict", Default::Bool(false), "predictions on a test set are not in this build"),
    only("include_for_metrics", Default::Nothing, "metrics of one's own are not in this build"),
    only("ignore_data_skip", Default::Bool(false), "a resumed run goes on where the data was left"),
    only("data_seed", Default::Null, "`seed` sets the order of the data too"),
    only("dataloader_drop_last", Default::Bool(false), "the last batch is trained on, however small"),
    only("auto_find_batch_size", Default::Bool(false), "batch sizes are as given"),
    only("resume_from_checkpoint", Default::Null, RESUMES),
    only("push_to_hub", Default::Bool(false), NO_HUB),
    only("hub_model_id", Default::Null, NO_HUB),
    secret("hub_token", "credentials come from the worker's environment, never from a task"),
    only("hub_revision", Default::Null, NO_HUB),
    only("hub_private_repo", Default::Null, NO_HUB),
    only("hub_always_push", Default::Bool(false), NO_HUB),
    only("hub_strategy", Default::Text("every_save"), NO_HUB),
    only("trackio_space_id", Default::Null, SEEN_IN_MLOC),
    only("trackio_bucket_id", Default::Null, SEEN_IN_MLOC),
    only("trackio_static_space_id", Default::Null, SEEN_IN_MLOC),
    only("accelerator_config", Default::Null, ONE_DEVICE),
    only("ddp_backend", Default::Null, ONE_DEVICE),
    only("deepspeed", Default::Null, ONE_DEVICE),
    only("fsdp", Default::Null, ONE_DEVICE),
    only("fsdp_config", Default::Null, ONE_DEVICE),
    only("parallelism_config", Default::Null, ONE_DEVICE),
    only("trust_remote_code", Default::Bool(false), "code from a model's repository is never run"),
    only("model_init_kwargs", Default::Null, "a model is loaded as its config.json says"),
    only("chat_template_path", Default::Null, "the tokenizer's own chat template is used"),
    only("eos_token", Default::Null, "the tokenizer's own tokens are used"),
    only("pad_token", Default::Null, "the tokenizer's own tokens are used"),
    only("router_aux_loss_coef", Default::Null, "the balance of experts counts as the model's config.json says"),
    // What follows is ours; the first two are arguments of transformers' `EarlyStoppingCallback`.
    or_null("early_stopping_patience", SOME, Default::Null),
    works("early_stopping_threshold", NOT_NEGATIVE, Default::Float(0.0)),
    works("generation_prompts", Type::Texts { most: 16 }, Default::Nothing),
    works("generation_max_new_tokens", Type::Int { min: 1, max: 4096 }, Default::Int(64)),
];

/// Names of `SFTConfig`.
const SFT: &[Row] = &[
    works("learning_rate", NOT_NEGATIVE, Default::Float(2e-5)),
    or_null("completion_only_loss", Type::Bool, Default::Null),
    works("shuffle_dataset", Type::Bool, Default::Bool(false)),
    works("dataset_text_field", Type::Text, Default::Text("text")),
    only("dataset_kwargs", Default::Null, OWN_LOADER),
    works("truncation_mode", Type::Choice(&["keep_start", "keep_end"]), Default::Text("keep_start")),
    works("packing", Type::Bool, Default::Bool(false)),
    or_null("eval_packing", Type::Bool, Default::Null),
    works("packing_strategy", Type::Choice(&["bfd", "bfd_split", "wrapped"]), Default::Text("bfd")),
    no_effect("padding_free", "padding is never computed on here"),
    works("assistant_only_loss", Type::Bool, Default::Bool(false)),
    only("loss_type", Default::Text("nll"), "the loss is the negative log-likelihood"),
];

/// Names of `LlamaConfig`, for a model made from nothing. The tokenizer is trained to `vocab_size` as well.
const PRETRAIN: &[Row] = &[
    works("learning_rate", NOT_NEGATIVE, Default::Float(1e-3)),
    or_null("max_length", SOME, Default::Int(256)),
    works("vocab_size", Type::Int { min: 300, max: 1 << 18 }, Default::Int(2048)),
    works("hidden_size", Type::Int { min: 8, max: 1 << 14 }, Default::Int(256)),
    or_null("intermediate_size", Type::Int { min: 8, max: 1 << 16 }, Default::Null),
    works("num_hidden_layers", Type::Int { min: 1, max: 128 }, Default::Int(4)),
    works("num_attention_heads", Type::Int { min: 1, max: 256 }, Default::Int(4)),
    or_null("num_key_value_heads", Type::Int { min: 1, max: 256 }, Default::Null),
    works("max_position_embeddings", Type::Int { min: 16, max: 1 << 20 }, Default::Int(512)),
    works("rope_theta", Type::Float { min: 1.0, max: 1e9 }, Default::Float(10_000.0)),
    works("rms_norm_eps", Type::Float { min: ABOVE_ZERO, max: 1.0 }, Default::Float(1e-5)),
    works("tie_word_embeddings", Type::Bool, Default::Bool(true)),
    works("initializer_range", Type::Float { min: ABOVE_ZERO, max: 1.0 }, Default::Float(0.02)),
];

/// Names of the smallest module: it counts steps, and fails where it is told to.
const ECHO: &[Row] = &[
    works("steps", Type::Int { min: 1, max: 1_000_000 }, Default::Int(3)),
    works("step_ms", Type::Int { min: 0, max: 3_600_000 }, Default::Int(0)),
    works("message", Type::Text, Default::Text("hello")),
    works("save_steps", SOME, Default::Int(1)),
    or_null("fail_at_step", SOME, Default::Null),
    works("fail_with", Type::Choice(&["fatal", "retryable", "panic", "abort", "hang"]), Default::Text("fatal")),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::task::kind::TASK_TYPES;

    #[test]
    fn every_table_is_sound() {
        for task_type in TASK_TYPES {
            let tables = tables(task_type.task_type);
            for table in tables {
                let names: BTreeSet<_> = table.iter().map(|row| row.name).collect();
                assert_eq!(names.len(), table.len(), "{}: a name stands twice", task_type.name);
            }
            for row in tables.iter().copied().flatten() {
                let default = row.default.value();
                let good = row.kind.takes(&default) || (default.is_null() && row.nullable);
                match row.status {
                    Status::OldName(new, _) => {
                        let found = super::super::find(task_type.task_type, new);
                        assert!(found.is_some_and(|r| matches!(r.status, Status::Works)), "{}", row.name);
                    }
                    Status::Works | Status::NoEffect(_) | Status::Secret(_) | Status::OnlyDefault(_) => {
                        assert!(good, "{}", row.name)
                    }
                }
            }
        }
    }
}
