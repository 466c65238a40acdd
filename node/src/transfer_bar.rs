//! Bytes on their way, for a terminal; where standard error is none, only what is said.

use std::{io::IsTerminal, time::Duration};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar of bytes. Clones are the same bar.
#[derive(Clone, Debug)]
pub struct TransferBar {
    bar: Option<ProgressBar>,
    quiet: bool,
}

impl TransferBar {
    /// A bar that says what is being done.
    pub fn new(doing: &'static str) -> Self {
        if !std::io::stderr().is_terminal() {
            return Self { bar: None, quiet: false };
        }
        let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
        let template = "{prefix:<13} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta} left";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_prefix(doing);
        bar.enable_steady_tick(Duration::from_millis(120));
        Self { bar: Some(bar), quiet: false }
    }

    /// One that shows nothing.
    pub fn hidden() -> Self {
        Self { bar: None, quiet: true }
    }

    /// There is more to do.
    pub fn add(&self, bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.inc_length(bytes);
        }
    }

    /// So much was done.
    pub fn moved(&self, bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.inc(bytes);
        }
    }

    /// A line that stays.
    pub fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            None if self.quiet => {}
            None => eprintln!("{line}"),
        }
    }

    /// Takes it away.
    pub fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
