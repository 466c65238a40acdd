//! Tables for people.

use std::io::{IsTerminal, Write};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use mloc_api::view::{
    Accepted, MeshView, NodeView, ReplicaView, ResultView, ServiceView, StatsView, TaskPage, TaskView, UsageRow,
};
use mloc_core::quantity::{show_bytes, show_cpu};

/// `println!` for what a verb answers: a closed pipe (`mloc tasks | head`) is the reader's way to say enough.
macro_rules! say {
    ($($words:tt)*) => { $crate::show::line(format_args!($($words)*)) };
}
pub(crate) use say;

/// Prints a line; see [`say`].
pub fn line(words: std::fmt::Arguments<'_>) {
    // Nobody is left who could be told.
    let _ = writeln!(std::io::stdout(), "{words}");
}

fn table(head: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(head);
    table.set_content_arrangement(ContentArrangement::Disabled);
    table
}

fn print(table: &Table) {
    // No trailing blanks: output is diffed and pasted.
    for line in table.to_string().lines() {
        say!("{}", line.trim_end().strip_prefix(' ').unwrap_or(line.trim_end()));
    }
}

/// `mloc services`: a row a replica, and one for a service without any.
pub fn services(services: &[ServiceView]) {
    if services.is_empty() {
        return;
    }
    let mut rows = table(&["NAME", "OWNER", "READY", "REPLICA", "STATE", "NODE", "RUNNING", "ANSWERED"]);
    let mut row = |service: &ServiceView, replica: Option<&ReplicaView>| {
        let serving = replica.and_then(|replica| replica.serving.as_ref());
        let figure = |of: Option<u64>| of.map_or_else(|| "-".to_owned(), |figure| figure.to_string());
        let state = match replica {
            Some(replica) => replica.state.as_str(),
            None if service.sleeps => "ASLEEP",
            None => "WAITING",
        };
        rows.add_row([
            service.name.as_str(),
            &service.owner,
            &format!("{}/{}", service.ready, service.desired),
            replica.and_then(|replica| replica.attempt.as_deref()).unwrap_or("-"),
            state,
            replica.map(|replica| replica.node_name.as_str()).filter(|name| !name.is_empty()).unwrap_or("-"),
            &figure(serving.map(|serving| u64::from(serving.running))),
            &figure(serving.map(|serving| serving.done)),
        ]);
    };
    for service in services {
        if service.replicas.is_empty() {
            row(service, None);
        }
        service.replicas.iter().for_each(|replica| row(service, Some(replica)));
    }
    print(&rows);
}

/// `mloc cache ls`.
pub fn holdings(holdings: &[mloc_store::Holding]) {
    if holdings.is_empty() {
        return;
    }
    let mut rows = table(&["SOURCE", "VERSION", "FILES", "BYTES", "LAST USE"]);
    for holding in holdings {
        let ago = holding.used.elapsed().map_or(0, |ago| ago.as_secs());
        let used = if holding.in_use { "now".to_owned() } else { format!("{ago} s ago") };
        let (pin, version) = (&holding.pin, &holding.pin.version);
        rows.add_row([
            holding.place.as_str(),
            version.get(..20).unwrap_or(version),
            &pin.files.to_string(),
            &show_bytes(pin.bytes),
            &used,
        ]);
    }
    print(&rows);
}

/// `mloc artifacts ls`.
pub fn artifacts(result: &ResultView) {
    let place = match &result.destination {
        Some(_) => result.location.clone(),
        None => format!("on {}", result.node_name),
    };
    let mut rows = table(&["KIND", "PATH", "SIZE", "SHA256", "WHERE"]);
    for artifact in &result.artifacts {
        let (size, sha256) = (show_bytes(artifact.bytes), artifact.sha256.get(..12).unwrap_or(&artifact.sha256));
        rows.add_row([artifact.kind.as_str(), &artifact.path, &size, sha256, &place]);
    }
    print(&rows);
    if let Some(left_out) = result.summary.get("artifacts_left_out").and_then(|text| text.as_str()) {
        say!("{left_out}");
    }
}

