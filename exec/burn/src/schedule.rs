//! The learning rate at a step: a pure function of the step, but for [`Plateau`], which also looks at a metric.
//!
//! Shapes, arguments and their defaults are those of transformers' `get_scheduler` (5.23) and torch's
//! `ReduceLROnPlateau`.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

/// The shape of the learning rate over a run.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    /// Warmup, then straight down to 0 at the last step.
    Linear,
    /// Warmup, then along a cosine.
    Cosine {
        /// Waves; a half goes down to 0 once.
        num_cycles: f64,
    },
    /// Warmup, then half a cosine down to 0, again and again.
    CosineWithRestarts {
        /// How often.
        num_cycles: f64,
    },
    /// Warmup, then down as a power of what is left of the run.
    Polynomial {
        /// The rate at the end; below the peak.
        lr_end: f64,
        /// The power.
        power: f64,
    },
    /// Always the peak; no warmup.
    Constant,
    /// Warmup, then the peak.
    ConstantWithWarmup,
    /// Warmup, then down as one over the root of the step.
    InverseSqrt {
        /// Steps after which it is down to 1/√2; `None`: those of the warmup, or 10,000 without one.
        timescale: Option<f64>,
    },
    /// The peak, lowered when a metric no longer gets better; no warmup.
    ReduceLrOnPlateau(PlateauSettings),
    /// As [`Self::Cosine`], but down to a share of the peak.
    CosineWithMinLr {
        /// Waves.
        num_cycles: f64,
        /// The share.
        min_lr_rate: f64,
    },
    /// As [`Self::CosineWithMinLr`], with a warmup that does not begin at 0.
    CosineWarmupWithMinLr {
        /// Waves.
        num_cycles: f64,
        /// The share.
        min_lr_rate: f64,
        /// The share of the peak that the warmup begins with; `None`: one step of the warmup.
        warmup_lr_rate: Option<f64>,
    },
    /// Warmup, the peak for a while, then down.
    WarmupStableDecay {
        /// Steps of the fall.
        num_decay_steps: u64,
        /// Steps at the peak; `None`: all that warmup and fall leave.
        num_stable_steps: Option<u64>,
        /// How it rises.
        warmup_type: Curve,
        /// How it falls.
        decay_type: Curve,
        /// The share of the peak that it begins and ends with.
        min_lr_ratio: f64,
        /// Waves of a cosine fall.
        num_cycles: f64,
    },
}

/// How a rate moves between two others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Curve {
    /// In a line.
    #[serde(rename = "linear")]
    Linear,
    /// Along a cosine.
    #[serde(rename = "cosine")]
    Cosine,
    /// As 1 less a root.
    #[serde(rename = "1-sqrt")]
    OneMinusSqrt,
}

/// A learning-rate schedule.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// Its shape.
    pub kind: ScheduleKind,
    /// The highest rate.
    pub peak: f64,
    /// Steps of rise.
    pub warmup_steps: u64,
    /// Steps of the whole run.
    pub total_steps: u64,
}

impl Schedule {
    /// The rate of the step with this index, counted from 0. Of [`ScheduleKind::ReduceLrOnPlateau`] that is the peak:
    /// what it was lowered to since is [`Plateau::rate`]'s to say.
    pub fn rate(&self, step: u64) -> f64 {
        self.peak * self.share(step)
    }

    /// The rate as a share of the peak.
    fn share(&self, step: u64) -> f64 {
        let (step, warmup) = (step as f64, self.warmup_steps as f64);
        if step < warmup {
            return match self.kind {
                ScheduleKind::Constant | ScheduleKind::ReduceLrOnPlateau(_) => 1.0,
                ScheduleKind::CosineWarmupWithMinLr { warmup_lr_rate: None, .. } => (step + 1.0) / warmup,
                ScheduleKind::CosineWarmupWithMinLr { warmup_lr_rate: Some(first), .. } => {
                    first + (1.0 - first) * step / (warmup - 1.0).max(1.0)
                }
                ScheduleKind::WarmupStableDecay { warmup_type, min_lr_ratio, .. } => {
                    let share = step / warmup;
                    let risen = match warmup_type {
                        Curve::Linear => share,
                        Curve::Cosine => 0.5 * (1.0 - (PI * share).cos()),
                        Curve::OneMinusSqrt => 1.0 - (1.0 - share).sqrt(),
                    };
                    at_least(risen, min_lr_ratio)
                }
                _ => step / warmup,
            };
        }
        let rest = (self.total_steps as f64 - warmup).max(1.0);
        let progress = ((step - warmup) / rest).min(1.0);
        match self.kind {
            ScheduleKind::Linear => 1.0 - progress,
            ScheduleKind::Cosine { num_cycles } => wave(num_cycles, progress),
            ScheduleKind::CosineWithRestarts { .. } if progress >= 1.0 => 0.0,
            ScheduleKind::CosineWithRestarts { num_cycles } => {
                0.5 * (1.0 + (PI * (num_cycles * progress).fract()).cos())
            }
            ScheduleKind::Polynomial { lr_end, power } => {
                ((self.peak - lr_end) * (1.0 - progress).powf(power) + lr_end) / self.peak
            }
            ScheduleKind::Constant | ScheduleKind::ConstantWithWarmup | ScheduleKind::ReduceLrOnPlateau(_) => 1.0,
            ScheduleKind::InverseSqrt { timescale } => {
                let timescale = timescale.unwrap_or(if warmup > 0.0 { warmup } else { 10_000.0 });
                (timescale / (step + timescale - warmup)).sqrt()
            }
            ScheduleKind::CosineWithMinLr { num_cycles, min_lr_rate } => {
                at_least(wave(num_cycles, progress), min_lr_rate)
            }
            ScheduleKind::CosineWarmupWithMinLr { num_cycles, min_lr_rate, .. } => {
                // The reference ends its fall with the last step, not after it.
                at_least(wave(num_cycles, ((step - warmup + 1.0) / rest).min(1.0)), min_lr_rate)
            }
            ScheduleKind::WarmupStableDecay {
                num_decay_steps,
                num_stable_steps,
                decay_type,
                min_lr_ratio,
                num_cycles,
                ..
            } => {
                let fall = num_decay_steps as f64;
                let stable = num_stable_steps.map_or(self.total_steps as f64 - warmup - fall, |steps| steps as f64);
                let fallen = step - warmup - stable;
                if fallen < 0.0 {
                    return 1.0;
                }
                if fallen >= fall {
                    return min_lr_ratio;
                }
                let share = fallen / fall;
                let left = match decay_type {
                    Curve::Linear => 1.0 - share,
                    Curve::Cosine => wave(num_cycles, share),
                    Curve::OneMinusSqrt => 1.0 - share.sqrt(),
                };
                at_least(left, min_lr_ratio)
            }
        }
    }
}

