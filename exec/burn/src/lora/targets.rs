//! Which layers of a model an adapter's settings mean, by PEFT's rules (`check_target_module_exists`).

use std::collections::BTreeMap;

use regex::Regex;

use super::config::{ALL_LINEAR, LoraConfig, Modules};
use super::{LoraError, setting};
use crate::model::Decoder;

/// An adapter to be: its rank, and what the product of its factors is multiplied by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Planned {
    pub r: usize,
    pub scale: f64,
}

/// What settings come to for a model.
#[derive(Debug)]
pub(crate) struct Plan {
    /// By the module's name.
    pub adapters: BTreeMap<String, Planned>,
    /// Names of parameters that are trained whole.
    pub saved: Vec<String>,
}

/// Checks the settings against the model.
pub(crate) fn plan(model: &Decoder, config: &LoraConfig) -> Result<Plan, LoraError> {
    check(model, config)?;
    let targets = Which::of("target_modules", &config.target_modules)?;
    let excluded = config.exclude_modules.as_ref().map(|m| Which::of("exclude_modules", m)).transpose()?;
    let ranks = Patterns::of("rank_pattern", &config.rank_pattern)?;
    let alphas = Patterns::of("alpha_pattern", &config.alpha_pattern)?;
    let modules: Vec<&str> = model.linears().map(|linear| linear.module()).collect();
    let mut adapters = BTreeMap::new();
    for module in &modules {
        let kept_out = excluded.as_ref().is_some_and(|which| which.has(module)) || is_saved(config, module);
        if targets.has(module) && !kept_out && layer_is_meant(config, module) {
            let r = *ranks.get(module)?.unwrap_or(&config.r);
            let alpha = *alphas.get(module)?.unwrap_or(&config.lora_alpha);
            if r == 0 || r > 1 << 16 {
                return Err(setting("rank_pattern", format!("{r} for {module}; expected 1 to 65536")));
            }
            adapters.insert((*module).to_owned(), Planned { r, scale: config.scale_of(alpha, r) });
        }
    }
    targets.all_meet("target_modules", &modules)?;
    if let Some(excluded) = &excluded {
        excluded.all_meet("exclude_modules", &modules)?;
    }
    ranks.all_meet(&adapters)?;
    alphas.all_meet(&adapters)?;
    if adapters.is_empty() {
        let problem = "no layer is left: exclude_modules, modules_to_save and layers_to_transform take all of them out";
        return Err(setting("target_modules", problem));
    }
    Ok(Plan { adapters, saved: saved(model, config)? })
}

fn check(model: &Decoder, config: &LoraConfig) -> Result<(), LoraError> {
    if config.r == 0 || config.r > 1 << 16 {
        return Err(setting("r", format!("{}; expected 1 or more", config.r)));
    }
    if !(0.0..1.0).contains(&config.lora_dropout) {
        return Err(setting("lora_dropout", format!("{}; expected 0 or more, below 1", config.lora_dropout)));
    }
    if let Some(layers) = &config.layers_to_transform {
        if !matches!(config.target_modules, Modules::Named(_)) {
            let problem = "goes with a list of names in target_modules only; a pattern can hold the numbers itself";
            return Err(setting("layers_to_transform", problem));
        }
        let count = model.layers.len();
        if let Some(missing) = layers.iter().find(|layer| **layer >= count) {
            let problem = format!("{missing}: the model's {count} layers are numbered from 0");
            return Err(setting("layers_to_transform", problem));
        }
    } else if !config.layers_pattern.is_empty() {
        return Err(setting("layers_pattern", "goes with layers_to_transform only"));
    }
    Ok(())
}

/// [`Modules`], ready to be asked.
enum Which {
    All,
    Named(Vec<String>),
    Matching(Regex, String),
}

