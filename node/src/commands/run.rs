//! `mloc run`: an embedded one-node mesh takes one task file down the very same path as in a real mesh: REST, ledger,
//! scheduler, journal, child process. The terminal shows the way, then what came out.

use std::{net::SocketAddr, path::Path};

use anyhow::Context;
use mloc_api::view::{Accepted, StatsView, TaskView};
use mloc_core::quantity::show_bytes;

use super::client::{fresh_key, read_task};
use crate::{
    cli::RunArgs,
    client::{Client, Refusal},
    config::{Listen, NodeConfig},
    node::Node,
    show, telemetry,
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
    let text = String::from_utf8_lossy(&body).into_owned();
    mloc_core::task::parse(&text, &args.file.display().to_string())
        .map_err(|problems| Refusal::new(2, problems.to_string()))?;
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let config = NodeConfig {
        name: Some("embedded".into()),
        data_dir: Some(args.data_dir.clone()),
        gossip: Listen { bind: Some(any), advertise: None },
        links: Listen { bind: Some(any), advertise: None },
        rest: Listen { bind: Some(any), advertise: None },
        volumes: volumes_beside(&args.file)?,
        ..NodeConfig::default()
    };
    let node = Node::start(config, None).await?;
    let done = watched(&node, &args.file, body).await;
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

async fn watched(node: &Node, file: &Path, body: bytes::Bytes) -> Result<(), Refusal> {
    let client = Client::at(&node.rest.to_string(), None)?;
    let query = [("file", file.display().to_string())];
    let accepted: Accepted = client.submit(&query, &fresh_key(), body).await?;
    let id = accepted.task.id;
    eprintln!("{id} accepted by the embedded node");
    show::notes(&accepted.notes);
    let progress = Watch::on_terminal();
    let watching = watch::until_ended(&client, &id, &progress);
    let task = tokio::select! {
        task = watching => task?,
        _ = tokio::signal::ctrl_c() => {
            eprintln!("\nstopping: the checkpoint is kept");
            return Err(Refusal::new(130, "interrupted"));
        }
    };
    if task.state != "COMPLETED" {
        eprintln!("the log: ");
        client.print_stream(&format!("/api/v1/tasks/{id}/logs"), &[]).await.ok();
        return watch::verdict(&task);
    }
    report(&task);
    let stats: StatsView = client.get("/api/v1/stats", &[("user", task.owner.clone())]).await?;
    show::stats(&stats);
    Ok(())
}

/// Where the artifacts lie, and what the training changed.
fn report(task: &TaskView) {
    let Some(result) = &task.result else { return };
    println!("{} completed", task.name);
    println!("artifacts  {}", result.location);
    for artifact in &result.artifacts {
        println!("  {:>10}  {}", show_bytes(artifact.bytes), artifact.path);
    }
    let text = |name: &str| result.summary.get(name).map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned));
    if let (Some(before), Some(after)) = (text("eval_loss_before"), text("eval_loss_after")) {
        println!("loss on held-out data  {before} before, {after} after");
    }
    if let Some(samples) = result.summary.get("samples").and_then(|v| v.as_array()) {
        for sample in samples {
            let part = |name: &str| sample[name].as_str().unwrap_or_default().trim().replace('\n', "\n          ");
            println!("prompt    {}\n  before  {}\n  after   {}", part("prompt"), part("before"), part("after"));
        }
    }
}
