//! Sandbox of real processes for end-to-end cases: nodes on free ports, each with its own data directory, spoken to
//! through the command line as a user would. Waits are on conditions; a case that fails prints every node's log.

pub mod command;
pub mod http;
pub mod python;
pub mod s3;

use std::{
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tempfile::TempDir;

pub use command::{Ran, run_to_end};

/// Longest wait for a condition: far above what it takes, so that only a real fault reaches it.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// The `mloc` binary of this build. `cargo test --workspace` builds it; so does `cargo build`.
pub fn mloc() -> PathBuf {
    let exe = std::env::current_exe().expect("the test's own path");
    let found = exe.ancestors().map(|dir| dir.join("mloc")).find(|path| path.is_file());
    found.expect("no mloc beside this test: run `cargo build` first")
}

/// `tmp` of the target folder, where cases of every crate keep what is dear to install.
pub fn target_tmp() -> PathBuf {
    mloc().ancestors().nth(2).expect("mloc lies in target/PROFILE").join("tmp")
}

/// The repository's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in the root").to_owned()
}

/// Says that this test is left out, past the harness that keeps what tests print to itself.
///
/// # Errors
/// When `MLOC_NO_SKIP=1` forbids it.
pub fn skip(why: &str) -> anyhow::Result<()> {
    let here = std::thread::current();
    let line = format!("SKIP {}: {why}", here.name().unwrap_or("a test"));
    writeln!(std::io::stderr(), "{line}")?;
    ensure!(std::env::var_os("MLOC_NO_SKIP").is_none_or(|v| v != "1"), "{line}, and MLOC_NO_SKIP=1 forbids it");
    Ok(())
}

/// Durations with room for a machine that is busy with clients, programs, models and nodes all at once.
pub const CALM: &str = "timing: {raftHeartbeatMs: 300, electionMinMs: 2000, electionMaxMs: 4000, gossipIntervalMs: 200, \
                    voterStableMs: 500, voterGraceMs: 60000, leaseMs: 15000, workerHeartbeatMs: 500, tickMs: 100}\n";

/// Some nodes, and the folder they live in.
pub struct Sandbox {
    /// Removed at the end.
    pub dir: TempDir,
    nodes: Vec<Node>,
    token: String,
    env: Vec<(String, String)>,
    timing: &'static str,
}

/// One node: its folder, and its process while it runs.
pub struct Node {
    /// Its name.
    pub name: String,
    dir: PathBuf,
    child: Option<Child>,
    args: Vec<String>,
}

/// Short durations, so that elections, leases and promotions take seconds.
pub const FAST: &str = "timing: {raftHeartbeatMs: 100, electionMinMs: 500, electionMaxMs: 1000, gossipIntervalMs: 100, \
                    voterStableMs: 500, voterGraceMs: 60000, leaseMs: 3000, workerHeartbeatMs: 300, tickMs: 100}\n";

impl Sandbox {
    /// An empty one with [`FAST`] durations. `env` is given to every daemon.
    ///
    /// # Errors
    /// When there is no temporary folder.
    pub fn new(env: &[(&str, &str)]) -> anyhow::Result<Self> {
        Self::with_timing(env, FAST)
    }

    /// An empty one with these durations in every node.yaml.
    ///
    /// # Errors
    /// When there is no temporary folder.
    pub fn with_timing(env: &[(&str, &str)], timing: &'static str) -> anyhow::Result<Self> {
        let env = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Ok(Self { dir: TempDir::with_prefix("mloc-sandbox-")?, nodes: Vec::new(), token: String::new(), env, timing })
    }

    /// Starts a node and waits until it serves: the first founds the mesh, the others join it by the first one that
    /// lives. `config` is node.yaml beyond durations.
    ///
    /// # Errors
    /// When it does not come up; with its log.
    pub fn start(&mut self, name: &str, config: &str) -> anyhow::Result<usize> {
        let dir = self.dir.path().join(name);
        std::fs::create_dir_all(&dir)?;
        std::fs::write(dir.join("node.yaml"), format!("{}{config}\n", self.timing))?;
        let mut args: Vec<String> = Vec::new();
        if let Some(seed) = self.nodes.iter().find(|n| n.child.is_some()) {
            args.push("join".into());
            args.push(seed.address("gossip")?);
        } else {
            args.push("up".into());
        }
        for (flag, value) in [
            ("--name", name),
            ("--bind", "127.0.0.1:0"),
            ("--link-bind", "127.0.0.1:0"),
            ("--rest-bind", "127.0.0.1:0"),
        ] {
            args.push(flag.into());
            args.push(value.into());
        }
        for (flag, path) in [("--config", dir.join("node.yaml")), ("--data-dir", dir.join("data"))] {
            args.push(flag.into());
            args.push(path.display().to_string());
        }
        self.nodes.push(Node { name: name.to_owned(), dir, child: None, args });
        let index = self.nodes.len() - 1;
        self.restart(index)?;
        if index == 0 {
            self.token = std::fs::read_to_string(self.nodes[0].dir.join("data/join.token"))
                .context("the founder wrote its join token")?;
        }
        Ok(index)
    }

