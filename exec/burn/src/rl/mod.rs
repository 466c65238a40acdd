//! The arithmetic of reinforcement learning on completions: plain numbers on the host, with their gradients.
//!
//! A completion's tokens are few and a model's weights are many, so no loss here is made of tensors: each takes
//! log-probabilities a token and gives back the derivatives at them, which [`crate::logprobs`] carries into the model.
//! Rows are ragged: a row has as many numbers as its completion has tokens, and padding does not exist.
//!
//! | module | holds |
//! |---|---|
//! | [`completions`] | completions as batches, and what models say of them |
//! | [`grpo`] | advantages within a group of completions, and the family of losses on them |
//! | [`policy`] | GRPO's objective on a model |
//! | [`ppo`] | rewards, advantages and the clipped losses of proximal policy optimisation |
//! | [`actor_critic`] | PPO's objective on a model and its values |

pub mod actor_critic;
pub mod completions;
pub mod grpo;
pub mod policy;
pub mod ppo;

/// Mean and unbiased variance; the variance of fewer than two numbers is 0.
fn moments(values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let count = values.clone().count();
    if count == 0 {
        return (0.0, 0.0);
    }
    let mean = values.clone().sum::<f64>() / count as f64;
    let squares: f64 = values.map(|v| (v - mean).powi(2)).sum();
    (mean, if count > 1 { squares / (count - 1) as f64 } else { 0.0 })
}
