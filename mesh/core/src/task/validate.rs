//! From what was typed to what it means. Every problem is collected; past this file nobody checks again.

use std::collections::BTreeMap;

use super::{
    Parsed,
    fields::Typed,
    hyperparameters::{self, Read},
    kind::{Kind, TASK_TYPES, TaskType, TaskTypeRow},
    names,
    places::{self, Use},
    problem::{At, Note, Problem, Problems, nearest, show},
    raw::{Pairs, RawAdapter, RawDataset, RawGpu, RawLocation, RawSpec, RawTask, Text},
    spec::{
        Adapter, AdapterKind, Checkpointing, Dataset, Location, Metadata, Model, Output, Placement, Retry, TaskSpec,
        Timeouts,
    },
};
use crate::{
    capability::{self, GpuRequest, Request, SIMULATED},
    quantity::{self, BadQuantity},
};

/// Kinds of artifact that modules of this build make.
pub const ARTIFACTS: [&str; 4] = ["adapter_weights", "full_model", "training_logs", "tokenizer"];
/// The project of a task that names none.
pub const DEFAULT_PROJECT: &str = "default";
/// A core, when a task does not say: a child process needs one to get anywhere.
const DEFAULT_CPU_MILLIS: u64 = 1_000;

/// What a raw task means.
pub fn validate(raw: &RawTask, problems: &mut Problems) -> Option<Parsed> {
    let mut v = Validation { problems, notes: Vec::new() };
    let spec = v.task(raw);
    let notes = v.notes;
    spec.map(|spec| Parsed { spec, notes })
}

struct Validation<'p> {
    problems: &'p mut Problems,
    notes: Vec<Note>,
}

