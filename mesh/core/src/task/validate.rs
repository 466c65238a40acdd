//! From what was typed to what it means. Every problem is collected; past this file nobody checks again.

mod adapter;
mod agent;
mod command;
mod hardware;
mod model;
mod retrieval;
mod reward;
mod service;

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Parsed, artifacts,
    fields::Typed,
    hyperparameters::{self, Read},
    kind::{Kind, TASK_TYPES, TaskType, TaskTypeRow},
    names,
    places::{self, Use},
    problem::{At, Note, Problem, Problems, nearest},
    raw::{Pairs, RawLocation, RawSpec, RawTask, Text},
    spec::{Checkpointing, Location, Metadata, Output, Placement, Retry, TaskSpec},
};
use crate::{
    capability::{Request, SIMULATED},
    files::{self, Brought},
    quantity::{self, BadQuantity},
};

/// The project of a task that names none.
pub const DEFAULT_PROJECT: &str = "default";

/// The paths beside its file that a raw task's sources name.
pub fn beside(raw: &RawTask) -> BTreeSet<String> {
    let (brought, mut problems) = (Brought::default(), Problems::none(""));
    let mut v = Validation { problems: &mut problems, brought: &brought, beside: BTreeSet::new(), notes: Vec::new() };
    // What is wrong with it is told when it is validated.
    let _ = v.task(raw);
    v.beside
}

/// What a raw task means, with what came along with it.
pub fn validate(raw: &RawTask, brought: &Brought, problems: &mut Problems) -> Option<Parsed> {
    let mut v = Validation { problems, brought, beside: BTreeSet::new(), notes: Vec::new() };
    let spec = v.task(raw);
    let mut notes = v.notes;
    notes.sort_by_key(|note| note.at);
    spec.map(|spec| Parsed { spec, notes })
}