impl Which {
    fn of(key: &'static str, modules: &Modules) -> Result<Self, LoraError> {
        Ok(match modules {
            Modules::AllLinear => Self::All,
            Modules::Named(names) => Self::Named(names.clone()),
            Modules::Matching(pattern) => {
                Self::Matching(compile(key, &format!("^(?:{pattern})$"), pattern)?, pattern.clone())
            }
        })
    }

    fn has(&self, module: &str) -> bool {
        match self {
            Self::All => true,
            Self::Named(names) => names.iter().any(|name| ends_in(module, name)),
            Self::Matching(pattern, _) => pattern.is_match(module),
        }
    }

    /// Every name, or the pattern, must mean at least one layer: a mistyped one would train less than was asked.
    fn all_meet(&self, key: &'static str, modules: &[&str]) -> Result<(), LoraError> {
        let known = last_parts(modules);
        match self {
            Self::All => Ok(()),
            Self::Named(names) => {
                let lost: Vec<&String> =
                    names.iter().filter(|name| !modules.iter().any(|module| ends_in(module, name))).collect();
                if names.is_empty() || !lost.is_empty() {
                    let near = lost.iter().filter_map(|name| Some(format!("{name} → {}", nearest(name, &known)?)));
                    let near: Vec<String> = near.collect();
                    let hint = if near.is_empty() { String::new() } else { format!(" (near: {})", near.join(", ")) };
                    let known = known.join(", ");
                    let problem = format!("{lost:?} match no layer; known are {known} and {ALL_LINEAR}{hint}");
                    return Err(setting(key, problem));
                }
                Ok(())
            }
            Self::Matching(pattern, typed) => match modules.iter().any(|module| pattern.is_match(module)) {
                true => Ok(()),
                false => {
                    let example = modules.first().copied().unwrap_or_default();
                    let problem =
                        format!("the pattern {typed:?} matches no layer; it must match a whole name such as {example}");
                    Err(setting(key, problem))
                }
            },
        }
    }
}

/// Values for layers whose name ends in what a pattern matches.
struct Patterns<'a, T> {
    key: &'static str,
    patterns: Vec<(&'a String, Regex, &'a T)>,
}

impl<'a, T: PartialEq> Patterns<'a, T> {
    fn of(key: &'static str, patterns: &'a BTreeMap<String, T>) -> Result<Self, LoraError> {
        let compiled = patterns.iter().map(|(pattern, value)| {
            Ok((pattern, compile(key, &format!(r"^(?:.*\.)?(?:{pattern})$"), pattern)?, value))
        });
        Ok(Self { key, patterns: compiled.collect::<Result<_, LoraError>>()? })
    }

    /// The value for a layer. Files do not keep the order of patterns, so two that disagree are none.
    fn get(&self, module: &str) -> Result<Option<&'a T>, LoraError> {
        let mut meant = self.patterns.iter().filter(|(_, pattern, _)| pattern.is_match(module));
        let first = meant.next();
        match (first, meant.find(|(_, _, value)| first.is_some_and(|(_, _, first)| first != value))) {
            (Some((a, ..)), Some((b, ..))) => {
                Err(setting(self.key, format!("{a:?} and {b:?} both match {module}; which one counts?")))
            }
            (first, _) => Ok(first.map(|(_, _, value)| *value)),
        }
    }

    fn all_meet(&self, adapters: &BTreeMap<String, Planned>) -> Result<(), LoraError> {
        let lost = self.patterns.iter().find(|(_, pattern, _)| !adapters.keys().any(|m| pattern.is_match(m)));
        match lost {
            Some((typed, ..)) => Err(setting(self.key, format!("{typed:?} matches no layer with an adapter"))),
            None => Ok(()),
        }
    }
}

fn compile(key: &'static str, whole: &str, typed: &str) -> Result<Regex, LoraError> {
    // The user's own text first: a message about what stands around it would puzzle.
    Regex::new(typed).and_then(|_| Regex::new(whole)).map_err(|error| {
        let why = error.to_string();
        let why = why.lines().next_back().unwrap_or_default().trim_start_matches("error: ").to_owned();
        setting(key, format!("{typed:?} is no regular expression: {why}"))
    })
}