/// `mloc tasks`.
pub fn tasks(page: &TaskPage) {
    if page.tasks.is_empty() {
        say!("no task; `mloc submit FILE` hands one in");
        return;
    }
    let mut rows = table(&["ID", "NAME", "TYPE", "OWNER", "STATE", "PROGRESS", "NODE", "SUBMITTED"]);
    for task in &page.tasks {
        rows.add_row([
            task.id.as_str(),
            &task.name,
            &task.task_type,
            &task.owner,
            &state(task),
            &progress(task),
            &live_node(task),
            task.submitted_at.get(..19).unwrap_or(&task.submitted_at),
        ]);
    }
    print(&rows);
    if let Some(next) = &page.next {
        say!("more: --cursor {next} shows the next page");
    }
}

fn state(task: &TaskView) -> String {
    match &task.phase {
        Some(phase) => format!("{}/{phase}", task.state),
        None => task.state.clone(),
    }
}

fn live_node(task: &TaskView) -> String {
    let live = task.node.as_ref().and_then(|id| task.attempts.iter().rfind(|a| &a.node == id));
    live.map_or("-".to_owned(), |a| a.node_name.clone())
}

/// Step, loss and speed in a few characters.
pub fn progress(task: &TaskView) -> String {
    let Some(p) = &task.progress else { return "-".to_owned() };
    let mut text = match (p.total_steps, p.bytes_total) {
        (Some(total), _) => format!("{}/{total}", p.step),
        (None, Some(total)) => format!("{} of {}", show_bytes(p.bytes_done.unwrap_or(0)), show_bytes(total)),
        (None, None) if p.step > 0 => p.step.to_string(),
        (None, None) => return p.note.clone().unwrap_or_else(|| "-".to_owned()),
    };
    if let Some(loss) = p.loss {
        text.push_str(&format!(" loss {loss:.3}"));
    }
    if let Some(rate) = p.tokens_per_second {
        text.push_str(&format!(" {rate:.0} tok/s"));
    }
    text
}

/// `mloc task`.
pub fn task(task: &TaskView) {
    say!("{}  {}", task.id, task.name);
    say!("  type      {}", task.task_type);
    say!("  owner     {} (project {})", task.owner, task.project);
    say!("  state     {} since {}", state(task), task.since);
    if !task.reason.is_empty() {
        say!("  reason    {}", task.reason);
    }
    if task.progress.is_some() {
        say!("  progress  {}", progress(task));
    }
    say!("  submitted {}", task.submitted_at);
    for attempt in &task.attempts {
        let gpus = if attempt.gpus.is_empty() {
            String::new()
        } else {
            format!(", {} × {} {:?}", attempt.gpus.len(), attempt.gpu_type, attempt.gpus)
        };
        say!("  attempt   {} on {}: {}{gpus}", attempt.id, attempt.node_name, attempt.state);
        if !attempt.reason.is_empty() {
            say!("            {}", attempt.reason);
        }
    }
    for row in &task.usage {
        say!("  usage     {}", usage(row));
    }
    if let Some(result) = &task.result {
        say!("  artifacts {}", result.location);
        for artifact in &result.artifacts {
            say!("            {:>10}  {}  {}", show_bytes(artifact.bytes), artifact.path, artifact.kind);
        }
        for (name, value) in &result.summary {
            say!("  {name}: {}", value.as_str().map_or_else(|| value.to_string(), str::to_owned));
        }
    }
}

/// One accounting row, on a line.
pub fn usage(row: &UsageRow) -> String {
    let held = if row.gpu_count > 0 {
        format!("{} × {} = {:.6} GPU-hours", row.gpu_count, row.gpu_type, row.gpu_hours)
    } else {
        format!("{} cores = {:.6} core-hours", show_cpu(row.cpu_millis), row.cpu_core_hours)
    };
    let end = row.end_time.as_deref().unwrap_or("now");
    let (who, what) = (&row.user_id, &row.project_id);
    format!("{} {who}/{what} {} to {end}, {:.3} s × {held}", row.attempt, row.start_time, row.duration)
}

/// `mloc submit`.
pub fn accepted(accepted: &Accepted) {
    if let Some(explain) = &accepted.explain {
        say!("{} is a valid task (dry run: nothing was submitted)", accepted.task.name);
        say!("{}", explain.text);
    } else if accepted.created {
        say!("{} accepted", accepted.task.id);
    } else {
        say!("{} had been accepted already: the same Idempotency-Key", accepted.task.id);
    }
    notes(&accepted.notes);
    if accepted.explain.is_none() && std::io::stdout().is_terminal() {
        say!("follow it: mloc logs -f {0}   why it waits: mloc explain {0}", accepted.task.id);
    }
}

