//! The state machine: committed entries go through `Ledger::apply`, in order, once.
//!
//! The state lives in memory. It is durable as the last snapshot plus the log after it, which openraft applies again
//! at a start.

use std::{
    io,
    path::Path,
    sync::{Arc, PoisonError, RwLock},
};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use mloc_core::id::NodeId;
use openraft::{
    EntryPayload, OptionalSend, RaftSnapshotBuilder,
    storage::{EntryResponder, RaftStateMachine, Snapshot},
};
use tokio::sync::watch;

use super::{
    snapshot::{self, SnapshotError, SnapshotFile},
    types::{Ledger, LogId, Membership, SnapshotMeta, TypeConfig},
};

/// A snapshot as openraft and the network hand it around: the bytes of a snapshot file.
pub(super) type SnapshotBytes = Bytes;

#[derive(Default)]
struct State {
    ledger: Ledger,
    applied: Option<LogId>,
    membership: Membership,
}

impl State {
    fn meta(&self) -> SnapshotMeta {
        SnapshotMeta { last_log_id: self.applied, last_membership: self.membership.clone() }
    }
}

/// Reads of the applied ledger. Cheap to clone; sees every change at once.
#[derive(Clone)]
pub struct LedgerView {
    state: Arc<RwLock<State>>,
    applied: watch::Receiver<u64>,
}

impl LedgerView {
    /// Looks at the ledger. Applying waits meanwhile: take out what is needed and leave.
    pub fn read<T>(&self, look: impl FnOnce(&Ledger) -> T) -> T {
        look(&self.state.read().unwrap_or_else(PoisonError::into_inner).ledger)
    }

    /// A copy of the ledger, with term and index of the last entry in it.
    pub fn copy(&self) -> (Ledger, u64, u64) {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let (term, index) = state.applied.map_or((0, 0), |id| (**id.committed_leader_id(), id.index()));
        (state.ledger.clone(), term, index)
    }

    /// Whose majority decides, as the last applied entry has it. While the voters change these are those of before: until
    /// the change is committed their majority is needed, whoever else votes by then.
    pub fn voters(&self) -> Vec<NodeId> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let membership = state.membership.membership();
        let of_before = membership.get_joint_config().first().into_iter().flatten();
        of_before.filter_map(|id| membership.get_node(id)).map(|node| node.peer.clone()).collect()
    }

    /// Changes after each applied entry; the value is the index of the last one (0 before the first).
    pub fn applied(&self) -> watch::Receiver<u64> {
        self.applied.clone()
    }
}

/// openraft's state machine around the ledger.
pub(super) struct LedgerMachine {
    state: Arc<RwLock<State>>,
    applied: watch::Sender<u64>,
    file: SnapshotFile,
}

impl LedgerMachine {
    /// Starts from the snapshot in `dir`, or empty.
    pub fn open(dir: &Path) -> Result<Self, SnapshotError> {
        let (file, found) = SnapshotFile::open(dir)?;
        let state = found.map_or_else(State::default, |(meta, ledger)| State {
            ledger,
            applied: meta.last_log_id,
            membership: meta.last_membership,
        });
        let (applied, _) = watch::channel(index(&state.applied));
        Ok(Self { state: Arc::new(RwLock::new(state)), applied, file })
    }

    /// A handle for reads.
    pub fn view(&self) -> LedgerView {
        LedgerView { state: self.state.clone(), applied: self.applied.subscribe() }
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut state);
        let reached = index(&state.applied);
        drop(state);
        self.applied.send_replace(reached);
        result
    }

    fn look<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }
}

fn index(applied: &Option<LogId>) -> u64 {
    applied.map_or(0, |id| id.index())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

impl RaftStateMachine<TypeConfig> for LedgerMachine {
    type SnapshotData = SnapshotBytes;
    type SnapshotBuilder = LedgerSnapshotBuilder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, Membership)> {
        Ok(self.look(|state| (state.applied, state.membership.clone())))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        while let Some(item) = entries.next().await {
            let (entry, asker) = item?;
            let outcome = self.change(|state| {
                state.applied = Some(entry.log_id);
                match entry.payload {
                    EntryPayload::Blank => None,
                    EntryPayload::Normal(command) => Some(state.ledger.apply(&command.0)),
                    EntryPayload::Membership(membership) => {
                        state.membership = Membership::new(Some(entry.log_id), membership);
                        None
                    }
                }
            });
            if let Some(asker) = asker {
                asker.send(outcome);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> LedgerSnapshotBuilder {
        let (meta, ledger) = self.look(|state| (state.meta(), state.ledger.clone()));
        LedgerSnapshotBuilder { meta, ledger: Arc::new(ledger), file: self.file.clone() }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, bytes: SnapshotBytes) -> io::Result<()> {
        let (file, meta) = (self.file.clone(), meta.clone());
        let (meta, ledger) = blocking(move || {
            let (found, ledger) = snapshot::decode("the leader's snapshot", &bytes)?;
            if found != meta {
                let detail = format!("announced as {meta}, but it is {found}");
                return Err(SnapshotError::Damaged { place: "the leader's snapshot".to_owned(), detail }.into());
            }
            file.save(&meta, &bytes)?;
            Ok((meta, ledger))
        })
        .await?;
        self.change(|state| {
            *state = State { ledger, applied: meta.last_log_id, membership: meta.last_membership };
        });
        Ok(())
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> io::Result<Option<openraft::alias::SnapshotOf<TypeConfig, SnapshotBytes>>> {
        let file = self.file.clone();
        blocking(move || {
            let Some(bytes) = file.read()? else { return Ok(None) };
            let (meta, _) = snapshot::decode(&file.place(), &bytes)?;
            Ok(Some(Snapshot { meta, snapshot: bytes }))
        })
        .await
    }
}

/// A frozen copy of the state, on its way to the disk.
pub(super) struct LedgerSnapshotBuilder {
    meta: SnapshotMeta,
    ledger: Arc<Ledger>,
    file: SnapshotFile,
}

impl RaftSnapshotBuilder<TypeConfig> for LedgerSnapshotBuilder {
    type SnapshotData = SnapshotBytes;

    async fn build_snapshot(&mut self) -> io::Result<openraft::alias::SnapshotOf<TypeConfig, SnapshotBytes>> {
        let (meta, ledger, file) = (self.meta.clone(), self.ledger.clone(), self.file.clone());
        blocking(move || {
            let bytes = snapshot::encode(&meta, &ledger)?;
            file.save(&meta, &bytes)?;
            Ok(Snapshot { meta, snapshot: bytes })
        })
        .await
    }
}
