//! A task: what was typed ([`raw`]), what it means ([`spec`]), and everything that is wrong with it at once
//! ([`validate`], [`problem`]). Past `validate` nobody checks again.

pub mod kind;
pub mod spec;

pub use kind::TaskType;
pub use spec::TaskSpec;
