//! What a pair costs. Names and forms are those of TRL 1.16.0's `loss_type`; the papers stand beside each.
//!
//! A log-ratio is the completion's log-probability under the policy minus that under the reference.

use super::{log_sigmoid, sigmoid};

/// A loss over a pair's two log-ratios.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PairLoss {
    /// −ln σ(βΔ), Δ the chosen log-ratio minus the rejected one: DPO (arXiv 2305.18290). With `label_smoothing` ε its
    /// conservative form, −(1−ε)·ln σ(βΔ) − ε·ln σ(−βΔ), as in TRL 0.24; 1.16.0 ignores ε here.
    Sigmoid,
    /// −ln σ(βΔ), Δ of log-ratios a token.
    SigmoidNorm,
    /// max(0, 1 − βΔ): SLiC (arXiv 2305.10425).
    Hinge,
    /// (Δ − 1/(2β))², Δ of log-ratios a token: IPO (arXiv 2310.12036, eq. 17).
    Ipo,
    /// (−(1−ε)·ln σ(βΔ) + ε·ln σ(−βΔ)) / (1−2ε): robust DPO (arXiv 2403.00409).
    Robust,
    /// KL(σ(βΔ) ‖ 1−ε): EXO (arXiv 2402.00856, eq. 16).
    ExoPair,
    /// −ln σ(βc) − ½·ln σ(−βc) − ½·ln σ(−βr): NCA (arXiv 2402.05369).
    NcaPair,
    /// −ln σ(βc) − ln σ(−βr): BCO (arXiv 2404.04656), with no running mean of rewards.
    BcoPair,
    /// (c − 1/(2β))² + (r + 1/(2β))²: SPPO with hard labels (arXiv 2405.00675).
    SppoHard,
    /// 1 − σ(βc) + σ(βr): APO-zero (arXiv 2408.06266, eq. 7).
    ApoZero,
    /// σ(βc) + 1 − σ(βΔ): APO-down (arXiv 2408.06266, eq. 8).
    ApoDown,
}

/// Losses by the names of their settings.
pub const PAIR_LOSSES: [(&str, PairLoss); 11] = [
    ("sigmoid", PairLoss::Sigmoid),
    ("sigmoid_norm", PairLoss::SigmoidNorm),
    ("hinge", PairLoss::Hinge),
    ("ipo", PairLoss::Ipo),
    ("robust", PairLoss::Robust),
    ("exo_pair", PairLoss::ExoPair),
    ("nca_pair", PairLoss::NcaPair),
    ("bco_pair", PairLoss::BcoPair),
    ("sppo_hard", PairLoss::SppoHard),
    ("apo_zero", PairLoss::ApoZero),
    ("apo_down", PairLoss::ApoDown),
];

/// One of the two sides of a pair.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Side {
    /// Its log-ratio.
    pub log_ratio: f64,
    /// Tokens of its completion; at least one.
    pub tokens: f64,
}

/// A loss and its slopes along the two log-ratios.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Cost {
    /// The loss.
    pub loss: f64,
    /// Its derivative by the chosen log-ratio.
    pub by_chosen: f64,
    /// Its derivative by the rejected log-ratio.
    pub by_rejected: f64,
}

/// A weighted sum of losses with their constants.
#[derive(Debug, Clone, PartialEq)]
pub struct Preference {
    /// Each loss and its weight.
    pub losses: Vec<(PairLoss, f64)>,
    /// β: how far the policy may move from the reference; above 0.
    pub beta: f64,
    /// ε: the share of pairs that are taken to be the wrong way round; from 0 to below ½.
    pub label_smoothing: f64,
}

impl Preference {
    /// What a pair costs.
    pub fn cost(&self, chosen: Side, rejected: Side) -> Cost {
        self.losses.iter().fold(Cost::default(), |sum, (loss, weight)| {
            let cost = self.one(*loss, chosen, rejected);
            Cost {
                loss: sum.loss + weight * cost.loss,
                by_chosen: sum.by_chosen + weight * cost.by_chosen,
                by_rejected: sum.by_rejected + weight * cost.by_rejected,
            }
        })
    }

