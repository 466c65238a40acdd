//! What a task means, after every check. The ledger stores this; workers run it.
//!
//! Hyperparameters stay a map from the reference's names to JSON values here: `validate` has checked names and
//! types, and each module reads them into its own settings. Places are in `location`, the adapter is in `adapter`,
//! what finds passages is in `retrieval`.

mod adapter;
mod location;
mod retrieval;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use self::{
    adapter::{Adapter, AdapterBias, AdapterInit, AdapterKind, FourBit, Modules, QuantType},
    location::{HubRepo, Input, Location, Pin},
    retrieval::{Retrieval, RetrievalMode},
};
use super::{
    agent,
    kind::{Kind, TaskType},
    reward::Reward,
};
use crate::capability::Request;

/// The feature of a build whose modules share a training step among the GPUs of a node.
pub const SEVERAL_GPUS: &str = "parallel:gpus";

/// One task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskSpec {
    /// Training or service.
    pub kind: Kind,
    /// Names and labels.
    pub metadata: Metadata,
    /// Which module runs it.
    pub task_type: TaskType,
    /// How many workers run it: 1 for training. Of a service: how many it begins with.
    pub replicas: u32,
    /// What each replica asks of its node.
    pub request: Request,
    /// The base model and adapter.
    pub model: Option<Model>,
    /// The data; of `rag_inference` the documents.
    pub dataset: Option<Dataset>,
    /// The program to run; there with `command`, and only then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Command>,
    /// What is rewarded; there with `ppo` and `grpo`, and only then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reward: Option<Reward>,
    /// How passages are found; there with `rag_inference`, and only then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retrieval: Option<Retrieval>,
    /// What the agent is, as its module reads it; there with `agent`, and only then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<Map<String, Value>>,
    /// How it is served; there with a ServiceTask, and only then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<Service>,
    /// Settings under the reference's names.
    pub hyperparameters: BTreeMap<String, Value>,
    /// What to keep and where it goes.
    pub output: Output,
    /// Higher goes first; 0 unless given.
    pub priority: i32,
    /// Names or ids of tasks that must have completed.
    pub depends_on: Vec<String>,
    /// What happens after a failure.
    pub retry: Retry,
    /// Bounds in time.
    pub timeouts: Timeouts,
    /// Where it may run.
    pub placement: Placement,
    /// Where checkpoints go, beside the worker's disk.
    pub checkpoint: Checkpointing,
    /// Environment of the child process.
    pub env: BTreeMap<String, String>,
    /// Names of secrets in the worker's configuration that become environment variables of the child.
    pub secrets_from: Vec<String>,
}

/// Who and what a task is called.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadata {
    /// Name for people; not unique.
    pub name: String,
    /// Usage is accounted to this user.
    pub owner: String,
    /// And grouped by this project.
    pub project: String,
    /// Labels to select by.
    pub labels: BTreeMap<String, String>,
    /// Notes.
    pub annotations: BTreeMap<String, String>,
}

/// A base model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Model {
    /// A folder in Hugging Face layout, or a GGUF file.
    pub source: Location,
    /// The adapter to train, when not all weights are; of a service, the one that is served beside the model.
    pub adapter: Option<Adapter>,
    /// What the trained model is held to; the model as it was before training when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<Location>,
    /// What the model of values starts from; the reward model when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Location>,
}

/// A data set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dataset {
    /// Where it is.
    pub source: Location,
    /// Held-out data: the loss on it is measured before and after training.
    pub eval: Option<Location>,
    /// Or how much of `source` is held out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test_size: Option<TestSize>,
    /// `{column}` template; `None` for the data set's own format.
    pub prompt_template: Option<String>,
    /// The chat template in place of the tokenizer's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat_template: Option<String>,
    /// The data's own names of columns, by those that count here: `prompt` → `question`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub columns: BTreeMap<String, String>,
    /// From `preprocessing.max_seq_length`, when the hyperparameters say nothing.
    pub max_seq_length: Option<u32>,
}

/// How much of a data set is held out, picked by the seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TestSize {
    /// So many rows.
    Rows(u64),
    /// A share of all rows, rounded up to a whole row; in millionths, so that the ledger has no floats.
    Millionths(u32),
}

impl TestSize {
    /// Rows of so many, as `train_test_split` counts them.
    pub fn of(self, rows: usize) -> usize {
        match self {
            TestSize::Rows(count) => usize::try_from(count).unwrap_or(usize::MAX),
            TestSize::Millionths(share) => (rows as u128 * u128::from(share)).div_ceil(1_000_000) as usize,
        }
    }
}

/// A program of the user's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// The program and its arguments; never empty.
    pub argv: Vec<String>,
    /// The code it is started in; an empty folder when absent.
    pub code: Option<Code>,
}

