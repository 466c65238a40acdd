//! What was typed: the shape of a task file, every value with its place. Types are right here and keys are known;
//! what values mean, and whether they go together, is [`super::validate`]'s.

use super::{
    fields::{Fields, TextOrTexts, Typed},
    problem::{At, Problem, Problems},
    yaml::{Key, Node, Tree},
};

/// Pairs of a map whose keys are the user's.
pub type Pairs = Vec<(Typed<String>, Typed<String>)>;
/// A text, when there was one.
pub type Text = Option<Typed<String>>;

/// A whole file.
#[derive(Debug, Default)]
pub struct RawTask {
    /// `apiVersion`.
    pub api_version: Text,
    /// `kind`.
    pub kind: Text,
    /// `metadata`.
    pub metadata: RawMetadata,
    /// `spec`.
    pub spec: RawSpec,
}

/// `metadata`.
#[derive(Debug, Default)]
pub struct RawMetadata {
    pub name: Text,
    pub owner: Text,
    pub project: Text,
    pub labels: Pairs,
    pub annotations: Pairs,
}

/// `spec`.
#[derive(Debug, Default)]
pub struct RawSpec {
    /// Where `spec` stands; what is missing in it is missed there.
    pub at: Option<At>,
    /// Every key that has a value, right or wrong.
    pub keys: Vec<(String, At)>,
    pub task_type: Text,
    pub replicas: Option<Typed<i64>>,
    pub cpu: Text,
    pub memory: Text,
    pub disk: Text,
    pub gpu: Option<RawGpu>,
    pub model: Option<RawModel>,
    pub dataset: Option<RawDataset>,
    pub command: Option<RawCommand>,
    pub code: Option<RawCode>,
    pub reward: Option<RawReward>,
    pub retrieval: Option<RawRetrieval>,
    pub agent: Option<RawAgent>,
    /// Names and values as typed; the table of hyperparameters knows what they may be.
    pub hyperparameters: Vec<(Key, Node)>,
    pub destination: Option<RawLocation>,
    pub artifacts: Vec<Typed<String>>,
    pub keep: Text,
    pub priority: Option<Typed<i64>>,
    pub depends_on: Vec<Typed<String>>,
    pub retry_limit: Option<Typed<i64>>,
    pub retry_backoff: Text,
    pub retry_backoff_max: Text,
    pub timeout_run: Text,
    pub timeout_stop: Text,
    pub timeout_ready: Text,
    pub timeout_idle: Text,
    pub served_name: Text,
    pub health: Option<RawHealth>,
    pub autoscale: Option<RawAutoscale>,
    pub update: Option<RawUpdate>,
    pub node_selector: Pairs,
    pub nodes: Vec<Typed<String>>,
    pub offline_for: Text,
    pub checkpoint: Option<RawLocation>,
    pub env: Pairs,
    pub secrets_from: Vec<Typed<String>>,
}

impl RawSpec {
    /// Whether a key has a value, right or wrong.
    pub fn has(&self, name: &str) -> bool {
        self.keys.iter().any(|(key, _)| key == name)
    }
}

/// `resources.hardware.gpu`.
#[derive(Debug)]
pub struct RawGpu {
    pub kind: Text,
    pub count: Option<Typed<i64>>,
    pub memory: Text,
}

/// `model`.
#[derive(Debug)]
pub struct RawModel {
    pub at: At,
    pub source: Option<RawLocation>,
    pub adapter: Option<RawAdapter>,
    pub reference: Option<RawSource>,
    pub value: Option<RawSource>,
}

/// A further model: a map with `source`.
#[derive(Debug)]
pub struct RawSource {
    pub path: String,
    pub at: At,
    pub source: Option<RawLocation>,
}

/// `reward`.
#[derive(Debug)]
pub struct RawReward {
    pub at: At,
    pub model: Option<RawSource>,
    pub funcs: Option<Typed<Vec<RawRewardFunc>>>,
    pub code: Option<RawCode>,
}

/// One of `reward.funcs`.
#[derive(Debug)]
pub struct RawRewardFunc {
    pub path: String,
    pub at: At,
    pub kind: Text,
    pub name: Text,
    pub pattern: Text,
    pub column: Text,
    pub keys: Option<Typed<Vec<Typed<String>>>>,
    pub min: Option<Typed<i64>>,
    pub max: Option<Typed<i64>>,
    pub unit: Text,
    pub command: Option<RawCommand>,
}

