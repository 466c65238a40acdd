//! How fast an object comes from a bucket on this machine, beside `aws s3 cp` (and `rclone`, where there is one) from the
//! same server. The server is moto, which is slower than either: the ratio says what the client costs, the rate does not
//! say what a line would give.
//!
//! `cargo bench -p mloc-store --bench transfer` takes 1 GiB; `MLOC_BENCH_MIB` another size.

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
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(run());
}

async fn run() {
    let mib: usize = std::env::var("MLOC_BENCH_MIB").ok().and_then(|n| n.parse().ok()).unwrap_or(1024);
    let Some(moto) = Moto::start().await else { return };
    let dir = tempfile::tempdir().expect("a folder");
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
    let mut best = vec![Duration::MAX; ways.len()];
    for round in 0..ROUNDS {
        for ((name, way), best) in ways.iter().zip(&mut best) {
            let to = dir.path().join(format!("{round}-{}", name.replace(' ', "-")));
            let began = Instant::now();
            way.take(&moto, &to).await;
            *best = began.elapsed().min(*best);
            std::fs::remove_dir_all(&to).expect("what came goes");
        }
    }
    for ((name, _), took) in ways.iter().zip(&best) {
        let rate = mib as f64 / took.as_secs_f64();
        let ratio = took.as_secs_f64() / best[0].as_secs_f64();
        println!("{name}: {mib} MiB in {:.2} s, {rate:.0} MiB/s, {ratio:.2} × mloc's time", took.as_secs_f64());
    }
}

enum Way {
    Mloc,
    Aws(PathBuf),
    Rclone(PathBuf),
}

impl Way {
    async fn take(&self, moto: &Moto, to: &Path) {
        match self {
            Way::Mloc => {
                let store = Store::new(moto::with_credentials(config(to))).expect("a store");
                let source = moto::at(&moto.endpoint, "w.bin");
                store.pull(&source, None, to, no_room(), unseen()).await.expect("it comes");
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
