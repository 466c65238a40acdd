//! Replicas of services on this node: where they listen, whether they can be asked, what they are asked.
//!
//! ```text
//! child ── event `serving` ─→ health ─ GET until 200 ─→ Replicas: ready ─→ gossip (by whoever watches `changed`)
//! child ── HTTP/1 ─→ siblings ─→ proxy here, or of the node where the other replica is
//! member ── HTTP/1 ─→ proxy ─ admit ─→ Replicas: one more under way ─→ the child's port or socket
//! stop ─→ drain: nobody is admitted any more, `drained` when the last answer has ended
//! ```
//!
//! | module | holds |
//! |---|---|
//! | [`health`] | whether a replica answers |
//! | [`proxy`] | requests to it, and what becomes of them |
//! | [`siblings`] | requests of a replica to other shards of its task |

pub(crate) mod health;
pub mod proxy;
pub mod siblings;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use mloc_core::{id::AttemptId, wire::Serving};
use tokio::sync::watch;

/// Where a replica listens for HTTP/1.1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listens {
    /// A port of 127.0.0.1.
    Port(u16),
    /// A Unix socket.
    Socket(PathBuf),
}

/// A replica that can be asked, for gossip.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shown {
    /// What it is called at the API.
    pub served_name: String,
    /// The attempt.
    pub attempt: AttemptId,
}

/// Every replica that runs here.
pub struct Replicas {
    all: Mutex<BTreeMap<AttemptId, Replica>>,
    /// Rises with every change of any of them.
    changes: watch::Sender<u64>,
}

struct Replica {
    served_name: String,
    listens: Option<Listens>,
    ready: bool,
    draining: bool,
    running: u32,
    /// Requests of other replicas under way. They are no work of its own: neither its load nor its idleness shows them.
    siblings: u32,
    done: u64,
    broken: u64,
    /// When the last request ended, or it became ready.
    idle_since: Instant,
}

/// Who makes a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asks {
    /// Somebody's client.
    Client,
    /// Another replica of its task.
    Sibling,
}

/// Why a request is not let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It does not run here (any more).
    #[error("no such replica runs here")]
    Unknown,
    /// Its health is not good, or it has just begun.
    #[error("the replica is not ready")]
    NotReady,
    /// It is stopping.
    #[error("the replica takes no new requests: it is stopping")]
    Draining,
}

impl Default for Replicas {
    fn default() -> Self {
        Self { all: Mutex::default(), changes: watch::Sender::new(0) }
    }
}

impl Replicas {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<AttemptId, Replica>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, attempt: &AttemptId, change: impl FnOnce(&mut Replica) -> T) -> Option<T> {
        let changed = self.lock().get_mut(attempt).map(change);
        self.changes.send_modify(|version| *version += 1);
        changed
    }

    /// A replica that is about to run; it is taken out when the guard is dropped.
    pub(crate) fn enter(self: &Arc<Self>, attempt: &AttemptId, served_name: &str) -> Entered {
        let replica = Replica {
            served_name: served_name.to_owned(),
            listens: None,
            ready: false,
            draining: false,
            running: 0,
            siblings: 0,
            done: 0,
            broken: 0,
            idle_since: Instant::now(),
        };
        self.lock().insert(attempt.clone(), replica);
        Entered { replicas: self.clone(), attempt: attempt.clone() }
    }

    /// It answers there.
    pub(crate) fn ready(&self, attempt: &AttemptId, listens: Listens) {
        self.change(attempt, |replica| {
            if !replica.ready {
                replica.idle_since = Instant::now();
            }
            (replica.ready, replica.listens) = (true, Some(listens));
        });
    }

    /// It takes no new requests from now on.
    pub(crate) fn drain(&self, attempt: &AttemptId) {
        self.change(attempt, |replica| replica.draining = true);
    }

    /// Returns when no request is under way.
    pub(crate) async fn drained(&self, attempt: &AttemptId) {
        let mut changes = self.changes.subscribe();
        let running = || self.lock().get(attempt).map_or(0, |replica| replica.running + replica.siblings);
        // The sender lives as long as this value.
        while running() > 0 && changes.changed().await.is_ok() {}
    }

    /// Figures of one; `None` when it is no replica of a service.
    pub fn figures(&self, attempt: &AttemptId) -> Option<Serving> {
        let all = self.lock();
        let replica = all.get(attempt)?;
        let idle = if replica.running > 0 { 0 } else { replica.idle_since.elapsed().as_millis() };
        Some(Serving {
            ready: replica.ready && !replica.draining,
            running: replica.running,
            done: replica.done,
            broken: replica.broken,
            idle_ms: u64::try_from(idle).unwrap_or(u64::MAX),
        })
    }

    /// Those that can be asked, in order.
    pub fn shown(&self) -> Vec<Shown> {
        let all = self.lock();
        let asked = all.iter().filter(|(_, replica)| replica.ready && !replica.draining);
        let show = |(attempt, replica): (&AttemptId, &Replica)| Shown {
            served_name: replica.served_name.clone(),
            attempt: attempt.clone(),
        };
        asked.map(show).collect()
    }

    /// Changes whenever [`Self::shown`] or [`Self::figures`] may have.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Lets a request through to where the replica listens; it counts as under way until the ticket is dropped.
    pub(crate) fn admit(self: &Arc<Self>, attempt: &AttemptId, asks: Asks) -> Result<(Listens, Ticket), Refused> {
        let admitted = self.change(attempt, |replica| match &replica.listens {
            _ if replica.draining => Err(Refused::Draining),
            Some(listens) if replica.ready => {
                match asks {
                    Asks::Client => replica.running += 1,
                    Asks::Sibling => replica.siblings += 1,
                }
                Ok(listens.clone())
            }
            Some(_) | None => Err(Refused::NotReady),
        });
        let listens = admitted.ok_or(Refused::Unknown)??;
        Ok((listens, Ticket { replicas: self.clone(), attempt: attempt.clone(), asks, whole: false }))
    }
}

