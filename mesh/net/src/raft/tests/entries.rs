//! Real entries survive the bytes they travel and rest in. CBOR is exact where serde's representations are.

use std::{collections::BTreeMap, path::Path};

use mloc_core::{
    id::{AttemptId, RequestId, TaskId},
    ledger::entry::{Artifact, Reason, TaskResult},
    time::Millis,
};
use serde_json::json;

use super::super::{
    codec,
    types::{Command, Entry, Ledger, Outcome},
};

fn survives(entry: Entry) {
    let command = Command(entry);
    let bytes = codec::encode("entry", &command).unwrap();
    assert_eq!(codec::decode::<Command>("entry", &bytes).unwrap(), command);
}

#[test]
fn every_example_task_and_the_ledger_that_holds_them_survive() {
    let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs");
    let mut waiting: Vec<(String, Entry)> = Vec::new();
    for file in std::fs::read_dir(configs).unwrap() {
        let path = file.unwrap().path();
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        if !text.contains("apiVersion: mloc/v1") || !text.contains("taskType:") {
            continue;
        }
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let spec = mloc_core::task::parse(&text, &name).unwrap_or_else(|problems| panic!("{name}: {problems}")).spec;
        let entry = Entry::Submit {
            task: TaskId::new(format!("task-{name}")),
            spec: Box::new(spec),
            request: RequestId::new(name.clone()),
            body_digest: "00".repeat(32),
            at: Millis(1_770_000_000_000),
        };
        survives(entry.clone());
        waiting.push((name, entry));
    }
    // One that reads another's result is taken after it.
    let mut ledger = Ledger::default();
    let mut left = waiting.len() + 1;
    while waiting.len() < left {
        left = waiting.len();
        waiting.retain(|(name, entry)| match ledger.apply(entry) {
            Outcome::Applied => false,
            Outcome::Rejected(Reason::UnknownDependency(_)) => true,
            other => panic!("{name}: {other:?}"),
        });
    }
    let left: Vec<&str> = waiting.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(left, ["ppo_zephyr_7b.yaml"], "its reward model is a task of the user's, and the others are all here");
    assert!(ledger.tasks.len() >= 3, "the examples were not found");
    let bytes = codec::encode("ledger", &ledger).unwrap();
    assert_eq!(codec::decode::<Ledger>("ledger", &bytes).unwrap(), ledger);
}

#[test]
fn a_result_with_figures_of_every_kind_survives() {
    let summary = json!({
        "loss": 2.345678901234567, "tiny": 1e-300, "tokens": u64::MAX, "delta": -3, "none": null, "ok": true,
        "answer": "line\n\"quoted\" \u{1F980}", "list": [1, [2.5, {}], "x"],
    });
    let summary: BTreeMap<String, serde_json::Value> = serde_json::from_value(summary).unwrap();
    let artifact = Artifact {
        path: "adapter_model.safetensors".into(),
        kind: "adapter_weights".into(),
        bytes: 1 << 40,
        sha256: "ab".repeat(32),
    };
    survives(Entry::Finished {
        attempt: AttemptId { task: TaskId::new("task-1"), replica: 0, attempt: 3 },
        result: TaskResult { location: "s3://bucket/run".into(), artifacts: vec![artifact], summary },
        at: Millis(u64::MAX),
    });
}
