//! Gossip: what each member says of itself, spread to all, and a guess at who is alive.
//!
//! chitchat does the spreading over [`crate::quic_transport`]; here values are signed and checked, seeds are sought, and
//! the end of chitchat's task is noticed. Acting on any of it is for others: death by gossip is a hint, no fact.

pub(crate) mod capability;
mod generation;
pub mod keys;
mod signed;
mod view;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use chitchat::{ChitchatConfig, ChitchatHandle, ChitchatId, FailureDetectorConfig, spawn_chitchat};
use thiserror::Error;
use tokio::{
    net::lookup_host,
    select,
    sync::{Mutex, watch},
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, error, warn};

use self::view::{Beliefs, Heard};
pub use self::{
    generation::{GENERATION_FILE, GenerationError, next_generation},
    signed::VALUE_BYTES_MAX,
    view::{Members, PeerView, json_value},
};
use crate::{identity::NodeIdentity, quic_transport::GossipEndpoint};

/// A name that takes longer than this to resolve is tried again later.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Addresses tried of one seed's name.
const SEED_ADDRESSES_MAX: usize = 8;
/// How long chitchat's task may take to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// How gossip behaves. The defaults suit a LAN and a WAN alike.
#[derive(Clone, Debug)]
pub struct GossipSettings {
    /// `host:port` of members to begin with; names are resolved anew at each try.
    pub seeds: Vec<String>,
    /// How often this node speaks to a few others.
    pub interval: Duration,
    /// How often seeds are tried while no other member is in sight.
    pub seek: Duration,
    /// How often one seed is tried otherwise: it joins what a partition made two.
    pub seek_in_company: Duration,
    /// Silence this many times the usual one means death.
    pub phi_threshold: f64,
    /// How long a dead node is remembered.
    pub forget_dead_after: Duration,
}

impl Default for GossipSettings {
    fn default() -> Self {
        Self {
            seeds: Vec::new(),
            interval: Duration::from_secs(1),
            seek: Duration::from_secs(1),
            seek_in_company: Duration::from_secs(30),
            phi_threshold: 8.0,
            forget_dead_after: Duration::from_secs(24 * 3600),
        }
    }
}

impl GossipSettings {
    /// All times divided, for tests.
    pub fn faster(mut self, times: u32) -> Self {
        for time in [&mut self.interval, &mut self.seek, &mut self.seek_in_company] {
            *time /= times;
        }
        self
    }
}

/// Why gossip could not start.
#[derive(Debug, Error)]
#[error("gossip cannot start: {0}")]
pub struct GossipStartError(anyhow::Error);

/// Why a value was not published.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PublishError {
    /// Too large to be spread.
    #[error("gossip value `{key}` has {bytes} bytes with its signature, at most {VALUE_BYTES_MAX} are spread")]
    TooLarge {
        /// Which key.
        key: String,
        /// Bytes, signature included.
        bytes: usize,
    },
}

/// Whether gossip still runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GossipHealth {
    /// It does.
    Running,
    /// It was told to stop.
    Stopped,
    /// Its task ended by itself; the node must start gossip again with a new generation.
    Died {
        /// What it said at the end.
        reason: String,
    },
}

#[derive(Default)]
struct Own {
    counter: u64,
    /// Plain and signed text by key.
    values: BTreeMap<String, (String, String)>,
}

/// This node's part in the gossip.
pub struct Gossip {
    identity: Arc<NodeIdentity>,
    generation: u64,
    chitchat: Arc<ChitchatHandle>,
    own: Arc<Mutex<Own>>,
    members: watch::Receiver<Arc<Members>>,
    health: watch::Receiver<GossipHealth>,
    tracker: TaskTracker,
    cancel: CancellationToken,
}

impl Gossip {
    /// Starts to gossip over `endpoint`, whose generation it takes.
    pub async fn start(
        settings: GossipSettings,
        endpoint: &GossipEndpoint,
        identity: Arc<NodeIdentity>,
    ) -> Result<Self, GossipStartError> {
        let generation = endpoint.generation();
        let config = ChitchatConfig {
            chitchat_id: ChitchatId::new(identity.node().as_str(), generation, endpoint.advertised()),
            cluster_id: endpoint.mesh().to_string(),
            gossip_interval: settings.interval,
            listen_addr: endpoint.advertised(),
            // Ours to seek: chitchat resolves names once a minute, and only those that are no addresses.
            seed_nodes: Vec::new(),
            failure_detector_config: FailureDetectorConfig {
                phi_threshold: settings.phi_threshold,
                initial_interval: settings.interval * 2,
                max_interval: settings.interval * 20,
                dead_node_grace_period: settings.forget_dead_after,
                ..FailureDetectorConfig::default()
            },
            marked_for_deletion_grace_period: settings.forget_dead_after,
            catchup_callback: None,
            extra_liveness_predicate: None,
        };
        let chitchat = Arc::new(spawn_chitchat(config, Vec::new(), endpoint).await.map_err(GossipStartError)?);
        let (members_now, members) = watch::channel(Arc::default());
        let (health_now, health) = watch::channel(GossipHealth::Running);
        let (tracker, cancel) = (TaskTracker::new(), CancellationToken::new());
        let own = Arc::new(Mutex::new(Own::default()));
        let watcher = Watcher {
            chitchat: chitchat.clone(),
            own: own.clone(),
            beliefs: Beliefs::default(),
            members: members_now,
            health: health_now,
        };
        tracker.spawn(watcher.run(settings.interval, cancel.clone()));
        let seeker = seek(settings, chitchat.clone(), members.clone());
        tracker.spawn(cancel.clone().run_until_cancelled_owned(seeker));
        Ok(Self { identity, generation, chitchat, own, members, health, tracker, cancel })
    }