/// A cosine that begins at 1 and has made so many waves at the end.
fn wave(num_cycles: f64, progress: f64) -> f64 {
    0.5 * (1.0 + (PI * num_cycles * 2.0 * progress).cos())
}

/// 0 to 1 moved to `least` to 1.
fn at_least(share: f64, least: f64) -> f64 {
    share * (1.0 - least) + least
}

/// When and how far the rate is lowered; names and defaults as in torch's `ReduceLROnPlateau`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PlateauSettings {
    /// Whether a greater metric is a better one: torch's `mode: max`.
    pub greater_is_better: bool,
    /// What the rate is multiplied by.
    pub factor: f64,
    /// How many measurements in a row may be no better.
    pub patience: u64,
    /// By how much a measurement must be better to count.
    pub threshold: f64,
    /// Whether the threshold is a share of the best one: torch's `threshold_mode: rel`.
    pub relative: bool,
    /// Measurements after a reduction that do not count as bad.
    pub cooldown: u64,
    /// The rate is not lowered below this.
    pub min_lr: f64,
    /// A smaller change of the rate is none.
    pub eps: f64,
}

impl Default for PlateauSettings {
    fn default() -> Self {
        Self {
            greater_is_better: false,
            factor: 0.1,
            patience: 10,
            threshold: 1e-4,
            relative: true,
            cooldown: 0,
            min_lr: 0.0,
            eps: 1e-8,
        }
    }
}

/// Where [`ScheduleKind::ReduceLrOnPlateau`] stands.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Plateau {
    /// The rate now.
    pub rate: f64,
    best: Option<f64>,
    bad: u64,
    cooling: u64,
}

impl Plateau {
    /// Before the first measurement.
    pub fn new(peak: f64) -> Self {
        Self { rate: peak, best: None, bad: 0, cooling: 0 }
    }

    /// Takes a measurement in.
    pub fn observe(&mut self, metric: f64, settings: &PlateauSettings) {
        if self.best.is_none_or(|best| settings.is_better(metric, best)) {
            self.best = Some(metric);
            self.bad = 0;
        } else {
            self.bad += 1;
        }
        if self.cooling > 0 {
            self.cooling -= 1;
            self.bad = 0;
        }
        if self.bad > settings.patience {
            let lower = (self.rate * settings.factor).max(settings.min_lr);
            if self.rate - lower > settings.eps {
                self.rate = lower;
            }
            self.cooling = settings.cooldown;
            self.bad = 0;
        }
    }
}

impl PlateauSettings {
    fn is_better(&self, metric: f64, best: f64) -> bool {
        match (self.greater_is_better, self.relative) {
            (false, true) => metric < best * (1.0 - self.threshold),
            (false, false) => metric < best - self.threshold,
            (true, true) => metric > best * (1.0 + self.threshold),
            (true, false) => metric > best + self.threshold,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_at_the_turning_points() {
        let rates = |kind, warmup_steps| {
            let s = Schedule { kind, peak: 1.0, warmup_steps, total_steps: 10 };
            [0, 1, 2, 6, 9, 10, 11].map(|step| (s.rate(step) * 1e4).round() / 1e4)
        };
        let linear = [0.0, 0.5, 1.0, 0.5, 0.125, 0.0, 0.0];
        assert_eq!(rates(ScheduleKind::Linear, 2), linear);
        let cosine = [0.0, 0.5, 1.0, 0.5, 0.0381, 0.0, 0.0];
        assert_eq!(rates(ScheduleKind::Cosine { num_cycles: 0.5 }, 2), cosine);
        assert_eq!(rates(ScheduleKind::Constant, 2), [1.0; 7]);
        let warm = [0.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0];
        assert_eq!(rates(ScheduleKind::ConstantWithWarmup, 2), warm);
    }
}
