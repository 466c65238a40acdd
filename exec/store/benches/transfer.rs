//! How fast an object comes from a bucket on this machine, beside `aws s3 cp` (and `rclone`, where there is one) from the
//! same server, as ratios of times. The server is moto, which is slower than either: the ratio says what the client
//! costs, the rate does not say what a line would give. How long a program takes to start is measured by itself and left
//! out of its time; digests, fsync and the way into an empty cache are in ours.
//!
//! ```sh
//! cargo bench -p mloc-store --bench transfer
//! ```
//! takes 1 GiB; `MLOC_BENCH_MIB` another size.

#[path = "../tests/support/mod.rs"]
mod support;

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use mloc_store::Store;
use support::{moto::Moto, *};

/// Each way is taken so often, in turns; the fastest counts.
const ROUNDS: usize = 3;

fn main() {
    // `cargo test --benches` starts benches too; they measure nothing there.
    if !std::env::args().any(|a| a == "--bench") {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(run());
}

async fn run() {
    let mib: usize = std::env::var("MLOC_BENCH_MIB").map_or(1024, |text| text.parse().expect("a number"));
    let Some(moto) = Moto::start().await else { return };
    // On the disk that the target folder is on: /tmp may be memory.
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    moto.put("w.bin", &noise(1, mib << 20)).await;
    let mut ways: Vec<(&str, Way)> = vec![("mloc", Way::Mloc)];
    match tool("awscli.sh") {
        Some(aws) => ways.push(("aws s3 cp", Way::Aws(aws))),
        None => skip("no `aws` to compare with"),
    }
    match found("rclone") {
        Some(rclone) => ways.push(("rclone copyto", Way::Rclone(rclone))),
        None => skip("no `rclone` to compare with"),
    }
    let (mut best, mut starts) = (vec![Duration::MAX; ways.len()], vec![Duration::MAX; ways.len()]);
    for round in 0..ROUNDS {
        for ((name, way), (best, start)) in ways.iter().zip(best.iter_mut().zip(&mut starts)) {
            let to = dir.path().join(format!("{round}-{}", name.replace(' ', "-")));
            let began = Instant::now();
            way.start();
            *start = began.elapsed().min(*start);
            let began = Instant::now();
            way.take(&moto, &to, (mib << 20) as u64).await;
            *best = began.elapsed().min(*best);
            std::fs::remove_dir_all(&to).expect("what came goes");
        }
    }
    let ours = best[0].as_secs_f64();
    for ((name, _), (took, start)) in ways.iter().zip(best.iter().zip(&starts)) {
        let (all, start) = (took.as_secs_f64(), start.as_secs_f64());
        let took = all - start;
        let rate = mib as f64 / took;
        println!(
            "{name}: {mib} MiB in {took:.2} s ({start:.2} s to start left out), {rate:.0} MiB/s; ours / this = {:.2}",
            ours / took
        );
    }
}

enum Way {
    Mloc,
    Aws(PathBuf),
    Rclone(PathBuf),
}

impl Way {
    /// Only starts, and ends.
    fn start(&self) {
        match self {
            Way::Mloc => {}
            Way::Aws(program) | Way::Rclone(program) => {
                let output = Command::new(program).arg("--version").output().expect("it starts");
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            }
        }
    }

    async fn take(&self, moto: &Moto, to: &Path, bytes: u64) {
        match self {
            Way::Mloc => {
                let store = Store::new(moto::with_credentials(config(to))).expect("a store");
                let source = moto::at(&moto.endpoint, "w.bin");
                let pulled = pull(&store, &source, None).await.expect("it comes");
                assert_eq!(pulled.fetched, bytes);
            }
            Way::Aws(aws) => {
                let mut command = Command::new(aws);
                command.args(["s3", "cp", "--only-show-errors", "s3://mloc-test/w.bin"]).arg(to.join("w.bin"));
                command.args(["--endpoint-url", &moto.endpoint]);
                ended(command);
            }
            Way::Rclone(rclone) => {
                let remote = format!(":s3,provider=Other,env_auth=true,endpoint='{}':mloc-test/w.bin", moto.endpoint);
                let mut command = Command::new(rclone);
                command.args(["copyto", &remote]).arg(to.join("w.bin"));
                ended(command);
            }
        }
    }
}

fn ended(mut command: Command) {
    command.env("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE").env("AWS_SECRET_ACCESS_KEY", "hunter2");
    command.env("AWS_DEFAULT_REGION", "us-east-1");
    let output = command.output().expect("it starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A program from a fixture script.
fn tool(script: &str) -> Option<PathBuf> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/servers").join(script);
    let output = Command::new(script).arg(env!("CARGO_TARGET_TMPDIR")).output().expect("the script starts");
    let path = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    (output.status.success() && !path.is_empty()).then(|| path.into())
}

fn found(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|folder| folder.join(program)).find(|path| path.is_file())
}
