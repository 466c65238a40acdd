//! Watching a task from a terminal: a bar with phase, step, loss, tokens/s and the time left. Where standard error is
//! no terminal, a line whenever the state changes.

use std::{io::IsTerminal, time::Duration};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use mloc_api::view::TaskView;
use mloc_core::quantity::show_bytes;

use crate::{
    client::{Client, Refusal},
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

/// Watches until the task has ended.
///
/// # Errors
/// When the node can't be asked for longer than it takes to choose a new leader.
pub async fn until_ended(client: &Client, id: &str, watch: &Watch) -> Result<TaskView, Refusal> {
    let mut last = String::new();
    loop {
        let task: TaskView = client.get(&format!("/api/v1/tasks/{id}"), &[]).await?;
        if matches!(task.state.as_str(), "COMPLETED" | "FAILED" | "CANCELLED") {
            if let Some(bar) = &watch.bar {
                bar.finish_and_clear();
            }
            return Ok(task);
        }
        watch.show(&task, &mut last);
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
