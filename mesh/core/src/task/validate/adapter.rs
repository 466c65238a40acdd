//! The adapter: which layers get one, what it is like, and how the weights beneath it are held. One that is served is
//! there already, and has a place and a name.

use std::collections::BTreeMap;

use super::Validation;
use crate::task::{
    fields::{TextOrTexts, Typed},
    kind::{Kind, TaskTypeRow},
    names,
    problem::{Problem, nearest, show},
    raw::{RawAdapter, RawFourBit, Text},
    spec::{Adapter, AdapterBias, AdapterInit, AdapterKind, FourBit, Modules, QuantType},
};

const ALL_LINEAR: &str = "all-linear";
/// Keys that say how an adapter is made.
const OF_TRAINING: [&str; 15] = [
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "exclude_modules",
    "rank_pattern",
    "alpha_pattern",
    "layers_to_transform",
    "layers_pattern",
    "modules_to_save",
    "use_rslora",
    "use_dora",
    "bias",
    "init_lora_weights",
    "load_in_4bit",
];
/// And those of the weights beneath it begin so.
const FOUR_BIT: &str = "bnb_4bit_";
const SERVED: &str = "its adapter_config.json says what an adapter is like: keep `source` and `name`";
const SERVED_IN_4BITS: &str = "the weights beneath are held in 4 bits with `hyperparameters.quantization: int4`";
/// As bitsandbytes has them.
const BLOCK_SIZES: [i64; 8] = [32, 64, 128, 256, 512, 1024, 2048, 4096];
/// Longest pattern: a task is no place for a program.
const LONGEST: usize = 1024;

