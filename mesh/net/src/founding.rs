//! Founding a mesh together (`bootstrapExpect`): which one of the nodes that start at once founds it.
//!
//! The nodes named in the seeds list agree on one founder by single-decree Paxos; the founder founds alone, as the one
//! voter, the others join it and are promoted as ever. Every decision needs `expect` of the seeds, which must be more
//! than half of them: any two decisions share a node, and what that node has promised or accepted is on its disk before
//! its answer leaves. So two founders cannot be, whatever crashes or is cut off, and once enough nodes see one another
//! one will be: a promise made to a node that fell silent is no dead end, a higher ballot goes past it.
//!
//! What it rests on: all name the same seeds (askers with another list are refused), and no node loses its data directory
//! while the mesh is being founded. A node that meets a mesh joins it and founds nothing.
//!
//! Plain functions; [`crate::start`] sends the questions, all seeds in one round, and keeps the acceptor on disk.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::names::NodeId;

/// File in the data directory that holds what this node has promised.
pub const FOUNDING_FILE: &str = "founding.json";
/// Rounds in which a node that is not the lowest lets the lower ones go first.
const COURTESY_ROUNDS: u32 = 8;

/// The nodes that found a mesh together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    expect: usize,
    digest: String,
}

/// Why nodes can't found a mesh together.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "bootstrapExpect: {expect} with {seeds} seeds: name all founding nodes in `seeds`, on each of them the same list, this \
     node included; bootstrapExpect must be more than half of them and at most all"
)]
pub struct BadGroup {
    expect: usize,
    seeds: usize,
}

impl Group {
    /// `expect` of these seeds decide.
    ///
    /// # Errors
    /// When two decisions could be made without a node in common, or none at all.
    pub fn new(expect: usize, seeds: &[String]) -> Result<Self, BadGroup> {
        let seeds: BTreeSet<&String> = seeds.iter().collect();
        if expect > seeds.len() || expect * 2 <= seeds.len() {
            return Err(BadGroup { expect, seeds: seeds.len() });
        }
        let mut hash = Sha256::new();
        hash.update((expect as u64).to_be_bytes());
        for seed in seeds {
            hash.update((seed.len() as u64).to_be_bytes());
            hash.update(seed);
        }
        Ok(Self { expect, digest: hex::encode(hash.finalize()) })
    }

    /// How many of them decide.
    pub fn expect(&self) -> usize {
        self.expect
    }

    /// Equal for equal groups: nodes of different ones must not decide together.
    pub fn digest(&self) -> &str {
        &self.digest
    }
}

/// The number of an attempt to decide. No two nodes use the same one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Ballot {
    round: u64,
    node: NodeId,
}

/// A founder and the ballot it was accepted in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    ballot: Ballot,
    founder: NodeId,
}

/// What one node asks all of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// Who is there?
    Look,
    /// Promise to accept nothing below this ballot, and say what was accepted.
    Prepare(Ballot),
    /// Accept that founder, unless a higher ballot was promised.
    Accept(Accepted),
}

/// What a node answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Who answers.
    pub node: NodeId,
    /// Whether it does what was asked.
    granted: bool,
    /// The highest ballot it promised.
    promised: Option<Ballot>,
    /// What it accepted last.
    accepted: Option<Accepted>,
}

/// What a node has promised and accepted. On disk before any answer that follows from it leaves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acceptor {
    promised: Option<Ballot>,
    accepted: Option<Accepted>,
    /// The others have agreed on this node: it founds, today or after a restart, and asks nobody any more.
    #[serde(default)]
    pub chosen: bool,
}

impl Acceptor {
    /// What an earlier start promised.
    ///
    /// # Errors
    /// When the file is there but can't be read: guessing could found a second mesh.
    pub fn load(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join(FOUNDING_FILE);
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| {
                anyhow::anyhow!("{}: not what a founding leaves ({error}); it must not be guessed at", path.display())
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(anyhow::anyhow!("{}: {error}", path.display())),
        }
    }

    /// Keeps it.
    ///
    /// # Errors
    /// When the disk does not take it; then no answer may leave.
    pub fn store(&self, dir: &Path) -> anyhow::Result<()> {
        let path = dir.join(FOUNDING_FILE);
        let written = serde_json::to_vec(self).map_err(std::io::Error::from);
        let stored = written.and_then(|bytes| crate::durable_file::replace(&path, &bytes, 0o600));
        stored.map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))
    }

    /// Answers. Whatever changed must be stored before the answer is sent.
    pub fn answer(&mut self, me: &NodeId, ask: &Ask) -> Answer {
        let fits = |promised: &Option<Ballot>, ballot: &Ballot| promised.as_ref().is_none_or(|p| p <= ballot);
        let granted = match ask {
            Ask::Look => true,
            Ask::Prepare(ballot) => {
                let fits = fits(&self.promised, ballot);
                if fits {
                    self.promised = Some(ballot.clone());
                }
                fits
            }
            Ask::Accept(accepted) => {
                let fits = fits(&self.promised, &accepted.ballot);
                if fits {
                    self.promised = Some(accepted.ballot.clone());
                    self.accepted = Some(accepted.clone());
                }
                fits
            }
        };
        Answer { node: me.clone(), granted, promised: self.promised.clone(), accepted: self.accepted.clone() }
    }
}

