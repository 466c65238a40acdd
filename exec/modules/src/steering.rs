//! How a task's settings move the weights: schedule, optimizer, noise and smoothing.

use mloc_burn::{
    optim::{AdamWSettings, OptimizerSettings, SgdSettings},
    schedule::{self, PlateauSettings, Schedule, ScheduleKind},
    train::TrainSettings,
};
use mloc_core::task::settings::{self, Curve, Optimizer, Plateau, Training};

/// The settings of a trainer whose run has so many steps.
pub fn train_settings(settings: &Training, total_steps: u64) -> TrainSettings {
    TrainSettings {
        schedule: Schedule {
            kind: schedule_kind(settings.lr_scheduler),
            peak: settings.learning_rate,
            warmup_steps: settings.warmup.steps(total_steps),
            total_steps,
        },
        optimizer: optimizer(settings),
        max_grad_norm: settings.max_grad_norm,
        seed: settings.seed,
        neftune_noise_alpha: settings.neftune_noise_alpha,
    }
}

/// The optimizer of a task.
pub fn optimizer(settings: &Training) -> OptimizerSettings {
    let weight_decay = settings.weight_decay;
    let adamw = AdamWSettings {
        adam_beta1: settings.adam_beta1,
        adam_beta2: settings.adam_beta2,
        adam_epsilon: settings.adam_epsilon,
        weight_decay,
    };
    match settings.optimizer {
        Optimizer::AdamW => OptimizerSettings::AdamW(adamw),
        Optimizer::AdamW8bit => OptimizerSettings::AdamW8bit(adamw),
        Optimizer::Adafactor => OptimizerSettings::Adafactor { weight_decay },
        Optimizer::Sgd { momentum, dampening, nesterov } => {
            OptimizerSettings::Sgd(SgdSettings { momentum, dampening, nesterov, weight_decay })
        }
    }
}

fn schedule_kind(schedule: settings::Schedule) -> ScheduleKind {
    use settings::Schedule as Asked;
    match schedule {
        Asked::Linear => ScheduleKind::Linear,
        Asked::Cosine { num_cycles } => ScheduleKind::Cosine { num_cycles },
        Asked::CosineWithRestarts { num_cycles } => ScheduleKind::CosineWithRestarts { num_cycles },
        Asked::Polynomial { lr_end, power } => ScheduleKind::Polynomial { lr_end, power },
        Asked::Constant => ScheduleKind::Constant,
        Asked::ConstantWithWarmup => ScheduleKind::ConstantWithWarmup,
        Asked::InverseSqrt { timescale } => ScheduleKind::InverseSqrt { timescale },
        Asked::ReduceLrOnPlateau(plateau) => ScheduleKind::ReduceLrOnPlateau(plateau_settings(plateau)),
        Asked::CosineWithMinLr { num_cycles, min_lr_rate } => ScheduleKind::CosineWithMinLr { num_cycles, min_lr_rate },
        Asked::CosineWarmupWithMinLr { num_cycles, min_lr_rate, warmup_lr_rate } => {
            ScheduleKind::CosineWarmupWithMinLr { num_cycles, min_lr_rate, warmup_lr_rate }
        }
        Asked::WarmupStableDecay {
            num_decay_steps,
            num_stable_steps,
            warmup_type,
            decay_type,
            min_lr_ratio,
            num_cycles,
        } => ScheduleKind::WarmupStableDecay {
            num_decay_steps,
            num_stable_steps,
            warmup_type: curve(warmup_type),
            decay_type: curve(decay_type),
            min_lr_ratio,
            num_cycles,
        },
    }
}

fn plateau_settings(plateau: Plateau) -> PlateauSettings {
    let Plateau { greater_is_better, factor, patience, threshold, relative, cooldown, min_lr, eps } = plateau;
    PlateauSettings { greater_is_better, factor, patience, threshold, relative, cooldown, min_lr, eps }
}

fn curve(curve: Curve) -> schedule::Curve {
    match curve {
        Curve::Linear => schedule::Curve::Linear,
        Curve::Cosine => schedule::Curve::Cosine,
        Curve::OneMinusSqrt => schedule::Curve::OneMinusSqrt,
    }
}
