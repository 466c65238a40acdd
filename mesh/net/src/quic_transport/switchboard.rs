//! The task that owns the connections: it asks the peer table and does what it says. Never waits inside.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use quinn::{Connection, Endpoint};
use tokio::{
    select,
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, info, warn};

use super::{
    connection::{self, Hello, HelloFailed, Inbox},
    peer_table::{Candidate, ConnId, Dropped, PeerTable, Route, Verdict, Why},
};
use crate::{names::NodeId, tls::SERVER_NAME};

/// Messages waiting for one peer; chitchat says everything again, so a short queue loses nothing.
const QUEUE_MESSAGES_MAX: usize = 16;
/// Messages kept while a dial is on its way.
const PARKED_MESSAGES_MAX: usize = 4;
/// Refusals kept for `mloc mesh` and tests.
const REFUSALS_KEPT: usize = 32;

/// What happens to the switchboard.
pub(crate) enum Event {
    Dialled { address: SocketAddr, outcome: Result<(Connection, NodeId), String> },
    Greeted { connection: Connection, candidate: Candidate },
    GreetingFailed { dialled: Option<SocketAddr>, from: SocketAddr, peer: NodeId, why: HelloFailed },
    Accepted { connection: Connection, peer: NodeId },
    Refused { from: SocketAddr, reason: String },
    Closed { conn: ConnId, peer: NodeId, from: SocketAddr, why: quinn::ConnectionError },
}

/// A connection that came to nothing, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The peer's address, as seen from here.
    pub address: SocketAddr,
    /// Whether this node dialled.
    pub dialled: bool,
    /// The reason, as in the log.
    pub reason: String,
}

/// Counters since the start.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub dials: AtomicU64,
    pub dials_failed: AtomicU64,
    pub duplicates: AtomicU64,
    pub sent: AtomicU64,
    pub dropped: AtomicU64,
    pub connected: AtomicU64,
}

/// What the handle and the switchboard both see.
#[derive(Debug, Default)]
pub(crate) struct Board {
    pub counters: Counters,
    refusals: Mutex<VecDeque<Refusal>>,
}

impl Board {
    pub(crate) fn refusals(&self) -> Vec<Refusal> {
        self.refusals.lock().unwrap_or_else(|e| e.into_inner()).iter().cloned().collect()
    }

    fn note(&self, mut refusal: Refusal) {
        // An IPv4 peer of an IPv6 socket has a mapped address; people know it by the other.
        refusal.address.set_ip(refusal.address.ip().to_canonical());
        let mut refusals = self.refusals.lock().unwrap_or_else(|e| e.into_inner());
        // A peer that keeps trying is said once, not at every try.
        if refusals.iter().any(|known| known.reason == refusal.reason && known.address.ip() == refusal.address.ip()) {
            return debug!(address = %refusal.address, reason = refusal.reason, "gossip connection refused again");
        }
        match refusal.dialled {
            true => warn!(address = %refusal.address, reason = refusal.reason, "gossip dial refused"),
            false => warn!(from = %refusal.address, reason = refusal.reason, "refused a gossip connection"),
        }
        refusals.push_back(refusal);
        if refusals.len() > REFUSALS_KEPT {
            refusals.pop_front();
        }
    }
}

struct Open {
    connection: Connection,
    queue: mpsc::Sender<Vec<u8>>,
}

pub(crate) struct Switchboard {
    pub endpoint: Endpoint,
    pub gossip_client: watch::Receiver<quinn::ClientConfig>,
    pub hello: Hello,
    pub table: PeerTable,
    pub board: Arc<Board>,
    pub events: mpsc::Sender<Event>,
    pub inbox: Inbox,
    pub tracker: TaskTracker,
    pub cancel: CancellationToken,
    pub dial_timeout: Duration,
    open: HashMap<ConnId, Open>,
    parked: HashMap<SocketAddr, VecDeque<Vec<u8>>>,
    next_conn: ConnId,
}

/// The parts a switchboard starts with.
pub(crate) struct Parts {
    pub endpoint: Endpoint,
    pub gossip_client: watch::Receiver<quinn::ClientConfig>,
    pub hello: Hello,
    pub table: PeerTable,
    pub board: Arc<Board>,
    pub events: mpsc::Sender<Event>,
    pub inbox: Inbox,
    pub tracker: TaskTracker,
    pub cancel: CancellationToken,
    pub dial_timeout: Duration,
}

