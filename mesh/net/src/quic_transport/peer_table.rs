//! Which connection a gossip message takes, when to dial, and which of two connections to one peer stays.
//!
//! Plain decisions: moments and chance are arguments, connections are numbers. The switchboard acts on them.

use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
    time::{Duration, Instant},
};

use crate::names::NodeId;

/// A connection of this process, numbered from 1.
pub(crate) type ConnId = u64;

/// Two connections that began within this time were dialled by both sides at once; a later one replaces the earlier,
/// since its dialler had lost the earlier one or would not have dialled.
const SIMULTANEOUS: Duration = Duration::from_secs(10);
/// First wait after a failed dial; doubles to [`BACKOFF_MAX`].
const BACKOFF_FIRST: Duration = Duration::from_millis(250);
/// A peer that was away is found again within about this time.
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// Addresses remembered for their failures; gossip can name any number of them.
const DIALS_REMEMBERED_MAX: usize = 4096;

/// How fast this node may dial. A mesh of 50 that starts at once would otherwise dial 1,225 times in a second.
#[derive(Clone, Copy, Debug)]
pub struct DialRate {
    /// Dials at once before the rate counts.
    pub burst: u32,
    /// Dials a second after that.
    pub per_second: u32,
}

impl Default for DialRate {
    fn default() -> Self {
        Self { burst: 16, per_second: 8 }
    }
}

/// Where a message to an address goes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// Over a connection that stands.
    Over(ConnId),
    /// Nowhere yet: dial, the message may wait for it.
    Dial,
    /// A dial is on its way, the message may wait for it.
    Dialling,
    /// Nowhere: chitchat will say it again.
    Drop(Dropped),
}

/// Why a message goes nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dropped {
    /// The address is ours.
    Ourselves,
    /// The peer takes no dials and has no connection to us now.
    DialsOutOnly,
    /// The last dial failed a moment ago.
    BackingOff,
    /// Too many dials in this second.
    RateCapped,
}

/// A connection whose peer is known.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub conn: ConnId,
    pub peer: NodeId,
    /// Set when we dialled: the address we used.
    pub dialled: Option<SocketAddr>,
    /// The peer's start; a higher one is a later process of the same node.
    pub generation: u64,
    /// Where the peer says it is.
    pub advertised: SocketAddr,
}

/// What happens to a connection.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It carries gossip from now on; `replaces` is to be closed.
    Keep { replaces: Option<ConnId> },
    /// It is to be closed.
    Close(Why),
}

/// Why a connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    Ourselves,
    Revoked,
    Duplicate,
    StaleProcess,
}

#[derive(Debug)]
struct Live {
    conn: ConnId,
    dialled_by_us: bool,
    generation: u64,
    since: Instant,
}

#[derive(Debug)]
enum Dial {
    InFlight { failures: u32 },
    Waiting { failures: u32, until: Instant },
}

/// All a node knows about its gossip connections.
#[derive(Debug)]
pub(crate) struct PeerTable {
    us: NodeId,
    our_addresses: BTreeSet<SocketAddr>,
    live: HashMap<NodeId, Live>,
    at: HashMap<SocketAddr, NodeId>,
    dials: HashMap<SocketAddr, Dial>,
    revoked: BTreeSet<NodeId>,
    rate: DialRate,
    /// Dials still allowed, in thousandths, and when that was counted.
    allowance: (u64, Instant),
}

impl PeerTable {
    pub(crate) fn new(us: NodeId, our_address: SocketAddr, rate: DialRate, now: Instant) -> Self {
        Self {
            us,
            our_addresses: BTreeSet::from([our_address]),
            live: HashMap::new(),
            at: HashMap::new(),
            dials: HashMap::new(),
            revoked: BTreeSet::new(),
            rate,
            allowance: (u64::from(rate.burst) * 1000, now),
        }
    }

