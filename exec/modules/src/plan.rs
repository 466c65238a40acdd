//! Which samples make which step: a pure function of the data's size, the settings and the step, so that a resumed run
//! sees what the unbroken one would have seen.

use mloc_burn::random::permutation;
use mloc_core::task::settings::{DataOrder, Training};

/// The steps of a run.
#[derive(Clone, Debug)]
pub struct Plan {
    samples: usize,
    batch: usize,
    /// Micro-batches of a step, on all devices together.
    accumulation: usize,
    order: DataOrder,
    seed: u64,
    /// Tokens of each sample, where the order is by length.
    lengths: Vec<u32>,
    /// The shuffled order of the epoch asked for last: shuffling a large data set anew at each step would cost more than
    /// some steps.
    shuffled: Option<(u64, Vec<usize>)>,
    /// Optimizer steps in an epoch; the last one may be short.
    pub steps_per_epoch: u64,
    /// Optimizer steps in all.
    pub total_steps: u64,
}

impl Plan {
    /// The plan for so many samples (at least one), as the reference trainer counts. A step on several devices has the
    /// samples of a step of one that accumulates over as many times more micro-batches.
    pub fn new(samples: usize, settings: &Training, devices: usize) -> Self {
        let batch = settings.per_device_train_batch_size.max(1);
        let accumulation = settings.gradient_accumulation_steps.max(1).saturating_mul(devices);
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
            lengths: Vec::new(),
            shuffled: None,
            steps_per_epoch,
            total_steps,
        }
    }

    /// The same with the tokens of each sample, which an order by length goes by. Without them it is a shuffled one.
    #[must_use]
    pub fn with_lengths(mut self, lengths: Vec<u32>) -> Self {
        // Four bytes a sample are not kept for nothing.
        if self.order == DataOrder::GroupedByLength {
            self.lengths = lengths;
        }
        self
    }

    /// Indices of the samples of each micro-batch of the step after `done` steps.
    pub fn step(&mut self, done: u64) -> Vec<Vec<usize>> {
        let (epoch, within) = (done / self.steps_per_epoch, (done % self.steps_per_epoch) as usize);
        let width = self.batch * self.accumulation;
        let from = (within * width).min(self.samples);
        let to = (from + width).min(self.samples);
        let samples: Vec<usize> = match self.order {
            DataOrder::Given => (from..to).collect(),
            DataOrder::Shuffled | DataOrder::GroupedByLength => self.order_of(epoch)[from..to].to_vec(),
        };
        samples.chunks(self.batch).map(<[usize]>::to_vec).collect()
    }

    fn order_of(&mut self, epoch: u64) -> &[usize] {
        let (samples, seed, width) = (self.samples, self.seed, self.batch * self.accumulation);
        let by_length = self.order == DataOrder::GroupedByLength && self.lengths.len() == samples;
        let order = || {
            let shuffled = permutation(samples, seed, epoch);
            if by_length { grouped(shuffled, &self.lengths, width) } else { shuffled }
        };
        if self.shuffled.as_ref().is_some_and(|(of, _)| *of != epoch) {
            self.shuffled = None;
        }
        &self.shuffled.get_or_insert_with(|| (epoch, order())).1
    }
}

