//! The way of a replica's program to other shards of its service: a Unix socket of this daemon's, named in the run file.
//!
//! ```text
//! program ── HTTP/1, `mloc-shard: 2` ─→ its daemon ── `mloc-replica: …`, `mloc-sibling: …` ─→ the daemon there ─→ that program
//! ```
//!
//! One hop, and never through the leader: every node knows from gossip which replicas can be asked. Whoever speaks here can
//! name a shard of this very task, or a replica of another version of it under the same name, whose owner is the same; and
//! nothing else. The other program is told by `mloc-sibling` that no client asks it, which no client can say. The socket is
//! as near as the program's own: in its attempt's folder, for this user alone.
//!
//! Deliberately absent: another try of what may have been seen. A request may have changed something; who asks knows whether
//! it may be asked again.

use std::{
    convert::Infallible,
    fs::{self, Permissions},
    io,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use http_body_util::BodyExt;
use hyper::{
    Request, Response, StatusCode,
    body::Incoming,
    header::{HeaderName, HeaderValue},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use mloc_core::{
    id::{AttemptId, NodeId},
    service::shard::shard_of,
};
use mloc_exec::run::{NEWER, OLDER};
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{UnixListener, UnixStream},
    task::JoinSet,
};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, warn};

use super::{
    Replicas,
    proxy::{self, AnyBody, LOST, REPLICA, SIBLING, UNASKED, lost},
};

/// Header of a program's request: whom it is for.
pub const SHARD: HeaderName = HeaderName::from_static(mloc_exec::run::SHARD);
/// Bytes of a socket's path, one less than what the system takes.
const PATH_MAX: usize = 107;
/// The socket, in the attempt's folder.
const NAME: &str = "siblings.sock";
/// A stream that its node dropped before anything was sent is opened anew so often.
const DROPPED_MAX: u32 = 6;
/// Before that, as many times as it was dropped.
const DROPPED_PAUSE: Duration = Duration::from_millis(20);
/// Before a connection is taken again where there were no descriptors left.
const PAUSE: Duration = Duration::from_millis(100);

/// Status of an answer with [`LOST`] where there is no such replica that can be asked.
const NOBODY: StatusCode = StatusCode::NOT_FOUND;

/// A byte stream to another node.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// The way to replicas on other nodes.
#[async_trait]
pub trait ReplicaLink: Send + Sync + 'static {
    /// Replicas of this name on other nodes that can be asked, as this node knows.
    fn ready(&self, served_name: &str) -> Vec<(AttemptId, NodeId)>;
    /// A stream to a node's [`proxy::serve`].
    async fn open(&self, node: &NodeId) -> io::Result<Box<dyn Duplex>>;
    /// Returns when a node is not heard of any more, or was started anew.
    async fn unheard(&self, node: &NodeId);
}

/// The socket of one attempt; gone when it is dropped, with every request that came by it.
pub(crate) struct Siblings {
    socket: PathBuf,
    _serves: AbortOnDropHandle<()>,
    /// Where the attempt's folder has too long a path.
    _elsewhere: Option<TempDir>,
}

/// Who asks, and by which way.
struct Asker {
    attempt: AttemptId,
    served_name: String,
    shards: u32,
    replicas: Arc<Replicas>,
    link: Arc<dyn ReplicaLink>,
}

impl Siblings {
    /// Listens for a replica of a service of so many shards, in its attempt's folder.
    ///
    /// # Errors
    /// There can be no socket.
    pub fn open(
        folder: &Path,
        attempt: &AttemptId,
        (served_name, shards): (&str, u32),
        replicas: Arc<Replicas>,
        link: Arc<dyn ReplicaLink>,
    ) -> io::Result<Self> {
        let mut socket = folder.join(NAME);
        let mut elsewhere = None;
        if socket.as_os_str().len() > PATH_MAX {
            // For this user alone, as the attempt's folder.
            let short = tempfile::Builder::new().prefix("mloc-").tempdir()?;
            socket = short.path().join(NAME);
            elsewhere = Some(short);
        }
        match fs::remove_file(&socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            // What an earlier start left.
            _ => {}
        }
        let listener = UnixListener::bind(&socket)?;
        fs::set_permissions(&socket, Permissions::from_mode(0o600))?;
        let user = fs::metadata(&socket)?.uid();
        let (attempt, served_name) = (attempt.clone(), served_name.to_owned());
        let asker = Arc::new(Asker { attempt, served_name, shards, replicas, link });
        let serves = AbortOnDropHandle::new(tokio::spawn(serve(listener, user, asker)));
        Ok(Self { socket, _serves: serves, _elsewhere: elsewhere })
    }

