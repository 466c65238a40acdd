//! The learning rate at a step: a pure function.

/// The shape of the learning rate over a run, with the reference trainer's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    /// Warmup, then straight down to 0 at the last step.
    Linear,
    /// Warmup, then half a cosine down to 0.
    Cosine,
    /// Always the peak; no warmup.
    Constant,
    /// Warmup, then the peak.
    ConstantWithWarmup,
}

/// A learning-rate schedule.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Schedule {
    /// Its shape.
    pub kind: ScheduleKind,
    /// The highest rate.
    pub peak: f64,
    /// Steps of straight rise from 0.
    pub warmup_steps: u64,
    /// Steps of the whole run.
    pub total_steps: u64,
}

impl Schedule {
    /// The rate of the step with this index, counted from 0.
    pub fn rate(&self, step: u64) -> f64 {
        let warmup = match self.kind {
            ScheduleKind::Constant => 0,
            _ => self.warmup_steps,
        };
        if step < warmup {
            return self.peak * step as f64 / warmup as f64;
        }
        let rest = self.total_steps.saturating_sub(warmup).max(1) as f64;
        let progress = ((step - warmup) as f64 / rest).min(1.0);
        match self.kind {
            ScheduleKind::Linear => self.peak * (1.0 - progress),
            ScheduleKind::Cosine => self.peak * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
            ScheduleKind::Constant | ScheduleKind::ConstantWithWarmup => self.peak,
        }
    }
}

/// Warmup given as a fraction of the run, as steps: rounded up.
pub fn warmup_steps_of_ratio(ratio: f64, total_steps: u64) -> u64 {
    (ratio * total_steps as f64).ceil() as u64
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
        assert_eq!(rates(ScheduleKind::Cosine, 2), cosine);
        assert_eq!(rates(ScheduleKind::Constant, 2), [1.0; 7]);
        let warm = [0.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0];
        assert_eq!(rates(ScheduleKind::ConstantWithWarmup, 2), warm);
    }
}
