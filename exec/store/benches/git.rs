//! A repository of a few thousand files with a history, pulled into an empty cache, beside `git clone --depth 1` from the
//! same server on loopback: as a ratio of times, the best of five each, taken in turns. The program's start is in its
//! time; digests and fsync are in ours.
//!
//! ```sh
//! cargo bench -p mloc-store --bench git
//! ```

#[path = "../tests/support/mod.rs"]
mod support;

use std::{
    io::Write,
    process::Stdio,
    time::{Duration, Instant},
};

use mloc_core::task::spec::Location;
use support::{
    gits::{Gits, Work, git, git_command},
    *,
};

const FILES: usize = 3000;
const COMMITS: usize = 200;
const FILE_BYTES: usize = 4000;
const ROUNDS: usize = 5;

fn main() {
    // `cargo test --benches` starts benches too; they measure nothing there.
    if !std::env::args().any(|a| a == "--bench") {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(compare());
}

async fn compare() {
    let Some(server) = Gits::start().await else { return };
    let work = server.repository("many");
    fill_history(&work);
    let config = config(&server.top());
    let source = Location::Git { url: work.url.clone(), revision: None, path: None };
    let (mut ours, mut gits) = (Duration::MAX, Duration::MAX);
    for round in 0..ROUNDS {
        let store = node(&config, &server.top().join(format!("cache{round}")));
        let begun = Instant::now();
        let pulled = pull(&store, &source, None).await.expect("pulled");
        ours = ours.min(begun.elapsed());
        assert_eq!(pulled.files.len(), FILES);

        let clone = server.top().join(format!("clone{round}"));
        let begun = Instant::now();
        let mut command = git_command(&server.top());
        command.args(["clone", "--quiet", "--depth", "1", &work.url]).arg(&clone);
        let status = tokio::process::Command::from(command).status().await.expect("git starts");
        gits = gits.min(begun.elapsed());
        assert!(status.success());
        let mut theirs = contents(&clone);
        theirs.retain(|name, _| !name.starts_with(".git/"));
        assert!(theirs == contents(&pulled.path), "git has other files");
    }
    let ratio = ours.as_secs_f64() / gits.as_secs_f64();
    println!("{FILES} files, {COMMITS} commits, best of {ROUNDS}: ours {ours:.3?}, git clone --depth 1 {gits:.3?}");
    println!("ours / theirs = {ratio:.2}");
}

/// Writes the history as a stream: thousands of files one commit after the other would take longer than the bench.
fn fill_history(work: &Work) {
    let mut import = git_command(&work.bare);
    import.args(["fast-import", "--quiet"]).stdin(Stdio::piped());
    let mut import = import.spawn().expect("git starts");
    let mut stream = std::io::BufWriter::new(import.stdin.take().expect("it is piped"));
    for commit in 0..COMMITS {
        let message = format!("commit {commit}");
        write!(
            stream,
            "commit refs/heads/main\ncommitter C <c@example.org> {commit} +0000\ndata {}\n{message}\n",
            message.len()
        )
        .unwrap();
        // The first one has all files, the others change some.
        for file in (0..FILES).filter(|file| commit == 0 || file % COMMITS == commit) {
            let bytes = hex::encode(noise((commit * FILES + file) as u64, FILE_BYTES / 2));
            write!(stream, "M 100644 inline d{}/f{file}.txt\ndata {}\n{bytes}\n", file % 50, bytes.len()).unwrap();
        }
    }
    stream.flush().unwrap();
    drop(stream);
    assert!(import.wait().expect("git ends").success());
    git(&work.bare, &["repack", "-adq"]);
}
