//! Tables for people.

use std::io::IsTerminal;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use mloc_api::view::{Accepted, MeshView, NodeView, StatsView, TaskPage, TaskView};
use mloc_core::quantity::{show_bytes, show_cpu};

fn table(head: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(head);
    table.set_content_arrangement(ContentArrangement::Disabled);
    table
}

fn print(table: &Table) {
    // No trailing blanks: output is diffed and pasted.
    for line in table.to_string().lines() {
        println!("{}", line.trim_end().strip_prefix(' ').unwrap_or(line.trim_end()));
    }
}

/// `mloc tasks`.
pub fn tasks(page: &TaskPage) {
    if page.tasks.is_empty() {
        println!("no task; `mloc submit FILE` hands one in");
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
        println!("more: {next} is where the next page starts (--limit shows more at once)");
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
    println!("{}  {}", task.id, task.name);
    println!("  type      {}", task.task_type);
    println!("  owner     {} (project {})", task.owner, task.project);
    println!("  state     {} since {}", state(task), task.since);
    if !task.reason.is_empty() {
        println!("  reason    {}", task.reason);
    }
    if task.progress.is_some() {
        println!("  progress  {}", progress(task));
    }
    println!("  submitted {}", task.submitted_at);
    for attempt in &task.attempts {
        let gpus = if attempt.gpus.is_empty() {
            String::new()
        } else {
            format!(", {} × {} {:?}", attempt.gpus.len(), attempt.gpu_type, attempt.gpus)
        };
        println!("  attempt   {} on {}: {}{gpus}", attempt.id, attempt.node_name, attempt.state);
        if !attempt.reason.is_empty() {
            println!("            {}", attempt.reason);
        }
    }
    if let Some(result) = &task.result {
        println!("  artifacts {}", result.location);
        for artifact in &result.artifacts {
            println!("            {:>10}  {}  {}", show_bytes(artifact.bytes), artifact.path, artifact.kind);
        }
        for (name, value) in &result.summary {
            println!("  {name}: {}", value.as_str().map_or_else(|| value.to_string(), str::to_owned));
        }
    }
}

/// `mloc submit`.
pub fn accepted(accepted: &Accepted) {
    if let Some(explain) = &accepted.explain {
        println!("{} is a valid task (dry run: nothing was submitted)", accepted.task.name);
        println!("{}", explain.text);
    } else if accepted.created {
        println!("{} accepted", accepted.task.id);
    } else {
        println!("{} had been accepted already: the same Idempotency-Key", accepted.task.id);
    }
    notes(&accepted.notes);
    if accepted.explain.is_none() && std::io::stdout().is_terminal() {
        println!("follow it: mloc logs -f {0}   why it waits: mloc explain {0}", accepted.task.id);
    }
}

/// What the user should know, each on a line.
pub fn notes(notes: &[String]) {
    for note in notes {
        eprintln!("note: {note}");
    }
}

/// `mloc nodes`.
pub fn nodes(nodes: &[NodeView], mesh: &MeshView) {
    let mut rows =
        table(&["NAME", "STATE", "ROLE", "CORES FREE", "MEMORY FREE", "DISK", "GFLOP/S", "GPUS", "ATTEMPTS", "ID"]);
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
    println!("{}", mesh.advice);
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
pub fn mesh(mesh: &MeshView) {
    println!("mesh     {}", mesh.mesh);
    println!("leader   {} (term {})", mesh.leader.as_deref().unwrap_or("none just now"), mesh.term);
    println!("members  {}", mesh.members);
    println!("voters   {} ({} answer)", mesh.voters.len(), mesh.voters_alive);
    println!("{}", mesh.advice);
}

/// `mloc stats`.
pub fn stats(stats: &StatsView) {
    let asked = stats.query_parameters.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(" ");
    println!("usage{}{asked}", if asked.is_empty() { " of everybody, ever" } else { " for " });
    println!("  GPU-hours        {:.4}", stats.total_gpu_hours);
    for (kind, hours) in &stats.breakdown_by_gpu {
        println!("    {hours:>14.4} {kind}");
    }
    println!("  CPU core-hours   {:.4}  (attempts without a GPU)", stats.total_cpu_core_hours);
    println!("  tasks completed  {}", stats.total_tasks_completed);
}
