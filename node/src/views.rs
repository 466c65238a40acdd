//! Ledger state as clients see it: plain functions from the ledger (and a moment, where something still runs) to views.

use mloc_api::view::{AttemptView, Event, GpuView, UsageRow};
use mloc_core::{
    capability::Gpu,
    id::{NodeId, TaskId},
    ledger::{
        Ledger,
        state::{Attempt, AttemptEnd, AttemptState, Task, TaskEnd},
    },
    time::Millis,
};

const HOUR_MS: f64 = 3_600_000.0;

/// A node's name in the member table.
fn node_name(ledger: &Ledger, node: &NodeId) -> String {
    ledger.members.get(node).map_or_else(|| node.to_string(), |member| member.name.clone())
}

/// How an attempt ended, for people and on one line; `None` while it is live.
pub fn how_it_ended(ledger: &Ledger, attempt: &Attempt) -> Option<String> {
    let view = attempt_view(ledger, attempt);
    let reason = view.reason.split_whitespace().collect::<Vec<_>>().join(" ");
    view.ended_at.map(|_| if reason.is_empty() { view.state } else { format!("{}, {reason}", view.state) })
}

/// The accounting rows of a task: one for each attempt that started. Those that run count up to `now`.
pub fn usage_rows(ledger: &Ledger, id: &TaskId, task: &Task, now: Millis) -> Vec<UsageRow> {
    let attempts = task.replicas.iter().flat_map(|r| &r.attempts);
    let row = |attempt: &Attempt| {
        let row = ledger.usage.get(&attempt.id)?;
        let held_ms = row.end.unwrap_or(now).since(row.start) as f64;
        let cores = if row.gpu_count == 0 { row.cpu_millis as f64 / 1000.0 } else { 0.0 };
        Some(UsageRow {
            attempt: attempt.id.to_string(),
            task_id: id.to_string(),
            user_id: row.owner.clone(),
            project_id: row.project.clone(),
            start_time: row.start.to_rfc3339(),
            end_time: row.end.map(Millis::to_rfc3339),
            duration: held_ms / 1000.0,
            gpu_type: row.gpu_kind.clone(),
            gpu_count: row.gpu_count,
            gpu_hours: held_ms / HOUR_MS * f64::from(row.gpu_count),
            cpu_millis: row.cpu_millis,
            cpu_core_hours: held_ms / HOUR_MS * cores,
        })
    };
    attempts.filter_map(row).collect()
}

/// The members that `text` names: by id, by the name in the member table, or by the name they gossip, which is newer
/// and is what listings show.
pub fn named<'a>(text: &str, members: impl IntoIterator<Item = (&'a NodeId, &'a str, Option<&'a str>)>) -> Vec<NodeId> {
    let fits = |(id, table, gossip): &(&NodeId, &str, Option<&str>)| {
        id.as_str() == text || gossip.unwrap_or(table) == text || *table == text
    };
    let all: Vec<_> = members.into_iter().filter(fits).collect();
    // A name that a node has now is meant before one that another had once.
    let now: Vec<_> = all.iter().filter(|(_, table, gossip)| gossip.unwrap_or(table) == text).collect();
    let chosen = if now.is_empty() { all.iter().collect() } else { now };
    chosen.into_iter().map(|(id, ..)| (*id).clone()).collect()
}

/// A GPU, and which of the attempts on its node holds it.
pub fn gpu_view(gpu: &Gpu, held: &[&Attempt]) -> GpuView {
    let holder = held.iter().find(|a| a.grant.gpus.contains(&gpu.index));
    let (state, detail) = match (&gpu.unusable, holder) {
        (Some(why), _) => ("UNUSABLE", why.clone()),
        (None, Some(attempt)) => ("HELD", attempt.id.to_string()),
        (None, None) => ("FREE", String::new()),
    };
    GpuView {
        index: gpu.index,
        gpu_type: gpu.kind.clone(),
        memory_bytes: gpu.memory_bytes,
        utilisation_percent: gpu.utilisation_percent,
        state: state.to_owned(),
        detail,
    }
}