    /// Starts a node that is down, on its own data, and waits until it serves.
    ///
    /// # Errors
    /// When it does not come up; with its log.
    pub fn restart(&mut self, index: usize) -> anyhow::Result<()> {
        let log = File::options().create(true).append(true).open(self.nodes[index].dir.join("log"))?;
        let (token, env) = (self.token.clone(), self.env.clone());
        let node = &mut self.nodes[index];
        // The old addresses would be taken for the new ones.
        let _ = std::fs::remove_file(node.dir.join("data/node.json"));
        let mut command = Command::new(mloc());
        command.args(&node.args).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        command.env("RUST_LOG", "info").env("MLOC_JOIN_TOKEN", token.trim()).envs(env);
        if token.is_empty() {
            command.env_remove("MLOC_JOIN_TOKEN");
        }
        node.child = Some(command.spawn().context("start mloc")?);
        self.until(&format!("{} serves", self.nodes[index].name.clone()), |sandbox| {
            let node = &mut sandbox.nodes[index];
            if let Some(child) = &mut node.child
                && let Some(status) = child.try_wait()?
            {
                bail!("{} ended with {status}", node.name);
            }
            Ok(node.address("rest").is_ok() && sandbox.run(index, &["mesh"])?.code == 0)
        })
    }

    /// Starts as many nodes with one configuration and waits until as many vote.
    ///
    /// # Errors
    /// When that does not come about; with every node's log.
    pub fn mesh(&mut self, names: &[&str], config: &str, voters: usize) -> anyhow::Result<()> {
        for name in names {
            self.start(name, config)?;
        }
        self.until(&format!("there are {voters} voters"), |s| {
            let mesh = s.run(0, &["mesh", "-o", "json"])?.json()?;
            Ok(mesh["voters"].as_array().is_some_and(|v| v.len() == voters) && mesh["voters_alive"] == voters)
        })
    }

    /// The process of a node that runs.
    ///
    /// # Errors
    /// When it does not run.
    pub fn pid(&self, index: usize) -> anyhow::Result<Pid> {
        let node = &self.nodes[index];
        let child = node.child.as_ref().with_context(|| format!("{} does not run", node.name))?;
        Ok(Pid::from_raw(i32::try_from(child.id())?))
    }

    /// Stops a node's processor time (SIGSTOP), its children's too: to the others it is silent, and it knows of
    /// nothing. It is how a machine looks that was suspended, or whose disk hangs.
    ///
    /// # Errors
    /// When it does not run.
    pub fn freeze(&self, index: usize) -> anyhow::Result<()> {
        self.signal_all(index, Signal::SIGSTOP)
    }

    /// Lets a frozen node go on.
    ///
    /// # Errors
    /// When it does not run.
    pub fn thaw(&self, index: usize) -> anyhow::Result<()> {
        self.signal_all(index, Signal::SIGCONT)
    }

    fn signal_all(&self, index: usize, signal: Signal) -> anyhow::Result<()> {
        let daemon = self.pid(index)?;
        kill(daemon, signal)?;
        for child in command::children_of(daemon)? {
            // It may have ended meanwhile.
            let _ = kill(child, signal);
        }
        Ok(())
    }

    /// Waits for the end of a node that was told to stop; its exit code.
    ///
    /// # Errors
    /// When it does not run, or does not end.
    pub fn ended(&mut self, index: usize) -> anyhow::Result<Option<i32>> {
        let node = &mut self.nodes[index];
        let mut child = node.child.take().with_context(|| format!("{} does not run", node.name))?;
        let start = Instant::now();
        loop {
            match child.try_wait()? {
                Some(status) => return Ok(status.code()),
                None if start.elapsed() < PATIENCE => thread::sleep(LOOK),
                None => {
                    node.child = Some(child);
                    bail!("{} does not end within {PATIENCE:?}\n{}", self.nodes[index].name, self.logs());
                }
            }
        }
    }

    /// SIGKILL.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill(&mut self, index: usize) -> anyhow::Result<()> {
        let node = &mut self.nodes[index];
        let mut child = node.child.take().with_context(|| format!("{} does not run", node.name))?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Names in order.
    pub fn name(&self, index: usize) -> &str {
        &self.nodes[index].name
    }