impl Switchboard {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts { endpoint, gossip_client, hello, table, board, events, inbox, tracker, cancel, dial_timeout } =
            parts;
        Self {
            endpoint,
            gossip_client,
            hello,
            table,
            board,
            events,
            inbox,
            tracker,
            cancel,
            dial_timeout,
            open: HashMap::new(),
            parked: HashMap::new(),
            next_conn: 1,
        }
    }

    pub(crate) async fn run(
        mut self,
        mut outbox: mpsc::Receiver<(SocketAddr, Vec<u8>)>,
        mut events: mpsc::Receiver<Event>,
        mut revoked: watch::Receiver<Arc<BTreeSet<NodeId>>>,
    ) {
        let cancel = self.cancel.clone();
        loop {
            select! { biased;
                () = cancel.cancelled() => break,
                Some(event) = events.recv() => self.on_event(event),
                Ok(()) = revoked.changed() => {
                    let revoked = revoked.borrow_and_update().clone();
                    self.on_revoked(&revoked);
                }
                Some((to, message)) = outbox.recv() => self.on_send(to, message),
                else => break,
            }
        }
    }

    fn on_send(&mut self, to: SocketAddr, message: Vec<u8>) {
        match self.table.route(to, Instant::now()) {
            Route::Over(conn) => self.enqueue(conn, message),
            Route::Dial => {
                self.park(to, message);
                self.dial(to);
            }
            Route::Dialling => self.park(to, message),
            Route::Drop(why) => {
                if why != Dropped::Ourselves {
                    self.board.counters.dropped.fetch_add(1, Relaxed);
                }
            }
        }
    }

    fn enqueue(&self, conn: ConnId, message: Vec<u8>) {
        let sent = self.open.get(&conn).is_some_and(|open| open.queue.try_send(message).is_ok());
        let counter = if sent { &self.board.counters.sent } else { &self.board.counters.dropped };
        counter.fetch_add(1, Relaxed);
    }

    fn park(&mut self, to: SocketAddr, message: Vec<u8>) {
        let parked = self.parked.entry(to).or_default();
        if parked.len() == PARKED_MESSAGES_MAX {
            parked.pop_front();
        }
        parked.push_back(message);
    }

    fn dial(&self, address: SocketAddr) {
        self.board.counters.dials.fetch_add(1, Relaxed);
        let (endpoint, config, limit) = (self.endpoint.clone(), self.gossip_client.borrow().clone(), self.dial_timeout);
        let events = self.events.clone();
        self.spawn(async move {
            let dialled = async {
                let connecting = endpoint.connect_with(config, address, SERVER_NAME).map_err(|e| e.to_string())?;
                let connection = connecting.await.map_err(|e| e.to_string())?;
                let peer = connection::peer_of(&connection).ok_or("the peer's certificate holds no ed25519 key")?;
                Ok((connection, peer))
            };
            let outcome = match timeout(limit, dialled).await {
                Ok(outcome) => outcome,
                Err(_) => Err(format!("no answer within {} ms", limit.as_millis())),
            };
            let _switchboard_gone = events.send(Event::Dialled { address, outcome }).await;
        });
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Dialled { address, outcome: Ok((connection, peer)) } => self.on_dialled(address, connection, peer),
            Event::Dialled { address, outcome: Err(reason) } => self.on_dial_failed(address, reason),
            Event::Accepted { connection, peer } => self.on_accepted(connection, peer),
            Event::Greeted { connection, candidate } => self.on_greeted(connection, candidate),
            Event::GreetingFailed { dialled, from, peer, why } => self.on_greeting_failed(dialled, from, &peer, why),
            Event::Refused { from, reason } => self.board.note(Refusal { address: from, dialled: false, reason }),
            Event::Closed { conn, peer, from, why } => {
                debug!(%peer, %why, "gossip connection closed");
                if connection::says_revoked(&why) {
                    self.board.note(Refusal { address: from, dialled: true, reason: format!("node {peer}: {why}") });
                }
                self.open.remove(&conn);
                self.table.closed(conn);
                self.count_connected();
            }
        }
    }

    fn on_dial_failed(&mut self, address: SocketAddr, reason: String) {
        self.board.counters.dials_failed.fetch_add(1, Relaxed);
        self.parked.remove(&address);
        self.table.dial_failed(address, Instant::now(), rand::random());
        self.board.note(Refusal { address, dialled: true, reason });
    }

    fn on_dialled(&mut self, address: SocketAddr, connection: Connection, peer: NodeId) {
        if let Err(why) = self.table.reached(address, &peer, Instant::now()) {
            connection::close(&connection, why);
            if why == Why::Duplicate {
                self.board.counters.duplicates.fetch_add(1, Relaxed);
            }
            return self.release_parked(address);
        }
        self.greet(connection, peer, Some(address), Some(self.hello.clone()));
    }

    fn on_accepted(&mut self, connection: Connection, peer: NodeId) {
        // Silent until the dialler has greeted: it may close at once, having found another connection to us.
        self.greet(connection, peer, None, None);
    }

    fn greet(&mut self, connection: Connection, peer: NodeId, dialled: Option<SocketAddr>, ours: Option<Hello>) {
        let conn = self.next_conn;
        self.next_conn += 1;
        let (mesh, limit, events) = (self.hello.mesh.clone(), self.dial_timeout, self.events.clone());
        self.spawn(async move {
            let from = connection.remote_address();
            let heard = timeout(limit, async {
                // Should ours not arrive, waiting for theirs says why.
                if let Some(ours) = ours
                    && let Err(error) = connection::say_hello(&connection, &ours).await
                {
                    debug!(error, "greeting not delivered");
                }
                connection::hear_hello(&connection, &mesh).await
            });
            let why = match heard.await {
                Ok(Ok(Hello { generation, advertised, .. })) => {
                    let candidate = Candidate { conn, peer, dialled, generation, advertised };
                    let _switchboard_gone = events.send(Event::Greeted { connection, candidate }).await;
                    return;
                }
                Ok(Err(why)) => why,
                Err(_) => HelloFailed::Unfit(format!("no greeting within {} ms", limit.as_millis())),
            };
            let _switchboard_gone = events.send(Event::GreetingFailed { dialled, from, peer, why }).await;
        });
    }

    fn on_greeting_failed(&mut self, dialled: Option<SocketAddr>, from: SocketAddr, peer: &NodeId, why: HelloFailed) {
        if let HelloFailed::Closed(error) = &why
            && connection::is_duplicate(error)
        {
            if let Some(address) = dialled {
                // The other connection's greeting names this address; until then a short wait.
                self.table.dial_failed(address, Instant::now(), 0.0);
                self.release_parked(address);
            }
            return;
        }
        let reason = match why {
            HelloFailed::Closed(error) => format!("node {peer}: {error}"),
            HelloFailed::Unfit(reason) => format!("node {peer}: {reason}"),
        };
        match dialled {
            Some(address) => self.on_dial_failed(address, reason),
            None => self.board.note(Refusal { address: from, dialled: false, reason }),
        }
    }

    fn on_greeted(&mut self, connection: Connection, candidate: Candidate) {
        let replaces = match self.table.admit(&candidate, Instant::now()) {
            Verdict::Keep { replaces } => replaces,
            Verdict::Close(why) => {
                connection::close(&connection, why);
                match why {
                    Why::Duplicate => _ = self.board.counters.duplicates.fetch_add(1, Relaxed),
                    Why::Ourselves | Why::Revoked | Why::StaleProcess => self.board.note(Refusal {
                        address: connection.remote_address(),
                        dialled: candidate.dialled.is_some(),
                        reason: format!("node {}: {}", candidate.peer, connection::reason(why)),
                    }),
                }
                return candidate.dialled.into_iter().for_each(|address| self.release_parked(address));
            }
        };
        if let Some(open) = replaces.and_then(|conn| self.open.remove(&conn)) {
            self.board.counters.duplicates.fetch_add(1, Relaxed);
            connection::close(&open.connection, Why::Duplicate);
        }
        self.keep(connection, candidate);
    }

    fn keep(&mut self, connection: Connection, candidate: Candidate) {
        let Candidate { conn, peer, dialled, generation, advertised } = candidate;
        info!(%peer, address = %connection.remote_address(), %advertised, generation, dialled = dialled.is_some(), "gossip connection");
        let (queue, messages) = mpsc::channel(QUEUE_MESSAGES_MAX);
        let hello = dialled.is_none().then(|| self.hello.clone());
        self.spawn(connection::write_messages(connection.clone(), hello, messages));
        let (reading, inbox, events) = (connection.clone(), self.inbox.clone(), self.events.clone());
        self.spawn(async move {
            let from = reading.remote_address();
            let why = connection::read_messages(reading, advertised, inbox).await;
            let _switchboard_gone = events.send(Event::Closed { conn, peer, from, why }).await;
        });
        self.open.insert(conn, Open { connection, queue });
        self.count_connected();
        for address in dialled.into_iter().chain([advertised]) {
            self.release_parked(address);
        }
    }

    /// What waited for a dial goes over the connection there is now, if there is one.
    fn release_parked(&mut self, address: SocketAddr) {
        for message in self.parked.remove(&address).unwrap_or_default() {
            if let Some(conn) = self.table.connection_to(address) {
                self.enqueue(conn, message);
            }
        }
    }

    fn on_revoked(&mut self, revoked: &BTreeSet<NodeId>) {
        for conn in self.table.revoke(revoked.clone()) {
            if let Some(open) = self.open.remove(&conn) {
                let peer =
                    connection::peer_of(&open.connection).map(|node| format!("node {node} ")).unwrap_or_default();
                self.board.note(Refusal {
                    address: open.connection.remote_address(),
                    dialled: false,
                    reason: format!("{peer}was revoked from this mesh: its connection is closed"),
                });
                connection::close(&open.connection, Why::Revoked);
            }
            self.table.closed(conn);
        }
        self.count_connected();
    }

    fn count_connected(&self) {
        self.board.counters.connected.store(self.open.len() as u64, Relaxed);
    }

    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let cancel = self.cancel.clone();
        self.tracker.spawn(async move {
            cancel.run_until_cancelled_owned(work).await;
        });
    }
}
