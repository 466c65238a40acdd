//! Group-relative policy optimisation as TRL's `GRPOTrainer` computes it: no values, the other completions of the same
//! prompt say what was to be expected.
//!
//! | `loss_type` | what a token's loss is divided by | source |
//! |---|---|---|
//! | `grpo` | its completion's tokens, then the completions | arXiv:2402.03300 |
//! | `bnpo` | the micro-batch's tokens | arXiv:2506.02298 |
//! | `dr_grpo` | completions × the longest allowed | arXiv:2503.20783 |
//! | `dapo` | all tokens that were generated together | arXiv:2503.14476 |
//! | `cispo` | as `dapo`; the clipped ratio is a constant weight | arXiv:2506.13585 |
//! | `sapo` | as `grpo`; a sigmoid in place of the clip | arXiv:2511.20347 |

use serde::{Deserialize, Serialize};

use super::moments;

/// Added to a standard deviation before dividing by it.
const STD_EPSILON: f64 = 1e-4;

/// What advantages are divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScaleRewards {
    /// The standard deviation of the group's rewards.
    Group,
    /// That of all rewards generated together.
    Batch,
    /// Nothing.
    None,
}

/// How several rewards of one completion become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Aggregation {
    /// They are added up with their weights.
    SumThenNormalize,
    /// Each is brought to mean 0 and variance 1 within its group first (arXiv:2601.05242).
    NormalizeThenSum,
}

/// The rewards of completions, `group` neighbours of one prompt each, one number a reward function; `None` where a
/// function has nothing to say.
#[derive(Debug, Clone, Copy)]
pub struct Rewards<'a> {
    /// One row a completion.
    pub by_function: &'a [Vec<Option<f64>>],
    /// One weight a function.
    pub weights: &'a [f64],
    /// Completions of a prompt; divides their number.
    pub group: usize,
}

/// What rewards come to.
#[derive(Debug, Clone, PartialEq)]
pub struct Advantages {
    /// One a completion; 0 where no function had anything to say.
    pub values: Vec<f64>,
    /// The weighted sum of a completion's rewards.
    pub rewards: Vec<Option<f64>>,
    /// Share of completions whose advantage is 0 because all that it is compared with are alike.
    pub frac_reward_zero_std: f64,
}

impl Rewards<'_> {
    /// Rewards relative to those of the group.
    pub fn advantages(&self, scale: ScaleRewards, aggregation: Aggregation) -> Advantages {
        let rewards: Vec<Option<f64>> = self.by_function.iter().map(|row| weighted(row, self.weights)).collect();
        let relative: Vec<(Option<f64>, f64)> = match aggregation {
            Aggregation::SumThenNormalize => {
                let batch = deviation(&rewards);
                let groups = rewards.chunks(self.group.max(1)).flat_map(|group| {
                    let (mean, own) = (mean(group), deviation(group));
                    let std = if scale == ScaleRewards::Batch { batch } else { own };
                    let divisor = if scale == ScaleRewards::None { 1.0 } else { std + STD_EPSILON };
                    group.iter().map(move |reward| (reward.map(|r| (r - mean) / divisor), std))
                });
                groups.collect()
            }
            Aggregation::NormalizeThenSum => {
                let mut each = self.by_function.to_vec();
                for group in each.chunks_mut(self.group.max(1)) {
                    for function in 0..self.weights.len() {
                        let column: Vec<Option<f64>> = group.iter().map(|row| row[function]).collect();
                        let (mean, std) = (mean(&column), deviation(&column));
                        for row in group.iter_mut() {
                            row[function] = row[function].map(|r| (r - mean) / (std + STD_EPSILON));
                        }
                    }
                }
                let sums: Vec<Option<f64>> = each.iter().map(|row| weighted(row, self.weights)).collect();
                let (mean, std) = (mean(&sums), deviation(&sums));
                sums.iter().map(|sum| (sum.map(|r| (r - mean) / (std + STD_EPSILON)), std)).collect()
            }
        };
        // torch.isclose with 0: within 1e-8.
        let alike = relative.iter().filter(|(_, std)| std.abs() <= 1e-8).count();
        Advantages {
            values: relative.iter().map(|(advantage, _)| advantage.unwrap_or(0.0)).collect(),
            frac_reward_zero_std: alike as f64 / relative.len().max(1) as f64,
            rewards,
        }
    }
}

fn weighted(row: &[Option<f64>], weights: &[f64]) -> Option<f64> {
    let said = row.iter().zip(weights).filter_map(|(reward, weight)| Some((*reward)? * weight));
    row.iter().any(Option::is_some).then(|| said.sum())
}

