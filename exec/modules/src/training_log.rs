//! `training_log.jsonl`: one object a logged step, with the reference's names, and what of it must survive a crash.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Write,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use mloc_burn::{objective::Figures, train::StepReport};
use mloc_exec::ModuleError;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The file among the artifacts, and in each checkpoint.
pub const FILE: &str = "training_log.jsonl";
/// Sums since the last line, in each checkpoint.
const SUMS: &str = "log_sums.json";

/// Sums since the last logged step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Sums {
    loss: f64,
    // Checkpoints of former versions count targets.
    #[serde(alias = "targets")]
    weight: f64,
    /// The method's own figures: each one's sum, and the steps that had it.
    #[serde(default)]
    figures: BTreeMap<String, (f64, u64)>,
    /// Loss of the last logged line.
    last: Option<f64>,
}

/// The log of a run.
pub struct TrainingLog {
    path: PathBuf,
    sums: Sums,
    /// Begin of the stretch that tokens_per_second is of.
    since: Instant,
    tokens_since: u64,
    /// Of the last logged stretch.
    pub tokens_per_second: Option<f64>,
}

impl TrainingLog {
    /// A log in `artifacts`, going on from a checkpoint's where there is one.
    ///
    /// # Errors
    /// Those of the disk, and a checkpoint's sums that can't be read.
    pub fn open(artifacts: &Path, checkpoint: Option<&Path>) -> Result<Self, ModuleError> {
        let path = artifacts.join(FILE);
        let mut sums = Sums::default();
        if let Some(from) = checkpoint {
            let kept = from.join(FILE);
            std::fs::copy(&kept, &path).map_err(|e| ModuleError::disk("copy", &kept, &e))?;
            let file = from.join(SUMS);
            let text = std::fs::read(&file).map_err(|e| ModuleError::disk("read", &file, &e))?;
            sums = serde_json::from_slice(&text).map_err(|e| ModuleError::Fatal(format!("{}: {e}", file.display())))?;
        } else {
            File::create(&path).map_err(|e| ModuleError::disk("create", &path, &e))?;
        }
        Ok(Self { path, sums, since: Instant::now(), tokens_since: 0, tokens_per_second: None })
    }

    /// The loss of the last line, a resumed run's first lines included.
    pub fn loss(&self) -> Option<f64> {
        self.sums.last
    }

    /// Puts what a resumed run needs into a checkpoint's folder.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn save(&self, folder: &Path) -> Result<(), ModuleError> {
        std::fs::copy(&self.path, folder.join(FILE)).map_err(|e| ModuleError::disk("copy", &self.path, &e))?;
        let file = folder.join(SUMS);
        let text = serde_json::to_vec(&self.sums).map_err(|e| ModuleError::Fatal(e.to_string()))?;
        std::fs::write(&file, text).map_err(|e| ModuleError::disk("write", &file, &e))
    }

    /// Takes a step in; writes a line when one is due: loss and figures are means since the last line, a loss over the
    /// weights of its steps.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn step(
        &mut self,
        step: u64,
        report: &StepReport,
        tokens: u64,
        epoch: f64,
        due: bool,
    ) -> Result<(), ModuleError> {
        self.sums.loss += report.loss * report.weight;
        self.sums.weight += report.weight;
        for (name, value) in &report.figures {
            let (sum, steps) = self.sums.figures.entry(name.clone()).or_default();
            *sum += value;
            *steps += 1;
        }
        self.tokens_since += tokens;
        if !due {
            return Ok(());
        }
        let loss = if self.sums.weight == 0.0 { 0.0 } else { self.sums.loss / self.sums.weight };
        let rate = self.tokens_since as f64 / self.since.elapsed().as_secs_f64().max(1e-9);
        let mut line = json!({
            "step": step,
            "epoch": (epoch * 1e4).round() / 1e4,
            "loss": loss,
            "grad_norm": report.grad_norm,
            "learning_rate": report.learning_rate,
            "num_tokens": report.num_tokens,
            "tokens_per_second": (rate * 10.0).round() / 10.0,
            "peak_memory_bytes": peak_memory_bytes(),
        });
        for (name, (sum, steps)) in &self.sums.figures {
            line[name.as_str()] = Value::from(sum / *steps as f64);
        }
        self.append(&line)?;
        self.tokens_per_second = Some(rate);
        self.sums = Sums { last: Some(loss), ..Sums::default() };
        self.since = Instant::now();
        self.tokens_since = 0;
        Ok(())
    }
    /// Writes what an evaluation came to, each figure with `eval_` before its name, as a line of its own.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn evaluation(&mut self, step: u64, epoch: f64, figures: &Figures) -> Result<(), ModuleError> {
        let mut line = json!({ "step": step, "epoch": (epoch * 1e4).round() / 1e4 });
        for (name, value) in figures {
            line[format!("eval_{name}")] = Value::from(*value);
        }
        self.append(&line)
    }

    /// Leaves a stretch without steps out of the rate of tokens.
    pub fn leave_out(&mut self, stretch: Duration) {
        self.since += stretch;
    }

    fn append(&self, line: &Value) -> Result<(), ModuleError> {
        let mut file =
            File::options().append(true).open(&self.path).map_err(|e| ModuleError::disk("open", &self.path, &e))?;
        file.write_all(format!("{line}\n").as_bytes()).map_err(|e| ModuleError::disk("write", &self.path, &e))
    }
}

/// Largest resident size of this process so far, in bytes; 0 where the system does not say.
pub fn peak_memory_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|text| text.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}
