//! `mloc run`: an embedded one-node mesh takes one task file down the very same path as in a real mesh: REST, ledger,
//! scheduler, journal, child process. The terminal shows the way, then what came out.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::Context;
use mloc_api::view::{Accepted, ResultView, TaskView};
use mloc_core::{quantity::show_bytes, task::spec::Location};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::client::{fresh_key, read_task};
use crate::{
    bring::Beside,
    cli::RunArgs,
    client::{Client, Refusal},
    config::{CommandModule, Listen, Modules, NodeConfig, RestListen},
    node::Node,
    show::{self, say},
    telemetry,
    watch::{self, Watch},
};

/// Runs it.
pub async fn run(args: RunArgs) -> Result<(), Refusal> {
    if args.verbose {
        telemetry::start(false);
    } else {
        telemetry::start_quiet();
    }
    let body = read_task(&args.file)?;
    // A wrong file costs no start of a node.
    let beside = Beside::look(&args.file, &body).await?;
    mloc_core::task::parse_with(&body, &args.file.display().to_string(), &beside.brought("embedded"))
        .map_err(|problems| beside.explain(Refusal::new(2, problems.to_string())))?;
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let config = NodeConfig {
        name: Some("embedded".into()),
        data_dir: Some(args.data_dir.clone()),
        gossip: Listen { bind: Some(any), advertise: None },
        links: Listen { bind: Some(any), advertise: None },
        rest: RestListen { bind: Some(any) },
        volumes: volumes_beside(&args.file)?,
        // Who types this could as well start the program in the file.
        modules: Modules {
            offer: None,
            command: CommandModule { enabled: true, sandbox: mloc_exec::Sandbox::BestEffort, processes: None },
        },
        ..NodeConfig::default()
    };
    let node = Node::start(config, None).await?;
    let done = watched(&node, &args, body, beside).await;
    node.stop().await;
    done
}