    /// Where it is.
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for Siblings {
    fn drop(&mut self) {
        // What stays is taken away by the next start, or with the attempt's folder.
        fs::remove_file(&self.socket).ok();
    }
}

async fn serve(listener: UnixListener, user: u32, asker: Arc<Asker>) {
    // Its requests go with it.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            taken = listener.accept() => match taken {
                Ok((stream, _)) if is_of(&stream, user) => drop(connections.spawn(answer(stream, asker.clone()))),
                Ok(_) => warn!(attempt = %asker.attempt, "another user of this machine spoke to a replica's socket"),
                Err(error) => {
                    warn!(attempt = %asker.attempt, %error, "a replica could not ask another one");
                    tokio::time::sleep(PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

fn is_of(stream: &UnixStream, user: u32) -> bool {
    stream.peer_cred().is_ok_and(|peer| peer.uid() == user)
}

async fn answer(stream: UnixStream, asker: Arc<Asker>) {
    let answer = service_fn(|request| {
        let asker = asker.clone();
        async move { Ok::<_, Infallible>(asker.pass_on(request).await) }
    });
    if let Err(error) = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await
    {
        debug!(attempt = %asker.attempt, %error, "a request to another replica broke off");
    }
}

/// Whom a program's request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whom {
    Shard(u32),
    Older(usize),
    Newer,
}

impl Whom {
    fn of(text: &str) -> Option<Self> {
        match text.strip_prefix(OLDER) {
            Some(number) => number.parse().ok().map(Self::Older),
            None if text == NEWER => Some(Self::Newer),
            None => text.parse().ok().map(Self::Shard),
        }
    }
}

impl Asker {
    /// To the replica that is meant, wherever it is.
    async fn pass_on(&self, mut request: Request<Incoming>) -> Response<AnyBody> {
        let named = request.headers_mut().remove(&SHARD);
        let whom = named.as_ref().and_then(|whom| Whom::of(whom.to_str().ok()?));
        let Some(whom) = whom else {
            return lost(UNASKED, &format!("a replica says in `{SHARD}` whom it asks"));
        };
        let Some((attempt, node)) = self.find(whom) else {
            return lost(NOBODY, &format!("no replica can be asked that is {whom:?} of {} shards", self.shards));
        };
        let as_header = |id: &AttemptId| HeaderValue::from_str(&id.to_string());
        let (Ok(to), Ok(from)) = (as_header(&attempt), as_header(&self.attempt)) else {
            return lost(UNASKED, "its name fits into no header");
        };
        let headers = request.headers_mut();
        proxy::clean(headers);
        headers.insert(REPLICA, to);
        headers.insert(SIBLING, from);
        match node {
            None => proxy::ask(&self.replicas, request).await,
            Some(node) => self.ask(&node, request).await,
        }
    }

    /// A name belongs to one owner, and ids of tasks are in the order of submission: of that name, lesser ones are older
    /// versions.
    fn find(&self, whom: Whom) -> Option<(AttemptId, Option<NodeId>)> {
        let own = &self.attempt;
        let here = self.replicas.shown().into_iter().filter(|one| one.served_name == self.served_name);
        let there = self.link.ready(&self.served_name).into_iter().map(|(attempt, node)| (attempt, Some(node)));
        let all = here.map(|one| (one.attempt, None)).chain(there);
        match whom {
            // Of several that are the shard, as while they are exchanged, all nodes choose the same.
            Whom::Shard(shard) => {
                let is_it = |attempt: &AttemptId| {
                    attempt.task == own.task && attempt != own && shard_of(attempt.replica, self.shards) == shard
                };
                all.filter(|(attempt, _)| is_it(attempt)).max_by_key(|(attempt, _)| (attempt.replica, attempt.attempt))
            }
            Whom::Older(number) => {
                let mut older: Vec<_> = all.filter(|(attempt, _)| attempt.task < own.task).collect();
                older.sort();
                older.into_iter().nth(number)
            }
            Whom::Newer => all.filter(|(attempt, _)| attempt.task > own.task).max(),
        }
    }

    async fn ask(&self, node: &NodeId, request: Request<Incoming>) -> Response<AnyBody> {
        let asked = async {
            let mut request = request;
            let mut dropped = 0;
            loop {
                let stream = match self.link.open(node).await {
                    Ok(stream) => stream,
                    Err(error) => return lost(UNASKED, &format!("{node} can't be reached: {error}")),
                };
                let broken = |error: hyper::Error| format!("the connection to {node} broke: {error}");
                let mut sender = match proxy::handshake(stream).await {
                    Ok(sender) => sender,
                    Err(error) => {
                        return lost(UNASKED, &format!("the connection to {node} broke: {error}"));
                    }
                };
                let mut error = match sender.try_send_request(request).await {
                    Ok(response) => return response.map(BodyExt::boxed_unsync),
                    Err(error) => error,
                };
                match error.take_message() {
                    // Nothing of it was sent: a node drops streams of which too many come at once.
                    Some(back) if dropped < DROPPED_MAX => {
                        dropped += 1;
                        request = back;
                        tokio::time::sleep(DROPPED_PAUSE * dropped).await;
                    }
                    Some(_) => return lost(UNASKED, &broken(error.into_error())),
                    None => return lost(StatusCode::BAD_GATEWAY, &broken(error.into_error())),
                }
            }
        };
        tokio::select! {
            answered = asked => {
                let why = answered.headers().get(LOST);
                debug!(asker = %self.attempt, %node, status = %answered.status(), ?why, "asked for another replica");
                answered
            }
            () = self.link.unheard(node) => {
                lost(StatusCode::BAD_GATEWAY, &format!("{node} is not heard of any more"))
            }
        }
    }
}

/// No other node has a replica.
#[cfg(test)]
pub(crate) struct NoOthers;

#[cfg(test)]
#[async_trait]
impl ReplicaLink for NoOthers {
    fn ready(&self, _: &str) -> Vec<(AttemptId, NodeId)> {
        Vec::new()
    }

    async fn open(&self, node: &NodeId) -> io::Result<Box<dyn Duplex>> {
        Err(io::Error::other(format!("there is no {node}")))
    }

    async fn unheard(&self, _: &NodeId) {
        std::future::pending().await
    }
}