/// Where a program's code comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Code {
    /// A folder, a file, or an archive that is unpacked.
    pub source: Location,
    /// The folder of it to start in; its top when absent.
    pub workdir: Option<String>,
}

/// What is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Output {
    /// Where artifacts are published; the worker's disk only when absent.
    pub destination: Option<Location>,
    /// Kinds of artifact and `files:PATTERN`, see [`super::artifacts`]. Empty: what the module makes unasked.
    pub artifacts: Vec<String>,
    /// How long the worker keeps artifacts that have no destination, in milliseconds; as long as there is room for them
    /// when absent.
    #[serde(default)]
    pub keep_ms: Option<u64>,
}

/// Tries after the first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retry {
    /// How many more tries after node loss or a retryable error.
    pub limit: u32,
    /// Wait before the first of them, in milliseconds; doubles each time up to `backoff_max_ms`.
    pub backoff_ms: u64,
    /// Longest wait, in milliseconds.
    pub backoff_max_ms: u64,
}

impl Default for Retry {
    /// Five tries more: spot machines go, and a resumed run costs little.
    fn default() -> Self {
        Self { limit: 5, backoff_ms: 1_000, backoff_max_ms: 60_000 }
    }
}

/// Bounds in time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeouts {
    /// Longest run of one attempt, in milliseconds.
    pub run_ms: Option<u64>,
    /// Time a child has to stop after it was asked, in milliseconds; 10 s when absent. A replica of a service answers what
    /// it has begun in the first three quarters of it.
    pub stop_ms: Option<u64>,
    /// Longest time from the start of a service's program to its first good health check, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_ms: Option<u64>,
    /// A service that nobody asked anything for so long has no replicas until it is asked again, in milliseconds; it
    /// always has some when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_ms: Option<u64>,
}

/// How a service is served. See [`crate::service`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// What it is called at the API; one owner's in the whole mesh.
    pub served_name: String,
    /// How it shows that it can answer.
    pub health: Health,
    /// How many replicas it has, by its load.
    pub scale: Scale,
    /// How one version of it follows another.
    pub update: Update,
}

/// How a replica shows that it can answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Path of a GET that is answered with 200.
    pub path: String,
    /// Between two looks, in milliseconds.
    pub every_ms: u64,
    /// Longest wait for one answer, in milliseconds.
    pub timeout_ms: u64,
    /// So many looks in a row that fail end a replica that was ready.
    pub failures: u32,
}

impl Default for Health {
    fn default() -> Self {
        Self { path: "/health".to_owned(), every_ms: 2_000, timeout_ms: 5_000, failures: 3 }
    }
}

/// Bounds of the number of replicas, and what moves it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scale {
    /// At least so many, 1 or more; none only after `timeouts.idle`.
    pub min: u32,
    /// At most so many.
    pub max: u32,
    /// Requests under way that one replica is to have at most, on average: with more there is one replica more.
    pub queue_depth: u32,
    /// The load must be above that for so long before replicas are added, in milliseconds.
    pub up_after_ms: u64,
    /// And below what fewer could carry for so long before some are taken away, in milliseconds.
    pub down_after_ms: u64,
}

impl Scale {
    /// Always so many.
    pub fn fixed(replicas: u32) -> Self {
        Self { min: replicas, max: replicas, ..Self::default() }
    }
}

impl Default for Scale {
    fn default() -> Self {
        Self { min: 1, max: 1, queue_depth: 4, up_after_ms: 5_000, down_after_ms: 60_000 }
    }
}

/// How far a service may be from its number of replicas while they are exchanged: for an update, and for a drain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Update {
    /// So many more than wanted.
    pub max_surge: u32,
    /// So many fewer that are ready.
    pub max_unavailable: u32,
}

impl Default for Update {
    /// The new one first: no request meets fewer replicas than before.
    fn default() -> Self {
        Self { max_surge: 1, max_unavailable: 0 }
    }
}

/// Where a task may run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// Labels a node must have.
    pub node_selector: BTreeMap<String, String>,
    /// Names or ids of nodes it may run on; empty for all.
    pub nodes: Vec<String>,
    /// How long a worker computes on without contact, in milliseconds; the lease when absent. Nobody else is given the
    /// attempt meanwhile, nor before a lease is over.
    pub offline_for_ms: Option<u64>,
}

/// Checkpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpointing {
    /// A place other nodes can read: without one a task that changes node starts again at step 0.
    pub destination: Option<Location>,
}

impl TaskSpec {
    /// Into how many shards its replicas part what they hold; `None` where each of them is like the others.
    pub fn shards(&self) -> Option<u32> {
        let service = self.service.as_ref().filter(|_| self.task_type.row().sharded)?;
        Some(service.scale.max.max(1))
    }

