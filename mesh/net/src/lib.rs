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
//! | `calls`          | what members ask of one another on the control channel            | what the answers mean           |
//! | `leadership`     | who leads: raft's word, and hints of gossip once confirmed         | electing: `raft`                |
//! | `membership`     | letting nodes in, tables, voters                                  | who should vote: `raft::voters` |
//! | `orchestrator`   | the leader's loop around `mloc_core::leader`                      | every decision                  |
//! | `founding`       | which of the nodes that start together founds the mesh             | asking: `gathering`             |
//! | `gathering`      | coming to a mesh: joining one, or founding it with others          | letting in: `membership`        |
//! | `services`       | gossip of the replicas of services that can be asked              | asking them: api, node          |
//! | `handle`         | the mesh as the rest of the node sees it                          | REST                            |
//! | `start`          | files, sockets and tasks in the order that works                  | configuration                   |
//! | `restore`        | a mesh founded anew from a backup, a backup from a stopped node    | what a restored ledger is: mloc-core |
//! | `raft`           | the ledger on redb, replicated                                    | what its entries mean: mloc-core |
//!
//! Deliberately absent: decisions about tasks (mloc-core), running them (exec), REST (api).

mod calls;
mod clock;
mod durable_file;
pub mod founding;
mod gathering;
pub mod gossip;
pub mod handle;
pub mod identity;
mod leadership;
pub mod link;
pub mod members;
mod membership;
pub mod names;
pub mod orchestrator;
pub mod quic_transport;
pub mod raft;
pub mod restore;
pub mod services;
pub mod start;
pub mod tls;
pub mod token;
pub mod voting;
