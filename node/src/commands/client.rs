//! Verbs that ask a node by REST. Each prints a table for people or, with `-o json`, what the node said.

use std::{io::Read, path::Path, time::Duration};

use anyhow::Context;
use bytes::Bytes;
use mloc_api::view::{ExplainView, MeshView, NodeView, ServiceView, StatsView, TaskPage, TaskView};
use serde::Serialize;

use crate::{
    bring::Beside,
    cli::{DrainArgs, Format, ListArgs, LogsArgs, NodeArgs, Remote, StatsArgs, SubmitArgs, TaskArgs, TasksArgs},
    client::{Client, Refusal},
    show::{self, say},
    watch::{self, Watch},
};

type Done = Result<(), Refusal>;

pub(super) fn out<T: Serialize>(remote: &Remote, value: &T, table: impl FnOnce(&T)) -> Done {
    match remote.output {
        Format::Table => table(value),
        Format::Json => say!("{}", serde_json::to_string_pretty(value).context("print the answer")?),
    }
    Ok(())
}

/// Reads a task file, or standard input for `-`.
///
/// # Errors
/// When it can't be read, or is larger than a task may be.
pub fn read_task(path: &Path) -> Result<Bytes, Refusal> {
    let limit = mloc_api::MAX_TASK_BYTES as u64 + 1;
    let mut body = Vec::new();
    let read = if path.as_os_str() == "-" {
        std::io::stdin().take(limit).read_to_end(&mut body)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(limit).read_to_end(&mut body))
    };
    read.map_err(|e| Refusal::new(2, format!("read {}: {e}", path.display())))?;
    if body.len() as u64 == limit {
        return Err(Refusal::new(
            2,
            format!(
                "{} is larger than {} KiB, the most a task may be: refer to data by its source",
                path.display(),
                mloc_api::MAX_TASK_BYTES / 1024
            ),
        ));
    }
    Ok(body.into())
}

/// A key for one submission.
pub fn fresh_key() -> String {
    format!("cli-{}", hex::encode(rand::random::<[u8; 16]>()))
}

/// `mloc submit`.
pub async fn submit(args: SubmitArgs) -> Done {
    let client = Client::new(&args.remote)?;
    let body = read_task(&args.file)?;
    let beside = Beside::look(&args.file, &body).await?;
    let mut query = vec![("file", args.file.display().to_string())];
    if args.dry_run {
        query.push(("dry_run", "true".to_owned()));
    }
    let key = args.idempotency_key.unwrap_or_else(fresh_key);
    let mut accepted = beside.submit(&client, query, &key, body.clone()).await?;
    if args.dry_run {
        accepted.notes.extend(beside.memory(&args.file, &body));
    }
    if !args.wait || args.dry_run {
        return out(&args.remote, &accepted, show::accepted);
    }
    show::notes(&accepted.notes);
    let ended = watch::until_ended(&client, &accepted.task.id, &Watch::on_terminal()).await?;
    out(&args.remote, &ended, show::task)?;
    watch::verdict(&ended)
}

/// `mloc tasks`.
pub async fn tasks(args: TasksArgs) -> Done {
    let client = Client::new(&args.remote)?;
    let mut query = vec![("limit", args.limit.to_string())];
    let filters = [("owner", args.owner), ("project", args.project), ("state", args.state), ("cursor", args.cursor)];
    for (name, value) in filters {
        query.extend(value.map(|v| (name, v)));
    }
    let page: TaskPage = client.get("/api/v1/tasks", &query).await?;
    out(&args.remote, &page, show::tasks)
}

/// `mloc task`.
pub async fn task(args: TaskArgs) -> Done {
    let task: TaskView = Client::new(&args.remote)?.get(&format!("/api/v1/tasks/{}", args.id), &[]).await?;
    out(&args.remote, &task, show::task)
}

/// `mloc cancel`.
pub async fn cancel(args: TaskArgs) -> Done {
    let task: TaskView = Client::new(&args.remote)?.post(&format!("/api/v1/tasks/{}/cancel", args.id), &[]).await?;
    out(&args.remote, &task, |task| say!("{} {}", task.id, task.state))
}

/// `mloc logs`.
pub async fn logs(args: LogsArgs) -> Done {
    let client = Client::new(&args.remote)?;
    if args.follow {
        return client.follow_log(&args.id, args.attempt).await;
    }
    let query: Vec<_> = args.attempt.into_iter().map(|attempt| ("attempt", attempt)).collect();
    client.print_stream(&format!("/api/v1/tasks/{}/logs", args.id), &query).await
}

/// `mloc explain`.
pub async fn explain(args: TaskArgs) -> Done {
    let explain: ExplainView =
        Client::new(&args.remote)?.get(&format!("/api/v1/tasks/{}/explain", args.id), &[]).await?;
    out(&args.remote, &explain, |e| say!("{}", e.text))
}

/// `mloc services`.
pub async fn services(args: ListArgs) -> Done {
    let services: Vec<ServiceView> = Client::new(&args.remote)?.get("/api/v1/services", &[]).await?;
    out(&args.remote, &services, |services| show::services(services))
}

/// `mloc nodes`.
pub async fn nodes(args: ListArgs) -> Done {
    let client = Client::new(&args.remote)?;
    let nodes: Vec<NodeView> = client.get("/api/v1/nodes", &[]).await?;
    let mesh: MeshView = client.get("/api/v1/mesh", &[]).await?;
    out(&args.remote, &nodes, |nodes| show::nodes(nodes, &mesh))
}

/// `mloc mesh`.
pub async fn mesh(args: ListArgs) -> Done {
    let client = Client::new(&args.remote)?;
    let mesh: MeshView = client.get("/api/v1/mesh", &[]).await?;
    let nodes: Vec<NodeView> = client.get("/api/v1/nodes", &[]).await?;
    out(&args.remote, &mesh, |mesh| show::mesh(mesh, &nodes))
}

/// `mloc drain`.
pub async fn drain(args: DrainArgs) -> Done {
    let query = if args.off { vec![("off", "true".to_owned())] } else { Vec::new() };
    let node: NodeView = Client::new(&args.remote)?.post(&format!("/api/v1/nodes/{}/drain", args.id), &query).await?;
    out(&args.remote, &node, |node| say!("{} {}", node.name, node.state))
}

/// `mloc revoke`.
pub async fn revoke(args: NodeArgs) -> Done {
    let node: NodeView = Client::new(&args.remote)?.post(&format!("/api/v1/nodes/{}/revoke", args.id), &[]).await?;
    out(&args.remote, &node, |node| say!("{} {}", node.name, node.state))
}

/// `mloc stats`.
pub async fn stats(args: StatsArgs) -> Done {
    let given =
        [("user", args.user), ("project", args.project), ("start_date", args.start_date), ("end_date", args.end_date)];
    let query: Vec<_> = given.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
    let stats: StatsView = Client::new(&args.remote)?.get("/api/v1/stats", &query).await?;
    out(&args.remote, &stats, show::stats)
}

/// Between two looks at a task that is watched.
pub const LOOK: Duration = Duration::from_millis(200);