/// `retrieval`.
#[derive(Debug)]
pub struct RawRetrieval {
    pub at: At,
    pub embedder: Option<RawSource>,
    pub reranker: Option<RawSource>,
    pub mode: Text,
    pub top_k: Option<Typed<i64>>,
    pub candidates: Option<Typed<i64>>,
    pub chunk_tokens: Option<Typed<i64>>,
    pub chunk_overlap: Option<Typed<i64>>,
    pub score_floor: Option<Typed<f64>>,
    pub watch: Text,
}

/// `agent`: its keys as typed; the agent knows what they may be.
#[derive(Debug)]
pub struct RawAgent {
    pub at: At,
    pub entries: Vec<(Key, Node)>,
}

/// `model.adapter`.
#[derive(Debug)]
pub struct RawAdapter {
    pub at: At,
    /// Every key that has a value, right or wrong: a training and a service have different ones.
    pub keys: Vec<(String, At)>,
    pub kind: Text,
    pub name: Text,
    pub r: Option<Typed<i64>>,
    pub lora_alpha: Option<Typed<f64>>,
    pub lora_dropout: Option<Typed<f64>>,
    pub target_modules: Option<Typed<TextOrTexts>>,
    pub exclude_modules: Option<Typed<TextOrTexts>>,
    pub rank_pattern: Vec<(Typed<String>, Typed<f64>)>,
    pub alpha_pattern: Vec<(Typed<String>, Typed<f64>)>,
    pub layers_to_transform: Option<Typed<Vec<Typed<i64>>>>,
    pub layers_pattern: Option<Typed<Vec<Typed<String>>>>,
    pub modules_to_save: Option<Typed<Vec<Typed<String>>>>,
    pub use_rslora: Option<Typed<bool>>,
    pub use_dora: Option<Typed<bool>>,
    pub bias: Text,
    pub init_lora_weights: Text,
    pub four_bit: RawFourBit,
    pub source: Option<RawLocation>,
}

impl RawAdapter {
    /// Whether a key has a value, right or wrong.
    pub fn has(&self, name: &str) -> bool {
        self.keys.iter().any(|(key, _)| key == name)
    }
}

/// What `model.adapter` says of 4-bit weights.
#[derive(Debug)]
pub struct RawFourBit {
    pub load_in_4bit: Option<Typed<bool>>,
    pub quant_type: Text,
    pub double_quant: Option<Typed<bool>>,
    pub block_size: Option<Typed<i64>>,
    pub compute_dtype: Text,
    pub quant_storage: Text,
}

/// `dataset`.
#[derive(Debug)]
pub struct RawDataset {
    pub at: At,
    pub source: Option<RawLocation>,
    pub eval: Option<RawLocation>,
    /// How much of the data is held out.
    pub test_size: Option<Typed<f64>>,
    pub prompt_template: Text,
    pub chat_template: Text,
    /// Names that count here, and the data's own.
    pub columns: Pairs,
    pub max_seq_length: Option<Typed<i64>>,
}

/// `command`.
#[derive(Debug)]
pub enum RawCommand {
    /// A list: the program and its arguments.
    Argv(Typed<Vec<Typed<String>>>),
    /// A text: lines for the shell.
    Shell(Typed<String>),
}

/// `code`.
#[derive(Debug)]
pub struct RawCode {
    pub at: At,
    pub source: Option<RawLocation>,
    pub workdir: Text,
}

/// `health`.
#[derive(Debug)]
pub struct RawHealth {
    pub at: At,
    pub path: Text,
    pub every: Text,
    pub timeout: Text,
    pub failures: Option<Typed<i64>>,
}

/// `autoscale`.
#[derive(Debug)]
pub struct RawAutoscale {
    pub at: At,
    pub min: Option<Typed<i64>>,
    pub max: Option<Typed<i64>>,
    pub queue_depth: Option<Typed<i64>>,
    pub up_after: Text,
    pub down_after: Text,
}