/// An attempt.
pub fn attempt_view(ledger: &Ledger, attempt: &Attempt) -> AttemptView {
    let (state, ended, reason) = match &attempt.state {
        AttemptState::Assigned => ("ASSIGNED", None, String::new()),
        AttemptState::Running { .. } => ("RUNNING", None, String::new()),
        AttemptState::Publishing { .. } => ("PUBLISHING", None, String::new()),
        AttemptState::Stopping { .. } => ("STOPPING", None, String::new()),
        AttemptState::Ended { at, how, .. } => {
            let (state, reason) = match how {
                AttemptEnd::Finished => ("FINISHED", String::new()),
                AttemptEnd::Failed(failure) => ("FAILED", failure.message.clone()),
                AttemptEnd::Stopped => ("STOPPED", String::new()),
                AttemptEnd::Lost => ("LOST", "its node was silent for a lease".to_owned()),
            };
            (state, Some(*at), reason)
        }
    };
    AttemptView {
        id: attempt.id.to_string(),
        node: attempt.node.to_string(),
        node_name: node_name(ledger, &attempt.node),
        state: state.to_owned(),
        reason,
        assigned_at: attempt.assigned_at.to_rfc3339(),
        started_at: attempt.state.started_at().map(Millis::to_rfc3339),
        ended_at: ended.map(Millis::to_rfc3339),
        gpu_type: attempt.grant.gpu_kind.clone(),
        gpus: attempt.grant.gpus.clone(),
    }
}

/// A task's history, read off its attempts.
pub fn history(ledger: &Ledger, task: &Task) -> Vec<(Millis, Event)> {
    let event = |at: Millis, name: &str, attempt: Option<&Attempt>, detail: String| {
        let view = Event {
            at: at.to_rfc3339(),
            event: name.to_owned(),
            attempt: attempt.map(|a| a.id.to_string()),
            node: attempt.map(|a| node_name(ledger, &a.node)),
            detail,
        };
        (at, view)
    };
    let mut events = vec![event(task.submitted_at, "SUBMITTED", None, String::new())];
    for attempt in task.replicas.iter().flat_map(|r| &r.attempts) {
        events.push(event(attempt.assigned_at, "ASSIGNED", Some(attempt), String::new()));
        let started = attempt.state.started_at();
        events.extend(started.map(|at| event(at, "STARTED", Some(attempt), String::new())));
        match &attempt.state {
            AttemptState::Assigned | AttemptState::Running { .. } => {}
            AttemptState::Publishing { since, .. } => {
                events.push(event(*since, "PUBLISHING", Some(attempt), String::new()));
            }
            AttemptState::Stopping { since, .. } => {
                events.push(event(*since, "STOPPING", Some(attempt), String::new()))
            }
            AttemptState::Ended { at, .. } => {
                let view = attempt_view(ledger, attempt);
                events.push(event(*at, &view.state, Some(attempt), view.reason));
            }
        }
    }
    match &task.ended {
        Some(TaskEnd::Completed { at, .. }) => events.push(event(*at, "COMPLETED", None, String::new())),
        Some(TaskEnd::Failed { at, failure }) => events.push(event(*at, "FAILED", None, failure.message.clone())),
        Some(TaskEnd::Cancelled { at, by }) => events.push(event(*at, "CANCELLED", None, format!("by {by}"))),
        None => {}
    }
    events.sort_by_key(|(at, _)| *at);
    events
}

#[cfg(test)]
pub(crate) mod tests {
    use mloc_core::{
        capability::Grant,
        id::{AttemptId, RequestId},
        ledger::{
            Entry, Outcome,
            entry::{Failure, FailureClass, Member},
        },
    };

    use super::*;

    const TASK: &str = "apiVersion: mloc/v1\nkind: TrainingTask\nmetadata: {name: t, owner: john-doe, project: p}\n\
                        spec: {taskType: echo, resources: {hardware: {cpu: '2'}}, hyperparameters: {steps: 1}}\n";

