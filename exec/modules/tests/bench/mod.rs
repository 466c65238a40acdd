//! Runs modules in this process on folders of a test's own.
#![allow(dead_code, reason = "each test file uses its part")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use mloc_core::{
    capability::Grant,
    id::{AttemptId, TaskId},
    task::{self, TaskSpec},
};
use mloc_exec::{Event, Inputs, Memory, ModuleError, ModuleOutput, Programs, Run, child, run::RUN_VERSION};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A file or folder of the golden fixtures.
pub fn golden(path: &str) -> PathBuf {
    in_tree("tests/fixtures/golden").join(path)
}

/// A file or folder of this repository.
pub fn in_tree(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

pub fn read_json(path: &Path) -> Value {
    let text = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&text).expect("JSON")
}

/// A task of the given type, with these settings, as its author would have written it.
pub fn spec(task_type: &str, adapter: Option<Value>, hyperparameters: Value) -> TaskSpec {
    rewarded_spec(task_type, adapter, Value::Null, hyperparameters)
}

/// The same with a reward.
pub fn rewarded_spec(task_type: &str, adapter: Option<Value>, reward: Value, hyperparameters: Value) -> TaskSpec {
    let mut task = json!({
        "apiVersion": "mloc/v1",
        "kind": "TrainingTask",
        "metadata": {"name": "t", "owner": "o"},
        "spec": {
            "taskType": task_type,
            "dataset": {
                "source": {"type": "local", "identifier": "volume/data.jsonl"},
                // There only where a test has it among its inputs.
                "eval": {"source": {"type": "local", "identifier": "volume/held_out.jsonl"}},
            },
            "hyperparameters": hyperparameters,
        },
    });
    if task_type != "pretrain" {
        task["spec"]["model"] = json!({"source": {"type": "local", "identifier": "volume/model"}});
    }
    if let Some(adapter) = adapter {
        task["spec"]["model"]["adapter"] = adapter;
    }
    if !reward.is_null() {
        task["spec"]["reward"] = reward;
    }
    task::parse(&task.to_string(), "task.json").unwrap_or_else(|problems| panic!("{problems}")).spec
}

/// One task with its inputs and its worker's folders.
pub struct Bench {
    pub spec: TaskSpec,
    pub inputs: Inputs,
    pub grant: Grant,
    /// How programs of users are run; not at all unless said.
    pub programs: Option<Programs>,
    /// As how many devices the processor counts.
    pub cpu_devices: usize,
    /// What there is; nobody has looked unless said.
    pub memory: Memory,
    pub folder: TempDir,
}

/// What an attempt said and came to.
pub struct Attempt {
    pub events: Vec<Event>,
    pub ended: Result<ModuleOutput, ModuleError>,
}

