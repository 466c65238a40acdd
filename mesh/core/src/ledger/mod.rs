//! The replicated ledger: accepted tasks, attempts, members and usage.
//!
//! [`Ledger::apply`] is total: no panic, no clock, no randomness, no floats. An entry that no longer fits the state
//! it meets is refused with a reason, and every replica refuses it alike.

pub mod apply;
mod attempts;
pub mod contents;
pub mod entry;
pub mod invariants;
mod members;
mod resolve;
pub mod restore;
mod services;
pub mod state;
pub mod submit;
pub mod task_state;
pub mod usage;

pub use entry::{Entry, Outcome, Reason};
pub use state::Ledger;
pub use task_state::TaskState;

#[cfg(test)]
mod tests;