/// Whether a name is `end`, or ends in a dot and it.
fn ends_in(name: &str, end: &str) -> bool {
    name.strip_suffix(end).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// Whether the first number in the name is among those meant.
fn layer_is_meant(config: &LoraConfig, module: &str) -> bool {
    let Some(layers) = &config.layers_to_transform else { return true };
    let parts: Vec<&str> = module.split('.').collect();
    let number = parts.windows(2).find_map(|pair| {
        let fits = config.layers_pattern.is_empty() || config.layers_pattern.iter().any(|p| p == pair[0]);
        pair[1].parse::<usize>().ok().filter(|_| fits)
    });
    number.is_some_and(|number| layers.contains(&number))
}

/// Whether the module, or one it is part of, is trained whole.
fn is_saved(config: &LoraConfig, module: &str) -> bool {
    config.modules_to_save.iter().any(|name| is_part_of(module, name))
}

/// Whether the name, or the beginning of it up to a dot, ends in `end`: `mlp` means all within it.
fn is_part_of(module: &str, end: &str) -> bool {
    let cuts = module.match_indices('.').map(|(at, _)| at).chain([module.len()]);
    cuts.into_iter().any(|at| module[..at].ends_with(end))
}

/// The parameters that `modules_to_save` names.
fn saved(model: &Decoder, config: &LoraConfig) -> Result<Vec<String>, LoraError> {
    let key = "modules_to_save";
    let module_of = |parameter: &str| parameter.rsplit_once('.').map_or(parameter, |(module, _)| module).to_owned();
    let mut names: Vec<String> =
        model.parameters().map(|p| p.name.clone()).filter(|name| !super::is_adapter(name)).collect();
    // A head that shares the embedding's weights can be trained by itself all the same.
    if model.lm_head.is_none() && model.score.is_none() {
        names.push("lm_head.weight".into());
    }
    // PEFT names both heads that its classifiers may have.
    let other_head = |asked: &&String| asked.as_str() == "classifier" && model.score.is_some();
    for asked in config.modules_to_save.iter().filter(|asked| !other_head(asked)) {
        if let Some((name, _)) = model.four_bit().find(|(name, _)| is_part_of(&module_of(name), asked)) {
            let problem =
                format!("{asked:?} names {name}, which is held in 4 bits; what is trained whole must be in f32");
            return Err(setting(key, problem));
        }
        if !names.iter().any(|name| is_part_of(&module_of(name), asked)) {
            let modules: Vec<String> = names.iter().map(|name| module_of(name)).collect();
            let known = last_parts(&modules.iter().map(String::as_str).collect::<Vec<_>>());
            return Err(setting(key, format!("{asked:?} matches no module; known are {}", known.join(", "))));
        }
    }
    names.retain(|name| is_saved(config, &module_of(name)));
    Ok(names)
}

/// The last part of each name, each once, in the order they come.
pub(super) fn last_parts<'a>(names: &[&'a str]) -> Vec<&'a str> {
    let mut parts: Vec<&str> = Vec::new();
    for name in names {
        let last = name.rsplit('.').next().unwrap_or(name);
        if !parts.contains(&last) {
            parts.push(last);
        }
    }
    parts
}

/// The known name that is near to a mistyped one: at most a third of it is wrong.
fn nearest<'a>(typed: &str, known: &[&'a str]) -> Option<&'a str> {
    let plain = |name: &str| name.chars().filter(|c| *c != '_').collect::<String>().to_lowercase();
    let scored = known.iter().map(|name| (strsim::damerau_levenshtein(&plain(typed), &plain(name)), *name));
    let near = scored.filter(|(edits, name)| edits * 3 <= plain(name).chars().count());
    near.min_by_key(|(edits, _)| *edits).map(|(_, name)| name)
}
