//! What all training methods share.
//!
//! ```text
//! data       rows of the task's data set, held-out ones too
//! examples   rows in tokens, as language models are trained on them
//! pairs      rows in tokens, as preferences are trained on
//! start      the model that a task starts from, with its adapter or all its weights to be trained
//! method     a way to train, as a session sees it: what is a step, what is measured, what is published
//! over_data  the methods whose step is some batches of a data set, given what a sample, a batch and the loss are
//! measuring  the loss on held-out data, and answers to prompts
//! course     what evaluations on the way said: the best weights, an early end
//! session    step after step, with log, progress, checkpoints and resuming
//! artifacts  models, adapters, tokenizers and figures as files
//! ```
//!
//! A method over data is an [`over_data::Recipe`] (`sft`, `pretrain`, `rm`, `dpo`); one that makes its own batches, from
//! rollouts say, is a [`method::Method`] of its own. Both end in [`session::run`].

pub mod artifacts;
mod course;
pub mod data;
pub mod examples;
pub mod measuring;
pub mod method;
pub mod over_data;
pub mod pairs;
pub mod session;
pub mod start;

/// What templates print as today, so that a resumed run sees the same text: 2024-07-26, the reference's default date.
pub const TEMPLATE_NOW_UNIX: i64 = 1_721_952_000;