/// Every folder beside the task file is a volume of its name, so that a task and its data travel together; `artifacts`
/// is a folder here.
fn volumes_beside(file: &Path) -> anyhow::Result<std::collections::BTreeMap<String, std::path::PathBuf>> {
    let beside = match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let beside = beside.canonicalize().with_context(|| format!("read the folder {}", beside.display()))?;
    // Results that a task publishes as `artifacts/…` lie where the user stands.
    let here = std::env::current_dir().context("the current folder")?;
    let mut volumes = std::collections::BTreeMap::from([("artifacts".to_owned(), here.join("artifacts"))]);
    for entry in std::fs::read_dir(&beside).with_context(|| format!("read the folder {}", beside.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.path().is_dir() && !name.starts_with('.') {
            volumes.insert(name, entry.path());
        }
    }
    Ok(volumes)
}

/// File in the data directory that says which task the last run was for.
const LAST_RUN: &str = "run.json";

/// The last run: so that the same command goes on with a task that was interrupted, instead of beginning another.
#[derive(Serialize, Deserialize)]
struct LastRun {
    task: String,
    /// SHA-256 of the file's bytes, hex.
    sha256: String,
}

impl LastRun {
    fn file(args: &RunArgs) -> PathBuf {
        args.data_dir.join(LAST_RUN)
    }

    /// The last run whose task has not ended.
    async fn unfinished(args: &RunArgs, client: &Client) -> Option<Self> {
        // A file that is not there or can't be read costs a run from the beginning, nothing more.
        let last: Self = serde_json::from_slice(&std::fs::read(Self::file(args)).ok()?).ok()?;
        let task: TaskView = client.get(&format!("/api/v1/tasks/{}", last.task), &[]).await.ok()?;
        matches!(task.state.as_str(), "PENDING" | "SCHEDULED" | "RUNNING").then_some(last)
    }

    fn keep(&self, args: &RunArgs) -> anyhow::Result<()> {
        let path = Self::file(args);
        std::fs::write(&path, serde_json::to_vec(self)?).with_context(|| format!("write {}", path.display()))
    }
}

async fn watched(node: &Node, args: &RunArgs, body: bytes::Bytes, beside: Beside) -> Result<(), Refusal> {
    let client = Client::at(&node.rest.to_string(), None)?;
    if args.dry_run {
        let query = vec![("file", args.file.display().to_string()), ("dry_run", "true".to_owned())];
        let mut checked = beside.submit(&client, query, &fresh_key(), body.clone()).await?;
        checked.notes.extend(beside.memory(&args.file, &body));
        show::accepted(&checked);
        return Ok(());
    }
    // Other data beside the same file is another run.
    let brought = serde_json::to_vec(&beside.trees()).context("describe what lies beside the task")?;
    let sha256 = hex::encode(Sha256::new_with_prefix(&body).chain_update(brought).finalize());
    let id = match LastRun::unfinished(args, &client).await {
        Some(last) if last.sha256 == sha256 => {
            eprintln!("{} was interrupted and goes on", last.task);
            last.task
        }
        other => {
            if let Some(last) = other {
                eprintln!("note: {} of an earlier run is unfinished and runs here too", last.task);
            }
            let query = vec![("file", args.file.display().to_string())];
            let accepted: Accepted = beside.submit(&client, query, &fresh_key(), body).await?;
            eprintln!("{} accepted by the embedded node", accepted.task.id);
            show::notes(&accepted.notes);
            LastRun { task: accepted.task.id.clone(), sha256 }.keep(args)?;
            accepted.task.id
        }
    };
    let progress = Watch::on_terminal();
    let watching = watch::until_ended(&client, &id, &progress);
    let task = tokio::select! {
        task = watching => task?,
        _ = tokio::signal::ctrl_c() => {
            progress.clear();
            eprintln!("stopping: a checkpoint is saved where the task has any");
            return Err(Refusal::new(130, "interrupted; the same command goes on with it"));
        }
    };
    if task.state != "COMPLETED" {
        eprintln!("the log: ");
        client.print_stream(&format!("/api/v1/tasks/{id}/logs"), &[]).await.ok();
        return watch::verdict(&task);
    }
    report(&task, &args.file);
    Ok(())
}

/// Where the artifacts lie, and what the training changed.
fn report(task: &TaskView, file: &Path) {
    let Some(result) = &task.result else { return };
    say!("{} completed", task.name);
    say!("artifacts  {}", result.location);
    for artifact in &result.artifacts {
        say!("  {:>10}  {}", show_bytes(artifact.bytes), artifact.path);
    }
    let text = |name: &str| result.summary.get(name).map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned));
    if let (Some(before), Some(after)) = (text("eval_loss_before"), text("eval_loss_after")) {
        say!("loss on held-out data  {before} before, {after} after");
    }
    for row in &task.usage {
        say!("usage      {}", show::usage(row));
    }
    if let Some(samples) = result.summary.get("samples").and_then(|v| v.as_array()) {
        for sample in samples {
            let part = |name: &str| sample[name].as_str().unwrap_or_default().trim().replace('\n', "\n          ");
            say!("prompt    {}\n  before  {}\n  after   {}", part("prompt"), part("before"), part("after"));
        }
    }
    if let Some(command) = to_talk_to(result, file) {
        say!("talk to it {command}");
    }
}

/// What starts a conversation with an adapter that was made here, of a model that lies beside the task file.
fn to_talk_to(result: &ResultView, file: &Path) -> Option<String> {
    let adapter = Path::new(result.location.strip_prefix("file://")?);
    adapter.join("adapter_config.json").is_file().then_some(())?;
    let text = std::fs::read(file).ok()?;
    let task = mloc_core::task::parse(std::str::from_utf8(&text).ok()?, &file.display().to_string()).ok()?;
    let Location::Local { path } = task.spec.model?.source else { return None };
    let model = file.parent().unwrap_or(Path::new("")).join(path);
    model.exists().then(|| format!("mloc chat {} --adapter {}", model.display(), adapter.display()))
}