    /// Where a message to `to` goes; on [`Route::Dial`] the dial counts as begun.
    pub(crate) fn route(&mut self, to: SocketAddr, now: Instant) -> Route {
        if self.our_addresses.contains(&to) {
            return Route::Drop(Dropped::Ourselves);
        }
        if let Some(conn) = self.connection_to(to) {
            return Route::Over(conn);
        }
        if super::address::takes_no_dials(to) {
            return Route::Drop(Dropped::DialsOutOnly);
        }
        let failures = match self.dials.get(&to) {
            Some(Dial::InFlight { .. }) => return Route::Dialling,
            Some(Dial::Waiting { until, .. }) if now < *until => return Route::Drop(Dropped::BackingOff),
            Some(Dial::Waiting { failures, .. }) => *failures,
            None => 0,
        };
        if !self.take_allowance(now) {
            return Route::Drop(Dropped::RateCapped);
        }
        self.dials.insert(to, Dial::InFlight { failures });
        Route::Dial
    }

    /// The connection that stands for an address; unlike [`Self::route`] it never begins a dial.
    pub(crate) fn connection_to(&self, address: SocketAddr) -> Option<ConnId> {
        Some(self.live.get(self.at.get(&address)?)?.conn)
    }

    fn take_allowance(&mut self, now: Instant) -> bool {
        let (left, counted) = self.allowance;
        let earned = now.saturating_duration_since(counted).as_millis() as u64 * u64::from(self.rate.per_second);
        let left = (left + earned).min(u64::from(self.rate.burst) * 1000);
        let granted = left >= 1000;
        self.allowance = (if granted { left - 1000 } else { left }, now);
        granted
    }

    /// A dial failed. `chance` in 0..1 spreads the retries of many nodes.
    pub(crate) fn dial_failed(&mut self, address: SocketAddr, now: Instant, chance: f64) {
        let failures = match self.dials.get(&address) {
            Some(Dial::InFlight { failures } | Dial::Waiting { failures, .. }) => failures.saturating_add(1),
            None => 1,
        };
        if self.dials.len() >= DIALS_REMEMBERED_MAX {
            self.dials.retain(|_, dial| match dial {
                Dial::InFlight { .. } => true,
                Dial::Waiting { until, .. } => now < *until,
            });
        }
        let wait = BACKOFF_FIRST.saturating_mul(1 << (failures - 1).min(10)).min(BACKOFF_MAX).mul_f64(0.5 + chance);
        self.dials.insert(address, Dial::Waiting { failures, until: now + wait });
    }

    /// We dialled and the handshake told us who is there: is it worth greeting? Says so before the other side knows of us.
    pub(crate) fn reached(&mut self, address: SocketAddr, peer: &NodeId, now: Instant) -> Result<(), Why> {
        let refused = if *peer == self.us {
            self.our_addresses.insert(address);
            Some(Why::Ourselves)
        } else if self.revoked.contains(peer) {
            Some(Why::Revoked)
        } else {
            match self.live.get(peer) {
                Some(live) if self.loses(peer, true, live, now) => Some(Why::Duplicate),
                _ => None,
            }
        };
        match refused {
            Some(why) => {
                // The peer is known by this address too from now on.
                if why == Why::Duplicate {
                    self.at.insert(address, peer.clone());
                }
                self.dials.remove(&address);
                if why == Why::Revoked {
                    self.dial_failed(address, now, 1.0);
                }
                Err(why)
            }
            None => Ok(()),
        }
    }

