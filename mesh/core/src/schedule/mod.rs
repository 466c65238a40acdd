//! Which pending replica goes to which node: `solve(problem)`, and `explain`: why one does not go anywhere.
//!
//! The ledger is the intent, capabilities the inventory; nothing here changes either.

mod explain;
mod problem;
mod solve;

pub use explain::{Explanation, NodeExplanation, NodeReason, explain};
pub use problem::{NodeView, Problem};
pub use solve::{Assignment, solve};

#[cfg(test)]
mod tests;