/// `update`.
#[derive(Debug)]
pub struct RawUpdate {
    pub at: At,
    pub max_surge: Option<Typed<i64>>,
    pub max_unavailable: Option<Typed<i64>>,
}

/// A source or a destination.
#[derive(Debug)]
pub struct RawLocation {
    pub path: String,
    pub at: At,
    pub kind: Text,
    pub identifier: Text,
    pub location_path: Text,
    pub bucket: Text,
    pub endpoint: Text,
    pub region: Text,
    pub revision: Text,
    pub account: Text,
    pub sha256: Text,
    pub config: Text,
    pub split: Text,
}

/// Which keys a location may have beside the common ones.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    Model,
    Data,
    Code,
    Destination,
}

/// Keys of the contract that this build does not implement: refused by name, never taken in silence.
const SPEC_NOT_YET: &[(&str, &str)] = &[
    ("service", "its settings stand by themselves: `servedName`, `health`, `autoscale`, `update`"),
    ("port", "the program of a service listens where `MLOC_PORT` says, so that several fit on a node"),
    ("args", "`command` is the program with its arguments, all in one list"),
    ("image", "tasks run as child processes of the mesh's own binary; containers are not in this build"),
    ("tools", "requests to a model bring their own; those of an agent are `agent.tools`"),
    ("documents", "write them as `dataset.source`"),
    ("preemptible", "preemption is not in this build"),
    ("schedule", "tasks on a timetable are not in this build"),
];
const HARDWARE_NOT_YET: &[(&str, &str)] = &[("network", "bandwidth is not something this build schedules by")];
const LOAD_4BIT: &str = "weights in 4 bits cannot be trained themselves, only an adapter on them can: write \
                         `adapter: {type: qlora}`; a service has `hyperparameters.quantization: int4`";
const HELD_IN: &str =
    "`hyperparameters` say what weights are held in: `bf16` and `fp16` of a training, `dtype` of a service";
const MODEL_NOT_YET: &[(&str, &str)] = &[
    ("load_in_4bit", LOAD_4BIT),
    ("quantization_config", LOAD_4BIT),
    (
        "load_in_8bit",
        "a training has 4, with `adapter: {type: qlora}`, and a service 8, with `hyperparameters.quantization: int8`",
    ),
    ("quantization", "a service has `hyperparameters.quantization`"),
    ("torch_dtype", HELD_IN),
    ("dtype", HELD_IN),
];
const ADAPTER_NOT_YET: &[(&str, &str)] = &[
    ("peft_type", "`type` says it: lora or qlora"),
    ("task_type", "`spec.taskType` says it"),
    ("use_bnb_nested_quant", "write `bnb_4bit_use_double_quant`"),
    ("load_in_8bit", "weights in 8 bits are not in this build: `type: qlora` holds them in 4"),
    ("llm_int8_skip_modules", "embeddings, norms and the head are never quantised; every linear layer is"),
    ("lora_bias", "a bias beside B is not in this build"),
    ("fan_in_fan_out", "no family of this build stores its weights that way round"),
    ("use_qalora", "QALoRA is not in this build"),
    ("target_parameters", "adapters are beside linear layers in this build, not beside experts' stacked weights"),
    (
        "trainable_token_indices",
        "single rows of the embedding are not in this build: `modules_to_save: [embed_tokens]`",
    ),
    ("layer_replication", "layers are as the model has them in this build"),
    ("ensure_weight_tying", "a head that is trained by itself has weights of its own in this build"),
    ("loftq_config", "LoftQ is not in this build"),
    ("eva_config", "EVA is not in this build"),
    ("corda_config", "CorDA is not in this build"),
    ("alora_invocation_tokens", "aLoRA is not in this build"),
];
const DATASET_NOT_YET: &[(&str, &str)] = &[
    ("streaming", "a data set is pulled whole, and then read a row at a time: it need not fit into memory"),
    ("split", "name it as `dataset.source.split`"),
    ("eval_split", "hold some of the data out with `dataset.test_size`, or name other data as `dataset.eval.source`"),
    ("val_set_size", "hold some of the data out with `dataset.test_size`"),
    ("weights", "mixing of data sets is not in this build"),
];
const CHECKPOINT_NOT_YET: &[(&str, &str)] = &[
    ("every", "set `hyperparameters.save_steps`"),
    ("keep", "set `hyperparameters.save_total_limit`"),
    ("peers", "checkpoints held by other nodes are not in this build: give a `destination`"),
];
const NONE: &[(&str, &str)] = &[];

