//! Names of the reference's config classes for task types whose modules are not in every build: types are checked, so
//! that a task which waits for such a node waits for a good reason.

use super::rows::{COUNT, Default, NUMBER, Row, Type, or_null, works};

/// Names of `RewardConfig`.
pub(super) const RM: &[Row] = &[
    works("learning_rate", NUMBER, Default::Float(0.0001)),
    works("disable_dropout", Type::Bool, Default::Bool(true)),
    or_null("center_rewards_coefficient", NUMBER, Default::Null),
];

/// Names of `DPOConfig`.
pub(super) const DPO: &[Row] = &[
    works("learning_rate", NUMBER, Default::Float(1e-06)),
    works("disable_dropout", Type::Bool, Default::Bool(true)),
    works("truncation_mode", Type::Text, Default::Text("keep_start")),
    works("padding_free", Type::Bool, Default::Bool(false)),
    works("precompute_ref_log_probs", Type::Bool, Default::Bool(false)),
    or_null("precompute_ref_batch_size", COUNT, Default::Null),
    works("loss_type", Type::Any, Default::Text("sigmoid")),
    or_null("loss_weights", Type::Any, Default::Null),
    or_null("ld_alpha", NUMBER, Default::Null),
    works("f_divergence_type", Type::Text, Default::Text("reverse_kl")),
    works("f_alpha_divergence_coef", NUMBER, Default::Float(0.5)),
    works("label_smoothing", NUMBER, Default::Float(0.0)),
    works("beta", NUMBER, Default::Float(0.1)),
    works("use_weighting", Type::Bool, Default::Bool(false)),
    works("discopop_tau", NUMBER, Default::Float(0.05)),
    works("sync_ref_model", Type::Bool, Default::Bool(false)),
    works("ref_model_mixup_alpha", NUMBER, Default::Float(0.6)),
    works("ref_model_sync_steps", COUNT, Default::Int(512)),
];
