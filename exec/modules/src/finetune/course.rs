//! Where a run stands beside its steps: what evaluations said, which weights were the best, whether it ends early. All of
//! it is in each checkpoint, the best weights too, so that neither a kill nor `save_total_limit` loses them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use mloc_burn::train::WEIGHTS;
use mloc_core::task::settings::{Best, EarlyStopping};
use mloc_exec::ModuleError;
use serde::{Deserialize, Serialize};

use crate::fatal;

/// The file in each checkpoint.
const FILE: &str = "course.json";
/// The best weights, in a checkpoint whose own are not.
const BEST_WEIGHTS: &str = "best.safetensors";

/// Where a run stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Course {
    /// The step of the last evaluation.
    pub evaluated_at: Option<u64>,
    /// The best evaluation.
    pub best: Option<BestSoFar>,
    /// Evaluations in a row that were not enough better.
    no_better: u64,
}

/// The best evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct BestSoFar {
    /// Its step.
    pub step: u64,
    /// What it measured.
    pub metric: f64,
}

impl Course {
    /// Takes in what was measured after `step`, in the order of the reference's callbacks: early stopping looks at the
    /// best one before it. Returns whether this is the best.
    pub fn judge(&mut self, step: u64, metric: f64, best: &Best, stopping: Option<EarlyStopping>) -> bool {
        let ahead = |of: f64| if best.greater_is_better { metric - of } else { of - metric };
        let lead = self.best.map(|so_far| ahead(so_far.metric));
        let threshold = stopping.map_or(0.0, |stopping| stopping.threshold);
        self.no_better = match lead {
            Some(lead) if lead <= threshold => self.no_better + 1,
            _ => 0,
        };
        let is_best = lead.is_none_or(|lead| lead > 0.0);
        if is_best {
            self.best = Some(BestSoFar { step, metric });
        }
        is_best
    }

    /// Whether training ends here.
    pub fn is_over(&self, stopping: Option<EarlyStopping>) -> bool {
        stopping.is_some_and(|stopping| self.no_better >= stopping.patience)
    }

    /// Puts it into the folder of a checkpoint of `step`; `weights` is where the best ones are kept meanwhile.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn save(&self, folder: &Path, step: u64, weights: Option<&BestWeights>) -> Result<(), ModuleError> {
        let file = folder.join(FILE);
        let text = serde_json::to_vec(self).map_err(fatal)?;
        fs::write(&file, text).map_err(|e| ModuleError::disk("write", &file, &e))?;
        match (self.best, weights) {
            (Some(best), Some(weights)) if best.step != step => place(&weights.path, &folder.join(BEST_WEIGHTS)),
            _ => Ok(()),
        }
    }

    /// Goes on from the checkpoint of `step`.
    ///
    /// # Errors
    /// Those of the disk, and files that are not what was written.
    pub fn load(folder: &Path, step: u64, weights: Option<&BestWeights>) -> Result<Self, ModuleError> {
        let file = folder.join(FILE);
        let text = fs::read(&file).map_err(|e| ModuleError::disk("read", &file, &e))?;
        let course: Self =
            serde_json::from_slice(&text).map_err(|e| ModuleError::Fatal(format!("{}: {e}", file.display())))?;
        if let (Some(best), Some(weights)) = (course.best, weights) {
            let name = if best.step == step { WEIGHTS } else { BEST_WEIGHTS };
            place(&folder.join(name), &weights.path)?;
        }
        Ok(course)
    }
}

/// Where the best weights are kept between their evaluation and the end.
#[derive(Clone, Debug)]
pub struct BestWeights {
    /// The file.
    pub path: PathBuf,
}

impl BestWeights {
    /// In a folder of the attempt's own, which may be missing yet.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn below(work: &Path) -> Result<Self, ModuleError> {
        fs::create_dir_all(work).map_err(|e| ModuleError::disk("make", work, &e))?;
        Ok(Self { path: work.join(BEST_WEIGHTS) })
    }

    /// Replaces them by what `write` puts into a file. The file before may have another name in a checkpoint: it is not
    /// written to.
    ///
    /// # Errors
    /// What `write` says, and those of the disk.
    pub fn replace(&self, write: impl FnOnce(&Path) -> Result<(), ModuleError>) -> Result<(), ModuleError> {
        let aside = self.path.with_extension("new");
        write(&aside)?;
        fs::rename(&aside, &self.path).map_err(|e| ModuleError::disk("rename", &aside, &e))
    }
}