impl RawTask {
    /// Reads the tree of a file; what does not fit the shape goes to `problems`.
    pub fn read(root: &Node, problems: &mut Problems) -> Self {
        let mut raw = RawTask::default();
        let Some(mut top) = Fields::of(root, "", root.at, problems) else { return raw };
        raw.api_version = top.text("apiVersion", problems);
        raw.kind = top.text("kind", problems);
        // A key whose value has the wrong type was already told.
        if top.get("apiVersion").is_none() {
            top.missing("apiVersion", "`mloc/v1`", problems);
        }
        if top.get("kind").is_none() {
            top.missing("kind", "`TrainingTask` or `ServiceTask`", problems);
        }
        match top.section("metadata", problems) {
            Some(fields) => raw.metadata = metadata(fields, problems),
            None if top.get("metadata").is_none() => top.missing("metadata", "a map with `name`", problems),
            None => {}
        }
        match top.section("spec", problems) {
            Some(fields) => raw.spec = spec(fields, problems),
            None if top.get("spec").is_none() => top.missing("spec", "a map with `taskType`", problems),
            None => {}
        }
        top.finish(&[("status", "a file says what is wanted; what happened is asked with `mloc task`")], problems);
        raw
    }
}

fn metadata(mut fields: Fields<'_>, problems: &mut Problems) -> RawMetadata {
    let raw = RawMetadata {
        name: fields.text("name", problems),
        owner: fields.text("owner", problems),
        project: fields.text("project", problems),
        labels: fields.text_map("labels", problems),
        annotations: fields.text_map("annotations", problems),
    };
    if fields.get("name").is_none() {
        fields.missing("name", "a name for people, such as `sft-mistral-7b`", problems);
    }
    fields.finish(NONE, problems);
    raw
}

fn spec(mut fields: Fields<'_>, problems: &mut Problems) -> RawSpec {
    let task_type = fields.text("taskType", problems);
    let mut raw = RawSpec { at: Some(fields.at), keys: fields.given(), task_type, ..RawSpec::default() };
    if let Some(mut resources) = fields.section("resources", problems) {
        raw.replicas = resources.integer("replicas", problems);
        if let Some(mut hardware) = resources.section("hardware", problems) {
            raw.cpu = hardware.text("cpu", problems);
            raw.memory = hardware.text("memory", problems);
            raw.disk = hardware.text("disk", problems);
            if let Some(mut gpu) = hardware.section("gpu", problems) {
                raw.gpu = Some(RawGpu {
                    kind: gpu.text("type", problems),
                    count: gpu.integer("count", problems),
                    memory: gpu.text("memory", problems),
                });
                gpu.finish(NONE, problems);
            }
            hardware.finish(HARDWARE_NOT_YET, problems);
        }
        resources.finish(NONE, problems);
    }
    raw.model = fields.section("model", problems).map(|section| model(section, problems));
    raw.dataset = fields.section("dataset", problems).map(|section| dataset(section, problems));
    raw.command = command(&mut fields, problems);
    raw.code = fields.section("code", problems).map(|section| code(section, problems));
    raw.reward = fields.section("reward", problems).map(|section| reward(section, problems));
    raw.retrieval = fields.section("retrieval", problems).map(|section| retrieval(section, problems));
    let agent = fields.section("agent", problems);
    raw.agent = agent.map(|agent| RawAgent { at: agent.at, entries: agent.all().to_vec() });
    raw.hyperparameters = fields.section("hyperparameters", problems).map_or(Vec::new(), |s| s.all().to_vec());
    if let Some(mut output) = fields.section("output", problems) {
        raw.destination = location(&mut output, "destination", Use::Destination, problems);
        raw.artifacts = output.texts("artifacts", problems).map_or(Vec::new(), |list| list.value);
        raw.keep = output.text("keep", problems);
        output.finish(NONE, problems);
    }
    raw.priority = fields.integer("priority", problems);
    raw.depends_on = fields.texts("dependsOn", problems).map_or(Vec::new(), |list| list.value);
    if let Some(mut retry) = fields.section("retry", problems) {
        raw.retry_limit = retry.integer("limit", problems);
        raw.retry_backoff = retry.text("backoff", problems);
        raw.retry_backoff_max = retry.text("backoffMax", problems);
        retry.finish(NONE, problems);
    }
    if let Some(mut timeouts) = fields.section("timeouts", problems) {
        raw.timeout_run = timeouts.text("run", problems);
        raw.timeout_stop = timeouts.text("stop", problems);
        raw.timeout_ready = timeouts.text("ready", problems);
        raw.timeout_idle = timeouts.text("idle", problems);
        timeouts.finish(&[("queue", "a bound on waiting is not in this build")], problems);
    }
    service(&mut fields, &mut raw, problems);
    if let Some(mut placement) = fields.section("placement", problems) {
        raw.node_selector = placement.text_map("nodeSelector", problems);
        raw.nodes = placement.texts("nodes", problems).map_or(Vec::new(), |list| list.value);
        raw.offline_for = placement.text("offlineFor", problems);
        let not_yet = [("spread", "spreading replicas is not in this build"), ("affinity", "use `nodeSelector`")];
        placement.finish(&not_yet, problems);
    }
    if let Some(mut checkpoint) = fields.section("checkpoint", problems) {
        raw.checkpoint = location(&mut checkpoint, "destination", Use::Destination, problems);
        checkpoint.finish(CHECKPOINT_NOT_YET, problems);
    }
    raw.env = fields.text_map("env", problems);
    raw.secrets_from = fields.texts("secretsFrom", problems).map_or(Vec::new(), |list| list.value);
    if fields.get("taskType").is_none() {
        fields.missing("taskType", "the module to run, such as `sft`", problems);
    }
    fields.finish(SPEC_NOT_YET, problems);
    raw
}