impl Bench {
    pub fn new(spec: TaskSpec, inputs: Inputs) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let memory = Memory::default();
        Self { spec, inputs, grant: Grant::default(), programs: None, cpu_devices: 1, memory, folder }
    }

    pub fn artifacts(&self) -> PathBuf {
        self.folder.path().join("artifacts")
    }

    pub fn checkpoints(&self) -> PathBuf {
        self.folder.path().join("checkpoints")
    }

    /// Steps of the checkpoints that are there, whole or not.
    pub fn checkpoints_there(&self) -> Vec<u64> {
        let Ok(entries) = fs::read_dir(self.checkpoints()) else { return Vec::new() };
        let names = entries.map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned());
        let mut steps: Vec<u64> = names.filter_map(|name| name.strip_prefix("step-")?.parse().ok()).collect();
        steps.sort_unstable();
        steps
    }

    /// What a worker hands to an attempt: checkpoints stay, artifacts are begun anew.
    pub fn fresh_run(&self) -> Run {
        if self.artifacts().exists() {
            fs::remove_dir_all(self.artifacts()).expect("remove");
        }
        Run {
            v: RUN_VERSION,
            attempt: AttemptId { task: TaskId::new("t"), replica: 0, attempt: 1 },
            spec: self.spec.clone(),
            grant: self.grant.clone(),
            inputs: self.inputs.clone(),
            pins: BTreeMap::new(),
            started_unix_ms: 0,
            artifacts: self.artifacts(),
            checkpoints: self.checkpoints(),
            result: self.folder.path().join("result.json"),
            threads: 2,
            cpu_devices: self.cpu_devices,
            siblings: None,
            keep_checkpoints: 0,
            work: self.folder.path().join("work"),
            programs: self.programs.clone(),
            memory: self.memory,
        }
    }

    /// Runs an attempt. It is asked to stop when `stop_when` says so of an event.
    pub fn attempt(&self, stop_when: impl Fn(&Event) -> bool + Send + Sync + 'static) -> Attempt {
        self.attempt_with(false, stop_when)
    }

    /// As [`Self::attempt`]; `stop` asks it before it begins.
    pub fn attempt_with(&self, stop: bool, stop_when: impl Fn(&Event) -> bool + Send + Sync + 'static) -> Attempt {
        let run = self.fresh_run();
        let events = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(stop));
        let tell = {
            let (events, stop) = (events.clone(), stop.clone());
            Arc::new(move |event: &Event| {
                events.lock().expect("lock").push(event.clone());
                if stop_when(event) {
                    stop.store(true, Ordering::Relaxed);
                }
            })
        };
        let ended = child::run_module(run, stop, tell, mloc_modules::registry());
        let events = std::mem::take(&mut *events.lock().expect("lock"));
        Attempt { events, ended }
    }

    /// Runs to the end.
    pub fn run(&self) -> ModuleOutput {
        self.attempt(|_| false).ended.unwrap_or_else(|e| panic!("{e}"))
    }

    /// What an attempt that must not succeed says, with this machine's paths taken out.
    pub fn failure(&self) -> String {
        let said = match self.attempt(|_| false).ended {
            Ok(output) => panic!("it succeeded: {output:?}"),
            Err(ModuleError::Fatal(said)) => said,
            Err(other) => panic!("not fatal: {other}"),
        };
        let golden = golden("");
        let said = said.replace(&format!("{}/", self.folder.path().display()), "");
        said.replace(&*golden.to_string_lossy(), "")
    }

    /// The lines of its log, without what the clock and the machine have a part in.
    pub fn log(&self) -> Vec<BTreeMap<String, Value>> {
        let text = fs::read_to_string(self.artifacts().join("training_log.jsonl")).expect("log");
        let line = |line: &str| {
            let mut line: BTreeMap<String, Value> = serde_json::from_str(line).expect("line");
            let of_steps = line.contains_key("loss");
            for measured in ["tokens_per_second", "peak_memory_bytes"].into_iter().filter(|_| of_steps) {
                assert!(line.remove(measured).and_then(|v| v.as_f64()).is_some_and(|v| v > 0.0), "{measured}");
            }
            line
        };
        text.lines().map(line).collect()
    }

    /// Everything that it made equals what `unbroken` made, to the bit; in the log all but what the clock had a part in.
    pub fn assert_same(&self, what: &str, unbroken: &Bench) {
        assert_eq!(self.log(), unbroken.log(), "{what}");
        let names = |bench: &Bench| {
            let entries = fs::read_dir(bench.artifacts()).expect("artifacts");
            let mut names: Vec<String> =
                entries.map(|e| e.expect("entry").file_name().to_string_lossy().into_owned()).collect();
            names.sort();
            names
        };
        let wanted = names(unbroken);
        assert!(wanted.iter().any(|n| n.ends_with(".safetensors")), "{wanted:?}");
        assert_eq!(names(self), wanted, "{what}");
        // In the log and its twin for TensorBoard the clock has a part.
        let clocked = |name: &String| name == "training_log.jsonl" || name.contains("tfevents");
        for name in wanted.iter().filter(|name| !clocked(name)) {
            assert!(self.artifact(name) == unbroken.artifact(name), "{what}: {name} differs");
        }
        let result = |bench: &Bench| fs::read_to_string(bench.folder.path().join("result.json")).expect("result");
        assert_eq!(result(self), result(unbroken), "{what}");
    }

    pub fn artifact(&self, name: &str) -> Vec<u8> {
        let path = self.artifacts().join(name);
        fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }
}

impl Attempt {
    /// Lines of the attempt's log.
    pub fn said(&self) -> String {
        let text = |event: &Event| match event {
            Event::Log { text, .. } => Some(text.clone()),
            _ => None,
        };
        self.events.iter().filter_map(text).collect::<Vec<_>>().join("\n")
    }
}
