//! Sandbox of real processes for end-to-end cases: nodes on free ports, each with its own data directory, spoken to
//! through the command line as a user would. Waits are on conditions; a case that fails prints every node's log.

pub mod s3;

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;

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

/// The repository's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in the root").to_owned()
}

/// Some nodes, and the folder they live in.
pub struct Sandbox {
    /// Removed at the end.
    pub dir: TempDir,
    nodes: Vec<Node>,
    token: String,
    env: Vec<(String, String)>,
}

/// One node: its folder, and its process while it runs.
pub struct Node {
    /// Its name.
    pub name: String,
    dir: PathBuf,
    child: Option<Child>,
    args: Vec<String>,
}

/// What a command printed.
#[derive(Debug)]
pub struct Ran {
    /// Exit code; -1 for a signal.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Ran {
    /// Standard output as JSON.
    ///
    /// # Errors
    /// When the command failed, or printed something else.
    pub fn json(&self) -> anyhow::Result<Value> {
        ensure!(self.code == 0, "exit {}: {}{}", self.code, self.err, self.out);
        serde_json::from_str(&self.out).with_context(|| format!("not JSON: {}", self.out))
    }
}

/// Short durations, so that elections, leases and promotions take seconds.
const FAST: &str = "timing: {raftHeartbeatMs: 100, electionMinMs: 500, electionMaxMs: 1000, gossipIntervalMs: 100, \
                    voterStableMs: 500, voterGraceMs: 60000, leaseMs: 3000, workerHeartbeatMs: 300, tickMs: 100}\n";

impl Sandbox {
    /// An empty one. `env` is given to every daemon.
    ///
    /// # Errors
    /// When there is no temporary folder.
    pub fn new(env: &[(&str, &str)]) -> anyhow::Result<Self> {
        let env = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Ok(Self { dir: TempDir::with_prefix("mloc-sandbox-")?, nodes: Vec::new(), token: String::new(), env })
    }

    /// Starts a node and waits until it serves: the first founds the mesh, the others join it by the first one that
    /// lives. `config` is node.yaml beyond durations.
    ///
    /// # Errors
    /// When it does not come up; with its log.
    pub fn start(&mut self, name: &str, config: &str) -> anyhow::Result<usize> {
        let dir = self.dir.path().join(name);
        std::fs::create_dir_all(&dir)?;
        std::fs::write(dir.join("node.yaml"), format!("{FAST}{config}\n"))?;
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
    /// When it can't be started; a verb that fails is no error.
    pub fn run(&self, index: usize, args: &[&str]) -> anyhow::Result<Ran> {
        let output =
            Command::new(mloc()).args(args).env("MLOC_NODE", self.rest(index)?).stdin(Stdio::null()).output()?;
        Ok(Ran {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
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
