//! Watching a task from a terminal: a bar with phase, step, loss, tokens/s and the time left. Where standard error is
//! no terminal, a line whenever the state changes.

use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use mloc_api::view::TaskView;
use mloc_core::quantity::show_bytes;

use crate::{
    client::{Client, PATIENCE, Refusal},
    commands::client::LOOK,
};

/// How to show progress.
pub struct Watch {
    bar: Option<ProgressBar>,
}

impl Watch {
    /// A bar on a terminal, lines elsewhere.
    pub fn on_terminal() -> Self {
        if !std::io::stderr().is_terminal() {
            return Self { bar: None };
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        bar.enable_steady_tick(Duration::from_millis(120));
        Self { bar: Some(bar) }
    }

    /// Takes the bar away.
    pub fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    /// A line that stays, above the bar where there is one.
    fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            None => eprintln!("{line}"),
        }
    }

    fn show(&self, task: &TaskView, last: &mut String) {
        let phase = task.phase.clone().unwrap_or_else(|| task.state.clone());
        let Some(bar) = &self.bar else {
            let line = match (&task.phase, task.reason.is_empty()) {
                (Some(phase), _) => format!("{} {phase}", task.state),
                (None, true) => task.state.clone(),
                (None, false) => format!("{}: {}", task.state, task.reason),
            };
            if line != *last {
                eprintln!("{line}");
                *last = line;
            }
            return;
        };
        let progress = task.progress.clone().unwrap_or_default();
        let (done, total) = match progress.total_steps {
            Some(total) => (progress.step, Some(total)),
            None => (progress.bytes_done.unwrap_or(0), progress.bytes_total),
        };
        let template = if total.is_some() {
            "{prefix:<13} [{bar:30}] {pos}/{len} {msg} {eta} left"
        } else {
            "{prefix:<13} {spinner} {elapsed} {msg}"
        };
        if *last != phase {
            // A phase has its own steps, and its own time left.
            bar.reset();
            *last = phase.clone();
        }
        if let (Some(total), Ok(style)) = (total, ProgressStyle::with_template(template)) {
            bar.set_length(total);
            bar.set_style(style.progress_chars("=> "));
        } else if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_position(done);
        bar.set_prefix(phase);
        bar.set_message(message(task));
    }
}

fn message(task: &TaskView) -> String {
    let mut parts = Vec::new();
    if let Some(p) = &task.progress {
        parts.extend(p.loss.map(|l| format!("loss {l:.4}")));
        parts.extend(p.tokens_per_second.map(|t| format!("{t:.0} tok/s")));
        if p.total_steps.is_none() {
            parts.extend(p.bytes_total.map(show_bytes));
        }
        parts.extend(p.note.clone());
    }
    if parts.is_empty() && !task.reason.is_empty() {
        parts.push(task.reason.clone());
    }
    parts.join(", ")
}

/// Watches until the task has ended. A mesh that changes its leader, or a node that starts again, is waited for.
///
/// # Errors
/// When nobody answers for [`PATIENCE`], or the node says no.
pub async fn until_ended(client: &Client, id: &str, watch: &Watch) -> Result<TaskView, Refusal> {
    let mut last = String::new();
    let mut answered = Instant::now();
    let mut said = false;
    loop {
        match client.get::<TaskView>(&format!("/api/v1/tasks/{id}"), &[]).await {
            Ok(task) if matches!(task.state.as_str(), "COMPLETED" | "FAILED" | "CANCELLED") => {
                watch.clear();
                return Ok(task);
            }
            Ok(task) => {
                (answered, said) = (Instant::now(), false);
                watch.show(&task, &mut last);
            }
            Err(refusal) if refusal.is_passing() && answered.elapsed() < PATIENCE => {
                if !std::mem::replace(&mut said, true) {
                    watch.say(&format!("note: {}; asking again for {} s", refusal.text, PATIENCE.as_secs()));
                }
            }
            Err(refusal) => return Err(refusal),
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Exit code 0 only for a completed task.
///
/// # Errors
/// For any other.
pub fn verdict(task: &TaskView) -> Result<(), Refusal> {
    if task.state == "COMPLETED" {
        return Ok(());
    }
    Err(Refusal::new(1, format!("{} {}: {}", task.id, task.state, task.reason)))
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use axum::{Json, Router, http::StatusCode, response::IntoResponse, routing::get};
    use serde_json::json;

    use super::*;

    /// A node that answers the nth question so.
    async fn node(answer: fn(usize) -> (StatusCode, serde_json::Value)) -> (Client, Arc<AtomicUsize>) {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let task = move || {
            let (status, body) = answer(count.fetch_add(1, Ordering::SeqCst));
            async move { (status, Json(body)).into_response() }
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        // Ends with the test's runtime.
        tokio::spawn(async move { axum::serve(listener, Router::new().route("/api/v1/tasks/t", get(task))).await });
        (Client::at(&address.to_string(), None).unwrap(), asked)
    }

    #[tokio::test]
    async fn a_change_of_leader_in_the_middle_does_not_end_the_watch() {
        let (client, asked) = node(|n| match n {
            1 | 2 => (StatusCode::SERVICE_UNAVAILABLE, json!({ "detail": "the mesh has no leader just now" })),
            _ => {
                let state = if n == 0 { "RUNNING" } else { "COMPLETED" };
                let texts = ["id", "name", "owner", "project", "task_type", "since", "submitted_at"];
                let mut task: serde_json::Map<_, _> = texts.iter().map(|k| ((*k).to_owned(), json!("t"))).collect();
                task.extend([("state".to_owned(), json!(state)), ("attempts".to_owned(), json!([]))]);
                (StatusCode::OK, task.into())
            }
        })
        .await;
        let ended = until_ended(&client, "t", &Watch { bar: None }).await.unwrap();
        assert_eq!((ended.state.as_str(), asked.load(Ordering::SeqCst)), ("COMPLETED", 4));
    }

    #[tokio::test]
    async fn a_no_is_not_asked_again() {
        let (client, asked) = node(|_| (StatusCode::NOT_FOUND, json!({ "detail": "no task t" }))).await;
        assert_eq!(until_ended(&client, "t", &Watch { bar: None }).await.unwrap_err().code, 3);
        assert_eq!(asked.load(Ordering::SeqCst), 1);
    }
}
