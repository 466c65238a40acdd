//! The one thread that writes `raft.redb`: takes all that waits, commits it in one transaction, then answers.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, PoisonError, atomic::Ordering},
};

use openraft::storage::IOFlushed;
use redb::Database;
use tokio::sync::{mpsc, oneshot};

use super::{
    log::{COMMITTED, LOG, META, PURGED, Shared, VOTE, meta_bytes, panic_text},
    types::{LogId, TypeConfig, Vote},
};

/// One transaction takes at most this many writes, so that the first of them does not wait for ever.
const GROUP: usize = 512;

/// A write, in the order in which it must happen.
pub(super) enum Op {
    Append { entries: Vec<(u64, Arc<[u8]>)>, done: IOFlushed<TypeConfig> },
    Vote { vote: Vote, bytes: Vec<u8>, done: oneshot::Sender<io::Result<()>> },
    Truncate { from: u64, done: oneshot::Sender<io::Result<()>> },
    Purge { upto: u64, bytes: Vec<u8>, done: oneshot::Sender<io::Result<()>> },
    Close { done: oneshot::Sender<()> },
}

pub(super) fn spawn(shared: Arc<Shared>, inbox: mpsc::Receiver<Op>) -> io::Result<()> {
    let writer = Writer { shared, inbox, committed: None, broken: None };
    std::thread::Builder::new().name("raft-log".to_owned()).spawn(move || writer.run())?;
    Ok(())
}

struct Writer {
    shared: Arc<Shared>,
    inbox: mpsc::Receiver<Op>,
    /// What the file has as the last committed id, as far as this thread has written it.
    committed: Option<LogId>,
    /// After a failed commit nothing is known about the disk any more: every later write fails with the same words.
    broken: Option<String>,
}

impl Writer {
    /// Ends when the log is closed or its last handle is gone.
    fn run(mut self) {
        let mut group = Vec::new();
        let closed = loop {
            group.clear();
            let Some(first) = self.inbox.blocking_recv() else { break None };
            group.push(first);
            while group.len() < GROUP && !matches!(group.last(), Some(Op::Close { .. })) {
                let Ok(op) = self.inbox.try_recv() else { break };
                group.push(op);
            }
            let close = match group.pop() {
                Some(Op::Close { done }) => Some(done),
                Some(other) => {
                    group.push(other);
                    None
                }
                None => None,
            };
            if !group.is_empty() || close.is_some() {
                self.commit(&mut group);
            }
            if close.is_some() {
                break close;
            }
        };
        if closed.is_none() {
            self.commit(&mut Vec::new());
        }
        self.shared.db.write().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(done) = closed {
            // Nobody waiting is fine: the file is closed all the same.
            done.send(()).ok();
        }
    }

    fn commit(&mut self, group: &mut Vec<Op>) {
        let committed = self.shared.tail().committed;
        let result = match &self.broken {
            Some(why) => Err(why.clone()),
            None => catch_unwind(AssertUnwindSafe(|| self.transact(group, committed)))
                .unwrap_or_else(|panic| Err(io::Error::other(panic_text(panic.as_ref()))))
                .map_err(|error| error.to_string()),
        };
        match &result {
            Ok(()) => self.committed = committed,
            Err(why) if self.broken.is_none() => {
                tracing::error!(%why, "raft.redb cannot be written: this node stops taking part in the ledger");
                self.broken = Some(why.clone());
            }
            Err(_) => {}
        }
        for op in group.drain(..) {
            self.answer(op, result.clone().map_err(io::Error::other));
        }
    }

    fn transact(&self, group: &[Op], committed: Option<LogId>) -> io::Result<()> {
        if group.is_empty() && committed == self.committed {
            return Ok(());
        }
        let db = self.shared.db.read().unwrap_or_else(PoisonError::into_inner);
        let db: &Database = db.as_ref().ok_or_else(|| io::Error::other("the raft log is closed"))?;
        let write = db.begin_write().map_err(io::Error::other)?;
        {
            let mut log = write.open_table(LOG).map_err(io::Error::other)?;
            let mut meta = write.open_table(META).map_err(io::Error::other)?;
            for op in group {
                match op {
                    Op::Append { entries, .. } => {
                        for (index, entry) in entries {
                            log.insert(index, &**entry).map_err(io::Error::other)?;
                        }
                    }
                    Op::Vote { bytes, .. } => {
                        meta.insert(VOTE, bytes.as_slice()).map_err(io::Error::other)?;
                    }
                    Op::Truncate { from, .. } => {
                        log.retain_in(*from.., |_, _| false).map_err(io::Error::other)?;
                    }
                    Op::Purge { upto, bytes, .. } => {
                        meta.insert(PURGED, bytes.as_slice()).map_err(io::Error::other)?;
                        log.retain_in(..=*upto, |_, _| false).map_err(io::Error::other)?;
                    }
                    Op::Close { .. } => {}
                }
            }
            if committed != self.committed {
                let bytes = committed.map(|id| meta_bytes(COMMITTED, &id)).transpose()?;
                if let Some(bytes) = bytes {
                    meta.insert(COMMITTED, bytes.as_slice()).map_err(io::Error::other)?;
                }
            }
        }
        write.commit().map_err(io::Error::other)?;
        self.shared.commits.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Tells the one who asked; a waiter that went away has no use for the answer.
    fn answer(&self, op: Op, result: io::Result<()>) {
        match op {
            Op::Append { entries, done } => {
                if result.is_ok() {
                    self.forget(&entries);
                }
                done.io_completed(result);
            }
            Op::Vote { vote, done, .. } => {
                if result.is_ok() {
                    self.shared.tail().vote = Some(vote);
                }
                done.send(result).ok();
            }
            Op::Truncate { done, .. } | Op::Purge { done, .. } => {
                done.send(result).ok();
            }
            Op::Close { done } => {
                done.send(()).ok();
            }
        }
    }

    /// Durable entries are read from the file from now on; one that was overwritten meanwhile stays.
    fn forget(&self, entries: &[(u64, Arc<[u8]>)]) {
        let mut tail = self.shared.tail();
        for (index, entry) in entries {
            if tail.entries.get(index).is_some_and(|kept| Arc::ptr_eq(kept, entry)) {
                tail.entries.remove(index);
            }
        }
    }
}
