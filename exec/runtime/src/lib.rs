//! The worker: what was assigned to this node becomes child processes, and what they make becomes reports.
//!
//! ```text
//! leader ⇄ service ── drives mloc_core::worker::Worker, which decides everything
//!             ├─ journal    redb, one writer thread, group commit: inbox and outbox
//!             ├─ attempt    one start of a child: pull, launch, relay its events, push its checkpoints
//!             │    ├─ launch   `mloc __attempt run.json` in a process group of its own
//!             ├─ serving    replicas of services: their health, who may ask them, requests to them
//!             ├─ publish    Transfers::publish, again and again while the right is held
//!             ├─ logs       attempt.log: bounded, readable, followable
//!             ├─ tools       what the node's owner gives attempts, changed while they run
//!             ├─ tidy       what attempts leave when they are over
//!             └─ disk       stops attempts before it is full
//! probe, gpu, cuda   what this machine is, as its container sees it; host what it does right now
//! ```
//!
//! Deliberately absent: what is to happen next (mloc-core), who holds which slot (the ledger), burn, libp2p.

mod attempt;
mod bounds;
mod clock;
mod cuda;
mod devices;
mod disk;
mod ending;
mod folders;
mod gpu;
mod held;
mod host;
mod journal;
mod launch;
mod logs;
mod probe;
mod publish;
mod relay;
mod service;
pub mod serving;
mod tidy;
mod tools;

pub use mloc_exec::child;

pub use self::{
    cuda::Cuda,
    folders::result_folder,
    gpu::{cards as nvidia_cards, gpus},
    host::{GpuFigures, HostFigures, host},
    journal::{Journal, JournalError},
    logs::AttemptLogs,
    probe::{ProbeSettings, probe},
    service::{LeaderLink, LinkDown, Worker, WorkerMessage, WorkerSettings, WorkerStartError},
    tools::Tools,
};
