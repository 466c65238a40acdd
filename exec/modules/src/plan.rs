//! Which samples make which step: a pure function of the data's size, the settings and the step, so that a resumed run
//! sees what the unbroken one would have seen.

use mloc_burn::random::permutation;
use mloc_core::task::settings::{DataOrder, Training};

/// The steps of a run.
#[derive(Clone, Debug)]
pub struct Plan {
    samples: usize,
    batch: usize,
    accumulation: usize,
    order: DataOrder,
    seed: u64,
    /// The shuffled order of the epoch asked for last: shuffling a large data set anew at each step would cost more than
    /// some steps.
    shuffled: Option<(u64, Vec<usize>)>,
    /// Optimizer steps in an epoch; the last one may be short.
    pub steps_per_epoch: u64,
    /// Optimizer steps in all.
    pub total_steps: u64,
}

impl Plan {
    /// The plan for so many samples (at least one), as the reference trainer counts.
    pub fn new(samples: usize, settings: &Training) -> Self {
        let (batch, accumulation) =
            (settings.per_device_train_batch_size.max(1), settings.gradient_accumulation_steps.max(1));
        let batches = samples.div_ceil(batch);
        let steps_per_epoch = (batches.div_ceil(accumulation) as u64).max(1);
        let by_epochs = (settings.num_train_epochs * steps_per_epoch as f64).ceil() as u64;
        let total_steps = settings.max_steps.unwrap_or(by_epochs).max(1);
        Self {
            samples,
            batch,
            accumulation,
            order: settings.data_order,
            seed: settings.seed,
            shuffled: None,
            steps_per_epoch,
            total_steps,
        }
    }

    /// Indices of the samples of each micro-batch of the step after `done` steps.
    pub fn step(&mut self, done: u64) -> Vec<Vec<usize>> {
        let (epoch, within) = (done / self.steps_per_epoch, (done % self.steps_per_epoch) as usize);
        let width = self.batch * self.accumulation;
        let from = (within * width).min(self.samples);
        let to = (from + width).min(self.samples);
        let samples: Vec<usize> = match self.order {
            DataOrder::Given => (from..to).collect(),
            DataOrder::Shuffled => self.order_of(epoch)[from..to].to_vec(),
        };
        samples.chunks(self.batch).map(<[usize]>::to_vec).collect()
    }

    fn order_of(&mut self, epoch: u64) -> &[usize] {
        let (samples, seed) = (self.samples, self.seed);
        if self.shuffled.as_ref().is_some_and(|(of, _)| *of != epoch) {
            self.shuffled = None;
        }
        &self.shuffled.get_or_insert_with(|| (epoch, permutation(samples, seed, epoch))).1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(batch: usize, accumulation: usize, order: DataOrder) -> Training {
        let spec = mloc_core::task::parse(
            "apiVersion: mloc/v1\nkind: TrainingTask\nmetadata: {name: t, owner: o}\nspec:\n  taskType: sft\n  model: \
             {source: {type: local, identifier: v/m}}\n  dataset: {source: {type: local, identifier: v/d}}\n",
            "t",
        );
        let mut settings = Training::of(&spec.unwrap().spec);
        settings.per_device_train_batch_size = batch;
        settings.gradient_accumulation_steps = accumulation;
        settings.data_order = order;
        settings.max_steps = None;
        settings.num_train_epochs = 2.0;
        settings
    }

    #[test]
    fn given_order_takes_every_sample_once_an_epoch_in_order() {
        let mut plan = Plan::new(11, &settings(2, 2, DataOrder::Given));
        assert_eq!((plan.steps_per_epoch, plan.total_steps), (3, 6));
        assert_eq!(plan.step(0), [vec![0, 1], vec![2, 3]]);
        assert_eq!(plan.step(2), [vec![8, 9], vec![10]]);
        let first = plan.step(0);
        assert_eq!(plan.step(3), first);
    }

    #[test]
    fn shuffled_order_takes_every_sample_once_an_epoch_and_differs_between_epochs() {
        let mut plan = Plan::new(10, &settings(4, 1, DataOrder::Shuffled));
        let mut epoch = |e: u64| (0..3).flat_map(|s| plan.step(e * 3 + s)).flatten().collect::<Vec<_>>();
        let (mut first, second) = (epoch(0), epoch(1));
        assert_ne!(first, second);
        // A function of the step alone, whatever was asked before.
        assert_eq!((epoch(0), epoch(1)), (first.clone(), second));
        first.sort_unstable();
        assert_eq!(first, (0..10).collect::<Vec<_>>());
    }
}