    /// The index of the node of this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn named(&self, name: &str) -> anyhow::Result<usize> {
        self.nodes.iter().position(|n| n.name == name).with_context(|| format!("no node {name}"))
    }

    /// What a node has logged.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn log(&self, index: usize) -> anyhow::Result<String> {
        Ok(std::fs::read_to_string(self.nodes[index].dir.join("log"))?)
    }

    /// The mesh's join token.
    pub fn token(&self) -> &str {
        self.token.trim()
    }

    /// A node's gossip address.
    ///
    /// # Errors
    /// When it does not serve.
    pub fn gossip(&self, index: usize) -> anyhow::Result<String> {
        self.nodes[index].address("gossip")
    }

    /// A node's data directory.
    pub fn data(&self, index: usize) -> PathBuf {
        self.nodes[index].dir.join("data")
    }

    /// A node's REST address.
    ///
    /// # Errors
    /// When it does not serve.
    pub fn rest(&self, index: usize) -> anyhow::Result<String> {
        self.nodes[index].address("rest")
    }

    /// Runs a verb against a node and waits for its end.
    ///
    /// # Errors
    /// When it can't be started, or does not end; a verb that fails is no error.
    pub fn run(&self, index: usize, args: &[&str]) -> anyhow::Result<Ran> {
        run_to_end(Command::new(mloc()).args(args).env("MLOC_NODE", self.rest(index)?))
    }

    /// Writes a task file and submits it; its id.
    ///
    /// # Errors
    /// When it is not accepted.
    pub fn submit(&self, index: usize, task: &str) -> anyhow::Result<String> {
        let file = self.dir.path().join("task.yaml");
        std::fs::write(&file, task)?;
        let accepted = self.run(index, &["submit", "-o", "json", &file.display().to_string()])?.json()?;
        accepted["task"]["id"].as_str().map(str::to_owned).context("an id")
    }

    /// A task as a node shows it.
    ///
    /// # Errors
    /// When it can't.
    pub fn task(&self, index: usize, id: &str) -> anyhow::Result<Value> {
        self.run(index, &["task", "-o", "json", id])?.json()
    }

    /// The index of the leader.
    ///
    /// # Errors
    /// When nobody leads, as the node `ask` sees it.
    pub fn leader(&self, ask: usize) -> anyhow::Result<usize> {
        let nodes = self.run(ask, &["nodes", "-o", "json"])?.json()?;
        let leader = nodes.as_array().and_then(|nodes| nodes.iter().find(|n| n["leader"] == true));
        self.named(leader.and_then(|n| n["name"].as_str()).context("nobody leads")?)
    }

    /// Waits until a condition holds.
    ///
    /// # Errors
    /// When it does not come to hold, or its check fails; with every node's log.
    pub fn until(
        &mut self,
        what: &str,
        mut holds: impl FnMut(&mut Self) -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let start = Instant::now();
        loop {
            match holds(self) {
                Ok(true) => return Ok(()),
                Ok(false) if start.elapsed() < PATIENCE => thread::sleep(LOOK),
                Ok(false) => bail!("{what}: not within {PATIENCE:?}\n{}", self.logs()),
                Err(error) => bail!("{what}: {error:#}\n{}", self.logs()),
            }
        }
    }

    /// Waits until a task is in one of these states, as a node shows it.
    ///
    /// # Errors
    /// As [`Self::until`].
    pub fn until_state(&mut self, ask: usize, id: &str, states: &[&str]) -> anyhow::Result<Value> {
        let mut seen = Value::Null;
        self.until(&format!("{id} is {states:?}"), |sandbox| {
            seen = sandbox.task(ask, id)?;
            let state = seen["state"].as_str().unwrap_or_default();
            ensure!(
                states.contains(&state) || !["COMPLETED", "FAILED", "CANCELLED"].contains(&state),
                "it is {state}: {}",
                seen["reason"]
            );
            Ok(states.contains(&state))
        })?;
        Ok(seen)
    }

    /// The end of every node's log.
    pub fn logs(&self) -> String {
        let tail = |node: &Node| {
            let text = std::fs::read_to_string(node.dir.join("log")).unwrap_or_default();
            let lines: Vec<_> = text.lines().collect();
            format!("--- {}\n{}\n", node.name, lines[lines.len().saturating_sub(40)..].join("\n"))
        };
        self.nodes.iter().map(tail).collect()
    }
}

impl Node {
    /// An address it bound, from the file it writes when it serves.
    fn address(&self, which: &str) -> anyhow::Result<String> {
        let text = std::fs::read_to_string(self.dir.join("data/node.json"))?;
        let value: Value = serde_json::from_str(&text)?;
        value[which].as_str().map(str::to_owned).with_context(|| format!("{which} in node.json"))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // A case that failed may have killed it already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
