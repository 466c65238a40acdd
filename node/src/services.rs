//! Services as this node serves and reaches them: its own replicas are gossiped and answer members, those of others are
//! known from gossip and reached over the mesh.

use std::{collections::BTreeSet, io, sync::Arc, time::Duration};

use async_trait::async_trait;
use mloc_api::{
    Services,
    forward::Duplex,
    services::Ready,
    view::{ReplicaView, ServiceView},
};
use mloc_core::{
    id::{AttemptId, NodeId, TaskId},
    ledger::{
        Ledger,
        state::{Attempt, AttemptState, Replica, Task},
    },
};
use mloc_mesh::{
    handle::MeshHandle,
    link::{LinkStream, StreamKind},
};
use mloc_runtime::serving::{
    Replicas, proxy,
    siblings::{self, ReplicaLink},
};
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use crate::views::attempt_view;

/// Bytes of a request to this node's own replicas that wait in memory.
const OWN_STREAM_BYTES: usize = 64 << 10;
/// Between two tellings of this node's replicas, at least: gossip has no use for more.
const TELL_EVERY: Duration = Duration::from_millis(50);

/// Tells the mesh which replicas of this node can be asked, whenever that changes, for ever.
pub async fn announce(mesh: MeshHandle, replicas: Arc<Replicas>) {
    let (mut changes, mut lists, mut told) = (replicas.changes(), 0, Vec::new());
    loop {
        changes.borrow_and_update();
        let ready: Vec<(String, AttemptId)> =
            replicas.shown().into_iter().map(|one| (one.served_name, one.attempt)).collect();
        if ready != told {
            match mesh.publish_replicas(&ready, lists).await {
                Ok(now) => (lists, told) = (now, ready),
                Err(error) => warn!(%error, "the mesh is not told of this node's replicas"),
            }
        }
        // Its sender is held here too.
        if changes.changed().await.is_err() {
            return;
        }
        tokio::time::sleep(TELL_EVERY).await;
    }
}

/// Requests of members to replicas of this node.
pub async fn serve(mut streams: mpsc::Receiver<(NodeId, LinkStream)>, replicas: Arc<Replicas>) {
    let tasks = TaskTracker::new();
    while let Some((peer, stream)) = streams.recv().await {
        let replicas = replicas.clone();
        tasks.spawn(async move {
            if let Err(error) = proxy::serve(stream, replicas).await {
                debug!(%peer, %error, "a request to a replica broke off");
            }
        });
    }
}

/// The mesh's services as the API routes to them.
pub struct MeshServices {
    /// The mesh.
    pub mesh: MeshHandle,
    /// Those that run here.
    pub replicas: Arc<Replicas>,
}

#[async_trait]
impl Services for MeshServices {
    fn ready(&self, name: &str) -> Vec<Ready> {
        let own = self.replicas.shown().into_iter().filter(|one| one.served_name == name);
        let own = own.map(|one| Ready { attempt: one.attempt, node: self.mesh.node().clone() });
        // Of this node it knows at first hand.
        let others = self.mesh.ready_replicas().into_iter();
        let others = others.filter(|one| one.served_name == name && one.node != *self.mesh.node());
        let mut ready: Vec<Ready> =
            own.chain(others.map(|one| Ready { attempt: one.attempt, node: one.node })).collect();
        ready.sort();
        ready
    }

    fn names(&self) -> BTreeSet<String> {
        self.mesh.ready_replicas().into_iter().map(|one| one.served_name).collect()
    }

    async fn changed(&self, most: Duration) {
        let mut own = self.replicas.changes();
        own.borrow_and_update();
        tokio::select! {
            () = self.mesh.gossip_changed(most) => {}
            _ = own.changed() => {}
        }
    }