    /// A ledger with one node and one task, of which one attempt failed after half an hour and another has run since.
    pub(crate) fn ledger(gpus: Vec<u32>) -> (Ledger, TaskId) {
        let (node, id) = (NodeId::new("n"), TaskId::new("task-1"));
        let mut ledger = Ledger::default();
        let member = Member {
            name: "a".into(),
            addresses: vec![],
            joined_at: Millis(0),
            draining_since: None,
            revoked_at: None,
        };
        let spec = Box::new(mloc_core::task::parse(TASK, "t").unwrap().spec);
        let grant = Grant { cpu_millis: 2000, gpus, gpu_kind: "nvidia-l40".into(), ..Grant::default() };
        let attempt = |attempt| AttemptId { task: id.clone(), replica: 0, attempt };
        let assign = |n, at| Entry::Assigned {
            attempt: attempt(n),
            node: node.clone(),
            grant: grant.clone(),
            capacity: Grant { cpu_millis: 8000, memory_bytes: 1 << 40, disk_bytes: 1 << 40, ..grant.clone() },
            at: Millis(at),
        };
        let failure = Failure { class: FailureClass::Retryable, message: "disk\nfull".into() };
        for entry in [
            Entry::MemberJoined { node: node.clone(), member },
            Entry::Submit {
                task: id.clone(),
                spec,
                request: RequestId::new("k"),
                body_digest: String::new(),
                at: Millis(0),
            },
            assign(1, 0),
            Entry::Started { attempt: attempt(1), at: Millis(0) },
            Entry::Failed { attempt: attempt(1), failure, at: Millis(1_800_000) },
            assign(2, 7_200_000),
            Entry::Started { attempt: attempt(2), at: Millis(7_200_000) },
        ] {
            assert_eq!(ledger.apply(&entry), Outcome::Applied, "{entry:?}");
        }
        (ledger, id)
    }

    #[test]
    fn there_is_a_usage_row_for_each_attempt_and_they_sum_to_the_stats() {
        let now = Millis(9_000_000);
        for gpus in [vec![0, 1], vec![]] {
            let (ledger, id) = ledger(gpus.clone());
            let rows = usage_rows(&ledger, &id, &ledger.tasks[&id], now);
            assert_eq!(rows.len(), 2);
            assert_eq!((rows[0].duration, rows[0].gpu_count), (1800.0, gpus.len() as u32));
            assert_eq!(rows[0].end_time.as_deref(), Some("1970-01-01T00:30:00.000Z"));
            assert_eq!((rows[1].end_time.as_ref(), rows[1].duration), (None, 1800.0), "it runs, and counts up to now");
            assert_eq!((rows[0].user_id.as_str(), rows[0].project_id.as_str()), ("john-doe", "p"));
            let stats = mloc_core::ledger::usage::stats(&ledger, &Default::default(), now);
            assert_eq!(rows.iter().map(|r| r.gpu_hours).sum::<f64>(), stats.total_gpu_hours);
            assert_eq!(rows.iter().map(|r| r.cpu_core_hours).sum::<f64>(), stats.total_cpu_core_hours);
            assert!(stats.total_gpu_hours + stats.total_cpu_core_hours > 1.9, "{stats:?}");
        }
    }

    #[test]
    fn an_end_is_one_line() {
        let (ledger, id) = ledger(vec![]);
        let attempts = &ledger.tasks[&id].replicas[0].attempts;
        assert_eq!(how_it_ended(&ledger, &attempts[0]).as_deref(), Some("FAILED, disk full"));
        assert_eq!(how_it_ended(&ledger, &attempts[1]), None);
        let events: Vec<_> = history(&ledger, &ledger.tasks[&id]).into_iter().map(|(_, e)| e.event).collect();
        assert_eq!(events, ["SUBMITTED", "ASSIGNED", "STARTED", "FAILED", "ASSIGNED", "STARTED"]);
    }

    #[test]
    fn a_renamed_node_answers_to_both_names_and_a_new_name_wins_over_an_old_one() {
        let (x, y) = (NodeId::new("x"), NodeId::new("y"));
        let members = [(&x, "old", Some("new")), (&y, "b", None)];
        for (text, want) in [("new", vec![&x]), ("old", vec![&x]), ("x", vec![&x]), ("b", vec![&y]), ("c", vec![])] {
            assert_eq!(named(text, members).iter().collect::<Vec<_>>(), want, "{text}");
        }
        let members = [(&x, "old", Some("new")), (&y, "b", Some("old"))];
        assert_eq!(named("old", members), std::slice::from_ref(&y));
        let twins = [(&x, "old", Some("twin")), (&y, "twin", None)];
        assert_eq!(named("twin", twins), [x, y]);
    }
}