impl Validation<'_> {
    fn told<T>(&mut self, result: Result<T, Problem>) -> Option<T> {
        result.map_err(|problem| self.problems.push(problem)).ok()
    }

    fn note(&mut self, path: &str, at: At, text: &str) {
        self.notes.push(Note { path: path.to_owned(), at, text: text.to_owned() });
    }

    /// All of it. Parts that failed were told, so what stands in for them is never seen.
    fn task(&mut self, raw: &RawTask) -> Option<TaskSpec> {
        if let Some(version) = &raw.api_version
            && version.value != "mloc/v1"
        {
            self.problems.push(version.problem("`mloc/v1`").hint("write mloc/v1"));
        }
        let kind = self.kind(&raw.kind);
        let metadata = self.metadata(raw);
        let spec = &raw.spec;
        let row = self.task_type(&spec.task_type, kind);
        let request = self.request(spec);
        let replicas = self.replicas(spec, kind);
        let model = self.model(spec);
        let dataset = spec.dataset.as_ref().map(|dataset| self.dataset(dataset));
        let read = match row {
            Some(row) => {
                self.needs(spec, row, &request);
                hyperparameters::read(row.task_type, &spec.hyperparameters, self.problems, &mut self.notes)
            }
            None => Read::default(),
        };
        self.lengths(spec, row, &read);
        let output = self.output(spec);
        let retry = self.retry(spec);
        let timeouts =
            Timeouts { run_ms: self.time(&spec.timeout_run, true), stop_ms: self.time(&spec.timeout_stop, false) };
        let placement = self.placement(spec);
        let checkpoint = Checkpointing { destination: self.destination(&spec.checkpoint) };
        let priority = self.priority(spec);
        let depends_on = self.depends_on(raw);
        let env = self.env(&spec.env);
        let secrets_from = self.names(&spec.secrets_from);
        Some(TaskSpec {
            kind: kind?,
            metadata,
            task_type: row?.task_type,
            replicas,
            request,
            model: model.flatten(),
            dataset: dataset.flatten(),
            hyperparameters: read.values,
            output,
            priority,
            depends_on,
            retry,
            timeouts,
            placement,
            checkpoint,
            env,
            secrets_from,
        })
    }

    fn kind(&mut self, text: &Text) -> Option<Kind> {
        let text = text.as_ref()?;
        match text.value.as_str() {
            "TrainingTask" => Some(Kind::TrainingTask),
            "ServiceTask" => Some(Kind::ServiceTask),
            other => {
                let problem = text.problem("`TrainingTask` or `ServiceTask`");
                self.problems.push(match nearest(other, ["TrainingTask", "ServiceTask"]) {
                    Some(near) => problem.hint(format!("did you mean `{near}`?")),
                    None => problem,
                });
                None
            }
        }
    }

    fn task_type(&mut self, text: &Text, kind: Option<Kind>) -> Option<&'static TaskTypeRow> {
        let text = text.as_ref()?;
        let Some(row) = TASK_TYPES.iter().find(|row| row.name == text.value) else {
            let names: Vec<_> = TASK_TYPES.iter().map(|row| row.name).collect();
            let problem = text.problem(format!("one of {}", names.join(", ")));
            let habit = match text.value.to_ascii_lowercase().as_str() {
                "finetune" | "fine-tune" | "fine_tune" | "finetuning" | "train" | "lora" | "qlora" => Some("sft"),
                "reward" | "reward_model" => Some("rm"),
                "rag" => Some("rag_inference"),
                "serve" | "serving" => Some("inference"),
                _ => None,
            };
            self.problems.push(match habit.or_else(|| nearest(&text.value, names)) {
                Some(near) => problem.hint(format!("did you mean `{near}`?")),
                None => problem,
            });
            return None;
        };
        if let Some(kind) = kind
            && !row.kinds.contains(&kind)
        {
            let of_kind = TASK_TYPES.iter().filter(|row| row.kinds.contains(&kind)).map(|row| row.name);
            let problem = text.problem(format!("a type of {kind:?}: {}", of_kind.collect::<Vec<_>>().join(", ")));
            let right = row.kinds.first().map_or_else(String::new, |right| format!("{right:?}"));
            self.problems.push(problem.hint(format!("write `kind: {right}` for {}", row.name)));
        }
        Some(row)
    }

    fn metadata(&mut self, raw: &RawTask) -> Metadata {
        let raw = &raw.metadata;
        let mut named = |text: &Text, extra: &str, longest: usize| {
            let text = text.as_ref()?;
            self.told(names::name(text, extra, longest))
        };
        let name = named(&raw.name, "", 63).unwrap_or_default();
        // Owners are often mail addresses.
        let owner = named(&raw.owner, "@+", 128).unwrap_or_default();
        let project = named(&raw.project, "", 128).unwrap_or_else(|| DEFAULT_PROJECT.to_owned());
        let labels = self.labels(&raw.labels, 256);
        Metadata { name, owner, project, labels, annotations: self.labels(&raw.annotations, 4096) }
    }

    fn labels(&mut self, pairs: &Pairs, longest: usize) -> BTreeMap<String, String> {
        let mut labels = BTreeMap::new();
        for (key, value) in pairs {
            let key = self.told(names::label_key(key));
            if value.value.len() > longest {
                self.problems.push(value.problem(format!("a text of at most {longest} bytes")));
            }
            labels.extend(key.map(|key| (key, value.value.clone())));
        }
        labels
    }

    fn amount(&mut self, text: &Text, read: fn(&str) -> Result<u64, BadQuantity>) -> Option<u64> {
        let text = text.as_ref()?;
        let result = read(&text.value).map_err(|bad| {
            let problem = text.problem(bad.expected);
            match bad.hint {
                Some(hint) => problem.hint(hint),
                None => problem,
            }
        });
        self.told(result)
    }

    /// A span of time; where it bounds work, 0 would leave none.
    fn time(&mut self, text: &Text, above_zero: bool) -> Option<u64> {
        let value = self.amount(text, quantity::duration_ms)?;
        if above_zero
            && value == 0
            && let Some(text) = text
        {
            self.problems.push(text.problem("a time above 0").hint("leave the key out for no bound"));
        }
        Some(value)
    }

    fn request(&mut self, spec: &RawSpec) -> Request {
        let cpu_millis = self.amount(&spec.cpu, quantity::cpu_millis).unwrap_or(DEFAULT_CPU_MILLIS);
        if let Some(cpu) = &spec.cpu
            && cpu_millis == 0
        {
            self.problems.push(cpu.problem("some share of a core").hint("write 100m"));
        }
        Request {
            cpu_millis,
            memory_bytes: self.amount(&spec.memory, quantity::bytes).unwrap_or(0),
            disk_bytes: self.amount(&spec.disk, quantity::bytes).unwrap_or(0),
            gpu: spec.gpu.as_ref().map(|gpu| self.gpu(gpu)),
        }
    }

    fn gpu(&mut self, raw: &RawGpu) -> GpuRequest {
        const MOST: i64 = 1024;
        let count = raw.count.as_ref().map_or(1, |count| {
            if !(1..=MOST).contains(&count.value) {
                let problem = Problem::new(&count.path, count.at, format!("`{}`", count.value), format!("1 to {MOST}"));
                let none = count.value == 0;
                self.problems.push(if none { problem.hint("leave `gpu` out to ask for none") } else { problem });
            }
            u32::try_from(count.value).unwrap_or(1)
        });
        let kind = raw.kind.as_ref().map_or_else(|| "any".to_owned(), |kind| self.gpu_kind(kind));
        GpuRequest { kind, count, memory_bytes: self.amount(&raw.memory, quantity::bytes).unwrap_or(0) }
    }

    fn gpu_kind(&mut self, text: &Typed<String>) -> String {
        const VENDORS: [&str; 4] = ["nvidia-", "amd-", "intel-", "apple-"];
        let real = text.value.strip_prefix(SIMULATED).unwrap_or(&text.value);
        let normal = capability::normalise_gpu(real);
        let vendor = VENDORS.iter().any(|vendor| real.starts_with(vendor));
        let plain = real.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
        if real != "any" && !(vendor && plain) {
            let problem = text.problem("`any` or a type as `mloc nodes` lists it, such as nvidia-a100-80gb");
            let simulated = if real.len() < text.value.len() { SIMULATED } else { "" };
            let real = if real.eq_ignore_ascii_case("any") { "any" } else { normal.as_str() };
            self.problems.push(problem.hint(format!("write {simulated}{real}")));
        }
        text.value.clone()
    }

    fn replicas(&mut self, spec: &RawSpec, kind: Option<Kind>) -> u32 {
        let Some(replicas) = &spec.replicas else { return 1 };
        let problem =
            |expected: &str| Problem::new(&replicas.path, replicas.at, format!("`{}`", replicas.value), expected);
        if !(1..=1000).contains(&replicas.value) {
            self.problems.push(problem("1 to 1000"));
        } else if replicas.value > 1 && kind == Some(Kind::TrainingTask) {
            let reason = "data parallelism is not in this build: more replicas would each train a model of their own";
            self.problems.push(problem("1 for a TrainingTask").hint(reason));
        }
        u32::try_from(replicas.value).unwrap_or(1)
    }

    /// What the task type asks of its file.
    fn needs(&mut self, spec: &RawSpec, row: &TaskTypeRow, request: &Request) {
        let at = spec.at.unwrap_or(At::START);
        let name = row.name;
        if row.needs_model && spec.model.is_none() {
            let expected = format!("a map with `source`, for {name} starts from a model");
            self.problems.push(Problem::new("spec.model", at, "nothing", expected));
        }
        if row.needs_dataset && spec.dataset.is_none() {
            let expected = format!("a map with `source`, for {name} learns from data");
            self.problems.push(Problem::new("spec.dataset", at, "nothing", expected));
        }
        if row.task_type == TaskType::Pretrain
            && let Some(model) = &spec.model
        {
            let (path, at, hint) = match &model.adapter {
                Some(adapter) => ("spec.model.adapter", adapter.at, "an adapter needs a trained model under it"),
                None => ("spec.model", model.at, "set its shape under `hyperparameters`, or use `taskType: sft`"),
            };
            let expected = "no model with pretrain, which makes its own from random weights";
            self.problems.push(Problem::new(path, at, "a map", expected).hint(hint));
        }
        if let Some(kind) = spec.gpu.as_ref().and_then(|gpu| gpu.kind.as_ref())
            && row.needs_real_device
            && request.gpu.as_ref().is_some_and(|gpu| gpu.kind.starts_with(SIMULATED))
        {
            self.problems.push(kind.problem(format!("a real GPU, for {name} computes on it")));
        }
    }

    fn source(&mut self, raw: &Option<RawLocation>) -> Option<Location> {
        places::location(raw.as_ref()?, Use::Source, self.problems)
    }

    fn destination(&mut self, raw: &Option<RawLocation>) -> Option<Location> {
        places::location(raw.as_ref()?, Use::Destination, self.problems)
    }

    fn model(&mut self, spec: &RawSpec) -> Option<Option<Model>> {
        let raw = spec.model.as_ref()?;
        let source = self.source(&raw.source);
        let adapter = raw.adapter.as_ref().map(|adapter| self.adapter(adapter));
        Some(source.map(|source| Model { source, adapter: adapter.flatten() }))
    }

    fn adapter(&mut self, raw: &RawAdapter) -> Option<Adapter> {
        let kind = match raw.kind.as_ref().map(|kind| (kind, kind.value.as_str())) {
            Some((_, "lora")) => Some(AdapterKind::Lora),
            Some((_, "qlora")) => Some(AdapterKind::Qlora),
            Some((kind, _)) => {
                self.problems.push(kind.problem("`lora` or `qlora`"));
                None
            }
            None => None,
        };
        if let Some(bias) = raw.bias.as_ref().filter(|bias| bias.value != "none") {
            self.problems.push(bias.problem("`none`: training biases is not in this build"));
        }
        let r = raw.r.as_ref().map_or(8, |r| {
            if !(1..=1024).contains(&r.value) {
                self.problems.push(Problem::new(&r.path, r.at, format!("`{}`", r.value), "a rank from 1 to 1024"));
            }
            u32::try_from(r.value).unwrap_or(1)
        });
        let alpha = raw.lora_alpha.as_ref().map_or(8_000, |alpha| {
            let expected = "a number above 0, at most 1000000, with at most 3 digits after the point";
            self.fixed(alpha, 1e3, 1.0..=1e9, expected)
        });
        let dropout = raw.lora_dropout.as_ref().map_or(0, |dropout| {
            let expected = "a share from 0 to below 1, with at most 6 digits after the point";
            self.fixed(dropout, 1e6, 0.0..=999_999.0, expected)
        });
        let target_modules = match &raw.target_modules {
            Some(modules) => self.target_modules(modules),
            // PEFT's own choice for this family.
            None => vec!["q_proj".to_owned(), "v_proj".to_owned()],
        };
        Some(Adapter {
            kind: kind?,
            r,
            lora_alpha_milli: alpha,
            lora_dropout_micro: u32::try_from(dropout).unwrap_or(0),
            target_modules,
            use_rslora: raw.use_rslora.as_ref().is_some_and(|truth| truth.value),
            source: self.source(&raw.source),
        })
    }

    fn target_modules(&mut self, modules: &Typed<Vec<Typed<String>>>) -> Vec<String> {
        if modules.value.is_empty() {
            let expected = "names of linear layers, such as q_proj, or `all-linear`";
            self.problems.push(Problem::new(&modules.path, modules.at, "an empty list", expected));
        }
        let mut kept = Vec::new();
        for module in &modules.value {
            match names::name(module, "", 128) {
                Ok(name) if kept.contains(&name) => {
                    self.problems.push(module.problem("each module once"));
                }
                Ok(name) => kept.push(name),
                Err(problem) => self.problems.push(Problem {
                    expected: "the name of a linear layer; patterns are not in this build".to_owned(),
                    hint: None,
                    ..problem
                }),
            }
        }
        kept
    }

    /// A number as a whole number of small parts, for the ledger has no floats.
    fn fixed(&mut self, typed: &Typed<f64>, parts: f64, bounds: std::ops::RangeInclusive<f64>, expected: &str) -> u64 {
        let scaled = (typed.value * parts).round();
        let exact = (scaled / parts - typed.value).abs() <= f64::EPSILON * typed.value.abs();
        if !bounds.contains(&scaled) || !exact {
            self.problems.push(Problem::new(&typed.path, typed.at, format!("`{}`", typed.value), expected));
            return 0;
        }
        scaled as u64
    }

    fn dataset(&mut self, raw: &RawDataset) -> Option<Dataset> {
        let source = self.source(&raw.source);
        let eval = self.source(&raw.eval);
        if let Some(split) = raw.eval.as_ref().and_then(|eval| eval.split.as_ref()) {
            self.problems.push(split.problem("no `split` with held-out data: name its own file"));
        }
        let prompt_template = raw.prompt_template.as_ref().and_then(|template| self.template(template));
        let max_seq_length = raw.max_seq_length.as_ref().map(|length| {
            if !(1..=1 << 24).contains(&length.value) {
                let found = format!("`{}`", length.value);
                self.problems.push(Problem::new(&length.path, length.at, found, "a number of tokens, at least 1"));
            }
            u32::try_from(length.value).unwrap_or(1)
        });
        let split = raw.source.as_ref().and_then(|source| source.split.as_ref());
        let split = split.and_then(|split| {
            let hub = !matches!(source, Some(Location::Local { .. } | Location::S3 { .. } | Location::Task { .. }));
            if !hub {
                self.problems.push(split.problem("no `split` here: a path names the file itself"));
            }
            self.told(names::split(split))
        });
        Some(Dataset { source: source?, split, eval, prompt_template, max_seq_length })
    }

    /// A template with at least one `{column}`; `...` stands for none.
    fn template(&mut self, text: &Typed<String>) -> Option<String> {
        if text.value.trim() == "..." {
            self.note(&text.path, text.at, "`...` stands for the data set's own format");
            return None;
        }
        match placeholders(&text.value) {
            Ok(0) => {
                let expected = "a template with at least one `{column}` of the data set";
                let hint =
                    "write for example \"{instruction}\\n{response}\", or leave it out for the data set's own format";
                self.problems.push(text.problem(expected).hint(hint));
            }
            Ok(_) => {}
            Err(found) => {
                let problem = Problem::new(&text.path, text.at, found, "`{column}` with a column's name");
                self.problems.push(problem.hint("write {{ and }} for braces that stand for themselves"));
            }
        }
        Some(text.value.clone())
    }

    /// One bound on the length, however many ways there are to write it.
    fn lengths(&mut self, spec: &RawSpec, row: Option<&TaskTypeRow>, read: &Read) {
        let preprocessing = spec.dataset.as_ref().and_then(|dataset| dataset.max_seq_length.as_ref());
        let (Some(preprocessing), Some(_)) = (preprocessing, row) else { return };
        if let Some(length) = read.values.get("max_length")
            && length.as_i64() != Some(preprocessing.value)
        {
            let name = read.typed.get("max_length").map_or("max_length", |(name, _)| name.as_str());
            let problem = Problem::new(
                &preprocessing.path,
                preprocessing.at,
                format!("`{}`", preprocessing.value),
                format!("{length}, as `hyperparameters.{name}` has it"),
            );
            self.problems.push(problem.hint("keep one of the two"));
        }
    }

    fn output(&mut self, spec: &RawSpec) -> Output {
        let adapter = spec.model.as_ref().is_some_and(|model| model.adapter.is_some());
        let mut artifacts = Vec::new();
        for artifact in &spec.artifacts {
            let name = artifact.value.as_str();
            if !ARTIFACTS.contains(&name) {
                let problem = artifact.problem(format!("one of {}", ARTIFACTS.join(", ")));
                self.problems.push(match nearest(name, ARTIFACTS) {
                    Some(near) => problem.hint(format!("did you mean `{near}`?")),
                    None => problem,
                });
            } else if name == "adapter_weights" && !adapter {
                let hint = "add `model.adapter`, or ask for full_model";
                self.problems.push(artifact.problem("an artifact of a task without an adapter").hint(hint));
            } else if name == "full_model" && adapter {
                let hint = "merging an adapter into its base is not in this build: ask for adapter_weights";
                self.problems.push(artifact.problem("an artifact of a task with an adapter").hint(hint));
            }
            if !artifacts.contains(&artifact.value) {
                artifacts.push(artifact.value.clone());
            }
        }
        Output { destination: self.destination(&spec.destination), artifacts }
    }

    fn retry(&mut self, spec: &RawSpec) -> Retry {
        let default = Retry::default();
        let limit = spec.retry_limit.as_ref().map_or(default.limit, |limit| {
            if !(0..=1000).contains(&limit.value) {
                self.problems.push(Problem::new(&limit.path, limit.at, format!("`{}`", limit.value), "0 to 1000"));
            }
            u32::try_from(limit.value).unwrap_or(0)
        });
        let backoff_ms = self.time(&spec.retry_backoff, false).unwrap_or(default.backoff_ms);
        let given_max = self.time(&spec.retry_backoff_max, false);
        let backoff_max_ms = given_max.unwrap_or(default.backoff_max_ms.max(backoff_ms));
        if let Some(max) = &spec.retry_backoff_max
            && given_max.is_some_and(|given| given < backoff_ms)
        {
            self.problems.push(max.problem("no less than `backoff`"));
        }
        Retry { limit, backoff_ms, backoff_max_ms }
    }

    fn placement(&mut self, spec: &RawSpec) -> Placement {
        Placement {
            node_selector: self.labels(&spec.node_selector, 256),
            nodes: self.names(&spec.nodes),
            offline_for_ms: self.time(&spec.offline_for, false),
        }
    }

    fn priority(&mut self, spec: &RawSpec) -> i32 {
        const MOST: i64 = 1_000_000;
        spec.priority.as_ref().map_or(0, |priority| {
            if !(-MOST..=MOST).contains(&priority.value) {
                let expected = format!("-{MOST} to {MOST}");
                self.problems.push(Problem::new(
                    &priority.path,
                    priority.at,
                    format!("`{}`", priority.value),
                    expected,
                ));
            }
            i32::try_from(priority.value).unwrap_or(0)
        })
    }

    fn depends_on(&mut self, raw: &RawTask) -> Vec<String> {
        let own = raw.metadata.name.as_ref().map(|name| name.value.as_str());
        for name in raw.spec.depends_on.iter().filter(|name| Some(name.value.as_str()) == own) {
            self.problems.push(name.problem("another task: this one would wait for itself"));
        }
        self.names(&raw.spec.depends_on)
    }

    fn names(&mut self, typed: &[Typed<String>]) -> Vec<String> {
        typed.iter().filter_map(|name| self.told(names::name(name, "", 128))).collect()
    }

    fn env(&mut self, pairs: &Pairs) -> BTreeMap<String, String> {
        let mut env = BTreeMap::new();
        for (name, value) in pairs {
            let name = self.told(names::variable(name));
            env.extend(name.map(|name| (name, value.value.clone())));
        }
        env
    }
}

/// How many `{column}` a template has; `{{` and `}}` stand for braces.
fn placeholders(template: &str) -> Result<usize, String> {
    let mut count = 0;
    let mut rest = template;
    while let Some(brace) = rest.find(['{', '}']) {
        let (open, after) = (rest[brace..].starts_with('{'), &rest[brace + 1..]);
        let doubled = after.starts_with(if open { '{' } else { '}' });
        rest = if doubled {
            &after[1..]
        } else if open {
            let Some(close) = after.find('}') else { return Err(format!("the open brace of {}", show(after))) };
            let column = &after[..close];
            if column.is_empty() || !column.chars().all(|c| c.is_alphanumeric() || "_-. ".contains(c)) {
                return Err(show(&format!("{{{column}}}")));
            }
            count += 1;
            &after[close + 1..]
        } else {
            return Err("a closing brace without its opening one".to_owned());
        };
    }
    Ok(count)
}