/// What only a service has.
fn service(fields: &mut Fields<'_>, raw: &mut RawSpec, problems: &mut Problems) {
    raw.served_name = fields.text("servedName", problems);
    if let Some(mut health) = fields.section("health", problems) {
        raw.health = Some(RawHealth {
            at: health.at,
            path: health.text("path", problems),
            every: health.text("every", problems),
            timeout: health.text("timeout", problems),
            failures: health.integer("failures", problems),
        });
        health.finish(&[("port", "it is asked where the service listens")], problems);
    }
    if let Some(mut autoscale) = fields.section("autoscale", problems) {
        raw.autoscale = Some(RawAutoscale {
            at: autoscale.at,
            min: autoscale.integer("min", problems),
            max: autoscale.integer("max", problems),
            queue_depth: autoscale.integer("queueDepth", problems),
            up_after: autoscale.text("upAfter", problems),
            down_after: autoscale.text("downAfter", problems),
        });
        if autoscale.get("max").is_none() {
            autoscale.missing("max", "the most replicas there may be", problems);
        }
        autoscale.finish(&[("idle", "set `timeouts.idle`")], problems);
    }
    if let Some(mut update) = fields.section("update", problems) {
        raw.update = Some(RawUpdate {
            at: update.at,
            max_surge: update.integer("maxSurge", problems),
            max_unavailable: update.integer("maxUnavailable", problems),
        });
        update.finish(NONE, problems);
    }
}

