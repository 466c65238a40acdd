//! Log-probabilities of given tokens, one by one, and the gradient that derivatives at them have at the hidden states.
//!
//! As in [`crate::loss`] the logits exist for a few hundred positions at a time, and once more in the backward pass.

use burn::tensor::Tensor;

use crate::loss::{self, Targets};
use crate::model::parameter::matrix;
use crate::model::{Gradients, Head};

/// One number a target, in the order of the targets.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scores {
    /// log p of the token, in nats.
    pub logprobs: Vec<f64>,
    /// Entropy of the distribution it was drawn from, in nats.
    pub entropies: Vec<f64>,
}

/// Derivatives of a loss, one a target, in the order of the targets.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Slopes {
    /// At the log-probabilities.
    pub logprobs: Vec<f64>,
    /// At the entropies; empty where the loss has no such term.
    pub entropies: Vec<f64>,
}

/// Log-probabilities and entropies of the targets, logits divided by `temperature` (above 0).
pub fn score(hidden: &Tensor<2>, head: Head<'_>, targets: &Targets, temperature: f64) -> Scores {
    let each = loss::each(&tempered(hidden, temperature), head.tempered(temperature), targets);
    Scores {
        logprobs: each.iter().map(|target| target.log_probability).collect(),
        entropies: each.iter().map(|target| target.entropy).collect(),
    }
}

/// The gradient at `hidden`, given the slopes at what [`score`] says of the same targets; adds the head's gradient if
/// the head is trainable.
pub fn backward(
    hidden: &Tensor<2>,
    head: Head<'_>,
    targets: &Targets,
    temperature: f64,
    slopes: &Slopes,
    gradients: &mut Gradients,
) -> Tensor<2> {
    let (hidden, head) = (tempered(hidden, temperature), head.tempered(temperature));
    let weights: Vec<f32> = slopes.logprobs.iter().map(|slope| -*slope as f32).collect();
    let mut d_hidden = loss::backward_each(&hidden, head, targets, &weights, gradients);
    if !slopes.entropies.is_empty() {
        d_hidden = d_hidden + entropies_backward(&hidden, head, targets, &slopes.entropies, gradients);
    }
    d_hidden.mul_scalar(1.0 / temperature)
}

fn entropies_backward(
    hidden: &Tensor<2>,
    head: Head<'_>,
    targets: &Targets,
    slopes: &[f64],
    gradients: &mut Gradients,
) -> Tensor<2> {
    let device = hidden.device();
    let mut d_hidden = Tensor::zeros(hidden.dims(), &device);
    let mut rest = slopes;
    for chunk in loss::chunks(hidden, head, targets) {
        let figures = chunk.figures();
        let (own, others) = rest.split_at(figures.len());
        rest = others;
        let column = |values: Vec<f32>| {
            let count = values.len();
            matrix(values, &[count, 1], &device)
        };
        let partitions = column(figures.iter().map(|figures| figures.log_partition as f32).collect());
        let entropies = column(figures.iter().map(|figures| figures.entropy() as f32).collect());
        let minus_slopes = column(own.iter().map(|slope| -*slope as f32).collect());
        // d H / d logits = −p · (log p + H), which is 0 where p is.
        let slopes = chunk.slopes_of(|logits| {
            let log_probabilities = logits.clone() - partitions;
            log_probabilities.clone().exp() * (log_probabilities + entropies) * minus_slopes
        });
        d_hidden = slopes.place(d_hidden, gradients);
    }
    d_hidden
}

