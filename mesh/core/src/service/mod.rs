//! Services: tasks that stay up and answer requests through every node of the mesh.
//!
//! A service is a task of `kind: ServiceTask`. Nothing of it is changed after it was accepted: **a new version is a new
//! task under the same `servedName`**, and the name passes from one to the other. So every figure, log and usage row is
//! of one version, and cancelling the newer one is the way back. A name belongs to the owner of the task that serves it.
//!
//! ```text
//! Submit ─→ wanted replicas ─ solve ─→ Assigned ─→ Started ─→ Ready ─→ Stopping ─→ Ended
//!              ↑                                     │ a failure, a lost node: waits with backoff, is assigned again
//!   [`plan`] ──┴─ Entry::Replicas: start these, stop those
//!   [`scale`] ─── Entry::Scaled: so many are wanted (autoscale, idle, wake)
//! ```
//!
//! **What is in the ledger and what is not.** That an attempt *became* ready is committed, once ([`Entry::Ready`]): an
//! update, a drain and a new leader rest on it, and it is one entry a start, as `Started` is. Whether it can answer
//! *right now* changes with every request and is nobody's to commit: its worker checks its health, gossips it (signed, as
//! capabilities are), and ends an attempt that fails too often, which then is in the ledger. So requests need no leader:
//! every node knows from gossip which replicas answer. Requests under way travel with heartbeats to the leader, which
//! alone scales by them, in soft state; a new leader begins to watch anew and errs on the side of waiting.
//!
//! **Replicas** have numbers; each is wanted or retired, and the wanted ones have an attempt or wait for one. Whatever
//! exchanges replicas — another number of them, an update, a node that drains — is a step of [`plan`]: it starts within
//! `maxSurge` and stops what leaves as its successors become ready, within `maxUnavailable`. `apply` checks both again,
//! for a step was decided on a state that may have changed. A version that never becomes ready fails by `retry.limit`,
//! and then the one before it is scaled back to what is wanted; a replica of a service that has been ready once is
//! restarted for ever, with backoff.
//!
//! **A replica that is stopped** leaves gossip, takes no new request, ends those it has begun within three quarters of
//! `timeouts.stop`, and then is asked to stop as any child is. A request that still comes is turned away before its first
//! byte, and whoever routed it asks another one.
//!
//! | module | holds |
//! |---|---|
//! | [`plan`] | which replicas start and which stop |
//! | [`scale`] | how many there should be |
//! | [`shard`] | which part of the whole a replica is, where they are not alike |
//! | [`route`] | which of the ready ones a request goes to |
//!
//! Promises, checked by [`crate::ledger::invariants`]: `SV1 a served name has one owner`, `SV2 replicas never exceed max
//! and surge`, `SV3 no ready replica is stopped before its replacement is ready`.
//!
//! [`Entry::Ready`]: crate::ledger::Entry::Ready

pub mod plan;
pub mod route;
pub mod scale;
pub mod shard;

pub use plan::plan;
