//! What is rewarded, and the models beside the one that is trained.

use regex::Regex;
use serde_json::Value;

use super::Validation;
use crate::task::{
    fields::Typed,
    hyperparameters::Read,
    kind::{TaskType, TaskTypeRow},
    names,
    problem::{At, Problem, nearest},
    raw::{RawReward, RawRewardFunc, RawSpec, Text},
    reward::{Judge, LengthUnit, Reward, RewardFunc},
};

/// More functions than this are a mistake.
const FUNCS_MAX: usize = 64;
const NO_FUNC: &str = "at least one function, such as `{type: regex, pattern: …}`, or a `model`";

impl Validation<'_> {
    pub(super) fn reward(&mut self, spec: &RawSpec, row: Option<&TaskTypeRow>, read: &Read) -> Option<Reward> {
        let row = row?;
        self.models_beside(spec, row, read);
        let rewarded = matches!(row.task_type, TaskType::Ppo | TaskType::Grpo);
        if let Some(dataset) = spec.dataset.as_ref().filter(|_| rewarded) {
            let eval = dataset.eval.as_ref().map(|eval| (&eval.path, eval.at));
            let size = dataset.test_size.as_ref().map(|size| (&size.path, size.at));
            for (path, at) in eval.into_iter().chain(size) {
                self.note(path, at, "has no effect: what is rewarded is measured at every step");
            }
        }
        match (&spec.reward, rewarded) {
            (Some(raw), true) => {
                let reward = self.sources_of_reward(raw, row);
                // Those that are wrong were told, and are not among them.
                if raw.funcs.as_ref().is_none_or(|funcs| funcs.value.len() == reward.funcs.len()) {
                    self.weights(&reward, read);
                }
                Some(reward)
            }
            (Some(raw), false) => {
                let expected = format!("no reward with {}: it learns from data alone", row.name);
                self.problems.push(Problem::new("spec.reward", raw.at, "the key `reward`", expected));
                None
            }
            (None, true) => {
                let at = spec.at.unwrap_or(At::START);
                let expected = format!("a map with `model` or `funcs`, for {} learns from rewards", row.name);
                self.problems.push(Problem::new("spec.reward", at, "nothing", expected));
                None
            }
            (None, false) => None,
        }
    }

    fn sources_of_reward(&mut self, raw: &RawReward, row: &TaskTypeRow) -> Reward {
        let model = raw.model.as_ref().and_then(|model| self.source(&model.source));
        let code = raw.code.as_ref().and_then(|code| self.code(code));
        let mut funcs: Vec<RewardFunc> = Vec::new();
        for func in raw.funcs.iter().flat_map(|funcs| &funcs.value) {
            let Some(judge) = self.judge(func) else { continue };
            let name = func.name.as_ref().and_then(|name| self.told(names::name(name, "", 63)));
            let name = name.unwrap_or_else(|| judge.name().to_owned());
            if funcs.iter().any(|other| other.name == name) {
                let found = format!("a second function `{name}`");
                let problem = Problem::new(&func.path, func.at, found, "each name once");
                self.problems.push(problem.hint("logs tell them apart by `name`: give them one each"));
            }
            if judge == Judge::Model && raw.model.is_none() {
                let expected = "`reward.model` with its `source` beside `funcs`";
                self.problems.push(Problem::new(&func.path, func.at, "`type: model` and no reward model", expected));
            }
            funcs.push(RewardFunc { name, judge });
        }
        match &raw.funcs {
            Some(list) if list.value.len() > FUNCS_MAX => {
                let found = format!("{} functions", list.value.len());
                self.problems.push(Problem::new(&list.path, list.at, found, format!("at most {FUNCS_MAX}")));
            }
            Some(list) if list.value.is_empty() => {
                self.problems.push(Problem::new(&list.path, list.at, "an empty list", NO_FUNC));
            }
            Some(list) => {
                let judged = funcs.iter().any(|func| func.judge == Judge::Model);
                // PPO's values may start from it all the same.
                if raw.model.is_some() && !judged && row.task_type == TaskType::Grpo {
                    let found = "functions, and none of them the reward model";
                    let problem = Problem::new(&list.path, list.at, found, "`{type: model}` among them");
                    self.problems.push(problem.hint("leave `reward.model` out if it is not to judge"));
                }
            }
            None if raw.model.is_some() => {
                funcs.push(RewardFunc { name: Judge::Model.name().to_owned(), judge: Judge::Model });
            }
            None => self.problems.push(Problem::new("spec.reward.funcs", raw.at, "nothing", NO_FUNC)),
        }
        let reward = Reward { model, funcs, code };
        if let Some(code) = &raw.code
            && !reward.runs_programs()
        {
            let problem = Problem::new("spec.reward.code", code.at, "code", "a function `{type: command}` to run it");
            self.problems.push(problem);
        }
        reward
    }

    fn judge(&mut self, func: &RawRewardFunc) -> Option<Judge> {
        let kind = func.kind.as_ref()?;
        let takes: &[&str] = match kind.value.as_str() {
            "regex" => &["pattern"],
            "exact_match" => &["column"],
            "json" => &["keys"],
            "length" => &["min", "max", "unit"],
            "model" => &[],
            "command" => &["command"],
            _ => {
                let problem = kind.problem(format!("one of {}", Judge::NAMES.join(", ")));
                let habit = match kind.value.as_str() {
                    "match" | "exact" | "equals" | "accuracy" => Some("exact_match"),
                    "python" | "script" | "program" | "function" => Some("command"),
                    "reward_model" | "rm" => Some("model"),
                    "pattern" => Some("regex"),
                    _ => None,
                };
                self.problems.push(match habit.or_else(|| nearest(&kind.value, Judge::NAMES)) {
                    Some(near) => problem.hint(format!("did you mean `{near}`?")),
                    None => problem,
                });
                return None;
            }
        };
        for (name, at) in given(func) {
            if !takes.contains(&name) {
                let found = format!("the key `{name}`");
                let expected = match takes {
                    [] => format!("no further keys with `{}`", kind.value),
                    takes => format!("with `{}` only {}", kind.value, takes.join(", ")),
                };
                self.problems.push(Problem::new(format!("{}.{name}", func.path), at, found, expected));
            }
        }
        match kind.value.as_str() {
            "regex" => {
                let pattern = self.needed(func, "pattern", &func.pattern, "a regular expression")?;
                if let Err(error) = Regex::new(&pattern.value) {
                    let last = error.to_string().lines().last().unwrap_or_default().trim().to_owned();
                    let problem = pattern.problem("a regular expression");
                    let problem = problem.hint(last.trim_start_matches("error: "));
                    self.problems.push(problem);
                }
                Some(Judge::Regex { pattern: pattern.value })
            }
            "exact_match" => {
                let column = self.needed(func, "column", &func.column, "a column of the data")?;
                Some(Judge::ExactMatch { column: column.value })
            }
            "json" => {
                let keys = func.keys.iter().flat_map(|keys| &keys.value).map(|key| key.value.clone());
                Some(Judge::Json { keys: keys.collect() })
            }
            "length" => self.length(func),
            "model" => Some(Judge::Model),
            _ => {
                let Some(command) = &func.command else {
                    let expected = "the program and its arguments, such as `[python3, reward.py]`";
                    let path = format!("{}.command", func.path);
                    self.problems.push(Problem::new(path, func.at, "nothing", expected));
                    return None;
                };
                Some(Judge::Command { argv: self.program(command) })
            }
        }
    }

    fn needed(&mut self, func: &RawRewardFunc, name: &str, text: &Text, what: &str) -> Option<Typed<String>> {
        if text.is_none() {
            self.problems.push(Problem::new(format!("{}.{name}", func.path), func.at, "nothing", what));
        }
        text.clone()
    }

    fn length(&mut self, func: &RawRewardFunc) -> Option<Judge> {
        let mut bound = |typed: &Option<Typed<i64>>| {
            let typed = typed.as_ref()?;
            match u32::try_from(typed.value) {
                Ok(bound) if bound > 0 => Some(bound),
                _ => {
                    let found = format!("`{}`", typed.value);
                    self.problems.push(Problem::new(&typed.path, typed.at, found, "a whole number above 0"));
                    None
                }
            }
        };
        let (min, max) = (bound(&func.min), bound(&func.max));
        if func.min.is_none() && func.max.is_none() {
            self.problems.push(Problem::new(&func.path, func.at, "neither", "`min`, `max` or both"));
        }
        if let (Some(min), Some(max), Some(typed)) = (min, max, &func.min)
            && min > max
        {
            let found = format!("`{min}`, and max is {max}");
            self.problems.push(Problem::new(&typed.path, typed.at, found, "no more than `max`"));
        }
        let unit = match func.unit.as_ref().map(|unit| (unit, unit.value.as_str())) {
            None | Some((_, "characters")) => LengthUnit::Characters,
            Some((_, "tokens")) => LengthUnit::Tokens,
            Some((unit, _)) => {
                self.problems.push(unit.problem("`characters` or `tokens`"));
                return None;
            }
        };
        Some(Judge::Length { min, max, unit })
    }

    /// One weight a function.
    fn weights(&mut self, reward: &Reward, read: &Read) {
        let weights = read.values.get("reward_weights").and_then(Value::as_array);
        if let Some(weights) = weights
            && weights.len() != reward.funcs.len()
        {
            let names: Vec<&str> = reward.funcs.iter().map(|func| func.name.as_str()).collect();
            let found = format!("{} weights", weights.len());
            let expected = format!("{}, one a function: {}", reward.funcs.len(), names.join(", "));
            read.problem("reward_weights", &found, &expected, self.problems);
        }
    }

    /// Models that only some task types know.
    fn models_beside(&mut self, spec: &RawSpec, row: &TaskTypeRow, read: &Read) {
        let Some(model) = &spec.model else { return };
        let is_true = |name: &str| read.values.get(name) == Some(&Value::Bool(true));
        if let Some(reference) = &model.reference {
            let known = matches!(row.task_type, TaskType::Dpo | TaskType::Ppo | TaskType::Grpo);
            if !known {
                let expected = format!("no reference with {}: nothing is compared with it", row.name);
                self.problems.push(Problem::new(&reference.path, reference.at, "a further model", expected));
            }
            if row.task_type == TaskType::Dpo && is_true("reference_free") {
                read.problem("reference_free", "true with `model.reference`", "one of the two", self.problems);
            }
            let beta = read.values.get("beta").and_then(Value::as_f64).unwrap_or(0.0);
            if row.task_type == TaskType::Grpo && beta == 0.0 {
                let text = "has no effect: with `beta` 0 nothing is compared with the reference";
                self.note(&reference.path, reference.at, text);
            }
        }
        if row.task_type != TaskType::Ppo {
            if let Some(value) = &model.value {
                let expected = format!("no model of values with {}", row.name);
                self.problems.push(Problem::new(&value.path, value.at, "a further model", expected));
            }
            return;
        }
        match (&model.value, is_true("value_head")) {
            (Some(_), true) => {
                let expected = "false, or no `model.value`: values come from one of the two";
                read.problem("value_head", "true", expected, self.problems);
            }
            (None, false) if spec.reward.as_ref().is_some_and(|reward| reward.model.is_none()) => {
                let at = spec.reward.as_ref().map_or(At::START, |reward| reward.at);
                let expected = "where values start from: `model.value.source`, or `hyperparameters.value_head: true`";
                self.problems.push(Problem::new("spec.model.value", at, "nothing, and no reward model", expected));
            }
            _ => {}
        }
    }
}

/// The keys that were given to a function, but for those that every one takes.
fn given(func: &RawRewardFunc) -> Vec<(&'static str, At)> {
    use crate::task::raw::RawCommand;
    let text = |text: &Text| text.as_ref().map(|text| text.at);
    let number = |number: &Option<Typed<i64>>| number.as_ref().map(|number| number.at);
    let command = func.command.as_ref().map(|command| match command {
        RawCommand::Argv(list) => list.at,
        RawCommand::Shell(lines) => lines.at,
    });
    let all = [
        ("pattern", text(&func.pattern)),
        ("column", text(&func.column)),
        ("keys", func.keys.as_ref().map(|keys| keys.at)),
        ("min", number(&func.min)),
        ("max", number(&func.max)),
        ("unit", text(&func.unit)),
        ("command", command),
    ];
    all.into_iter().filter_map(|(name, at)| Some((name, at?))).collect()
}