/// Brings samples of like length together, as transformers' `LengthGroupedSampler` does: stretches of at most 50 steps of
/// the shuffled order, and at least 4 of them where there is enough, are each sorted with the longest first; and the
/// longest of all begins, so that what does not fit into memory shows at once. Only the shuffled order is our own.
fn grouped(mut order: Vec<usize>, lengths: &[u32], width: usize) -> Vec<usize> {
    let steps = (order.len() / (4 * width)).clamp(1, 50);
    let stretch = steps * width;
    order.chunks_mut(stretch).for_each(|part| part.sort_by_key(|sample| std::cmp::Reverse(lengths[*sample])));
    let firsts = (0..order.len()).step_by(stretch);
    // Of several that are longest the first, for `max_by_key` takes the last.
    if let Some(longest) = firsts.rev().max_by_key(|at| lengths[order[*at]]) {
        order.swap(0, longest);
    }
    order
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
        let mut plan = Plan::new(11, &settings(2, 2, DataOrder::Given), 1);
        assert_eq!((plan.steps_per_epoch, plan.total_steps), (3, 6));
        assert_eq!(plan.step(0), [vec![0, 1], vec![2, 3]]);
        assert_eq!(plan.step(2), [vec![8, 9], vec![10]]);
        let first = plan.step(0);
        assert_eq!(plan.step(3), first);
    }

    #[test]
    fn devices_take_what_one_would_take_that_accumulates_as_much_more() {
        for order in [DataOrder::Given, DataOrder::Shuffled, DataOrder::GroupedByLength] {
            let lengths: Vec<u32> = (0..103).map(|i| i * 37 % 50).collect();
            let plan = |accumulation, devices| {
                Plan::new(103, &settings(2, accumulation, order), devices).with_lengths(lengths.clone())
            };
            let (mut four, mut one) = (plan(3, 4), plan(12, 1));
            assert_eq!((four.steps_per_epoch, four.total_steps), (5, 10));
            assert_eq!(one.steps_per_epoch, 5);
            for step in 0..10 {
                assert_eq!(four.step(step), one.step(step));
            }
        }
    }

    /// What `get_length_grouped_indices` of transformers 5.23.0 makes of this permutation, lengths and step.
    #[test]
    fn samples_of_like_length_come_together_as_in_the_reference() {
        let lengths = [3, 9, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4];
        let shuffled = vec![13, 2, 19, 7, 0, 5, 11, 4, 17, 9, 16, 1, 14, 3, 8, 10, 12, 6, 18, 15];
        assert_eq!(
            grouped(shuffled.clone(), &lengths, 2),
            [5, 7, 2, 19, 13, 11, 4, 0, 1, 17, 9, 16, 14, 8, 10, 3, 12, 18, 15, 6]
        );
        assert_eq!(
            grouped(shuffled, &lengths, 8),
            [5, 11, 13, 7, 4, 2, 19, 0, 1, 14, 8, 10, 17, 9, 16, 3, 12, 18, 15, 6]
        );
    }

    #[test]
    fn an_order_by_length_takes_every_sample_once_an_epoch() {
        let lengths: Vec<u32> = (0..103).map(|i| i * 37 % 50).collect();
        let mut plan = Plan::new(103, &settings(4, 2, DataOrder::GroupedByLength), 1).with_lengths(lengths.clone());
        let mut epoch = |e: u64| (0..13).flat_map(|s| plan.step(e * 13 + s)).flatten().collect::<Vec<_>>();
        let (first, second) = (epoch(0), epoch(1));
        assert_ne!(first, second);
        assert_eq!(lengths[first[0]], 49, "the longest begins");
        // Within a step lengths are near each other.
        let spread = |order: &[usize]| {
            let of =
                |step: &[usize]| step.iter().map(|i| lengths[*i]).max().zip(step.iter().map(|i| lengths[*i]).min());
            order.chunks(8).filter_map(of).map(|(most, least)| most - least).sum::<u32>()
        };
        assert!(2 * spread(&first) < spread(&permutation(103, 42, 0)));
        for mut seen in [first, second] {
            seen.sort_unstable();
            assert_eq!(seen, (0..103).collect::<Vec<_>>());
        }
    }

    #[test]
    fn shuffled_order_takes_every_sample_once_an_epoch_and_differs_between_epochs() {
        let mut plan = Plan::new(10, &settings(4, 1, DataOrder::Shuffled), 1);
        let mut epoch = |e: u64| (0..3).flat_map(|s| plan.step(e * 3 + s)).flatten().collect::<Vec<_>>();
        let (mut first, second) = (epoch(0), epoch(1));
        assert_ne!(first, second);
        // A function of the step alone, whatever was asked before.
        assert_eq!((epoch(0), epoch(1)), (first.clone(), second));
        first.sort_unstable();
        assert_eq!(first, (0..10).collect::<Vec<_>>());
    }
}