    /// Says `value` under `key` (see [`keys`]) from now on. Saying the same again costs nothing.
    pub async fn publish(&self, key: &str, value: &str) -> Result<(), PublishError> {
        let mut own = self.own.lock().await;
        if own.values.get(key).is_some_and(|(plain, _)| plain == value) {
            return Ok(());
        }
        let text = signed::sign(&self.identity, self.generation, key, own.counter + 1, value);
        if text.len() > VALUE_BYTES_MAX {
            return Err(PublishError::TooLarge { key: key.to_owned(), bytes: text.len() });
        }
        own.counter += 1;
        own.values.insert(key.to_owned(), (value.to_owned(), text.clone()));
        self.chitchat.with_chitchat(|chitchat| chitchat.self_node_state().set(key, &text)).await;
        Ok(())
    }

    /// The members as believed now; changes wake the receiver. This node is among them once it has published.
    pub fn members(&self) -> watch::Receiver<Arc<Members>> {
        self.members.clone()
    }

    /// Whether gossip still runs.
    pub fn health(&self) -> watch::Receiver<GossipHealth> {
        self.health.clone()
    }

    /// Stops; others will hold this node for dead after a while.
    pub async fn stop(&self) {
        self.cancel.cancel();
        if self.chitchat.initiate_shutdown().is_err() {
            debug!("gossip had ended before");
        }
        self.tracker.close();
        if timeout(STOP_TIMEOUT, self.tracker.wait()).await.is_err() {
            warn!("gossip did not stop in {} s", STOP_TIMEOUT.as_secs());
            self.chitchat.abort();
        }
    }
}

/// A node whose handle is gone says nothing more.
impl Drop for Gossip {
    fn drop(&mut self) {
        self.cancel.cancel();
        let _ended_before = self.chitchat.initiate_shutdown();
    }
}

/// Turns chitchat's state into views, and notices its end.
struct Watcher {
    chitchat: Arc<ChitchatHandle>,
    own: Arc<Mutex<Own>>,
    beliefs: Beliefs,
    members: watch::Sender<Arc<Members>>,
    health: watch::Sender<GossipHealth>,
}

impl Watcher {
    async fn run(mut self, every: Duration, cancel: CancellationToken) {
        let mut tick = interval(every);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut live = self.chitchat.with_chitchat(|chitchat| chitchat.live_nodes_watcher()).await;
        let ended = self.chitchat.termination_watcher();
        tokio::pin!(ended);
        let health = loop {
            select! { biased;
                () = cancel.cancelled() => break GossipHealth::Stopped,
                end = &mut ended => {
                    let reason = match end {
                        Ok(()) => "chitchat's task ended".to_owned(),
                        Err(error) => error.to_string(),
                    };
                    error!(reason, "gossip has ended");
                    break GossipHealth::Died { reason };
                }
                // Changes of who lives wake us at once, changes of values with the next tick at the latest.
                Ok(()) = live.changed() => { live.borrow_and_update(); }
                _ = tick.tick() => self.reassert().await,
            }
            self.look().await;
        };
        self.health.send_replace(health);
    }

    /// Another member can overwrite our values in our own copy too: ours stand.
    async fn reassert(&self) {
        let own = self.own.lock().await;
        self.chitchat
            .with_chitchat(|chitchat| {
                let state = chitchat.self_node_state();
                for (key, (_, text)) in &own.values {
                    if state.get(key) != Some(text) {
                        state.set(key, text);
                    }
                }
            })
            .await;
    }

    async fn look(&mut self) {
        let heard = self
            .chitchat
            .with_chitchat(|chitchat| {
                let live: std::collections::HashSet<_> = chitchat.live_nodes().cloned().collect();
                let heard = chitchat.node_states().iter().map(|(id, state)| Heard {
                    node: id.node_id.to_string(),
                    generation: id.generation_id,
                    alive: live.contains(id),
                    address: id.gossip_advertise_addr,
                    values: state.key_values().map(|(key, text)| (key.to_owned(), text.to_owned())).collect(),
                });
                heard.collect()
            })
            .await;
        let members = self.beliefs.review(heard);
        self.members.send_if_modified(|current| {
            let changed = **current != members;
            if changed {
                *current = Arc::new(members);
            }
            changed
        });
    }
}

/// Speaks to seeds: often while alone, seldom in company.
async fn seek(settings: GossipSettings, chitchat: Arc<ChitchatHandle>, members: watch::Receiver<Arc<Members>>) {
    if settings.seeds.is_empty() {
        return;
    }
    let mut said = None;
    for turn in 0.. {
        let alone = members.borrow().values().filter(|view| view.alive).count() <= 1;
        let some = if alone {
            &settings.seeds[..]
        } else {
            std::slice::from_ref(&settings.seeds[turn % settings.seeds.len()])
        };
        for seed in some {
            match timeout(RESOLVE_TIMEOUT, lookup_host(seed)).await {
                Ok(Ok(addresses)) => {
                    for address in addresses.take(SEED_ADDRESSES_MAX) {
                        if chitchat.gossip(address).is_err() {
                            return; // chitchat has ended, the watcher says so
                        }
                    }
                }
                unresolved => {
                    let reason = match unresolved {
                        Ok(Err(error)) => error.to_string(),
                        _ => format!("no answer within {} s", RESOLVE_TIMEOUT.as_secs()),
                    };
                    if said.as_ref() != Some(&reason) {
                        warn!(seed, reason, "seed cannot be resolved, trying on");
                        said = Some(reason);
                    }
                }
            }
        }
        let pause = if alone { settings.seek } else { settings.seek_in_company };
        // Spread: many nodes started by one command would otherwise come to the seed in step.
        sleep(pause.mul_f64(0.5 + rand::random::<f64>())).await;
    }
}
