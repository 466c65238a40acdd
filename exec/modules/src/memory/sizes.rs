//! How large the batches of a task are.

use mloc_burn::memory::Rows;
use mloc_core::task::{
    kind::TaskType,
    settings::{self, Training},
};

use super::Task;

/// Tokens of a row where neither `max_length` nor data says more, as a guess before data is read.
const UNSAID: usize = 1024;

/// Lengths of a task's rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// The largest micro-batch that there will be.
    worst: Rows,
    /// How many samples are in it.
    batch: usize,
    /// Rows of the samples with the most tokens, the largest first; as many as a micro-batch has.
    heaviest: Vec<Vec<usize>>,
    /// The same of a batch of held-out data.
    measured: Vec<Vec<usize>>,
    /// Tokens of the longest prompt, where the model itself writes what follows.
    prompt: usize,
}

impl Sizes {
    /// One token: what a task needs whatever its data is.
    pub fn least() -> Self {
        Self { worst: Rows::of(1, 1), batch: 1, heaviest: vec![vec![1]], measured: Vec::new(), prompt: 1 }
    }

    /// Of samples over a data set.
    pub fn of(worst: Rows, batch: usize, heaviest: Vec<Vec<usize>>, measured: Vec<Vec<usize>>) -> Self {
        Self { worst, batch, heaviest, measured, prompt: 0 }
    }

    /// Of prompts of at most so many tokens and answers to them.
    pub fn answers(training: &Training, prompt: usize, answer: usize) -> Self {
        let batch = training.per_device_train_batch_size.max(1);
        let longest = prompt.saturating_add(answer);
        let heaviest = vec![vec![longest]; batch];
        Self { worst: Rows::of(batch, longest), batch, heaviest, measured: Vec::new(), prompt }
    }

    /// Before data is read: every row is as long as it may be.
    pub(super) fn longest(task: &Task) -> Self {
        let training = &task.training;
        let longest = training.max_length.unwrap_or(UNSAID);
        match task.spec.task_type {
            TaskType::Grpo => {
                let grpo = settings::Grpo::of(&task.spec);
                Self::answers(training, longest, grpo.max_completion_length)
            }
            TaskType::Ppo => Self::answers(training, longest, settings::Ppo::of(&task.spec).response_length),
            of => {
                // Pairs are two rows each.
                let rows = if matches!(of, TaskType::Rm | TaskType::Dpo) { 2 } else { 1 };
                let batch = training.per_device_train_batch_size.max(1);
                let heaviest = vec![vec![longest; rows]; batch];
                let worst = Rows::of(batch * rows, longest);
                Self { worst, batch, heaviest, measured: Vec::new(), prompt: 0 }
            }
        }
    }

    /// Tokens of the longest row.
    pub fn longest_row(&self) -> usize {
        self.heaviest.iter().flatten().copied().max().unwrap_or(0)
    }

    /// Tokens of the longest prompt.
    pub(super) fn prompt(&self) -> usize {
        self.prompt
    }

    /// A micro-batch of so many samples, the largest that there can be; rows are cut where a length is given.
    pub(super) fn rows(&self, batch: usize, max_length: Option<usize>) -> Rows {
        match max_length {
            None if batch >= self.batch => self.worst,
            _ => cut(&self.heaviest, batch, max_length),
        }
    }

    /// The largest batch of held-out data.
    pub(super) fn measured(&self, max_length: Option<usize>) -> Rows {
        cut(&self.measured, self.measured.len(), max_length)
    }
}

fn cut(samples: &[Vec<usize>], batch: usize, max_length: Option<usize>) -> Rows {
    let longest = max_length.unwrap_or(usize::MAX);
    Rows::lengths(samples.iter().take(batch).flatten().map(|length| (*length).min(longest)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smaller_batches_are_of_the_largest_samples() {
        // The two largest never meet in the run that is planned.
        let heaviest = vec![vec![90], vec![80], vec![10]];
        let sizes = Sizes::of(Rows::lengths([90, 10, 10]), 3, heaviest, vec![vec![5, 5]]);
        assert_eq!(sizes.rows(3, None), Rows::lengths([90, 10, 10]));
        assert_eq!(sizes.rows(2, None), Rows::lengths([90, 80]));
        assert_eq!(sizes.rows(2, Some(50)), Rows::of(2, 50));
        assert_eq!(sizes.measured(None), Rows::of(2, 5));
        assert_eq!(sizes.longest_row(), 90);
    }
}
