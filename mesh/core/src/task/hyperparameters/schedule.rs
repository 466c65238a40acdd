//! `lr_scheduler_type` with `lr_scheduler_kwargs`: names, arguments and defaults of transformers' `get_scheduler` (5.23)
//! and torch's `ReduceLROnPlateau`.

use serde_json::{Map, Value};

use super::arguments::{Arguments, BELOW_ONE, Wrong};

/// Names of all of them.
pub(super) const NAMES: &[&str] = &[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "reduce_lr_on_plateau",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "warmup_stable_decay",
];

/// How the learning rate moves over a run; numbers as their arguments' names say.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Schedule {
    /// To 0 in a line.
    Linear,
    /// Along a cosine, to 0 with half a wave.
    Cosine {
        /// Waves.
        num_cycles: f64,
    },
    /// To 0 along half a cosine, again and again.
    CosineWithRestarts {
        /// How often.
        num_cycles: f64,
    },
    /// As a power of what is left of the run.
    Polynomial {
        /// The rate at the end.
        lr_end: f64,
        /// The power.
        power: f64,
    },
    /// Not at all, and no warmup.
    Constant,
    /// Not at all.
    ConstantWithWarmup,
    /// As one over the root of the step.
    InverseSqrt {
        /// Steps after which it is down to 1/√2; `None`: the warmup's.
        timescale: Option<f64>,
    },
    /// Down when a metric no longer gets better; no warmup.
    ReduceLrOnPlateau(Plateau),
    /// Along a cosine, to a share of the peak.
    CosineWithMinLr {
        /// Waves.
        num_cycles: f64,
        /// The share.
        min_lr_rate: f64,
    },
    /// The same after a warmup that does not begin at 0.
    CosineWarmupWithMinLr {
        /// Waves.
        num_cycles: f64,
        /// The share.
        min_lr_rate: f64,
        /// The share that the warmup begins with.
        warmup_lr_rate: Option<f64>,
    },
    /// Up, level, down.
    WarmupStableDecay {
        /// Steps of the fall.
        num_decay_steps: u64,
        /// Steps on the level; `None`: what is left.
        num_stable_steps: Option<u64>,
        /// How it rises.
        warmup_type: Curve,
        /// How it falls.
        decay_type: Curve,
        /// The share that it begins and ends with.
        min_lr_ratio: f64,
        /// Waves of a cosine fall.
        num_cycles: f64,
    },
}

/// How a rate moves between two others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Curve {
    /// In a line.
    Linear,
    /// Along a cosine.
    Cosine,
    /// As 1 less a root.
    OneMinusSqrt,
}

const CURVES: [(&str, Curve); 3] =
    [("linear", Curve::Linear), ("cosine", Curve::Cosine), ("1-sqrt", Curve::OneMinusSqrt)];

/// When [`Schedule::ReduceLrOnPlateau`] lowers the rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plateau {
    /// `mode: max`.
    pub greater_is_better: bool,
    /// What the rate is multiplied by.
    pub factor: f64,
    /// Measurements in a row that may be no better.
    pub patience: u64,
    /// By how much one must be better.
    pub threshold: f64,
    /// `threshold_mode: rel`.
    pub relative: bool,
    /// Measurements after a reduction that do not count.
    pub cooldown: u64,
    /// The least rate.
    pub min_lr: f64,
    /// The least change of it.
    pub eps: f64,
}

