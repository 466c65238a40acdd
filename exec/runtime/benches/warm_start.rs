//! How long an attempt waits for its inputs: from its assignment to its child's first step, with a cold cache and with a
//! warm one, for many small files and for one large one.
//!
//! ```sh
//! cargo build --release -p mloc-runtime --example child
//! cargo bench -p mloc-runtime --bench warm_start
//! ```
//!
//! The origin is an S3 server on this machine: over a real line the cold start takes longer, and the warm one does not.
//! Beside each stands an attempt without inputs: what a start costs anyway. `MLOC_BENCH_LARGE_MIB` (1024) makes the
//! large file smaller.

#[path = "../tests/support/origin.rs"]
mod origin;
#[path = "../tests/support/mod.rs"]
mod support;

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use mloc_core::{
    task::TaskSpec,
    wire::{Assign, Report},
};
use origin::Origin;
use support::{Node, assign, attempt};

/// Figures of a child are seen with its node's heartbeat.
const HEARTBEAT: Duration = Duration::from_millis(2);
const SMALL_FILES: usize = 1000;
const SMALL_BYTES: u64 = 4 << 10;
const WARM_STARTS: u32 = 7;
const COLD_STARTS: u32 = 3;

fn program() -> PathBuf {
    // target/PROFILE/deps/THIS → target/PROFILE/examples/child
    let this = std::env::current_exe().expect("it has a path");
    let program = this.ancestors().nth(2).expect("target/PROFILE").join("examples/child");
    assert!(
        program.exists(),
        "{} is missing: build the example first, in the same profile (cargo build --release -p mloc-runtime --example child)",
        program.display()
    );
    program
}

/// Bytes that no disk and no line makes smaller.
struct Noise(u64);

impl Read for Noise {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        for bytes in into.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            bytes.copy_from_slice(&self.0.to_le_bytes()[..bytes.len()]);
        }
        Ok(into.len())
    }
}

#[tokio::main]
async fn main() {
    // `cargo test --benches` starts benches too; they measure nothing there.
    if !std::env::args().any(|a| a == "--bench") {
        return;
    }
    let Some(origin) = Origin::start() else { return };
    let large_mib: u64 = std::env::var("MLOC_BENCH_LARGE_MIB").map_or(1024, |text| text.parse().expect("a number"));
    for n in 0..SMALL_FILES {
        origin.put(&format!("small/{n:04}.json"), &mut Noise(n as u64 + 1).take(SMALL_BYTES), SMALL_BYTES);
    }
    origin.put("large/w.bin", &mut Noise(7).take(large_mib << 20), large_mib << 20);
    let profile = if cfg!(debug_assertions) { "a debug build" } else { "a release build" };
    println!(
        "{profile}, assignment → first step, medians of {COLD_STARTS} cold and {WARM_STARTS} warm starts, seen within {HEARTBEAT:?}"
    );
    // On the disk that the target folder is on: /tmp may be memory.
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    let mut number = 0;
    let bare = warm(dir.path(), &mut number, support::spec(1, "slow"), &Assign::clone).await;
    println!("without inputs: {:>8.1} ms", ms(bare));
    for (what, key) in [("1000 files of 4 KiB", "small"), (&*format!("one file of {large_mib} MiB"), "large")] {
        let (cold, pins) = cold(dir.path(), &mut number, &origin.taking(key, "slow")).await;
        let unpinned = warm(dir.path(), &mut number, origin.taking(key, "slow"), &Assign::clone).await;
        let pinned = |assign: &Assign| Assign { pins: pins.clone(), ..assign.clone() };
        let warm = warm(dir.path(), &mut number, origin.taking(key, "slow"), &pinned).await;
        println!(
            "{what}: cold {:>8.1} ms, warm {:>6.1} ms, warm without a pin {:>6.1} ms; cold / warm = {:.0}, warm / bare = {:.2}",
            ms(cold),
            ms(warm),
            ms(unpinned),
            cold.as_secs_f64() / warm.as_secs_f64(),
            warm.as_secs_f64() / bare.as_secs_f64()
        );
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

async fn node(dir: &Path) -> Node {
    let store = origin::store(&dir.join("cache"));
    origin::node(&dir.join("node"), &program(), &store, |settings| settings.heartbeat = HEARTBEAT).await
}

/// One start on a node. The attempt goes on until its first step was seen, however late that is.
async fn start(node: &Node, mut assign: Assign) -> Duration {
    let id = assign.attempt.clone();
    assign.spec.hyperparameters.insert("steps".into(), 100_000.into());
    let at = Instant::now();
    node.assign(assign).await;
    node.leader.says(|a| a.attempt == id && a.progress.step >= 1).await;
    let took = at.elapsed();
    node.cancel(id.clone()).await;
    assert_eq!(node.leader.end_of(&id).await, Report::Stopped);
    took
}

type Pins = std::collections::BTreeMap<mloc_core::task::spec::Input, mloc_core::task::spec::Pin>;

async fn cold(dir: &Path, number: &mut u32, spec: &TaskSpec) -> (Duration, Pins) {
    let (mut took, mut all) = (Vec::new(), Pins::new());
    for _ in 0..COLD_STARTS {
        fs::remove_dir_all(dir.join("cache")).ok();
        let node = node(dir).await;
        *number += 1;
        took.push(start(&node, assign(*number, spec.clone())).await);
        let Report::Pinned(pins) = node.leader.report(|r| matches!(r, Report::Pinned(_))).await else { unreachable!() };
        all.extend(pins);
        node.worker.stop().await;
    }
    (median(took), all)
}

async fn warm(dir: &Path, number: &mut u32, spec: TaskSpec, change: &dyn Fn(&Assign) -> Assign) -> Duration {
    let node = node(dir).await;
    let mut took = Vec::new();
    for _ in 0..WARM_STARTS {
        *number += 1;
        let assign = change(&assign(*number, spec.clone()));
        assert_eq!(assign.attempt, attempt(*number));
        took.push(start(&node, assign).await);
    }
    node.worker.stop().await;
    median(took)
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
