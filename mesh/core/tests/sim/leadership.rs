//! The leader's shell: what `mesh/net` does with raft and links, over the simulated ones.

use std::collections::BTreeMap;

use mloc_core::{
    id::{AttemptId, NodeId},
    leader::{Leader, NodeView, Reaction, Settings},
    ledger::{Entry, Ledger, Outcome},
    time::Millis,
    wire::{FromLeader, FromWorker, Heartbeat, Report},
};
use rand::Rng;

use crate::world::{Happening, Then, World};

/// How long a deposed leader may go on without knowing it: what `slack_ms` covers.
pub const UNAWARE_MS: u64 = 2_000;

pub fn settings() -> Settings {
    Settings {
        lease_ms: 10_000,
        slack_ms: UNAWARE_MS + 500,
        resend_ms: 500,
        resend_max_ms: 4_000,
        keys_kept_ms: 86_400_000,
    }
}

pub struct Leadership {
    pub node: usize,
    pub term: u64,
    pub leader: Leader,
}

/// One that lost its voters and has not noticed: it answers from the ledger it had and commits nothing.
pub struct Deposed {
    pub was: Leadership,
    pub ledger: Ledger,
    pub until: u64,
}

impl World {
    /// What a node's clock shows: it may be far from that of others.
    pub fn wall(&self, node: usize) -> Millis {
        Millis(self.nodes[node].wall_at_epoch + self.now)
    }

    /// A node that is up and not cut off takes over.
    pub fn elect(&mut self) {
        let is_able = |n: &usize| self.nodes[*n].up && !self.nodes[*n].cut && !self.is_revoked(*n);
        let able: Vec<usize> = (0..self.nodes.len()).filter(is_able).collect();
        if able.is_empty() {
            return;
        }
        let node = able[self.rng.random_range(0..able.len())];
        self.term += 1;
        self.tally.leaders += 1;
        let clock = self.nodes[node].wall_at_epoch;
        self.tally.backwards += u64::from(clock + 1_000 < self.last_clock);
        self.last_clock = clock;
        let mut leader = Leader::new(self.nodes[node].id.clone(), settings());
        leader.became_leader(self.wall(node), &self.ledger);
        self.note(|| format!("node {node} leads"));
        self.leader = Some(Leadership { node, term: self.term, leader });
        self.after(1, Happening::LeaderTick { term: self.term });
    }

    /// The leader is no longer: it may go on unaware for a moment.
    pub fn depose(&mut self, unaware: bool) -> Result<(), String> {
        let Some(was) = self.leader.take() else { return Ok(()) };
        let ledger = self.ledger.clone();
        self.settle_commits()?;
        // From here on nothing of its term is committed.
        self.term += 1;
        if unaware {
            self.deposed.push(Deposed { was, ledger, until: self.now + UNAWARE_MS });
        }
        Ok(())
    }

    fn views(&mut self) -> BTreeMap<NodeId, NodeView> {
        let faulty = self.faulty();
        let rng = &mut self.rng;
        self.nodes
            .iter()
            .map(|n| {
                // Gossip is late, and wrong about death in both directions.
                let alive = (n.up && !n.cut) ^ (faulty && rng.random_bool(0.05));
                (n.id.clone(), NodeView { capability: Some(n.capability.clone()), alive })
            })
            .collect()
    }

    pub fn leader_tick(&mut self, term: u64) {
        let views = self.views();
        let mut sends = Vec::new();
        let mut proposals = Vec::new();
        let mut from = 0;
        let mut again = false;
        if let Some(mut leadership) = self.leader.take_if(|l| l.term == term) {
            let now = self.wall(leadership.node);
            let decisions = leadership.leader.decide(&self.ledger, &views, now, term);
            (from, sends, proposals, again) = (leadership.node, decisions.send, decisions.propose, true);
            self.leader = Some(leadership);
        } else if let Some(at) = self.deposed.iter().position(|d| d.was.term == term && d.until > self.now) {
            let now = self.wall(self.deposed[at].was.node);
            let Deposed { was, ledger, .. } = &mut self.deposed[at];
            // What it proposes goes nowhere.
            let decisions = was.leader.decide(ledger, &views, now, term);
            (from, sends, again) = (was.node, decisions.send, true);
        }
        for entry in proposals {
            self.propose(entry, Then::Nobody);
        }
        for (to, message) in sends {
            if let Some(node) = self.nodes.iter().position(|n| n.id == to) {
                self.send(from, node, Happening::ToWorker { node, from_term: term, message });
            }
        }
        if again {
            self.after(400, Happening::LeaderTick { term });
        }
    }