/// A second name for a file, or a copy where the disk has none; what has the name is replaced.
fn place(from: &Path, to: &Path) -> Result<(), ModuleError> {
    match fs::remove_file(to) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(ModuleError::disk("remove", to, &e)),
        _ => {}
    }
    fs::hard_link(from, to).or_else(|_| fs::copy(from, to).map(drop)).map_err(|e| ModuleError::disk("copy", from, &e))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Which of these measurements are the best so far, and after how many training ends.
    fn course(metrics: &[f64], best: &Best, stopping: Option<EarlyStopping>) -> (Vec<bool>, Option<usize>) {
        let mut course = Course::default();
        let (mut bests, mut over) = (Vec::new(), None);
        for (index, metric) in metrics.iter().enumerate() {
            bests.push(course.judge(index as u64, *metric, best, stopping));
            over = over.or(course.is_over(stopping).then_some(index));
        }
        (bests, over)
    }

    #[test]
    fn the_best_is_what_is_strictly_better_and_patience_counts_what_is_not_enough_better() {
        let loss = Best { metric: "loss".into(), greater_is_better: false };
        let metrics = [1.0, 0.9, 0.95, 0.9, 0.89, 0.888];
        assert_eq!(course(&metrics, &loss, None), (vec![true, true, false, false, true, true], None));
        let patient = |patience, threshold| Some(EarlyStopping { patience, threshold });
        assert_eq!(course(&metrics, &loss, patient(2, 0.0)).1, Some(3));
        assert_eq!(course(&metrics, &loss, patient(3, 0.0)).1, None, "0.89 is better, and the count begins anew");
        // As in the reference: what is better by less than the threshold is the best, and wears patience all the same.
        assert_eq!(course(&metrics, &loss, patient(4, 0.05)), (vec![true, true, false, false, true, true], Some(5)));
        let accuracy = Best { metric: "mean_token_accuracy".into(), greater_is_better: true };
        assert_eq!(course(&[0.5, 0.4, 0.6], &accuracy, patient(1, 0.0)), (vec![true, false, true], Some(1)));
    }

    #[test]
    fn the_best_weights_go_from_checkpoint_to_checkpoint() {
        let folder = tempfile::tempdir().expect("folder");
        let best = Best { metric: "loss".into(), greater_is_better: false };
        let at = |name: &str| {
            let path = folder.path().join(name);
            fs::create_dir_all(&path).expect("folder");
            path
        };
        let weights = BestWeights::below(&at("work")).expect("work");
        let write = |text: &'static str| {
            move |path: &Path| {
                fs::write(path, text).expect("write");
                Ok(())
            }
        };
        let mut course = Course::default();
        assert!(course.judge(2, 1.0, &best, None));
        weights.replace(write("of step 2")).expect("replace");
        // The checkpoint of the best step has them as its own.
        fs::write(at("second").join(WEIGHTS), "of step 2").expect("write");
        course.save(&at("second"), 2, Some(&weights)).expect("save");
        assert!(!at("second").join(BEST_WEIGHTS).exists());
        assert!(!course.judge(4, 1.5, &best, None));
        course.save(&at("fourth"), 4, Some(&weights)).expect("save");
        for (checkpoint, step) in [("second", 2), ("fourth", 4)] {
            let elsewhere = BestWeights::below(&at("elsewhere")).expect("work");
            let loaded = Course::load(&at(checkpoint), step, Some(&elsewhere)).expect("load");
            assert_eq!(loaded.best, Some(BestSoFar { step: 2, metric: 1.0 }));
            assert_eq!(fs::read_to_string(&elsewhere.path).expect("weights"), "of step 2");
        }
        // A better one does not reach back into checkpoints.
        weights.replace(write("of step 6")).expect("replace");
        assert_eq!(fs::read_to_string(at("fourth").join(BEST_WEIGHTS)).expect("weights"), "of step 2");
    }
}