    fn one(&self, loss: PairLoss, chosen: Side, rejected: Side) -> Cost {
        let (beta, smooth) = (self.beta, self.label_smoothing);
        let (c, r) = (chosen.log_ratio, rejected.log_ratio);
        let x = beta * (c - r);
        // Most depend on the difference alone: their slope along βΔ is enough.
        let of_difference = |loss: f64, slope: f64| Cost { loss, by_chosen: beta * slope, by_rejected: -beta * slope };
        // −ln σ(x) has the slope −σ(−x).
        let smoothed = |x: f64, keep: f64, flip: f64| {
            (-keep * log_sigmoid(x) - flip * log_sigmoid(-x), -keep * sigmoid(-x) + flip * sigmoid(x))
        };
        let by_token = c / chosen.tokens - r / rejected.tokens;
        match loss {
            PairLoss::Sigmoid => {
                let (loss, slope) = smoothed(x, 1.0 - smooth, smooth);
                of_difference(loss, slope)
            }
            PairLoss::SigmoidNorm => {
                let (loss, slope) = smoothed(beta * by_token, 1.0, 0.0);
                let slope = beta * slope;
                Cost { loss, by_chosen: slope / chosen.tokens, by_rejected: -slope / rejected.tokens }
            }
            PairLoss::Hinge => of_difference((1.0 - x).max(0.0), if x < 1.0 { -1.0 } else { 0.0 }),
            PairLoss::Ipo => {
                let error = by_token - 0.5 / beta;
                let slope = 2.0 * error;
                Cost { loss: error * error, by_chosen: slope / chosen.tokens, by_rejected: -slope / rejected.tokens }
            }
            PairLoss::Robust => {
                let (loss, slope) = smoothed(x, 1.0 - smooth, -smooth);
                let scale = 1.0 - 2.0 * smooth;
                of_difference(loss / scale, slope / scale)
            }
            PairLoss::ExoPair => {
                let (right, wrong) = (sigmoid(x), sigmoid(-x));
                let right_cost = log_sigmoid(x) - (-smooth).ln_1p();
                let wrong_cost = log_sigmoid(-x) - smooth.ln();
                // The derivatives of the two logarithms cancel each other.
                of_difference(right * right_cost + wrong * wrong_cost, right * wrong * (right_cost - wrong_cost))
            }
            PairLoss::NcaPair => Cost {
                loss: -log_sigmoid(beta * c) - 0.5 * log_sigmoid(-beta * c) - 0.5 * log_sigmoid(-beta * r),
                by_chosen: beta * (0.5 * sigmoid(beta * c) - sigmoid(-beta * c)),
                by_rejected: beta * 0.5 * sigmoid(beta * r),
            },
            PairLoss::BcoPair => Cost {
                loss: -log_sigmoid(beta * c) - log_sigmoid(-beta * r),
                by_chosen: -beta * sigmoid(-beta * c),
                by_rejected: beta * sigmoid(beta * r),
            },
            PairLoss::SppoHard => {
                let (won, lost) = (c - 0.5 / beta, r + 0.5 / beta);
                Cost { loss: won * won + lost * lost, by_chosen: 2.0 * won, by_rejected: 2.0 * lost }
            }
            PairLoss::ApoZero => Cost {
                loss: 1.0 - sigmoid(beta * c) + sigmoid(beta * r),
                by_chosen: -beta * sigmoid(beta * c) * sigmoid(-beta * c),
                by_rejected: beta * sigmoid(beta * r) * sigmoid(-beta * r),
            },
            PairLoss::ApoDown => {
                let apart = beta * sigmoid(x) * sigmoid(-x);
                Cost {
                    loss: sigmoid(beta * c) + 1.0 - sigmoid(x),
                    by_chosen: beta * sigmoid(beta * c) * sigmoid(-beta * c) - apart,
                    by_rejected: apart,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_are_those_of_the_losses() {
        for (name, loss) in PAIR_LOSSES {
            let preference = Preference { losses: vec![(loss, 1.5)], beta: 0.3, label_smoothing: 0.1 };
            for (c, r) in [(-3.1, 2.4), (0.7, -0.2), (5.0, -4.0), (0.0, 0.0)] {
                let side = |log_ratio, tokens| Side { log_ratio, tokens };
                let at = |c: f64, r: f64| preference.cost(side(c, 3.0), side(r, 5.0));
                let h = 1e-5;
                let by_chosen = (at(c + h, r).loss - at(c - h, r).loss) / (2.0 * h);
                let by_rejected = (at(c, r + h).loss - at(c, r - h).loss) / (2.0 * h);
                let found = at(c, r);
                for (slope, wanted) in [(found.by_chosen, by_chosen), (found.by_rejected, by_rejected)] {
                    assert!((slope - wanted).abs() < 1e-7, "{name} at {c}, {r}: {slope}, expected {wanted}");
                }
            }
        }
    }

    #[test]
    fn extreme_ratios_stay_numbers() {
        for (name, loss) in PAIR_LOSSES {
            let preference = Preference { losses: vec![(loss, 1.0)], beta: 0.5, label_smoothing: 0.1 };
            for far in [1e4, -1e4] {
                let side = |log_ratio| Side { log_ratio, tokens: 1.0 };
                let cost = preference.cost(side(far), side(-far));
                let all = [cost.loss, cost.by_chosen, cost.by_rejected];
                assert!(all.iter().all(|value| value.is_finite()), "{name} at {far}: {cost:?}");
            }
        }
    }
}
