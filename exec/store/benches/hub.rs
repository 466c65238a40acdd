//! A pull from the Hub beside `huggingface_hub`'s `snapshot_download`, from the same Hub on this machine's loopback: as a
//! ratio of times, so that the machine's own pace drops out. Ours checks every digest and makes every file durable.
//!
//! ```sh
//! cargo bench -p mloc-store --bench hub
//! ```

#[path = "../tests/support/mod.rs"]
mod support;

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use mloc_core::task::spec::{HubRepo, Location};
use mloc_store::{HubConfig, StoreConfig};
use mloc_test_hub::{Hub, Kind};
use support::{node, noise, pull};

/// A model in shards, and a data set of a thousand small files.
const CASES: [Case; 2] = [
    Case { repo: "org/m", files: 6, bytes: 48 << 20, rounds: 5 },
    Case { repo: "org/small", files: 1000, bytes: 4000, rounds: 3 },
];

#[derive(Clone, Copy)]
struct Case {
    repo: &'static str,
    files: usize,
    /// Of each file.
    bytes: usize,
    rounds: usize,
}

/// Seconds that the client needs, its start left out.
fn theirs(hub: &Hub, case: Case, tmp: &Path, folder: &Path) -> Option<f64> {
    let program = "import sys, time, huggingface_hub as h\nstart = time.perf_counter()\n\
                   h.snapshot_download(sys.argv[2], cache_dir=sys.argv[1])\nprint(time.perf_counter() - start)";
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/servers/hub_client.sh");
    let mut command = Command::new(script);
    command
        .arg(tmp)
        .args(["-c", program])
        .arg(folder)
        .arg(case.repo)
        .env("HF_ENDPOINT", &hub.endpoint)
        .env("HF_HOME", folder);
    let output = command.output().expect("tests/fixtures/servers/hub_client.sh starts");
    String::from_utf8_lossy(&output.stdout).trim().parse().ok()
}

/// Seconds that a pull into an empty cache needs.
fn ours(hub: &Hub, case: Case, folder: &Path) -> f64 {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("threads");
    let hugging_face = HubConfig { endpoint: Some(hub.endpoint.clone()), ..HubConfig::default() };
    let store = node(&StoreConfig { hugging_face, ..StoreConfig::default() }, folder);
    let source = Location::HuggingFace {
        identifier: case.repo.into(),
        revision: "main".into(),
        repo: HubRepo::Model,
        path: None,
        config: None,
        split: None,
    };
    let start = Instant::now();
    let pulled = runtime.block_on(pull(&store, &source, None)).expect("it comes");
    let seconds = start.elapsed().as_secs_f64();
    assert_eq!((pulled.bytes, pulled.fetched), ((case.files * case.bytes) as u64, (case.files * case.bytes) as u64));
    seconds
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

fn main() {
    // `cargo test --benches` starts benches too; they measure nothing there.
    if !std::env::args().any(|a| a == "--bench") {
        return;
    }
    let hub = Hub::start();
    for case in CASES {
        compare(&hub, case);
    }
}

fn compare(hub: &Hub, case: Case) {
    let Case { repo, files, bytes, rounds } = case;
    let names: Vec<String> = (1..=files).map(|n| format!("part-{n:05}-of-{files:05}.safetensors")).collect();
    let contents: Vec<Vec<u8>> = (0..files as u64).map(|seed| noise(seed, bytes)).collect();
    let listed: Vec<(&str, &[u8])> = names.iter().map(String::as_str).zip(contents.iter().map(Vec::as_slice)).collect();
    hub.commit(Kind::Model, repo, &listed);
    // A folder of this run, on the disk that the target folder is on: /tmp may be memory.
    let tmp: PathBuf = env!("CARGO_TARGET_TMPDIR").into();
    let (mut our_times, mut their_times) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let folder = tmp.join(format!("bench-hub-{}-{round}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        our_times.push(ours(hub, case, &folder.join("ours")));
        let theirs = theirs(hub, case, &tmp, &folder.join("theirs"));
        std::fs::remove_dir_all(&folder).expect("the folder goes");
        let Some(theirs) = theirs else {
            println!("no ratio: huggingface_hub 2.4.0 is neither installed nor to be had; ours took {our_times:.3?} s");
            return;
        };
        their_times.push(theirs);
    }
    let (ours, theirs) = (median(our_times), median(their_times));
    let mib = (files * bytes) as f64 / f64::from(1 << 20);
    println!("{mib:.0} MiB in {files} files, median of {rounds}: ours {ours:.3} s, snapshot_download {theirs:.3} s");
    println!("ours / theirs = {:.2}", ours / theirs);
}