fn mean(values: &[Option<f64>]) -> f64 {
    moments(values.iter().flatten().copied()).0
}

fn deviation(values: &[Option<f64>]) -> f64 {
    moments(values.iter().flatten().copied()).1.sqrt()
}

/// The family of losses; see the table above.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossType {
    /// Mean of completions' means.
    Grpo,
    /// Mean over the micro-batch's tokens.
    Bnpo,
    /// Sum over a constant.
    DrGrpo,
    /// Mean over all tokens.
    Dapo,
    /// Clipped ratios as constant weights of log p.
    Cispo,
    /// Ratios through a sigmoid.
    Sapo,
}

/// What the ratio of probabilities is taken of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImportanceSampling {
    /// Each token.
    Token,
    /// The whole completion: the geometric mean over its tokens (GSPO, arXiv:2507.18071).
    Sequence,
}

/// Settings, under the names of `GRPOConfig`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct GrpoSettings {
    /// The loss.
    pub loss_type: LossType,
    /// Weight of the divergence from the reference; 0: no reference is needed.
    pub beta: f64,
    /// The ratio counts from `1 − epsilon`,
    pub epsilon: f64,
    /// to `1 + epsilon_high`; with `cispo` to `epsilon_high`.
    pub epsilon_high: f64,
    /// An upper bound of the ratio for bad completions too.
    pub delta: Option<f64>,
    /// What the ratio is of.
    pub importance_sampling_level: ImportanceSampling,
    /// Whether the divergence is weighted with the ratio, which makes its gradient unbiased (arXiv:2512.02556).
    pub use_bias_correction_kl: bool,
    /// Share of tokens, those of the highest entropy, that the policy learns from (arXiv:2506.01939); 1 = all.
    pub top_entropy_quantile: f64,
    /// Weight of the entropy that is rewarded.
    pub entropy_coef: f64,
    /// Steepness of `sapo`'s sigmoid for good completions.
    pub sapo_temperature_pos: f64,
    /// And for bad ones.
    pub sapo_temperature_neg: f64,
    /// Tokens of the longest completion there may be.
    pub max_completion_length: usize,
}

/// What `dapo` and `cispo` divide by: a micro-batch's share of all that was generated together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Normalizer {
    /// Micro-batches that a generation is split into; the losses of those in an optimizer step are averaged.
    pub micro_batches: usize,
    /// Completion tokens that were generated together and count.
    pub tokens: usize,
}

/// One completion of a micro-batch, of `n` tokens that count. `n` may be 0.
#[derive(Debug, Clone, Copy)]
pub struct Completion<'a> {
    /// log p under the policy that sampled it, `n`.
    pub old: &'a [f64],
    /// Under the reference, `n`; unused with `beta` 0.
    pub reference: &'a [f64],
    /// Under the policy as it is, `n`.
    pub new: &'a [f64],
    /// Entropy of the policy at each token in nats, `n`.
    pub entropies: &'a [f64],
    /// How much better it is than its group.
    pub advantage: f64,
}

/// The loss of a micro-batch, its derivatives, and what is logged.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GrpoLoss {
    /// Of this micro-batch; an optimizer step's is the mean over its micro-batches.
    pub loss: f64,
    /// At each row's log-probabilities.
    pub d_logprobs: Vec<Vec<f64>>,
    /// At each row's entropies; empty with `entropy_coef` 0.
    pub d_entropies: Vec<Vec<f64>>,
    /// Mean divergence over tokens, as it enters the loss.
    pub kl: f64,
    /// Mean entropy over tokens.
    pub entropy: f64,
    /// Share of tokens below the lower bound with a bad completion,
    pub clip_low: f64,
    /// above the upper one with a good completion. `cispo` has only this one, `sapo` neither.
    pub clip_high: f64,
    /// Largest share of one completion above.
    pub clip_high_max: f64,
    /// Smallest share of one completion below.
    pub clip_low_min: f64,
}

