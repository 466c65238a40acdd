//! Proximal policy optimisation as TRL 0.29.1's `PPOTrainer` computes it.
//!
//! Each response token is paid `−kl_coef · KL(policy ‖ reference)` at that token; the reward model's score is paid one
//! place after the last token, or at the last one where the response fills its length. Advantages are generalised
//! advantage estimates (arXiv:1506.02438), the losses are clipped (arXiv:1707.06347).

use serde::{Deserialize, Serialize};

use super::moments;

/// How the divergence from the reference is estimated at a token; see <http://joschu.net/blog/kl-approx.html>.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KlEstimator {
    /// `log p − log q`: unbiased, may be negative.
    K1,
    /// `q/p − 1 − log q/p`: never negative, of less variance.
    K3,
}

/// Settings, under the names of `PPOConfig`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PpoSettings {
    /// Weight of the divergence among the rewards.
    pub kl_coef: f64,
    /// Its estimator.
    pub kl_estimator: KlEstimator,
    /// Whether rewards are scaled to variance 1 over the batch; their mean stays.
    pub whiten_rewards: bool,
    /// What a reward is worth a token earlier.
    pub gamma: f64,
    /// What is kept of a later estimate: 0 trusts the values, 1 the rewards.
    pub lam: f64,
    /// The ratio of probabilities counts within `1 ± cliprange`.
    pub cliprange: f64,
    /// A value counts within `old value ± cliprange_value`.
    pub cliprange_value: f64,
    /// Weight of the value loss.
    pub vf_coef: f64,
}

/// One response as it was sampled, of `n` tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Episode {
    /// log p of each token under the policy that sampled it, `n`.
    pub logprobs: Vec<f64>,
    /// The same under the reference, `n`.
    pub ref_logprobs: Vec<f64>,
    /// The value before each token, and behind the last one unless the response fills its length: `n` or `n + 1`.
    pub values: Vec<f64>,
    /// The reward of the whole response.
    pub score: f64,
}

/// What an episode comes to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// Divergence at each token, `n`.
    pub kl: Vec<f64>,
    /// Rewards, one for each value.
    pub rewards: Vec<f64>,
    /// What the values should have been.
    pub returns: Vec<f64>,
    /// How much better each token was than expected, `n`; mean 0 and variance 1 over the batch.
    pub advantages: Vec<f64>,
}

/// Rewards, returns and advantages of the episodes of one batch.
pub fn estimate(episodes: &[Episode], settings: &PpoSettings) -> Vec<Estimate> {
    let mut estimates: Vec<Estimate> = episodes.iter().map(|episode| paid(episode, settings)).collect();
    if settings.whiten_rewards {
        let (mean, variance) = moments(estimates.iter().flat_map(|e| e.rewards.iter().copied()));
        for reward in estimates.iter_mut().flat_map(|e| &mut e.rewards) {
            *reward = whitened(*reward, mean, variance) + mean;
        }
    }
    for (episode, estimate) in episodes.iter().zip(&mut estimates) {
        let all = advantages(&episode.values, &estimate.rewards, settings);
        estimate.returns = all.iter().zip(&episode.values).map(|(a, v)| a + v).collect();
        estimate.advantages = all[..episode.logprobs.len()].to_vec();
    }
    let (mean, variance) = moments(estimates.iter().flat_map(|e| e.advantages.iter().copied()));
    for advantage in estimates.iter_mut().flat_map(|e| &mut e.advantages) {
        *advantage = whitened(*advantage, mean, variance);
    }
    estimates
}

fn whitened(value: f64, mean: f64, variance: f64) -> f64 {
    (value - mean) / (variance + 1e-8).sqrt()
}