/// Logits are linear in the hidden states, the narrower of the two, or are once the cap is tempered too.
fn tempered(hidden: &Tensor<2>, temperature: f64) -> Tensor<2> {
    if temperature == 1.0 { hidden.clone() } else { hidden.clone().mul_scalar(1.0 / temperature) }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::model::Parameter;
    use crate::model::parameter::host_values;
    use crate::random::Random;

    const WIDTH: usize = 6;
    const VOCABULARY: usize = 11;
    const TEMPERATURE: f64 = 0.7;
    const CAPS: [Option<f64>; 2] = [None, Some(1.5)];

    struct Case {
        softcap: Option<f64>,
        hidden: Vec<f32>,
        head: Vec<f32>,
        targets: Targets,
        slopes: Slopes,
    }

    impl Case {
        fn drawn(softcap: Option<f64>) -> Self {
            let mut random = Random::new(4);
            let mut drawn = |n: usize| (0..n).map(|_| random.normal()).collect::<Vec<f32>>();
            let slopes = |values: Vec<f32>| values.into_iter().map(f64::from).collect();
            Self {
                softcap,
                hidden: drawn(4 * WIDTH),
                head: drawn(VOCABULARY * WIDTH),
                targets: Targets { rows: vec![0, 2, 3], ids: vec![7, 0, 10] },
                slopes: Slopes { logprobs: slopes(drawn(3)), entropies: slopes(drawn(3)) },
            }
        }

        fn head<'a>(&self, weight: &'a Parameter) -> Head<'a> {
            Head { weight, softcap: self.softcap }
        }

        fn parts(&self) -> (Tensor<2>, Parameter) {
            let device = Device::flex();
            let mut head = Parameter::new("head".into(), &[VOCABULARY, WIDTH], self.head.clone(), &device);
            head.trainable = true;
            (matrix(self.hidden.clone(), &[4, WIDTH], &device), head)
        }

        /// The linear loss whose derivatives the slopes are.
        fn loss(&self) -> f64 {
            let (hidden, head) = self.parts();
            let scores = score(&hidden, self.head(&head), &self.targets, TEMPERATURE);
            let sum = |values: &[f64], slopes: &[f64]| values.iter().zip(slopes).map(|(v, s)| v * s).sum::<f64>();
            sum(&scores.logprobs, &self.slopes.logprobs) + sum(&scores.entropies, &self.slopes.entropies)
        }
    }

    #[test]
    fn scores_are_those_of_a_softmax_written_out() {
        CAPS.into_iter().for_each(check_scores);
    }

    fn check_scores(softcap: Option<f64>) {
        let case = Case::drawn(softcap);
        let (hidden, head) = case.parts();
        let scores = score(&hidden, case.head(&head), &case.targets, TEMPERATURE);
        for (index, (row, id)) in case.targets.rows.iter().zip(&case.targets.ids).enumerate() {
            let at = |row: &[f32], from: usize| row[from * WIDTH..][..WIDTH].to_vec();
            let state = at(&case.hidden, *row as usize);
            let logits: Vec<f64> = (0..VOCABULARY)
                .map(|token| {
                    let weights = at(&case.head, token);
                    let dot = state.iter().zip(&weights).map(|(a, b)| f64::from(a * b)).sum::<f64>();
                    softcap.map_or(dot, |cap| cap * (dot / cap).tanh()) / TEMPERATURE
                })
                .collect();
            let partition = logits.iter().map(|l| l.exp()).sum::<f64>().ln();
            let entropy: f64 = -logits.iter().map(|l| (l - partition).exp() * (l - partition)).sum::<f64>();
            assert!((scores.logprobs[index] - (logits[*id as usize] - partition)).abs() < 1e-5);
            assert!((scores.entropies[index] - entropy).abs() < 1e-5);
        }
    }

    #[test]
    fn gradients_are_the_slopes_of_the_loss() {
        CAPS.into_iter().for_each(check_gradients);
    }

    fn check_gradients(softcap: Option<f64>) {
        let case = Case::drawn(softcap);
        let (hidden, head) = case.parts();
        let mut gradients = Gradients::default();
        let d_hidden = backward(&hidden, case.head(&head), &case.targets, TEMPERATURE, &case.slopes, &mut gradients);
        let d_head = host_values(gradients.take("head").expect("trainable"));
        let step = 1e-2_f32;
        let check = |found: f32, moved: &dyn Fn(f32) -> f64, what: &str| {
            let slope = (moved(step) - moved(-step)) / (2.0 * f64::from(step));
            assert!((slope - f64::from(found)).abs() < 2e-3, "{what}: {found}, slope {slope}");
        };
        for (i, found) in host_values(d_hidden).into_iter().enumerate() {
            let moved = |by: f32| {
                let mut case = Case::drawn(softcap);
                case.hidden[i] += by;
                case.loss()
            };
            check(found, &moved, &format!("hidden {i}"));
        }
        for (i, found) in d_head.into_iter().enumerate() {
            let moved = |by: f32| {
                let mut case = Case::drawn(softcap);
                case.head[i] += by;
                case.loss()
            };
            check(found, &moved, &format!("head {i}"));
        }
    }
}