/// The loss of a micro-batch.
pub fn loss(rows: &[Completion<'_>], settings: &GrpoSettings, normalizer: Normalizer) -> GrpoLoss {
    let batch = MicroBatch::of(rows, settings, normalizer);
    let mut out = GrpoLoss { clip_low_min: 1.0, ..GrpoLoss::default() };
    for row in rows {
        batch.policy_and_divergence(row, &mut out);
        batch.entropy(row, &mut out);
        batch.clipping(row, &mut out);
    }
    out
}

/// What all rows of a micro-batch share.
struct MicroBatch<'a> {
    settings: &'a GrpoSettings,
    rows: f64,
    /// At least 1.
    tokens: f64,
    /// Of the generation, for each micro-batch of it: the mean over those of a step will divide by their number.
    generated: f64,
    /// Tokens of at least this entropy are learnt from,
    threshold: f64,
    /// and there are so many; at least 1.
    learnt: f64,
}

impl<'a> MicroBatch<'a> {
    fn of(rows: &[Completion<'_>], settings: &'a GrpoSettings, normalizer: Normalizer) -> Self {
        let threshold = entropy_threshold(rows, settings.top_entropy_quantile);
        let entropies = || rows.iter().flat_map(|row| row.entropies);
        Self {
            settings,
            rows: rows.len() as f64,
            tokens: entropies().count().max(1) as f64,
            generated: normalizer.tokens.max(1) as f64 / normalizer.micro_batches.max(1) as f64,
            threshold,
            learnt: entropies().filter(|entropy| **entropy >= threshold).count().max(1) as f64,
        }
    }

    /// A token's weight in the loss.
    fn weight(&self, row: &Completion<'_>) -> f64 {
        match self.settings.loss_type {
            LossType::Grpo | LossType::Sapo => 1.0 / (row.new.len().max(1) as f64 * self.rows),
            LossType::Bnpo => 1.0 / self.tokens,
            LossType::DrGrpo => 1.0 / (self.rows * self.settings.max_completion_length as f64),
            LossType::Dapo | LossType::Cispo => 1.0 / self.generated,
        }
    }

    fn policy_and_divergence(&self, row: &Completion<'_>, out: &mut GrpoLoss) {
        let (settings, weight) = (self.settings, self.weight(row));
        let ratios = ratios(row, settings.importance_sampling_level);
        let mut d = vec![0.0; row.new.len()];
        // The derivative at the ratio, which sequence-level ratios share among all tokens.
        let mut d_ratio = vec![0.0; row.new.len()];
        for t in 0..row.new.len() {
            if row.entropies[t] >= self.threshold {
                let token = policy(ratios[t], row.new[t], row.advantage, settings);
                out.loss += weight * token.loss;
                d[t] += weight * token.d_logprob;
                d_ratio[t] += weight * token.d_ratio;
            }
            if settings.beta != 0.0 {
                let apart = row.reference[t] - row.new[t];
                let (kl, slope) = (apart.exp_m1() - apart, -apart.exp_m1());
                let (factor, through_ratio) =
                    if settings.use_bias_correction_kl { (ratios[t], kl) } else { (1.0, 0.0) };
                out.loss += weight * settings.beta * kl * factor;
                out.kl += kl * factor / self.tokens;
                d[t] += weight * settings.beta * slope * factor;
                d_ratio[t] += weight * settings.beta * through_ratio;
            }
        }
        let through_ratios = d_ratio.iter().zip(&ratios).map(|(d, ratio)| d * ratio);
        match settings.importance_sampling_level {
            ImportanceSampling::Token => d.iter_mut().zip(through_ratios).for_each(|(d, more)| *d += more),
            ImportanceSampling::Sequence => {
                let shared = through_ratios.sum::<f64>() / row.new.len() as f64;
                d.iter_mut().for_each(|d| *d += shared);
            }
        }
        out.d_logprobs.push(d);
    }

    fn entropy(&self, row: &Completion<'_>, out: &mut GrpoLoss) {
        out.entropy += row.entropies.iter().sum::<f64>() / self.tokens;
        let coefficient = self.settings.entropy_coef;
        if coefficient == 0.0 {
            return;
        }
        // The mean over the tokens that it acts on, whatever the policy's loss is divided by.
        let slope = |entropy: &f64| if *entropy >= self.threshold { -coefficient / self.learnt } else { 0.0 };
        let slopes: Vec<f64> = row.entropies.iter().map(slope).collect();
        out.loss += row.entropies.iter().zip(&slopes).map(|(entropy, slope)| entropy * slope).sum::<f64>();
        out.d_entropies.push(slopes);
    }

    fn clipping(&self, row: &Completion<'_>, out: &mut GrpoLoss) {
        let ratios = ratios(row, self.settings.importance_sampling_level);
        let clipped = ratios.iter().map(|ratio| clipped(*ratio, row.advantage, self.settings));
        let (low, high) = clipped.fold((0.0, 0.0), |(l, h), (low, high)| (l + low, h + high));
        out.clip_low += low / self.tokens;
        out.clip_high += high / self.tokens;
        if !ratios.is_empty() {
            out.clip_low_min = out.clip_low_min.min(low / ratios.len() as f64);
            out.clip_high_max = out.clip_high_max.max(high / ratios.len() as f64);
        }
    }
}

/// The ratio of probabilities, new over old, at each token.
fn ratios(row: &Completion<'_>, level: ImportanceSampling) -> Vec<f64> {
    let changes = row.new.iter().zip(row.old).map(|(new, old)| new - old);
    match level {
        ImportanceSampling::Token => changes.map(f64::exp).collect(),
        ImportanceSampling::Sequence => {
            let mean = changes.sum::<f64>() / row.new.len().max(1) as f64;
            vec![mean.exp(); row.new.len()]
        }
    }
}

/// A token's part in the policy loss.
struct Token {
    loss: f64,
    d_ratio: f64,
    d_logprob: f64,
}

fn policy(ratio: f64, logprob: f64, advantage: f64, settings: &GrpoSettings) -> Token {
    match settings.loss_type {
        LossType::Grpo | LossType::Bnpo | LossType::DrGrpo | LossType::Dapo => {
            let bound = settings.delta.unwrap_or(f64::INFINITY);
            let free = ratio.min(bound) * advantage;
            let held = ratio.clamp(1.0 - settings.epsilon, 1.0 + settings.epsilon_high) * advantage;
            // Within the bounds both are equal and move alike.
            let d_ratio = if free <= held && ratio <= bound { -advantage } else { 0.0 };
            Token { loss: -free.min(held), d_ratio, d_logprob: 0.0 }
        }
        LossType::Cispo => {
            let weight = ratio.min(settings.epsilon_high) * advantage;
            Token { loss: -weight * logprob, d_ratio: 0.0, d_logprob: -weight }
        }
        LossType::Sapo => {
            let good = advantage > 0.0;
            let temperature = if good { settings.sapo_temperature_pos } else { settings.sapo_temperature_neg };
            let gate = 1.0 / (1.0 + (-temperature * (ratio - 1.0)).exp());
            let (soft, slope) = (4.0 * gate / temperature, 4.0 * gate * (1.0 - gate));
            Token { loss: -soft * advantage, d_ratio: -slope * advantage, d_logprob: 0.0 }
        }
    }
}

/// Whether clipping took effect below, and above.
fn clipped(ratio: f64, advantage: f64, settings: &GrpoSettings) -> (f64, f64) {
    let (low, high) = match settings.loss_type {
        LossType::Grpo | LossType::Bnpo | LossType::DrGrpo | LossType::Dapo => {
            let low = ratio < 1.0 - settings.epsilon && advantage < 0.0;
            (low, ratio > 1.0 + settings.epsilon_high && advantage > 0.0)
        }
        LossType::Cispo => (false, ratio > settings.epsilon_high && advantage > 0.0),
        LossType::Sapo => (false, false),
    };
    (f64::from(u8::from(low)), f64::from(u8::from(high)))
}

/// Tokens of at least this entropy are learnt from: the quantile `1 − top`, with linear interpolation.
fn entropy_threshold(rows: &[Completion<'_>], top: f64) -> f64 {
    if top >= 1.0 {
        return f64::NEG_INFINITY;
    }
    let mut all: Vec<f64> = rows.iter().flat_map(|row| row.entropies.iter().copied()).collect();
    all.sort_by(f64::total_cmp);
    let Some(last) = all.len().checked_sub(1) else { return f64::NEG_INFINITY };
    let place = (1.0 - top) * last as f64;
    let (below, part) = (place.floor() as usize, place.fract());
    all[below] + part * (all[(below + 1).min(last)] - all[below])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    fn settings(loss_type: LossType, level: ImportanceSampling) -> GrpoSettings {
        GrpoSettings {
            loss_type,
            beta: 0.3,
            epsilon: 0.2,
            epsilon_high: if loss_type == LossType::Cispo { 1.3 } else { 0.28 },
            delta: Some(1.5),
            importance_sampling_level: level,
            use_bias_correction_kl: true,
            top_entropy_quantile: 1.0,
            entropy_coef: 0.1,
            sapo_temperature_pos: 1.0,
            sapo_temperature_neg: 1.05,
            max_completion_length: 9,
        }
    }

    #[test]
    fn derivatives_are_the_slopes_of_the_loss() {
        use ImportanceSampling::{Sequence, Token};
        let mut random = Random::new(5);
        let mut drawn =
            |n: usize, scale: f64| -> Vec<f64> { (0..n).map(|_| scale * f64::from(random.normal())).collect() };
        let lengths = [4, 7, 1, 0, 6];
        let old: Vec<Vec<f64>> = lengths.map(|n| drawn(n, 1.0)).to_vec();
        let moved = |by: Vec<f64>, from: &Vec<f64>| from.iter().zip(by).map(|(a, b)| a + b).collect::<Vec<f64>>();
        let new: Vec<Vec<f64>> = old.iter().map(|o| moved(drawn(o.len(), 0.4), o)).collect();
        let reference: Vec<Vec<f64>> = old.iter().map(|o| moved(drawn(o.len(), 0.4), o)).collect();
        let entropies: Vec<Vec<f64>> = lengths.map(|n| drawn(n, 1.0).iter().map(|e| e.abs()).collect()).to_vec();
        let advantages = [1.2, -0.7, 0.4, 1.0, -1.5];
        for loss_type in
            [LossType::Grpo, LossType::Bnpo, LossType::DrGrpo, LossType::Dapo, LossType::Cispo, LossType::Sapo]
        {
            for (level, top) in [(Token, 1.0), (Token, 0.4), (Sequence, 1.0)] {
                // Its ratio is a constant to the derivative: both sides of it move together here.
                let constant_ratio = loss_type == LossType::Cispo;
                let settings = GrpoSettings {
                    top_entropy_quantile: top,
                    use_bias_correction_kl: !constant_ratio,
                    ..settings(loss_type, level)
                };
                let at = |row: usize, t: usize, by: f64| {
                    let (mut new, mut old) = (new.clone(), old.clone());
                    if by != 0.0 {
                        new[row][t] += by;
                        old[row][t] += if constant_ratio { by } else { 0.0 };
                    }
                    let rows: Vec<Completion<'_>> = (0..lengths.len())
                        .map(|i| Completion {
                            old: &old[i],
                            reference: &reference[i],
                            new: &new[i],
                            entropies: &entropies[i],
                            advantage: advantages[i],
                        })
                        .collect();
                    loss(&rows, &settings, Normalizer { micro_batches: 2, tokens: 31 })
                };
                let here = at(0, 0, 0.0);
                for (row, t) in (0..lengths.len()).flat_map(|row| (0..lengths[row]).map(move |t| (row, t))) {
                    let step = 1e-6;
                    let slope = (at(row, t, step).loss - at(row, t, -step).loss) / (2.0 * step);
                    let found = here.d_logprobs[row][t];
                    assert!((slope - found).abs() < 1e-6, "{settings:?} row {row}, token {t}: {found}, slope {slope}");
                }
            }
        }
    }

    #[test]
    fn a_completion_that_no_function_judges_moves_nothing_and_is_no_part_of_the_baseline() {
        let by_function = [vec![Some(1.0), Some(0.0)], vec![None, Some(3.0)], vec![None, None], vec![Some(2.0), None]];
        let rewards = Rewards { by_function: &by_function, weights: &[1.0, 0.5], group: 4 };
        let found = rewards.advantages(ScaleRewards::None, Aggregation::SumThenNormalize);
        assert_eq!(found.rewards, [Some(1.0), Some(1.5), None, Some(2.0)]);
        assert_eq!(found.values, [-0.5, 0.0, 0.0, 0.5]);
        assert_eq!(found.frac_reward_zero_std, 0.0);
        let each = rewards.advantages(ScaleRewards::Group, Aggregation::NormalizeThenSum);
        assert_eq!(each.values[2], 0.0);
        assert!(each.values.iter().sum::<f64>().abs() < 1e-9, "{each:?}");
    }

    #[test]
    fn only_tokens_of_high_entropy_are_learnt_from() {
        let entropies = [0.1, 0.9, 0.5, 0.7];
        let row =
            Completion { old: &[-1.0; 4], reference: &[], new: &[-1.0; 4], entropies: &entropies, advantage: 1.0 };
        let settings = GrpoSettings {
            beta: 0.0,
            entropy_coef: 0.0,
            top_entropy_quantile: 0.5,
            ..settings(LossType::Dapo, ImportanceSampling::Token)
        };
        let found = loss(&[row], &settings, Normalizer { micro_batches: 1, tokens: 4 });
        assert_eq!(found.d_logprobs[0], [0.0, -0.25, 0.0, -0.25]);
    }
}