fn paid(episode: &Episode, settings: &PpoSettings) -> Estimate {
    let kl: Vec<f64> = episode
        .logprobs
        .iter()
        .zip(&episode.ref_logprobs)
        .map(|(own, reference)| {
            let log_ratio = reference - own;
            match settings.kl_estimator {
                KlEstimator::K1 => -log_ratio,
                KlEstimator::K3 => log_ratio.exp_m1() - log_ratio,
            }
        })
        .collect();
    let mut rewards: Vec<f64> = kl.iter().map(|kl| -settings.kl_coef * kl).collect();
    rewards.resize(episode.values.len(), 0.0);
    if let Some(last) = rewards.last_mut() {
        *last += episode.score;
    }
    Estimate { kl, rewards, returns: Vec::new(), advantages: Vec::new() }
}

/// Generalised advantage estimates, one for each value; nothing comes after the last.
fn advantages(values: &[f64], rewards: &[f64], settings: &PpoSettings) -> Vec<f64> {
    let mut advantages = vec![0.0; values.len()];
    let (mut later, mut next_value) = (0.0, 0.0);
    for t in (0..values.len()).rev() {
        let surprise = rewards[t] + settings.gamma * next_value - values[t];
        later = surprise + settings.gamma * settings.lam * later;
        advantages[t] = later;
        next_value = values[t];
    }
    advantages
}

/// The clipped policy loss of a micro-batch.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PolicyLoss {
    /// Mean over tokens.
    pub loss: f64,
    /// Share of tokens where clipping made the loss larger.
    pub clipfrac: f64,
    /// ½ the mean square of the change of log p. As in the reference the mean is over `response_length` places a row,
    /// those behind a response counting 0.
    pub approx_kl: f64,
    /// Mean ratio of probabilities over as many places, those behind a response counting 1.
    pub ratio: f64,
    /// The derivatives at each row's log-probabilities.
    pub slopes: Vec<Vec<f64>>,
}

/// The clipped value loss of a micro-batch.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ValueLoss {
    /// Half the mean square over values.
    pub loss: f64,
    /// Share of values where clipping made the loss larger.
    pub clipfrac: f64,
    /// The derivatives at each row's values.
    pub slopes: Vec<Vec<f64>>,
}

/// A response and the numbers of it as a model sees it now.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// What it was when it was sampled.
    pub episode: &'a Episode,
    /// What that came to.
    pub estimate: &'a Estimate,
    /// log p of each token, `n`; or values, as many as the episode has.
    pub now: &'a [f64],
}