    /// Its inputs, and where they come from.
    pub fn sources(&self) -> impl Iterator<Item = (Input, &Location)> {
        let (model, dataset, reward) = (self.model.as_ref(), self.dataset.as_ref(), self.reward.as_ref());
        let sources = [
            (Input::Model, model.map(|m| &m.source)),
            (Input::Adapter, model.and_then(|m| m.adapter.as_ref()?.source.as_ref())),
            (Input::Dataset, dataset.map(|d| &d.source)),
            (Input::Eval, dataset.and_then(|d| d.eval.as_ref())),
            (Input::Code, self.command.as_ref().and_then(|c| Some(&c.code.as_ref()?.source))),
            (Input::Code, reward.and_then(|r| Some(&r.code.as_ref()?.source))),
            (Input::Reward, reward.and_then(|r| r.model.as_ref())),
            (Input::Reference, model.and_then(|m| m.reference.as_ref())),
            (Input::Value, model.and_then(|m| m.value.as_ref())),
            (Input::Embedder, self.retrieval.as_ref().map(|r| &r.embedder)),
            (Input::Reranker, self.retrieval.as_ref().and_then(|r| r.reranker.as_ref())),
        ];
        sources.into_iter().filter_map(|(input, source)| Some((input, source?)))
    }

    /// [`Self::sources`], to be changed.
    pub fn sources_mut(&mut self) -> impl Iterator<Item = &mut Location> {
        let mut sources = Vec::new();
        if let Some(model) = &mut self.model {
            sources.push(&mut model.source);
            sources.extend(model.adapter.as_mut().and_then(|adapter| adapter.source.as_mut()));
            sources.extend(model.reference.as_mut().into_iter().chain(&mut model.value));
        }
        if let Some(dataset) = &mut self.dataset {
            sources.push(&mut dataset.source);
            sources.extend(&mut dataset.eval);
        }
        let command = self.command.as_mut().and_then(|command| command.code.as_mut());
        sources.extend(command.map(|code| &mut code.source));
        if let Some(reward) = &mut self.reward {
            sources.extend(&mut reward.model);
            sources.extend(reward.code.as_mut().map(|code| &mut code.source));
        }
        if let Some(retrieval) = &mut self.retrieval {
            sources.push(&mut retrieval.embedder);
            sources.extend(&mut retrieval.reranker);
        }
        sources.into_iter()
    }

    /// Names or ids of the tasks that must have completed before this one may run: those of `dependsOn`, and those whose
    /// artifacts it takes.
    pub fn waits_for(&self) -> impl Iterator<Item = &str> {
        let taken = self.sources().filter_map(|(_, source)| {
            let Location::Task { identifier, .. } = source else { return None };
            Some(identifier.as_str())
        });
        self.depends_on.iter().map(String::as_str).chain(taken)
    }

    /// The features a node must offer to run this: the module, its sources, destinations and volumes, the kind of adapter
    /// it trains, its secrets, and data parallelism where it asks for several GPUs.
    pub fn needs(&self) -> BTreeSet<String> {
        let mut needs = BTreeSet::from([self.task_type.name().to_owned()]);
        let sources: Vec<&Location> = self.sources().map(|(_, source)| source).collect();
        needs.extend(sources.iter().map(|l| format!("source:{}", l.scheme())));
        let destinations = [self.output.destination.as_ref(), self.checkpoint.destination.as_ref()];
        needs.extend(destinations.into_iter().flatten().map(|l| format!("destination:{}", l.scheme())));
        needs.extend(sources.into_iter().chain(destinations.into_iter().flatten()).filter_map(Location::volume));
        // What a program makes of its settings is its own affair.
        let own_program = self.task_type == TaskType::Command;
        // And what serves a model serves adapters of it.
        if let Some(adapter) = self.model.as_ref().and_then(|m| m.adapter.as_ref())
            && !own_program
            && self.kind == Kind::TrainingTask
        {
            needs.insert(format!("adapter:{}", adapter.kind.name()));
        }
        // Reward functions that are programs run where such tasks do.
        if self.reward.as_ref().is_some_and(Reward::runs_programs) {
            needs.insert(TaskType::Command.name().to_owned());
        }
        needs.extend(self.agent.iter().flat_map(agent::needs).map(str::to_owned));
        needs.extend(self.secrets_from.iter().map(|name| format!("secret:{name}")));
        if self.task_type.row().needs_real_device && self.request.gpu.as_ref().is_some_and(|gpu| gpu.count > 1) {
            needs.insert(SEVERAL_GPUS.to_owned());
        }
        for precision in ["fp16", "bf16"] {
            if !own_program && self.hyperparameters.get(precision) == Some(&Value::Bool(true)) {
                needs.insert(format!("precision:{precision}"));
            }
        }
        needs
    }
}
