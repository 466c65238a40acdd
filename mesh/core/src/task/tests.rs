//! The whole way from bytes to a spec, over the files of this repository.

use std::{fs, path::PathBuf};

use super::*;

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Task files under a folder, by name.
fn files(folder: &str) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(repository().join(folder)).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|e| e == "yaml" || e == "json"));
    paths.sort();
    let name = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
    paths.iter().map(|path| (name(path), fs::read(path).unwrap())).collect()
}

#[test]
fn the_smallest_task_is_taken() {
    let text = "apiVersion: mloc/v1\nkind: TrainingTask\nmetadata: {name: hi}\nspec: {taskType: echo}\n";
    let spec = parse(text, "task.yaml").unwrap();
    assert_eq!(spec.task_type, TaskType::Echo);
    assert_eq!(spec.metadata.project, "default");
}

#[test]
fn every_example_is_taken_and_survives_its_canonical_form() {
    let mut count = 0;
    for folder in ["configs", "tests/fixtures/tasks/good"] {
        for (name, bytes) in files(folder).into_iter().filter(|(name, _)| name != "node.yaml") {
            let spec = match parse_with_notes(&bytes, &name) {
                Ok(parsed) => parsed.spec,
                Err(problems) => panic!("{problems}"),
            };
            let canonical = canonical::write(&spec).unwrap();
            match parse(&canonical, &name) {
                Ok(again) => assert_eq!(again, spec, "{canonical}"),
                Err(problems) => panic!("{problems}\n{canonical}"),
            }
            // The ledger and the wire keep specs as JSON.
            let json = serde_json::to_string(&spec).unwrap();
            assert_eq!(serde_json::from_str::<TaskSpec>(&json).unwrap(), spec);
            count += 1;
        }
    }
    assert!(count >= 5, "only {count} examples");
}