    /// Both sides have greeted: does this connection stay?
    pub(crate) fn admit(&mut self, candidate: &Candidate, now: Instant) -> Verdict {
        if candidate.peer == self.us {
            return Verdict::Close(Why::Ourselves);
        }
        if let Some(address) = candidate.dialled {
            self.dials.remove(&address);
        }
        if self.revoked.contains(&candidate.peer) {
            return Verdict::Close(Why::Revoked);
        }
        let by_us = candidate.dialled.is_some();
        let mut replaces = None;
        if let Some(live) = self.live.get(&candidate.peer) {
            if candidate.generation < live.generation {
                return Verdict::Close(Why::StaleProcess);
            }
            if candidate.generation == live.generation && self.loses(&candidate.peer, by_us, live, now) {
                return Verdict::Close(Why::Duplicate);
            }
            replaces = Some(live.conn);
        }
        // A peer may not take the address of another that stands; that would draw its messages away.
        let taken =
            self.at.get(&candidate.advertised).is_some_and(|p| *p != candidate.peer && self.live.contains_key(p));
        if !taken {
            self.at.insert(candidate.advertised, candidate.peer.clone());
            self.dials.remove(&candidate.advertised);
        }
        if let Some(address) = candidate.dialled {
            self.at.insert(address, candidate.peer.clone());
        }
        let live = Live { conn: candidate.conn, dialled_by_us: by_us, generation: candidate.generation, since: now };
        self.live.insert(candidate.peer.clone(), live);
        Verdict::Keep { replaces }
    }

    /// Whether a new connection to a peer loses against the one that stands. Both sides come to the same answer.
    fn loses(&self, peer: &NodeId, new_by_us: bool, live: &Live, now: Instant) -> bool {
        let lower_is_us = self.us < *peer;
        match (new_by_us, live.dialled_by_us) {
            // We have one and dialled the same peer under another address.
            (true, true) => true,
            // The peer would not dial again unless it had lost the first.
            (false, false) => false,
            // The standing one is the peer's: ours wins only as the other half of a simultaneous dial.
            (true, false) => !(now.duration_since(live.since) < SIMULTANEOUS && lower_is_us),
            (false, true) => now.duration_since(live.since) < SIMULTANEOUS && lower_is_us,
        }
    }

    /// A connection is gone.
    pub(crate) fn closed(&mut self, conn: ConnId) {
        let Some(peer) = self.live.iter().find(|(_, live)| live.conn == conn).map(|(peer, _)| peer.clone()) else {
            return; // it was replaced
        };
        self.live.remove(&peer);
        self.at.retain(|_, p| *p != peer);
    }