fn model(mut fields: Fields<'_>, problems: &mut Problems) -> RawModel {
    let source = location(&mut fields, "source", Use::Model, problems);
    let adapter = fields.section("adapter", problems).map(|mut adapter| {
        let raw = RawAdapter {
            at: adapter.at,
            keys: adapter.given(),
            kind: adapter.text("type", problems),
            name: adapter.text("name", problems),
            r: adapter.integer("r", problems),
            lora_alpha: adapter.number("lora_alpha", problems),
            lora_dropout: adapter.number("lora_dropout", problems),
            target_modules: adapter.text_or_texts("target_modules", problems),
            exclude_modules: adapter.text_or_texts("exclude_modules", problems),
            rank_pattern: adapter.number_map("rank_pattern", problems),
            alpha_pattern: adapter.number_map("alpha_pattern", problems),
            layers_to_transform: adapter.integers("layers_to_transform", problems),
            layers_pattern: adapter.texts("layers_pattern", problems),
            modules_to_save: adapter.texts("modules_to_save", problems),
            use_rslora: adapter.truth("use_rslora", problems),
            use_dora: adapter.truth("use_dora", problems),
            bias: adapter.text("bias", problems),
            init_lora_weights: adapter.text("init_lora_weights", problems),
            four_bit: RawFourBit {
                load_in_4bit: adapter.truth("load_in_4bit", problems),
                quant_type: adapter.text("bnb_4bit_quant_type", problems),
                double_quant: adapter.truth("bnb_4bit_use_double_quant", problems),
                block_size: adapter.integer("bnb_4bit_blocksize", problems),
                compute_dtype: adapter.text("bnb_4bit_compute_dtype", problems),
                quant_storage: adapter.text("bnb_4bit_quant_storage", problems),
            },
            source: location(&mut adapter, "source", Use::Model, problems),
        };
        adapter.finish(ADAPTER_NOT_YET, problems);
        raw
    });
    let at = fields.at;
    if fields.get("source").is_none() {
        fields.missing("source", "where the model is: a map with `type` and `identifier`", problems);
    }
    let (reference, value) = (beside(&mut fields, "reference", problems), beside(&mut fields, "value", problems));
    fields.finish(MODEL_NOT_YET, problems);
    RawModel { at, source, adapter, reference, value }
}

/// A further model.
fn beside(parent: &mut Fields<'_>, name: &'static str, problems: &mut Problems) -> Option<RawSource> {
    let mut fields = parent.section(name, problems)?;
    let source = location(&mut fields, "source", Use::Model, problems);
    if fields.get("source").is_none() {
        fields.missing("source", "where the model is: a map with `type` and `identifier`", problems);
    }
    let raw = RawSource { path: fields.path.clone(), at: fields.at, source };
    fields.finish(NONE, problems);
    Some(raw)
}

fn reward(mut fields: Fields<'_>, problems: &mut Problems) -> RawReward {
    let raw = RawReward {
        at: fields.at,
        model: beside(&mut fields, "model", problems),
        funcs: reward_funcs(&mut fields, problems),
        code: fields.section("code", problems).map(|section| code(section, problems)),
    };
    let not_yet = [
        ("reward_funcs", "write them under `funcs`"),
        ("functions", "write them under `funcs`"),
        ("weights", "set `hyperparameters.reward_weights`"),
    ];
    fields.finish(&not_yet, problems);
    raw
}

fn reward_funcs(fields: &mut Fields<'_>, problems: &mut Problems) -> Option<Typed<Vec<RawRewardFunc>>> {
    let node = fields.get("funcs")?;
    let path = fields.path_of("funcs");
    let items = match &node.tree {
        Tree::List(items) => items.as_slice(),
        Tree::Scalar { .. } | Tree::Map(_) => {
            problems.push(Problem::new(&path, node.at, node.shown(), "a list of maps with `type`"));
            &[]
        }
    };
    let read = |(index, item): (usize, &Node)| {
        let fields = Fields::of(item, &format!("{path}[{index}]"), item.at, problems)?;
        Some(reward_func(fields, problems))
    };
    let value = items.iter().enumerate().filter_map(read).collect();
    Some(Typed { path, at: node.at, value })
}

fn reward_func(mut fields: Fields<'_>, problems: &mut Problems) -> RawRewardFunc {
    let raw = RawRewardFunc {
        path: fields.path.clone(),
        at: fields.at,
        kind: fields.text("type", problems),
        name: fields.text("name", problems),
        pattern: fields.text("pattern", problems),
        column: fields.text("column", problems),
        keys: fields.texts("keys", problems),
        min: fields.integer("min", problems),
        max: fields.integer("max", problems),
        unit: fields.text("unit", problems),
        command: command(&mut fields, problems),
    };
    if fields.get("type").is_none() {
        fields.missing(
            "type",
            "how it judges: `regex`, `exact_match`, `json`, `length`, `model` or `command`",
            problems,
        );
    }
    fields.finish(&[("weight", "set `hyperparameters.reward_weights`, one a function")], problems);
    raw
}