/// What a round came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not enough nodes are there, or another goes first.
    Waits {
        /// Those that answered.
        seen: usize,
    },
    /// On to the next question.
    GoesOn,
    /// This node founds the mesh.
    Founds,
    /// That node founds it.
    Waiting(NodeId),
}

/// One node's attempts to have a founder chosen. Soft: a restart begins anew.
#[derive(Clone, Debug)]
pub struct Proposer {
    me: NodeId,
    expect: usize,
    next: Ask,
    waited: u32,
}

impl Proposer {
    /// A node of the group.
    pub fn new(me: NodeId, group: &Group) -> Self {
        Self { me, expect: group.expect, next: Ask::Look, waited: 0 }
    }

    /// What to ask all seeds now.
    pub fn ask(&self) -> &Ask {
        &self.next
    }

    /// A seed has a mesh, though it could not let this node in: nothing is to be founded.
    pub fn meets_a_mesh(&mut self) {
        (self.next, self.waited) = (Ask::Look, 0);
    }

    /// Takes the answers to [`Self::ask`]. `chance` (any number) keeps two nodes from outbidding each other for ever.
    pub fn on_answers(&mut self, answers: &[Answer], chance: u32) -> Verdict {
        // Two seeds may be names of one node: it counts once.
        let answers: BTreeMap<&NodeId, &Answer> = answers.iter().map(|answer| (&answer.node, answer)).collect();
        let granted = || answers.values().filter(|answer| answer.granted);
        let enough = granted().count() >= self.expect;
        let asked = std::mem::replace(&mut self.next, Ask::Look);
        match asked {
            Ask::Look => {
                let lowest = answers.keys().next().is_none_or(|node| **node >= self.me);
                let courtesy = COURTESY_ROUNDS + chance % COURTESY_ROUNDS;
                self.waited = if enough { self.waited + 1 } else { 0 };
                if !enough || (!lowest && self.waited < courtesy) {
                    return Verdict::Waits { seen: answers.len() };
                }
                self.waited = 0;
                let highest = answers.values().filter_map(|answer| answer.promised.as_ref()).map(|b| b.round).max();
                let ballot = Ballot { round: highest.unwrap_or(0).saturating_add(1), node: self.me.clone() };
                self.next = Ask::Prepare(ballot);
                Verdict::GoesOn
            }
            Ask::Prepare(_) if !enough => Verdict::Waits { seen: answers.len() },
            Ask::Prepare(ballot) => {
                let before = granted().filter_map(|answer| answer.accepted.as_ref()).max_by_key(|a| &a.ballot);
                let founder = before.map_or_else(|| self.me.clone(), |accepted| accepted.founder.clone());
                self.next = Ask::Accept(Accepted { ballot, founder });
                Verdict::GoesOn
            }
            Ask::Accept(_) if !enough => Verdict::Waits { seen: answers.len() },
            Ask::Accept(accepted) if accepted.founder == self.me => Verdict::Founds,
            Ask::Accept(accepted) => Verdict::Waiting(accepted.founder),
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

    use super::*;

    fn seeds(count: usize) -> Vec<String> {
        (0..count).map(|n| format!("mloc-{n}.mloc:7946")).collect()
    }

    #[test]
    fn a_group_is_more_than_half_of_one_list() {
        for (expect, count) in [(1, 1), (2, 2), (2, 3), (3, 3), (3, 5), (5, 5)] {
            Group::new(expect, &seeds(count)).unwrap();
        }
        for (expect, count) in [(1, 2), (2, 4), (3, 2), (3, 0), (0, 0)] {
            let error = Group::new(expect, &seeds(count)).unwrap_err().to_string();
            assert!(error.contains(&format!("{expect} with {count} seeds")), "{error}");
        }
        let (mut turned, three) = (seeds(3), Group::new(2, &seeds(3)).unwrap());
        turned.reverse();
        assert_eq!(Group::new(2, &turned), Ok(three.clone()), "the order does not matter");
        assert_ne!(Group::new(3, &seeds(3)).unwrap().digest(), three.digest());
    }

    #[test]
    fn what_was_promised_is_on_disk_and_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let (me, other) = (NodeId::new("a"), NodeId::new("b"));
        let mut acceptor = Acceptor::load(dir.path()).unwrap();
        assert_eq!(acceptor, Acceptor::default());
        let high = Ballot { round: 2, node: other.clone() };
        assert!(acceptor.answer(&me, &Ask::Prepare(high.clone())).granted);
        acceptor.store(dir.path()).unwrap();
        let mut acceptor = Acceptor::load(dir.path()).unwrap();
        let low = Ballot { round: 2, node: me.clone() };
        assert!(!acceptor.answer(&me, &Ask::Prepare(low.clone())).granted);
        let accept = |ballot: &Ballot| Ask::Accept(Accepted { ballot: ballot.clone(), founder: other.clone() });
        assert!(!acceptor.answer(&me, &accept(&low)).granted);
        assert!(acceptor.answer(&me, &accept(&high)).granted);
        std::fs::write(dir.path().join(FOUNDING_FILE), "{").unwrap();
        assert!(Acceptor::load(dir.path()).unwrap_err().to_string().contains("must not be guessed at"));
    }

    struct World {
        nodes: Vec<Node>,
        /// Questions that are still under way, to arrive late and unheeded.
        late: Vec<(usize, Ask)>,
        random: StdRng,
        founders: BTreeSet<NodeId>,
    }

    struct Node {
        id: NodeId,
        disk: Acceptor,
        proposer: Proposer,
        up: bool,
    }

    impl World {
        fn new(seed: u64, count: usize, group: &Group) -> Self {
            let node = |n: usize| {
                let id = NodeId::new(format!("node-{n}"));
                Node { proposer: Proposer::new(id.clone(), group), id, disk: Acceptor::default(), up: true }
            };
            let nodes = (0..count).map(node).collect();
            Self { nodes, late: Vec::new(), random: StdRng::seed_from_u64(seed), founders: BTreeSet::new() }
        }

        /// Node `n` asks all; each question and each answer is lost with that chance, in percent.
        fn round(&mut self, n: usize, lost: u32) {
            let ask = self.nodes[n].proposer.ask().clone();
            let mut answers = Vec::new();
            for to in 0..self.nodes.len() {
                if !self.nodes[to].up || self.random.random_range(0..100) < lost {
                    self.late.push((to, ask.clone()));
                    continue;
                }
                let Node { id, disk, .. } = &mut self.nodes[to];
                let answer = disk.answer(id, &ask);
                if self.random.random_range(0..100) >= lost {
                    answers.push(answer);
                }
            }
            let chance = self.random.random();
            if self.nodes[n].proposer.on_answers(&answers, chance) == Verdict::Founds {
                self.founders.insert(self.nodes[n].id.clone());
            }
        }
    }

    /// Other seeds: `MLOC_TEST_SEED=7 cargo test -p mloc-mesh founders`.
    #[test]
    fn in_no_weather_are_there_two_founders_and_in_fair_weather_there_is_one() {
        let first = std::env::var("MLOC_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
        for seed in first..first + 400 {
            let (expect, count) = *[(2, 2), (2, 3), (3, 3), (3, 4), (3, 5), (5, 5)]
                .choose(&mut StdRng::seed_from_u64(seed))
                .expect("a choice");
            let group = Group::new(expect, &seeds(count)).unwrap();
            let mut world = World::new(seed, count, &group);
            for _ in 0..300 {
                let n = world.random.random_range(0..count);
                match world.random.random_range(0..10) {
                    0 => world.nodes[n].up = !world.nodes[n].up,
                    // A restart: the promises are on disk, the attempt is not.
                    1 => world.nodes[n].proposer = Proposer::new(world.nodes[n].id.clone(), &group),
                    2 if !world.late.is_empty() => {
                        let late = world.random.random_range(0..world.late.len());
                        let (to, ask) = world.late.swap_remove(late);
                        let Node { id, disk, .. } = &mut world.nodes[to];
                        disk.answer(id, &ask);
                    }
                    _ if world.nodes[n].up => world.round(n, 30),
                    _ => {}
                }
                assert!(world.founders.len() <= 1, "MLOC_TEST_SEED={seed}: {:?}", world.founders);
            }
            world.nodes.iter_mut().for_each(|node| node.up = true);
            // In step, which is the worst for outbidding one another. A founder found by then stays the founder.
            let before = std::mem::take(&mut world.founders);
            for _ in 0..40 {
                (0..count).for_each(|n| world.round(n, 0));
            }
            assert_eq!(world.founders.len(), 1, "MLOC_TEST_SEED={seed}");
            assert!(before.is_subset(&world.founders), "MLOC_TEST_SEED={seed}: {before:?}, then {:?}", world.founders);
        }
    }

    #[test]
    fn nothing_is_founded_before_enough_are_there_or_beside_a_mesh() {
        let group = Group::new(2, &seeds(3)).unwrap();
        let mut world = World::new(1, 3, &group);
        world.nodes[1].up = false;
        world.nodes[2].up = false;
        (0..50).for_each(|_| world.round(0, 0));
        assert!(world.founders.is_empty());
        world.nodes[2].up = true;
        world.round(0, 0);
        assert!(matches!(world.nodes[0].proposer.ask(), Ask::Prepare(_)));
        world.nodes[0].proposer.meets_a_mesh();
        assert_eq!(*world.nodes[0].proposer.ask(), Ask::Look);
        (0..3).for_each(|_| world.round(0, 0));
        assert_eq!(world.founders, BTreeSet::from([NodeId::new("node-0")]));
    }
}