impl Schedule {
    /// The schedule of a name that [`NAMES`] has, with its arguments, for a run whose highest rate is `peak`.
    ///
    /// # Errors
    /// Every argument that is unknown, missing or out of bounds.
    pub(super) fn parse(name: &str, given: &Map<String, Value>, peak: f64) -> Result<Self, Vec<Wrong>> {
        const ABOVE_ZERO: f64 = f64::MIN_POSITIVE;
        const MOST: f64 = f64::MAX;
        let mut a = Arguments::new(given);
        let waves = |a: &mut Arguments<'_>| a.number("num_cycles", 0.0, MOST).unwrap_or(0.5);
        let schedule = match name {
            "cosine" => Self::Cosine { num_cycles: waves(&mut a) },
            "cosine_with_restarts" => {
                Self::CosineWithRestarts { num_cycles: a.count("num_cycles", 1).unwrap_or(1) as f64 }
            }
            "polynomial" => {
                let lr_end = a.number("lr_end", 0.0, MOST).unwrap_or(1e-7);
                if lr_end >= peak {
                    a.refuse("lr_end", &format!("`{lr_end}`"), &format!("less than learning_rate, {peak}"));
                }
                Self::Polynomial { lr_end, power: a.number("power", ABOVE_ZERO, MOST).unwrap_or(1.0) }
            }
            "constant" => Self::Constant,
            "constant_with_warmup" => Self::ConstantWithWarmup,
            "inverse_sqrt" => Self::InverseSqrt { timescale: a.number("timescale", ABOVE_ZERO, MOST) },
            "reduce_lr_on_plateau" => Self::ReduceLrOnPlateau(Plateau {
                greater_is_better: a.choice("mode", &["min", "max"]) == Some(1),
                factor: a.number("factor", 0.0, BELOW_ONE).unwrap_or(0.1),
                patience: a.count("patience", 0).unwrap_or(10),
                threshold: a.number("threshold", 0.0, MOST).unwrap_or(1e-4),
                relative: a.choice("threshold_mode", &["rel", "abs"]) != Some(1),
                cooldown: a.count("cooldown", 0).unwrap_or(0),
                min_lr: a.number("min_lr", 0.0, MOST).unwrap_or(0.0),
                eps: a.number("eps", 0.0, MOST).unwrap_or(1e-8),
            }),
            "cosine_with_min_lr" => {
                Self::CosineWithMinLr { num_cycles: waves(&mut a), min_lr_rate: min_lr_rate(&mut a, peak) }
            }
            "cosine_warmup_with_min_lr" => Self::CosineWarmupWithMinLr {
                num_cycles: waves(&mut a),
                min_lr_rate: min_lr_rate(&mut a, peak),
                warmup_lr_rate: a.number("warmup_lr_rate", 0.0, 1.0),
            },
            "warmup_stable_decay" => {
                let num_decay_steps = a.count("num_decay_steps", 0);
                if num_decay_steps.is_none() && !a.is_given("num_decay_steps") {
                    a.refuse("", "no `num_decay_steps`", "a number of steps for the fall at the end");
                }
                let curve = |a: &mut Arguments<'_>, name, default| {
                    a.choice(name, &CURVES.map(|(word, _)| word)).map_or(default, |place| CURVES[place].1)
                };
                Self::WarmupStableDecay {
                    num_decay_steps: num_decay_steps.unwrap_or_default(),
                    num_stable_steps: a.count("num_stable_steps", 0),
                    warmup_type: curve(&mut a, "warmup_type", Curve::Linear),
                    decay_type: curve(&mut a, "decay_type", Curve::Cosine),
                    min_lr_ratio: a.number("min_lr_ratio", 0.0, 1.0).unwrap_or(0.0),
                    num_cycles: waves(&mut a),
                }
            }
            _ => Self::Linear,
        };
        a.finish(name, schedule)
    }
}

/// `min_lr` or `min_lr_rate`, as a share of the peak.
fn min_lr_rate(a: &mut Arguments<'_>, peak: f64) -> f64 {
    let (rate, share) = (a.number("min_lr", 0.0, f64::MAX), a.number("min_lr_rate", 0.0, 1.0));
    match (a.is_given("min_lr"), a.is_given("min_lr_rate")) {
        (true, true) => a.refuse("min_lr", "it with `min_lr_rate`", "one of the two"),
        (false, false) => a.refuse("", "neither `min_lr` nor `min_lr_rate`", "one of the two: the rate to end with"),
        _ => {}
    }
    let of_peak = |rate: f64| if peak > 0.0 { rate / peak } else { 0.0 };
    share.or(rate.map(of_peak)).unwrap_or(0.0)
}
