//! The contract between a task and the module that runs it.
//!
//! ```text
//! daemon (mloc-runtime)                          child (`mloc __attempt run.json`)
//!   Transfers::pull → Inputs ─┐
//!                             ├─ run.json ─────→ child::main → Module::run(&mut RunContext)
//!   {"v":1,"ask":"stop"} ─────┴─ stdin ────────→   check()?            the only cancel point
//!   Event ←──────────────────── stdout, lines ──   progress, phase, log, checkpoint, result, error
//!   attempt.log ←────────────── stderr ─────────   whatever anything prints
//! ```
//!
//! | module | holds |
//! |---|---|
//! | [`module`] | what a module is, what it hands back, how it fails |
//! | [`context`] | what it is given, and all it can do to the outside |
//! | [`checkpoint`] | a folder that is whole or not there, with digests |
//! | [`run`] | `run.json`: what a child is told |
//! | [`event`] | what it says, one JSON object a line, versioned |
//! | [`child`] | the child's main |
//! | [`tree`] | every process that belongs to an attempt, and its end |
//! | [`lineage`] | what the manifest of a result says of its run |
//! | [`transfers`] | how bytes come and go, as the worker needs it |
//! | [`peers`] | how bytes come from another node, as whoever pulls needs it |
//! | [`disk`] | what is left of one |
//! | [`failpoint`] | places where a test may kill the process |
//!
//! Deliberately absent: burn, libp2p, redb, an async runtime. A module is a plain loop on a thread of its own.

pub mod checkpoint;
pub mod child;
pub mod context;
pub mod disk;
pub mod event;
pub mod failpoint;
pub mod lineage;
pub mod module;
pub mod peers;
pub mod run;
pub mod transfers;
pub mod tree;

pub use self::{
    checkpoint::Checkpoint,
    context::{Asked, RunContext},
    event::Event,
    lineage::Lineage,
    module::{Module, ModuleError, ModuleOutput, Output},
    peers::{PeerBytes, PeerError, Peers},
    run::{DeviceChoice, Inputs, Memory, Programs, Run, Sandbox},
    transfers::{Arrived, Moved, OnMoved, OnSaid, Transfers},
};

/// Version of this crate, the same as the binary's.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Architecture and vector extensions that change results, such as `x86_64+avx2+avx512f+fma`. Two machines where
/// this text is the same compute the same bits with the same thread count.
pub fn cpu_features() -> String {
    let mut text = std::env::consts::ARCH.to_owned();
    #[cfg(target_arch = "x86_64")]
    for (name, there) in [
        ("avx", std::arch::is_x86_feature_detected!("avx")),
        ("avx2", std::arch::is_x86_feature_detected!("avx2")),
        ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
        ("avx512bf16", std::arch::is_x86_feature_detected!("avx512bf16")),
        ("f16c", std::arch::is_x86_feature_detected!("f16c")),
        ("fma", std::arch::is_x86_feature_detected!("fma")),
    ] {
        if there {
            text.push('+');
            text.push_str(name);
        }
    }
    #[cfg(target_arch = "aarch64")]
    for (name, there) in [
        ("neon", std::arch::is_aarch64_feature_detected!("neon")),
        ("fp16", std::arch::is_aarch64_feature_detected!("fp16")),
        ("sve", std::arch::is_aarch64_feature_detected!("sve")),
    ] {
        if there {
            text.push('+');
            text.push_str(name);
        }
    }
    text
}
