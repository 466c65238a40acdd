//! The mesh shell: identity, gossip over QUIC, libp2p links, the raft ledger, the orchestrator loop.

pub mod raft;