    async fn open(&self, node: &NodeId) -> io::Result<Box<dyn Duplex>> {
        if node != self.mesh.node() {
            return Ok(Box::new(self.mesh.open_stream(node, StreamKind::Services).await?));
        }
        let (near, far) = tokio::io::duplex(OWN_STREAM_BYTES);
        let replicas = self.replicas.clone();
        // Ends with the near end.
        tokio::spawn(async move {
            if let Err(error) = proxy::serve(far, replicas).await {
                debug!(%error, "a request to a replica here broke off");
            }
        });
        Ok(Box::new(near))
    }

    async fn unheard(&self, node: &NodeId) {
        self.mesh.unheard(node).await;
    }
}

/// The way of replicas here to others of their service.
pub struct MeshSiblings(pub MeshHandle);

#[async_trait]
impl ReplicaLink for MeshSiblings {
    fn ready(&self, served_name: &str) -> Vec<(AttemptId, NodeId)> {
        let others = self.0.ready_replicas().into_iter();
        let others = others.filter(|one| one.served_name == served_name && one.node != *self.0.node());
        others.map(|one| (one.attempt, one.node)).collect()
    }

    async fn open(&self, node: &NodeId) -> io::Result<Box<dyn siblings::Duplex>> {
        Ok(Box::new(self.0.open_stream(node, StreamKind::Services).await?))
    }

    async fn unheard(&self, node: &NodeId) {
        self.0.unheard(node).await;
    }
}

/// Every served name, as the leader knows it.
pub fn views(ledger: &Ledger, mesh: &MeshHandle) -> Vec<ServiceView> {
    let live = ledger.tasks.values().filter(|task| task.ended.is_none());
    let names: BTreeSet<&str> =
        live.filter_map(|task| Some(task.spec.service.as_ref()?.served_name.as_str())).collect();
    names.into_iter().filter_map(|name| view(ledger, mesh, name)).collect()
}

/// One of them.
pub fn view(ledger: &Ledger, mesh: &MeshHandle, name: &str) -> Option<ServiceView> {
    let versions = ledger.versions_of(name);
    let (id, task) = versions.last()?;
    let shown = |replica: &Replica| !replica.retired || replica.live().is_some();
    let all = versions.iter().flat_map(|(id, task)| task.replicas.iter().map(move |replica| (*id, *task, replica)));
    let replicas: Vec<ReplicaView> = all
        .filter(|(_, _, replica)| shown(replica))
        .map(|(id, task, r)| replica_view(ledger, mesh, id, task, r))
        .collect();
    let ready = replicas.iter().filter(|replica| replica.state == "READY").count();
    let desired = task.desired();
    Some(ServiceView {
        name: name.to_owned(),
        owner: task.spec.metadata.owner.clone(),
        task: id.to_string(),
        created_unix: task.submitted_at.0 / 1000,
        desired,
        ready: u32::try_from(ready).unwrap_or(u32::MAX),
        sleeps: desired == 0,
        wakes: desired > 0 && ready == 0 && task.spec.timeouts.idle_ms.is_some(),
        replicas,
    })
}

fn replica_view(ledger: &Ledger, mesh: &MeshHandle, id: &TaskId, task: &Task, replica: &Replica) -> ReplicaView {
    let live = replica.live();
    let state = match live.map(|attempt| (&attempt.state, attempt.is_ready())) {
        None => "WAITING",
        Some((AttemptState::Stopping { .. }, _)) => "STOPPING",
        Some((_, true)) => "READY",
        Some((_, false)) => "STARTING",
    };
    let serving = |attempt: &Attempt| mesh.progress(&attempt.id)?.progress.serving;
    // A task whose dependencies are not done waits for those.
    let reason = if live.is_some() || !ledger.dependencies_done(task) { "" } else { &replica.pending_reason };
    ReplicaView {
        task: id.to_string(),
        attempt: live.map(|attempt| attempt.id.to_string()),
        state: state.to_owned(),
        node: live.map(|attempt| attempt.node.to_string()),
        node_name: live.map(|attempt| attempt_view(ledger, attempt).node_name).unwrap_or_default(),
        reason: reason.to_owned(),
        serving: live.and_then(serving),
    }
}