struct Validation<'p> {
    problems: &'p mut Problems,
    brought: &'p Brought,
    beside: BTreeSet<String>,
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
        let model = self.model(spec, kind, row);
        let dataset = spec.dataset.as_ref().map(|dataset| self.dataset(dataset));
        let command = self.command(spec, row);
        let read = match row {
            Some(row) => {
                self.needs(spec, row, &request);
                hyperparameters::read(row.task_type, &spec.hyperparameters, self.problems, &mut self.notes)
            }
            None => Read::default(),
        };
        self.lengths(spec, &read);
        self.evaluations(spec, &read);
        let reward = self.reward(spec, row, &read);
        let retrieval = self.retrieval(spec, row);
        let agent = self.agent(spec, row);
        let output = self.output(spec, row);
        let retry = self.retry(spec);
        let timeouts = self.timeouts(spec, kind);
        let service = self.service(raw, kind, row, replicas);
        let placement = self.placement(spec);
        let checkpoint = Checkpointing { destination: self.checkpoints(&spec.checkpoint) };
        let priority = self.priority(spec);
        let depends_on = self.depends_on(raw);
        let env = self.env(&spec.env);
        let secrets_from = self.names(&spec.secrets_from);
        Some(TaskSpec {
            kind: kind?,
            metadata,
            task_type: row?.task_type,
            replicas: service.as_ref().map_or(replicas, |service| service.scale.min),
            request,
            model: model.flatten(),
            dataset: dataset.flatten(),
            command,
            reward,
            retrieval,
            agent,
            service,
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
        if let Some(dataset) = &spec.dataset
            && matches!(row.task_type, TaskType::Inference | TaskType::Agent)
        {
            let expected = format!("no data with {name}, which answers requests");
            let problem = Problem::new("spec.dataset", dataset.at, "a map", expected);
            self.problems.push(problem.hint("leave the key out; `taskType: rag_inference` answers from documents"));
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
        if let Some(count) = spec.gpu.as_ref().and_then(|gpu| gpu.count.as_ref())
            && let Some(reason) = row.one_gpu
            && request.gpu.as_ref().is_some_and(|gpu| gpu.count > 1)
        {
            let problem = Problem::new(&count.path, count.at, format!("`{}`", count.value), format!("1 with {name}"));
            self.problems.push(problem.hint(reason));
        }
        if let Some(kind) = spec.gpu.as_ref().and_then(|gpu| gpu.kind.as_ref())
            && row.needs_real_device
            && request.gpu.as_ref().is_some_and(|gpu| gpu.kind.starts_with(SIMULATED))
        {
            self.problems.push(kind.problem(format!("a real GPU, for {name} computes on it")));
        }
    }

    fn source(&mut self, raw: &Option<RawLocation>) -> Option<Location> {
        self.location(raw.as_ref()?, Use::Model)
    }

    fn data(&mut self, raw: &Option<RawLocation>) -> Option<Location> {
        self.location(raw.as_ref()?, Use::Data)
    }

    fn destination(&mut self, raw: &Option<RawLocation>) -> Option<Location> {
        self.location(raw.as_ref()?, Use::Destination)
    }

    fn checkpoints(&mut self, raw: &Option<RawLocation>) -> Option<Location> {
        let location = self.destination(raw)?;
        if let Location::HuggingFace { .. } = location {
            let kind = raw.as_ref()?.kind.as_ref()?;
            let problem = kind.problem("a place where checkpoints can be replaced: local, s3, gcs or azblob");
            self.problems.push(problem.hint(
                "a repository of the hub keeps every checkpoint for ever in its history; publish the result there, \
                 with output.destination",
            ));
            return None;
        }
        Some(location)
    }

    fn location(&mut self, raw: &RawLocation, used: Use) -> Option<Location> {
        if used != Use::Destination
            && let Some(text) = places::local(raw).filter(|text| files::is_beside(&text.value))
        {
            let text = text.clone();
            return self.brought(&text);
        }
        let location = places::location(raw, used, self.problems)?;
        if let Location::Local { path } = &location
            && path.starts_with('/')
        {
            let text = "an absolute path: no node is chosen for having it; write `VOLUME/path`, and one with that \
                        volume is";
            self.note(&raw.path, raw.at, text);
        }
        Some(location)
    }

    /// A path beside the task file: its files came along, or nobody on the mesh can know them.
    fn brought(&mut self, text: &Typed<String>) -> Option<Location> {
        if text.value.len() > 1024 || text.value.contains(|c: char| c.is_control()) {
            self.problems.push(text.problem("a path of at most 1024 characters, none of them a control character"));
            return None;
        }
        self.beside.insert(text.value.clone());
        let place = self.brought.place(&text.value);
        if place.is_none() {
            let problem = text.problem("a file or folder that came with the task");
            self.problems.push(problem.hint(
                "`mloc submit` sends it when it is there, beside the task file (over REST: PUT /api/v1/files, then `files`); \
                 what lies on nodes is named `VOLUME/path`",
            ));
        }
        place
    }

    fn output(&mut self, spec: &RawSpec, row: Option<&TaskTypeRow>) -> Output {
        let adapter = spec.model.as_ref().is_some_and(|model| model.adapter.is_some());
        // A program makes what it likes, files of no kind we know among it.
        let own_program = row.is_some_and(|row| row.task_type == TaskType::Command);
        let mut artifacts = Vec::new();
        for artifact in &spec.artifacts {
            if let Some(problem) = bad_artifact(artifact, adapter, own_program) {
                self.problems.push(problem);
            }
            if !artifacts.contains(&artifact.value) {
                artifacts.push(artifact.value.clone());
            }
        }
        let destination = self.destination(&spec.destination);
        let keep_ms = self.time(&spec.keep, true);
        if let (Some(keep), Some(_)) = (&spec.keep, &destination) {
            let hint = "what lies at a destination is its owner's: give the bucket a lifecycle rule";
            self.problems.push(keep.problem("no `keep` beside a `destination`").hint(hint));
        }
        Output { destination, artifacts, keep_ms }
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

/// Why a task may not ask for this.
fn bad_artifact(artifact: &Typed<String>, adapter: bool, own_program: bool) -> Option<Problem> {
    let name = artifact.value.as_str();
    if let Some(pattern) = name.strip_prefix(artifacts::FILES) {
        let why = artifacts::pattern(pattern).err()?;
        let problem = artifact.problem("a pattern of paths, such as `files:plots/**/*.png`");
        return Some(problem.hint(why));
    }
    let kinds = || artifacts::KINDS.into_iter().chain(own_program.then_some(artifacts::OTHER));
    if !kinds().any(|kind| kind == name) {
        let list = kinds().collect::<Vec<_>>().join(", ");
        let problem = artifact.problem(format!("one of {list}, or files:PATTERN"));
        return Some(match nearest(name, kinds()) {
            Some(near) => problem.hint(format!("did you mean `{near}`?")),
            None => problem,
        });
    }
    match (name, adapter) {
        _ if own_program => None,
        ("adapter_weights", false) => {
            let problem = artifact.problem("an artifact of a task without an adapter");
            Some(problem.hint("add `model.adapter`, or ask for full_model"))
        }
        ("merged_model", false) => {
            let problem = artifact.problem("an artifact of a task without an adapter");
            Some(problem.hint("without an adapter the whole model is trained: ask for full_model"))
        }
        ("full_model", true) => {
            let problem = artifact.problem("an artifact of a task with an adapter");
            Some(problem.hint("ask for adapter_weights, or for merged_model: the base with the adapter in it"))
        }
        _ => None,
    }
}