    /// From now on these nodes are not spoken to. Gives the connections to close.
    pub(crate) fn revoke(&mut self, revoked: BTreeSet<NodeId>) -> Vec<ConnId> {
        let cut = self.live.iter().filter(|(peer, _)| revoked.contains(*peer)).map(|(_, live)| live.conn).collect();
        self.revoked = revoked;
        cut
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> NodeId {
        NodeId::new(name)
    }

    fn address(port: u16) -> SocketAddr {
        ([127, 0, 0, 1], port).into()
    }

    fn table(us: &str, now: Instant) -> PeerTable {
        PeerTable::new(id(us), address(1), DialRate::default(), now)
    }

    fn candidate(conn: ConnId, peer: &str, dialled: Option<u16>, generation: u64, port: u16) -> Candidate {
        Candidate { conn, peer: id(peer), dialled: dialled.map(address), generation, advertised: address(port) }
    }

    const KEPT: Verdict = Verdict::Keep { replaces: None };

    #[test]
    fn both_sides_keep_the_one_dialled_by_the_lower() {
        let now = Instant::now();
        // Connection 1 was dialled by a, connection 2 by b; each side hears of them in its own order.
        let mut a = table("a", now);
        assert_eq!(a.admit(&candidate(2, "b", None, 1, 20), now), KEPT);
        assert_eq!(a.reached(address(20), &id("b"), now), Ok(()));
        assert_eq!(a.admit(&candidate(1, "b", Some(20), 1, 20), now), Verdict::Keep { replaces: Some(2) });
        let mut b = table("b", now);
        assert_eq!(b.admit(&candidate(1, "a", None, 1, 10), now), KEPT);
        assert_eq!(b.reached(address(10), &id("a"), now), Err(Why::Duplicate));
        let mut b = table("b", now);
        assert_eq!(b.admit(&candidate(2, "a", Some(10), 1, 10), now), KEPT);
        assert_eq!(b.admit(&candidate(1, "a", None, 1, 10), now), Verdict::Keep { replaces: Some(2) });
    }

    #[test]
    fn a_restarted_peer_is_believed_at_once() {
        let now = Instant::now();
        let mut a = table("a", now);
        assert_eq!(a.admit(&candidate(1, "b", Some(20), 5, 20), now), KEPT);
        assert_eq!(a.admit(&candidate(2, "b", None, 6, 20), now), Verdict::Keep { replaces: Some(1) });
        assert_eq!(a.admit(&candidate(3, "b", None, 5, 20), now), Verdict::Close(Why::StaleProcess));
        a.closed(1); // the replaced one: nothing changes
        assert_eq!(a.route(address(20), now), Route::Over(2));
    }

    #[test]
    fn a_peer_that_lost_its_connection_dials_again_and_wins() {
        let now = Instant::now();
        let mut a = table("a", now);
        assert_eq!(a.admit(&candidate(1, "b", Some(20), 5, 20), now), KEPT);
        let later = now + SIMULTANEOUS;
        assert_eq!(a.admit(&candidate(2, "b", None, 5, 20), later), Verdict::Keep { replaces: Some(1) });
    }

    #[test]
    fn a_second_address_of_a_known_peer_is_learnt_without_a_second_connection() {
        let now = Instant::now();
        let mut a = table("a", now);
        assert_eq!(a.admit(&candidate(1, "b", Some(20), 5, 20), now), KEPT);
        assert_eq!(a.route(address(21), now), Route::Dial);
        assert_eq!(a.reached(address(21), &id("b"), now), Err(Why::Duplicate));
        assert_eq!(a.route(address(21), now), Route::Over(1));
    }

    #[test]
    fn nobody_takes_anothers_address() {
        let now = Instant::now();
        let mut a = table("a", now);
        a.admit(&candidate(1, "b", Some(20), 5, 20), now);
        a.admit(&candidate(2, "c", None, 5, 20), now);
        assert_eq!(a.route(address(20), now), Route::Over(1));
        a.closed(1);
        a.admit(&candidate(3, "c", None, 5, 20), now + SIMULTANEOUS);
        assert_eq!(a.route(address(20), now), Route::Over(3));
    }

    #[test]
    fn dials_back_off_and_are_capped() {
        let now = Instant::now();
        let mut a = table("a", now);
        assert_eq!(a.route(address(1), now), Route::Drop(Dropped::Ourselves));
        assert_eq!(a.route(address(20), now), Route::Dial);
        assert_eq!(a.route(address(20), now), Route::Dialling);
        a.dial_failed(address(20), now, 0.5);
        assert_eq!(a.route(address(20), now), Route::Drop(Dropped::BackingOff));
        let later = now + BACKOFF_FIRST;
        assert_eq!(a.route(address(20), later), Route::Dial);
        a.dial_failed(address(20), later, 0.5);
        assert_eq!(a.route(address(20), later + BACKOFF_FIRST), Route::Drop(Dropped::BackingOff));
        for _ in 0..40 {
            a.dial_failed(address(20), later, 0.99);
        }
        assert_eq!(a.route(address(20), later + BACKOFF_MAX.mul_f64(1.5)), Route::Dial);
        let mut many = table("a", now);
        let dialled = (100..200).filter(|port| many.route(address(*port), now) == Route::Dial).count();
        assert_eq!(dialled, 16);
        let second = now + Duration::from_secs(1);
        let dialled = (200..300).filter(|port| many.route(address(*port), second) == Route::Dial).count();
        assert_eq!(dialled, 8);
    }

    #[test]
    fn the_revoked_are_cut_and_not_spoken_to() {
        let now = Instant::now();
        let mut a = table("a", now);
        a.admit(&candidate(1, "b", Some(20), 5, 20), now);
        assert_eq!(a.revoke(BTreeSet::from([id("b")])), vec![1]);
        a.closed(1);
        assert_eq!(a.admit(&candidate(2, "b", None, 6, 20), now), Verdict::Close(Why::Revoked));
        assert_eq!(a.reached(address(20), &id("b"), now), Err(Why::Revoked));
        assert_eq!(a.route(address(20), now), Route::Drop(Dropped::BackingOff));
    }
}