/// The policy loss of a micro-batch whose responses have at most `response_length` tokens.
pub fn policy_loss(rows: &[Seen<'_>], response_length: usize, settings: &PpoSettings) -> PolicyLoss {
    let tokens = rows.iter().map(|row| row.now.len()).sum::<usize>().max(1) as f64;
    let places = (rows.len() * response_length).max(1) as f64;
    let mut out = PolicyLoss { ratio: 1.0 - tokens / places, ..PolicyLoss::default() };
    for row in rows {
        let mut slopes = Vec::with_capacity(row.now.len());
        for ((new, old), advantage) in row.now.iter().zip(&row.episode.logprobs).zip(&row.estimate.advantages) {
            let change = new - old;
            let ratio = change.exp();
            let free = -advantage * ratio;
            let clipped = -advantage * ratio.clamp(1.0 - settings.cliprange, 1.0 + settings.cliprange);
            out.loss += free.max(clipped) / tokens;
            out.clipfrac += f64::from(u8::from(clipped > free)) / tokens;
            out.approx_kl += 0.5 * change * change / places;
            out.ratio += ratio / places;
            // Where the clipped one is larger it does not move with the ratio; where both are equal they move alike.
            slopes.push(if clipped > free { 0.0 } else { free / tokens });
        }
        out.slopes.push(slopes);
    }
    out
}

/// The value loss of a micro-batch.
pub fn value_loss(rows: &[Seen<'_>], settings: &PpoSettings) -> ValueLoss {
    let values = rows.iter().map(|row| row.now.len()).sum::<usize>().max(1) as f64;
    let mut out = ValueLoss::default();
    for row in rows {
        let mut slopes = Vec::with_capacity(row.now.len());
        for ((new, old), wanted) in row.now.iter().zip(&row.episode.values).zip(&row.estimate.returns) {
            // No `clamp`: it panics where the old value is no number, and the step has words for that.
            let (low, high) = (old - settings.cliprange_value, old + settings.cliprange_value);
            let held = if *new < low {
                low
            } else if *new > high {
                high
            } else {
                *new
            };
            let (free, clipped) = ((new - wanted).powi(2), (held - wanted).powi(2));
            out.loss += 0.5 * free.max(clipped) / values;
            out.clipfrac += f64::from(u8::from(clipped > free)) / values;
            slopes.push(if clipped > free { 0.0 } else { (new - wanted) / values });
        }
        out.slopes.push(slopes);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    fn settings(whiten_rewards: bool) -> PpoSettings {
        PpoSettings {
            kl_coef: 0.1,
            kl_estimator: KlEstimator::K3,
            whiten_rewards,
            gamma: 0.97,
            lam: 0.9,
            cliprange: 0.2,
            cliprange_value: 0.2,
            vf_coef: 0.5,
        }
    }

    fn episodes(random: &mut Random) -> Vec<Episode> {
        // The second fills its length of 5: no value behind it.
        [(3, 4), (5, 5), (1, 2)]
            .map(|(tokens, values)| {
                let mut drawn = |n: usize| (0..n).map(|_| f64::from(random.normal())).collect::<Vec<_>>();
                let (logprobs, ref_logprobs, values) = (drawn(tokens), drawn(tokens), drawn(values));
                Episode { logprobs, ref_logprobs, values, score: drawn(1)[0] }
            })
            .to_vec()
    }

    #[test]
    fn with_gamma_and_lambda_1_a_return_is_the_sum_of_what_is_still_paid() {
        let episodes = episodes(&mut Random::new(1));
        let settings = PpoSettings { gamma: 1.0, lam: 1.0, ..settings(false) };
        for estimate in estimate(&episodes, &settings) {
            for t in 0..estimate.rewards.len() {
                let rest: f64 = estimate.rewards[t..].iter().sum();
                assert!((estimate.returns[t] - rest).abs() < 1e-12, "{estimate:?}");
            }
        }
    }

    #[test]
    fn derivatives_are_the_slopes_of_the_loss() {
        let mut random = Random::new(2);
        let (episodes, settings) = (episodes(&mut random), settings(true));
        let estimates = estimate(&episodes, &settings);
        let mut near = |old: &[f64]| -> Vec<f64> { old.iter().map(|v| v + 0.5 * f64::from(random.normal())).collect() };
        let logprobs: Vec<Vec<f64>> = episodes.iter().map(|e| near(&e.logprobs)).collect();
        let values: Vec<Vec<f64>> = episodes.iter().map(|e| near(&e.values)).collect();
        let seen = |now: &[Vec<f64>]| -> (PolicyLoss, ValueLoss) {
            let rows: Vec<Seen<'_>> = (0..now.len())
                .map(|row| Seen { episode: &episodes[row], estimate: &estimates[row], now: &now[row] })
                .collect();
            (policy_loss(&rows, 5, &settings), value_loss(&rows, &settings))
        };
        let (policy, _) = seen(&logprobs);
        let (_, value) = seen(&values);
        assert!(policy.clipfrac > 0.0 && value.clipfrac > 0.0, "the draw has clipped places");
        let check = |of: &str, now: &[Vec<f64>], slopes: &[Vec<f64>], loss: &dyn Fn(&[Vec<f64>]) -> f64| {
            for (row, slopes) in slopes.iter().enumerate() {
                assert_eq!(slopes.len(), now[row].len());
                for (t, found) in slopes.iter().enumerate() {
                    let step = 1e-6;
                    let moved = |by: f64| {
                        let mut now = now.to_vec();
                        now[row][t] += by;
                        loss(&now)
                    };
                    let slope = (moved(step) - moved(-step)) / (2.0 * step);
                    assert!((slope - found).abs() < 1e-6, "{of}, row {row}, place {t}: {found}, slope {slope}");
                }
            }
        };
        check("policy", &logprobs, &policy.slopes, &|now| seen(now).0.loss);
        check("value", &values, &value.slopes, &|now| seen(now).1.loss);
    }
}
