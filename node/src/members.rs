//! The mesh as REST and the worker see it: requests and logs that members ask for, and the way to the leader.

use std::{io, sync::Arc};

use async_trait::async_trait;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use mloc_api::{
    Control,
    forward::{Duplex, Forward, Leader},
};
use mloc_core::{
    id::NodeId,
    wire::{FromLeader, ToLeader},
};
use mloc_mesh::{
    handle::{LeaderView, MeshHandle},
    link::{LinkStream, StreamKind},
};
use mloc_runtime::{LeaderLink, LinkDown};
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use crate::logs::Logs;

/// Requests that members forward to this node.
pub async fn serve_members(mut streams: mpsc::Receiver<(NodeId, LinkStream)>, control: Arc<dyn Control>) {
    let app = mloc_api::link_router(control);
    let tasks = TaskTracker::new();
    while let Some((peer, stream)) = streams.recv().await {
        let service = TowerToHyperService::new(app.clone());
        tasks.spawn(async move {
            let served =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            if let Err(error) = served {
                tracing::debug!(%peer, %error, "a forwarded request broke off");
            }
        });
    }
}

/// Logs that members ask for.
pub async fn serve_logs(mut streams: mpsc::Receiver<(NodeId, LinkStream)>, logs: Arc<Logs>) {
    let tasks = TaskTracker::new();
    while let Some((peer, stream)) = streams.recv().await {
        let logs = logs.clone();
        tasks.spawn(async move {
            if let Err(error) = logs.serve(stream).await {
                tracing::debug!(%peer, %error, "a log's reader went away");
            }
        });
    }
}

/// The worker's way to the leader.
pub struct MeshLink(pub MeshHandle);

#[async_trait]
impl LeaderLink for MeshLink {
    async fn send(&self, message: ToLeader) -> Result<FromLeader, LinkDown> {
        self.0.ask_leader(message).await.map_err(|error| LinkDown(error.to_string()))
    }
}

fn leader(view: LeaderView) -> Leader {
    match view {
        LeaderView::Here { .. } => Leader::Here,
        LeaderView::There { node, .. } => Leader::There(node),
        LeaderView::Unknown => Leader::Unknown,
    }
}

/// REST's way to the leader.
pub struct MeshForward(pub MeshHandle);

#[async_trait]
impl Forward for MeshForward {
    fn leader(&self) -> Leader {
        leader(self.0.leader())
    }

    async fn leader_other_than(&self, seen: &Leader) {
        loop {
            let view = self.0.leader();
            if leader(view.clone()) != *seen {
                return;
            }
            // A new term of the same leader is no other leader.
            self.0.leader_other_than(&view).await;
        }
    }

    async fn open(&self, node: &NodeId) -> io::Result<Box<dyn Duplex>> {
        Ok(Box::new(self.0.open_stream(node, StreamKind::Http).await?))
    }

    fn mint_key(&self) -> String {
        format!("minted-{}", hex::encode(rand::random::<[u8; 16]>()))
    }
}