impl Validation<'_> {
    /// One that is to be trained.
    pub(super) fn adapter(&mut self, raw: &RawAdapter, kind: Option<Kind>) -> Option<Adapter> {
        if !raw.has("type") {
            let path = "spec.model.adapter.type";
            self.problems.push(Problem::new(path, raw.at, "nothing", "`lora` or `qlora`"));
        }
        if let (Some(name), Some(Kind::TrainingTask)) = (&raw.name, kind) {
            let problem = name.problem("no name of an adapter in a TrainingTask");
            self.problems.push(problem.hint("it gets one where it is served: leave the key out"));
        }
        let kind = self.word(&raw.kind, &[("lora", AdapterKind::Lora), ("qlora", AdapterKind::Qlora)]);
        let r = raw.r.as_ref().map_or(8, |r| self.rank(&r.path, r, r.value as f64));
        let alpha = raw.lora_alpha.as_ref().map_or(8_000, |alpha| self.alpha(alpha));
        let dropout = raw.lora_dropout.as_ref().map_or(0, |dropout| {
            let expected = "a share from 0 to below 1, with at most 6 digits after the point";
            self.fixed(dropout, 1e6, 0.0..=999_999.0, expected)
        });
        let target_modules = match &raw.target_modules {
            Some(modules) => self.modules(modules, true).unwrap_or_default(),
            None => Modules::default(),
        };
        let exclude_modules = raw.exclude_modules.as_ref().and_then(|modules| self.modules(modules, false));
        let mut rank_pattern = BTreeMap::new();
        for (pattern, rank) in &raw.rank_pattern {
            let rank = self.rank(&rank.path, rank, rank.value);
            rank_pattern.extend(self.pattern(pattern).map(|pattern| (pattern, rank)));
        }
        let mut alpha_pattern_milli = BTreeMap::new();
        for (pattern, alpha) in &raw.alpha_pattern {
            let alpha = self.alpha(alpha);
            alpha_pattern_milli.extend(self.pattern(pattern).map(|pattern| (pattern, alpha)));
        }
        let biases = [("none", AdapterBias::None), ("all", AdapterBias::All), ("lora_only", AdapterBias::LoraOnly)];
        let bias = self.word(&raw.bias, &biases).unwrap_or_default();
        let layers_to_transform = self.layers(raw, &target_modules);
        let layers_pattern = self.module_names(raw.layers_pattern.as_ref());
        let modules_to_save = self.module_names(raw.modules_to_save.as_ref());
        let init = self.init(&raw.init_lora_weights);
        let four_bit = kind.map(|kind| self.four_bit(&raw.four_bit, kind)).unwrap_or_default();
        let source = self.source(&raw.source);
        Some(Adapter {
            kind: kind?,
            r,
            lora_alpha_milli: alpha,
            lora_dropout_micro: u32::try_from(dropout).unwrap_or(0),
            target_modules,
            use_rslora: raw.use_rslora.as_ref().is_some_and(|truth| truth.value),
            exclude_modules,
            rank_pattern,
            alpha_pattern_milli,
            layers_to_transform,
            layers_pattern,
            modules_to_save,
            bias,
            use_dora: raw.use_dora.as_ref().is_some_and(|truth| truth.value),
            init,
            four_bit,
            source,
            name: None,
        })
    }

    /// One that is served.
    pub(super) fn served_adapter(&mut self, raw: &RawAdapter, row: Option<&TaskTypeRow>) -> Option<Adapter> {
        for (key, at) in &raw.keys {
            let four_bit = key.starts_with(FOUR_BIT) || key == "load_in_4bit";
            if four_bit || OF_TRAINING.contains(&key.as_str()) {
                let path = format!("spec.model.adapter.{key}");
                let expected = "no setting of training in a ServiceTask";
                let problem = Problem::new(path, *at, format!("the key {}", show(key)), expected);
                self.problems.push(problem.hint(if four_bit { SERVED_IN_4BITS } else { SERVED }));
            }
        }
        match &raw.kind {
            Some(kind) if kind.value == "qlora" => {
                let problem = kind.problem("`lora`, or no type: an adapter is served as it is");
                self.problems.push(problem.hint(SERVED_IN_4BITS));
            }
            kind => {
                self.word(kind, &[("lora", ())]);
            }
        }
        if !raw.has("source") {
            let expected = "where the adapter is: a map with `type` and `identifier`";
            self.problems.push(Problem::new("spec.model.adapter.source", raw.at, "nothing", expected));
        }
        let source = self.source(&raw.source);
        let has_engine = row.is_some_and(|row| row.task_type.has_engine());
        let name = match &raw.name {
            Some(name) if row.is_some() && !has_engine => {
                let problem = name.problem("no name: a program of one's own calls what it serves as it likes");
                self.problems.push(problem.hint("leave the key out"));
                None
            }
            Some(name) => self.told(names::name(name, "", 128)),
            None => has_engine.then(|| Adapter::NAME.to_owned()),
        };
        Some(Adapter { source, name, ..Adapter::default() })
    }

    /// One of some words.
    fn word<T: Copy>(&mut self, text: &Text, words: &[(&'static str, T)]) -> Option<T> {
        let text = text.as_ref()?;
        let found = words.iter().find(|(word, _)| *word == text.value).map(|(_, meaning)| *meaning);
        if found.is_none() {
            let list: Vec<String> = words.iter().map(|(word, _)| format!("`{word}`")).collect();
            let problem = text.problem(list.join(" or "));
            self.problems.push(match nearest(&text.value, words.iter().map(|(word, _)| *word)) {
                Some(near) => problem.hint(format!("did you mean `{near}`?")),
                None => problem,
            });
        }
        found
    }

    fn rank<T>(&mut self, path: &str, typed: &Typed<T>, rank: f64) -> u32 {
        if !(1.0..=1024.0).contains(&rank) || rank.fract() != 0.0 {
            self.problems.push(Problem::new(path, typed.at, format!("`{rank}`"), "a rank from 1 to 1024"));
            return 1;
        }
        rank as u32
    }

    fn alpha(&mut self, alpha: &Typed<f64>) -> u64 {
        let expected = "a number above 0, at most 1000000, with at most 3 digits after the point";
        self.fixed(alpha, 1e3, 1.0..=1e9, expected)
    }

    /// A list of names, or a text: `all-linear`, a name, or a pattern.
    fn modules(&mut self, modules: &Typed<TextOrTexts>, targets: bool) -> Option<Modules> {
        let name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
        match &modules.value {
            TextOrTexts::Text(text) if text == ALL_LINEAR && targets => Some(Modules::Named(vec![text.clone()])),
            TextOrTexts::Text(text) if text.chars().all(name) => {
                let one = modules.with(vec![modules.with(text.clone())]);
                Some(Modules::Named(self.module_names(Some(&one))))
            }
            TextOrTexts::Text(text) => self.pattern(&modules.with(text.clone())).map(Modules::Matching),
            TextOrTexts::Texts(names) if names.is_empty() && !targets => None,
            TextOrTexts::Texts(names) => {
                if names.is_empty() {
                    let expected = "names of linear layers, such as q_proj, or `all-linear`";
                    self.problems.push(Problem::new(&modules.path, modules.at, "an empty list", expected));
                }
                let names = self.module_names(Some(&modules.with(names.clone())));
                if names.len() > 1 && names.iter().any(|name| name == ALL_LINEAR) {
                    let problem = Problem::new(&modules.path, modules.at, "`all-linear` among others", "it alone");
                    self.problems
                        .push(problem.hint("all-linear means every linear layer; `exclude_modules` takes some out"));
                }
                Some(Modules::Named(names))
            }
        }
    }

    fn module_names(&mut self, modules: Option<&Typed<Vec<Typed<String>>>>) -> Vec<String> {
        let mut kept = Vec::new();
        for module in modules.into_iter().flat_map(|modules| &modules.value) {
            match names::name(module, "", 128) {
                Ok(name) if kept.contains(&name) => {
                    self.problems.push(module.problem("each module once"));
                }
                Ok(name) => kept.push(name),
                Err(problem) => self.problems.push(
                    Problem { expected: "the name of a module".to_owned(), hint: None, ..problem }
                        .hint("a pattern stands alone, without a list: target_modules: '.*\\.(q|v)_proj'"),
                ),
            }
        }
        kept
    }

    /// A regular expression that can be read.
    fn pattern(&mut self, text: &Typed<String>) -> Option<String> {
        if text.value.len() > LONGEST {
            self.problems.push(text.problem(format!("a pattern of at most {LONGEST} characters")));
            return None;
        }
        match regex::Regex::new(&text.value) {
            Ok(_) => Some(text.value.clone()),
            Err(error) => {
                let why = error.to_string();
                let why = why.lines().next_back().unwrap_or_default().trim_start_matches("error: ").to_owned();
                self.problems.push(text.problem("a regular expression").hint(why));
                None
            }
        }
    }

    fn layers(&mut self, raw: &RawAdapter, targets: &Modules) -> Vec<u32> {
        let mut layers = Vec::new();
        let typed = raw.layers_to_transform.as_ref();
        for layer in typed.into_iter().flat_map(|layers| &layers.value) {
            match u32::try_from(layer.value).ok().filter(|number| *number < 1 << 16) {
                Some(number) if !layers.contains(&number) => layers.push(number),
                Some(_) => {}
                None => {
                    let found = format!("`{}`", layer.value);
                    self.problems.push(Problem::new(&layer.path, layer.at, found, "the number of a layer, from 0"));
                }
            }
        }
        let by_names = matches!(targets, Modules::Named(names) if names.iter().all(|name| name != ALL_LINEAR));
        if let Some(typed) = typed.filter(|typed| !typed.value.is_empty() && !by_names) {
            let expected = "a list of names in `target_modules` with it, as PEFT has it";
            let hint = "a pattern can hold the numbers itself: '.*\\.layers\\.(0|1)\\..*_proj'";
            self.problems.push(Problem::new(&typed.path, typed.at, "numbers of layers", expected).hint(hint));
        }
        if let Some(pattern) = raw.layers_pattern.as_ref().filter(|_| layers.is_empty()) {
            let expected = "`layers_to_transform` with it";
            self.problems.push(Problem::new(&pattern.path, pattern.at, "a layers_pattern alone", expected));
        }
        layers
    }

    fn init(&mut self, text: &Text) -> AdapterInit {
        match text.as_ref().map(|text| (text, text.value.as_str())) {
            None | Some((_, "true" | "True" | "TRUE")) => AdapterInit::Kaiming,
            Some((_, "gaussian")) => AdapterInit::Gaussian,
            Some((text, _)) => {
                let problem = text.problem("`true` or `gaussian`");
                self.problems
                    .push(problem.hint("pissa, olora, eva, corda, loftq, orthogonal and false are not in this build"));
                AdapterInit::Kaiming
            }
        }
    }

    fn four_bit(&mut self, raw: &RawFourBit, kind: AdapterKind) -> FourBit {
        let default = FourBit::default();
        let places = [
            raw.load_in_4bit.as_ref().filter(|truth| truth.value).map(|v| (&v.path, v.at)),
            raw.quant_type.as_ref().map(|v| (&v.path, v.at)),
            raw.double_quant.as_ref().map(|v| (&v.path, v.at)),
            raw.block_size.as_ref().map(|v| (&v.path, v.at)),
            raw.compute_dtype.as_ref().map(|v| (&v.path, v.at)),
            raw.quant_storage.as_ref().map(|v| (&v.path, v.at)),
        ];
        if kind == AdapterKind::Lora {
            for (path, at) in places.into_iter().flatten() {
                let problem = Problem::new(path, at, "a setting of 4-bit weights", "it with `type: qlora` only");
                self.problems.push(problem.hint("write `type: qlora` for weights in 4 bits"));
            }
            return default;
        }
        if let Some(truth) = raw.load_in_4bit.as_ref().filter(|truth| !truth.value) {
            let problem = Problem::new(&truth.path, truth.at, "`false`", "`true`, which qlora means");
            self.problems.push(problem.hint("write `type: lora` for weights as they are"));
        }
        if let Some(dtype) = &raw.compute_dtype {
            let text = "has no effect: `hyperparameters.bf16` and `fp16` say what products are computed in";
            self.note(&dtype.path, dtype.at, text);
        }
        if let Some(storage) = &raw.quant_storage {
            self.note(&storage.path, storage.at, "has no effect: two codes are held a byte");
        }
        let block_size = raw.block_size.as_ref().map_or(default.block_size, |size| {
            if !BLOCK_SIZES.contains(&size.value) {
                let list = BLOCK_SIZES.map(|size| size.to_string()).join(", ");
                self.problems.push(Problem::new(
                    &size.path,
                    size.at,
                    show(&size.value.to_string()),
                    format!("one of {list}"),
                ));
            }
            u32::try_from(size.value).unwrap_or(default.block_size)
        });
        let types = [("nf4", QuantType::Nf4), ("fp4", QuantType::Fp4)];
        FourBit {
            quant_type: self.word(&raw.quant_type, &types).unwrap_or(default.quant_type),
            block_size,
            double_quant: raw.double_quant.as_ref().map_or(default.double_quant, |truth| truth.value),
        }
    }
}
