//! Settings that steer a run hold together: a schedule and an optimizer with their arguments, and what needs a look at
//! held-out data with that look.

use serde_json::{Map, Value};

use super::{PATH, Read, arguments::Wrong, find, optimizer::Optimizer, schedule::Schedule};
use crate::task::{
    kind::TaskType,
    problem::{At, Note, Problem, Problems, nearest},
};

/// What a method measures on held-out data; nothing where it uses none.
fn metrics(task_type: TaskType) -> &'static [&'static str] {
    match task_type {
        TaskType::Sft | TaskType::Pretrain => &["loss", "mean_token_accuracy", "entropy"],
        TaskType::Rm => &["loss", "min_reward", "mean_reward", "max_reward", "accuracy", "margin"],
        TaskType::Dpo => &[
            "loss",
            "rewards/chosen",
            "rewards/rejected",
            "rewards/margins",
            "rewards/accuracies",
            "logps/chosen",
            "logps/rejected",
            "logits/chosen",
            "logits/rejected",
            "entropy",
            "mean_token_accuracy",
        ],
        TaskType::Ppo
        | TaskType::Grpo
        | TaskType::Echo
        | TaskType::Command
        | TaskType::Inference
        | TaskType::RagInference
        | TaskType::Agent => &[],
    }
}

/// Settings that ask for evaluations.
const NEED_EVALUATION: [&str; 3] = ["load_best_model_at_end", "early_stopping_patience", "metric_for_best_model"];

pub(super) fn check(task_type: TaskType, read: &Read, problems: &mut Problems) {
    if find(task_type, "lr_scheduler_type").is_none() {
        return;
    }
    let of = |name: &str| {
        let default = || find(task_type, name).map_or(Value::Null, |row| row.default.value());
        read.values.get(name).cloned().unwrap_or_else(default)
    };
    let text = |name: &str| of(name).as_str().unwrap_or_default().to_owned();
    let nothing = Map::new();
    let given = of("lr_scheduler_kwargs");
    let peak = of("learning_rate").as_f64().unwrap_or_default();
    let schedule = Schedule::parse(&text("lr_scheduler_type"), given.as_object().unwrap_or(&nothing), peak);
    tell(read, "lr_scheduler_kwargs", "lr_scheduler_type", schedule.err(), problems);
    let optimizer = Optimizer::parse(&text("optim"), &text("optim_args"));
    tell(read, "optim_args", "optim", optimizer.err(), problems);

    let evaluates = text("eval_strategy") != "no";
    let asks = |name: &str| !matches!(of(name), Value::Null | Value::Bool(false));
    if !evaluates {
        let saves = (text("save_strategy") == "best").then_some("save_strategy");
        let plateau = (text("lr_scheduler_type") == "reduce_lr_on_plateau").then_some("lr_scheduler_type");
        for name in NEED_EVALUATION.into_iter().filter(|name| asks(name)).chain(saves).chain(plateau) {
            let found = format!("`{}` without evaluations", shown(&of(name)));
            let expected = "`eval_strategy: steps` or `epoch` with it, and `dataset.eval`";
            read.problem(name, &found, expected, problems);
        }
    }
    let supervised = matches!(task_type, TaskType::Sft | TaskType::Pretrain);
    if !supervised && of("label_smoothing_factor").as_f64().is_some_and(|factor| factor > 0.0) {
        let expected = format!("0 with {task_type}, whose loss is no mean over tokens");
        read.problem("label_smoothing_factor", &of("label_smoothing_factor").to_string(), &expected, problems);
    }
    let metric = text("metric_for_best_model");
    let bare = metric.strip_prefix("eval_").unwrap_or(&metric);
    let known = metrics(task_type);
    if !known.is_empty() && !metric.is_empty() && !known.contains(&bare) {
        let (typed, at) = read.place("metric_for_best_model");
        let names: Vec<String> = known.iter().map(|name| format!("eval_{name}")).collect();
        let expected = format!("one of {}", names.join(", "));
        let problem = Problem::new(format!("{PATH}.{typed}"), at, format!("`{metric}`"), expected);
        problems.push(match nearest(bare, known.iter().copied()) {
            Some(near) => problem.hint(format!("did you mean `eval_{near}`?")),
            None => problem,
        });
    }
}

/// Tells which settings that were typed have no part in what the others choose.
pub(super) fn tell_unused(task_type: TaskType, read: &Read, notes: &mut Vec<Note>) {
    if find(task_type, "lr_scheduler_type").is_none() {
        return;
    }
    let text = |name: &str| {
        let default = || find(task_type, name).map_or(Value::Null, |row| row.default.value());
        let value = read.values.get(name).cloned().unwrap_or_else(default);
        value.as_str().unwrap_or_default().to_owned()
    };
    let other_than = |name: &str, wanted: &[&str]| {
        let value = text(name);
        (!wanted.contains(&value.as_str())).then(|| format!("with `{name}: {value}`"))
    };
    let one_of = |name: &str, unwanted: &[&str]| {
        let value = text(name);
        unwanted.contains(&value.as_str()).then(|| format!("with `{name}: {value}`"))
    };
    let no_adam = || one_of("optim", &["adafactor", "sgd"]);
    let no_patience = || read.values.get("early_stopping_patience").is_none_or(Value::is_null);
    // Evaluations without a number of steps of their own come with lines of the log.
    let no_log = || other_than("logging_strategy", &["steps"]).filter(|_| text("eval_strategy") != "steps");
    let because = |name: &str| match name {
        "warmup_steps" => one_of("lr_scheduler_type", &["constant", "reduce_lr_on_plateau"]),
        "adam_beta1" | "adam_beta2" | "adam_epsilon" => no_adam(),
        "save_steps" => other_than("save_strategy", &["steps"]),
        "logging_steps" => no_log(),
        "eval_steps" => other_than("eval_strategy", &["steps"]),
        "eval_delay" => other_than("eval_strategy", &["steps", "epoch"]),
        "early_stopping_threshold" => no_patience().then(|| "without `early_stopping_patience`".to_owned()),
        _ => None,
    };
    for (name, (typed, at)) in &read.typed {
        if let Some(why) = because(name) {
            let (path, text) = (format!("{PATH}.{typed}"), format!("has no effect {why}"));
            notes.push(Note { path, at: *at, text });
        }
    }
}

/// Puts what is wrong with arguments where they stand, or where what they belong to does.
fn tell(read: &Read, arguments: &str, owner: &str, wrong: Option<Vec<Wrong>>, problems: &mut Problems) {
    let place = if read.typed.contains_key(arguments) { arguments } else { owner };
    let (typed, at) = read.place(place);
    for Wrong { name, found, expected, hint } in wrong.into_iter().flatten() {
        let dot = if name.is_empty() { "" } else { "." };
        let problem = Problem::new(format!("{PATH}.{typed}{dot}{name}"), at, found, expected);
        problems.push(match hint {
            Some(hint) => problem.hint(hint),
            None => problem,
        });
    }
}

fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

impl Read {
    /// The name that was typed for a setting, and where.
    pub(super) fn place(&self, name: &str) -> (String, At) {
        self.typed.get(name).cloned().unwrap_or((name.to_owned(), At::START))
    }
}
