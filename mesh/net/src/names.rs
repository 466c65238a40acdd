//! The two names the mesh speaks in.

pub use mloc_core::id::{MeshId, NodeId};