/// What the user should know, each on a line.
pub fn notes(notes: &[String]) {
    for note in notes {
        eprintln!("note: {note}");
    }
}

/// Lines below one that began with a word of nine columns.
pub fn indented(text: &str) -> String {
    text.replace('\n', "\n         ")
}

/// `mloc nodes`.
pub fn nodes(nodes: &[NodeView], mesh: &MeshView) {
    let mut rows = table(&[
        "NAME",
        "STATE",
        "ROLE",
        "CORES FREE",
        "MEMORY FREE",
        "DISK FREE",
        "GFLOP/S",
        "GPUS",
        "ATTEMPTS",
        "ID",
    ]);
    for column in 3..=6 {
        if let Some(column) = rows.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for node in nodes {
        let role = if node.leader {
            "leader"
        } else if node.voter {
            "voter"
        } else {
            "member"
        };
        rows.add_row([
            node.name.as_str(),
            &node.state,
            role,
            &format!("{} of {}", show_cpu(node.cpu_millis_free), show_cpu(node.cpu_millis)),
            &format!("{} of {}", show_bytes(node.memory_bytes_free), show_bytes(node.memory_bytes)),
            &show_bytes(node.disk_bytes),
            &node.matmul_gflops.map_or("-".to_owned(), |g| g.to_string()),
            &gpus(node),
            &node.attempts.len().to_string(),
            &short(&node.id),
        ]);
    }
    print(&rows);
    say!("the mesh {}", mesh.advice);
}

/// The last characters of a PeerId tell nodes apart; the first are the same for all of them.
fn short(id: &str) -> String {
    id.get(id.len().saturating_sub(8)..).unwrap_or(id).to_owned()
}

fn gpus(node: &NodeView) -> String {
    if node.gpus.is_empty() {
        return "none".to_owned();
    }
    let mut kinds = std::collections::BTreeMap::<&str, (usize, usize, usize)>::new();
    for gpu in &node.gpus {
        let entry = kinds.entry(&gpu.gpu_type).or_default();
        entry.0 += 1;
        entry.1 += usize::from(gpu.state == "FREE");
        entry.2 += usize::from(gpu.state == "UNUSABLE");
    }
    let one = |(kind, (all, free, unusable)): (&&str, &(usize, usize, usize))| {
        let bad = if *unusable > 0 { format!(", {unusable} unusable") } else { String::new() };
        format!("{all} × {kind} ({free} free{bad})")
    };
    kinds.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// `mloc mesh`.
pub fn mesh(mesh: &MeshView, nodes: &[NodeView]) {
    let name = |id: &String| match nodes.iter().find(|node| node.id == *id) {
        Some(node) if node.state == "LOST" => format!("{} (silent)", node.name),
        Some(node) => node.name.clone(),
        None => id.clone(),
    };
    say!("mesh     {}", mesh.mesh);
    match &mesh.leader {
        Some(leader) => say!("leader   {} (term {}, {leader})", name(leader), mesh.term),
        None => say!("leader   none just now"),
    }
    say!("members  {}", mesh.members);
    let voters: Vec<_> = mesh.voters.iter().map(name).collect();
    say!("voters   {} of {} answer: {}", mesh.voters_alive, mesh.voters.len(), voters.join(", "));
    say!("safety   {}", indented(&mesh.advice));
}

/// `mloc stats`.
pub fn stats(stats: &StatsView) {
    let asked = stats.query_parameters.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(" ");
    say!("usage{}{asked}", if asked.is_empty() { " of everybody, ever" } else { " for " });
    say!("  GPU-hours        {:.4}", stats.total_gpu_hours);
    for (kind, hours) in &stats.breakdown_by_gpu {
        say!("    {hours:>14.4} {kind}");
    }
    say!("  CPU core-hours   {:.4}  (attempts without a GPU)", stats.total_cpu_core_hours);
    say!("  tasks completed  {}", stats.total_tasks_completed);
}
