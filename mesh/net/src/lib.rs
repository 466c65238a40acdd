//! The mesh shell: identity, gossip over QUIC, libp2p links, the raft ledger, the orchestrator loop.
//!
//! | module           | does                                                              | leaves to others                |
//! |------------------|-------------------------------------------------------------------|---------------------------------|
//! | `identity`       | one ed25519 key per data directory, signatures                    | who is a member                 |
//! | `token`          | the join token as text, the mesh authority's seed                 | where the text is kept          |
//! | `tls`            | mutual TLS of a mesh, a peer's name from its leaf                 | whether that peer may speak     |
//! | `members`        | the member table as it travels and as it is kept                  | changing it: the ledger         |
//! | `quic_transport` | chitchat's transport on quinn, and joining, on one UDP port       | what is said                    |
//! | `gossip`         | signed values of all members, who seems alive                     | acting on it: death is a hint   |
//! | `link`           | libp2p among members: requests, streams                           | what requests and streams mean  |
//! | `raft`           | the ledger on redb, replicated                                    | what its entries mean: mloc-core |
//!
//! Deliberately absent: decisions about tasks (mloc-core), running them (exec), REST (api).

mod durable_file;
pub mod gossip;
pub mod identity;
pub mod link;
pub mod members;
pub mod names;
pub mod quic_transport;
pub mod raft;
pub mod tls;
pub mod token;
