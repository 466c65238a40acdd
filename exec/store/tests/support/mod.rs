//! What the cases share: attempts, folders of files, an S3 server, a line that breaks.
#![allow(dead_code, reason = "each test binary uses its own part")]

pub mod clouds;
pub mod gits;
pub mod line;
pub mod moto;
pub mod web;

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use mloc_core::{
    id::{AttemptId, TaskId},
    task::spec::{Location, Pin},
};
use mloc_exec::{ModuleOutput, Moved, OnMoved, OnSaid, Output};
use mloc_store::{CacheConfig, Patience, Pulled, Store, StoreConfig, StoreError};

/// Says that this test is left out, past the harness that keeps what tests print to itself. `MLOC_NO_SKIP=1` forbids it.
pub fn skip(why: &str) {
    let here = std::thread::current();
    let line = format!("SKIP {}: {why}", here.name().unwrap_or("a test"));
    writeln!(std::io::stderr(), "{line}").expect("stderr can be written");
    assert!(std::env::var_os("MLOC_NO_SKIP").is_none_or(|v| v != "1"), "{line}, and MLOC_NO_SKIP=1 forbids it");
}

/// An attempt's id.
pub fn attempt(task: &str, number: u32) -> AttemptId {
    AttemptId { task: TaskId::new(task), replica: 0, attempt: number }
}

/// A place in a volume.
pub fn local(path: &str) -> Location {
    Location::Local { path: path.to_owned() }
}

/// Configuration with one volume `data` and little patience.
pub fn config(data: &Path) -> StoreConfig {
    StoreConfig {
        volumes: BTreeMap::from([("data".to_owned(), data.to_owned())]),
        patience: Patience {
            tries: 4,
            first_wait: Duration::from_millis(5),
            longest_wait: Duration::from_millis(20),
            ..Patience::default()
        },
        cache: CacheConfig { dir: data.join("cache"), ..CacheConfig::default() },
        ..StoreConfig::default()
    }
}

/// Bytes that compress badly and differ by seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        bytes.extend_from_slice(&x.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Writes files below a folder.
pub fn fill(folder: &Path, files: &[(&str, &[u8])]) {
    for (name, bytes) in files {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

/// All files below a folder with their bytes, ours left out.
pub fn contents(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut left = vec![folder.to_owned()];
    while let Some(here) = left.pop() {
        for entry in fs::read_dir(&here).into_iter().flatten() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(folder).unwrap().display().to_string();
            if name.contains(".mloc-") {
                continue;
            }
            if path.is_dir() {
                left.push(path);
            } else {
                all.insert(name, fs::read(path).unwrap());
            }
        }
    }
    all
}

/// What a run made: these files.
pub fn outputs(names: &[&str]) -> ModuleOutput {
    let output = |name: &&str| Output { path: (*name).to_owned(), kind: "file".into() };
    ModuleOutput { outputs: names.iter().map(output).collect(), summary: BTreeMap::new() }
}

/// A node with a cache of its own in `folder`, the rest of it as given.
pub fn node(config: &StoreConfig, folder: &Path) -> Store {
    let cache = CacheConfig { dir: folder.to_owned(), ..config.cache.clone() };
    Store::new(StoreConfig { cache, ..config.clone() }).unwrap()
}

/// A source as a node has it, unseen and unsaid.
pub async fn pull(store: &Store, source: &Location, pin: Option<&Pin>) -> Result<Pulled, StoreError> {
    store.pull(source, pin, unseen(), unsaid()).await
}

/// Nobody listens.
pub fn unsaid() -> OnSaid {
    Arc::new(|_| {})
}

/// Remembers what was said.
pub fn heard() -> (OnSaid, Arc<Mutex<Vec<String>>>) {
    let said = Arc::new(Mutex::new(Vec::new()));
    let kept = said.clone();
    (Arc::new(move |text| kept.lock().unwrap().push(text.to_owned())), said)
}

/// Nobody looks.
pub fn unseen() -> OnMoved {
    Arc::new(|_| {})
}

/// Remembers what it was told.
pub fn seen() -> (OnMoved, Arc<Mutex<Vec<Moved>>>) {
    let told = Arc::new(Mutex::new(Vec::new()));
    let kept = told.clone();
    (Arc::new(move |moved| kept.lock().unwrap().push(moved)), told)
}