/// A replica runs.
pub(crate) struct Entered {
    replicas: Arc<Replicas>,
    attempt: AttemptId,
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.replicas.lock().remove(&self.attempt);
        self.replicas.changes.send_modify(|version| *version += 1);
    }
}

/// A request is under way.
pub(crate) struct Ticket {
    replicas: Arc<Replicas>,
    attempt: AttemptId,
    asks: Asks,
    whole: bool,
}

impl Ticket {
    /// The answer came to its end.
    pub fn whole(&mut self) {
        self.whole = true;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let (whole, asks) = (self.whole, self.asks);
        self.replicas.change(&self.attempt, |replica| {
            if asks == Asks::Sibling {
                replica.siblings = replica.siblings.saturating_sub(1);
                return;
            }
            replica.running = replica.running.saturating_sub(1);
            let counter = if whole { &mut replica.done } else { &mut replica.broken };
            *counter += 1;
            replica.idle_since = Instant::now();
        });
    }
}

#[cfg(test)]
mod tests {
    use mloc_core::id::TaskId;

    use super::*;

    fn attempt() -> AttemptId {
        AttemptId { task: TaskId::new("t"), replica: 0, attempt: 1 }
    }

    #[tokio::test]
    async fn a_replica_that_drains_ends_what_it_has_begun_and_takes_nothing_new() {
        let replicas = Arc::new(Replicas::default());
        let refused = |replicas: &Arc<Replicas>| replicas.admit(&attempt(), Asks::Client).map(|_| ()).unwrap_err();
        assert_eq!(refused(&replicas), Refused::Unknown);
        let entered = replicas.enter(&attempt(), "chat");
        assert_eq!((refused(&replicas), replicas.shown()), (Refused::NotReady, vec![]));
        replicas.ready(&attempt(), Listens::Port(1));
        assert_eq!(replicas.shown(), [Shown { served_name: "chat".into(), attempt: attempt() }]);
        let (listens, mut ticket) = replicas.admit(&attempt(), Asks::Client).unwrap();
        // What it is asked by another replica is no work of its own.
        drop(replicas.admit(&attempt(), Asks::Sibling).unwrap());
        assert_eq!(listens, Listens::Port(1));
        replicas.drain(&attempt());
        assert_eq!((refused(&replicas), replicas.shown()), (Refused::Draining, vec![]));
        let id = attempt();
        let drained = replicas.drained(&id);
        let ending = async {
            tokio::task::yield_now().await;
            ticket.whole();
            drop(ticket);
        };
        tokio::join!(drained, ending);
        let figures = replicas.figures(&attempt()).unwrap();
        assert_eq!((figures.running, figures.done, figures.broken, figures.ready), (0, 1, 0, false));
        drop(entered);
        assert_eq!(replicas.figures(&attempt()), None);
    }
}