fn retrieval(mut fields: Fields<'_>, problems: &mut Problems) -> RawRetrieval {
    let raw = RawRetrieval {
        at: fields.at,
        embedder: beside(&mut fields, "embedder", problems),
        reranker: beside(&mut fields, "reranker", problems),
        mode: fields.text("mode", problems),
        top_k: fields.integer("topK", problems),
        candidates: fields.integer("candidates", problems),
        chunk_tokens: fields.integer("chunkTokens", problems),
        chunk_overlap: fields.integer("chunkOverlap", problems),
        score_floor: fields.number("scoreFloor", problems),
        watch: fields.text("watch", problems),
    };
    if fields.get("embedder").is_none() {
        fields.missing("embedder", "the model that makes vectors of texts: a map with `source`", problems);
    }
    fields.finish(&[("documents", "write them as `spec.dataset.source`")], problems);
    raw
}

fn dataset(mut fields: Fields<'_>, problems: &mut Problems) -> RawDataset {
    let at = fields.at;
    let source = location(&mut fields, "source", Use::Data, problems);
    let eval = fields.section("eval", problems).and_then(|mut eval| {
        let source = location(&mut eval, "source", Use::Data, problems);
        if eval.get("source").is_none() {
            eval.missing("source", "where the held-out data is", problems);
        }
        eval.finish(NONE, problems);
        source
    });
    let test_size = fields.number("test_size", problems);
    let (mut prompt_template, mut chat_template, mut columns, mut max_seq_length) = (None, None, Pairs::new(), None);
    if let Some(mut preprocessing) = fields.section("preprocessing", problems) {
        prompt_template = preprocessing.text("prompt_template", problems);
        chat_template = preprocessing.text("chat_template", problems);
        columns = preprocessing.text_map("columns", problems);
        max_seq_length = preprocessing.integer("max_seq_length", problems);
        preprocessing.finish(&[("packing", "set `hyperparameters.packing`")], problems);
    }
    if fields.get("source").is_none() {
        fields.missing("source", "where the data is: a map with `type` and `identifier`", problems);
    }
    fields.finish(DATASET_NOT_YET, problems);
    RawDataset { at, source, eval, test_size, prompt_template, chat_template, columns, max_seq_length }
}

fn command(fields: &mut Fields<'_>, problems: &mut Problems) -> Option<RawCommand> {
    match &fields.get("command")?.tree {
        Tree::Scalar { .. } => fields.text("command", problems).map(RawCommand::Shell),
        Tree::List(_) | Tree::Map(_) => fields.texts("command", problems).map(RawCommand::Argv),
    }
}

fn code(mut fields: Fields<'_>, problems: &mut Problems) -> RawCode {
    let source = location(&mut fields, "source", Use::Code, problems);
    let raw = RawCode { at: fields.at, source, workdir: fields.text("workdir", problems) };
    if fields.get("source").is_none() {
        fields.missing("source", "where the code is: a map with `type` and a path or URL", problems);
    }
    fields.finish(NONE, problems);
    raw
}

fn location(parent: &mut Fields<'_>, name: &'static str, used: Use, problems: &mut Problems) -> Option<RawLocation> {
    let mut fields = parent.section(name, problems)?;
    let mut raw = RawLocation {
        path: fields.path.clone(),
        at: fields.at,
        kind: fields.text("type", problems),
        identifier: fields.text("identifier", problems),
        location_path: fields.text("path", problems),
        bucket: fields.text("bucket", problems),
        endpoint: fields.text("endpoint", problems),
        region: fields.text("region", problems),
        revision: fields.text("revision", problems),
        account: fields.text("account", problems),
        sha256: None,
        config: None,
        split: None,
    };
    if used != Use::Destination {
        raw.sha256 = fields.text("sha256", problems);
    }
    if used == Use::Data {
        raw.config = fields.text("config", problems);
        raw.split = fields.text("split", problems);
    }
    if fields.get("type").is_none() {
        fields.missing("type", "`local`, `s3` or `huggingface`", problems);
    }
    const SECRET: &str = "credentials come from the worker's environment or node.yaml, never from a task";
    let secrets = ["access_key", "secret_key", "access_key_id", "secret_access_key", "token", "credentials"];
    fields.finish(&secrets.map(|name| (name, SECRET)), problems);
    Some(raw)
}