    /// Proposes: lost on the way, or committed after a while.
    pub fn propose(&mut self, entry: Entry, then: Then) {
        if self.leader.is_none() || (self.faulty() && self.rng.random_bool(0.05)) {
            return;
        }
        let slow = self.faulty() && self.rng.random_bool(0.1);
        let delay = if slow { self.rng.random_range(100..1_500) } else { self.rng.random_range(1..40) };
        self.after(delay, Happening::Commit { term: self.term, entry, then });
    }

    /// Whoever waits for a commit hears of it, if the answer is not lost.
    pub fn committed(&mut self, outcome: Outcome, then: Then) {
        if self.faulty() && self.rng.random_bool(0.05) {
            return;
        }
        match then {
            Then::Nobody => {}
            Then::Reporter { node, life, attempt, seq } => {
                let Some((from, term)) = self.leader.as_ref().map(|l| (l.node, l.term)) else { return };
                let answer = Leader::answer_to(&outcome, term);
                self.send(from, node, Happening::ReportAnswered { node, life, attempt, seq, answer });
            }
            Then::Client { request } => {
                let made = match outcome {
                    Outcome::Applied => self.ledger.keys.values().find_map(|keys| {
                        keys.get(&mloc_core::id::RequestId::new(format!("r{request}"))).map(|k| k.task.clone())
                    }),
                    Outcome::Duplicate(task) => Some(task),
                    Outcome::Stale | Outcome::Rejected(_) => None,
                };
                self.requests[request as usize].answered = made;
            }
        }
    }

    /// Whom a worker takes for the leader: gossip may be behind.
    pub fn believed_leader(&mut self) -> Option<(usize, u64)> {
        let now = self.now;
        self.deposed.retain(|d| d.until > now);
        if !self.deposed.is_empty() && self.rng.random_bool(0.5) {
            let was = &self.deposed[self.deposed.len() - 1].was;
            return Some((was.node, was.term));
        }
        self.leader.as_ref().map(|l| (l.node, l.term))
    }

    pub fn leader_hears_heartbeat(&mut self, from: usize, life: u32, term: u64, heartbeat: Heartbeat) {
        let now = self.now;
        let (node, answer) = if let Some(mut leadership) = self.leader.take_if(|l| l.term == term) {
            let wall = self.wall(leadership.node);
            let answer = leadership.leader.on_heartbeat(&self.ledger, heartbeat, wall, term);
            let node = leadership.node;
            self.leader = Some(leadership);
            (node, answer)
        } else if let Some(at) = self.deposed.iter().position(|d| d.was.term == term && d.until > now) {
            let wall = self.wall(self.deposed[at].was.node);
            let Deposed { was, ledger, .. } = &mut self.deposed[at];
            (was.node, was.leader.on_heartbeat(ledger, heartbeat, wall, term))
        } else {
            return;
        };
        self.send(node, from, Happening::HeartbeatAnswered { node: from, life, answer });
    }

    pub fn leader_hears_report(
        &mut self,
        from: usize,
        life: u32,
        term: u64,
        attempt: AttemptId,
        seq: u64,
        report: Report,
    ) {
        let Some(leadership) = self.leader.take_if(|l| l.term == term) else { return };
        let now = self.wall(leadership.node);
        let sender = self.nodes[from].id.clone();
        let wishes = report == Report::Publish;
        let mut reaction = leadership.leader.on_report(&self.ledger, &sender, attempt.clone(), report, now, term);
        if wishes && matches!(reaction, Reaction::Answer(FromLeader::Unavailable { .. })) {
            self.tally.held += 1;
            if self.planted.no_publish_hold {
                reaction = Reaction::Propose(Entry::Publishing { attempt: attempt.clone(), at: now });
            }
        }
        let node = leadership.node;
        self.leader = Some(leadership);
        match reaction {
            Reaction::Propose(entry) => self.propose(entry, Then::Reporter { node: from, life, attempt, seq }),
            Reaction::Answer(answer) => self.report_answer(node, from, life, attempt, seq, answer),
        }
    }

    fn report_answer(&mut self, node: usize, to: usize, life: u32, attempt: AttemptId, seq: u64, answer: FromLeader) {
        self.send(node, to, Happening::ReportAnswered { node: to, life, attempt, seq, answer });
    }

    pub fn leader_hears_answer(&mut self, term: u64, attempt: &AttemptId, answer: &FromWorker) {
        let Some(mut leadership) = self.leader.take_if(|l| l.term == term) else { return };
        let now = self.wall(leadership.node);
        let entry = leadership.leader.on_worker_answer(attempt, answer, now);
        self.leader = Some(leadership);
        if let Some(entry) = entry {
            self.propose(entry, Then::Nobody);
        }
    }
}
