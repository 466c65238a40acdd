//! Who should vote: 1, then 3, then 5 nodes, never 2. A plain function of what the leader knows; acting on it is
//! [`Consensus::change_voters`](super::Consensus::change_voters).
//!
//! Two voters would be worse than one: either of them down stops the ledger. So two fit nodes have one voter, and
//! four have three.
//!
//! Nobody loses the vote on gossip's word alone. A voter counts as dead when gossip says so *and* raft itself has
//! had no answer from it for the grace period; and it is dropped only if the voters after it tolerate more failures
//! than before, by a recruit in its place or because a smaller set of live ones is stronger than a larger one with
//! dead in it.

use std::{cmp::Reverse, collections::BTreeSet, time::Duration};

use super::types::RaftId;

/// When a node may vote and when it may lose the vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VoterPolicy {
    /// At most this many voters; an odd number. More make every commit slower and little safer.
    pub voters_max: usize,
    /// A node must have been up this long before it votes.
    pub stable_after: Duration,
    /// A voter must have been silent this long before it is replaced: longer than a restart or an upgrade takes.
    pub grace: Duration,
}

impl Default for VoterPolicy {
    fn default() -> Self {
        Self { voters_max: 5, stable_after: Duration::from_secs(60), grace: Duration::from_secs(300) }
    }
}

/// A member of the mesh as the leader sees it. Revoked members and those that left are simply not given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its raft id.
    pub id: RaftId,
    /// It is the leader, that is: it is who plans.
    pub leader: bool,
    /// Whether it should have a vote.
    pub standing: Standing,
    /// Others can dial it; a node behind NAT cannot vote, nobody could reach it to ask.
    pub reachable: bool,
    /// Its disk takes writes and has room.
    pub disk_ok: bool,
    /// Gossip hears it, under this raft id: a node that says another one has lost its data directory, and its old id
    /// is as dead as can be (the new one is a candidate of its own).
    pub alive: bool,
    /// How long it has been up without a break.
    pub stable_for: Duration,
    /// For a voter that is not the leader: how long raft has had no answer from it. `None` where raft does not
    /// know, which counts as no silence at all.
    pub silent_for: Option<Duration>,
}

/// Whether a member should have a vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It wants to: `role.vote: auto`, not a spot or edge node.
    Willing,
    /// It drains, or wants a vote no more: it keeps its seat, while it lives, until another can take it. Fewer voters
    /// would survive less.
    Leaving,
    /// It is about to be revoked: it has no seat afterwards, whatever that costs.
    Out,
}

/// The set of voters to change to, or `None` if the present one is right or cannot be changed now.
pub fn plan_voters(
    members: &[Candidate],
    current: &BTreeSet<RaftId>,
    policy: &VoterPolicy,
) -> Option<BTreeSet<RaftId>> {
    let live = |set: &BTreeSet<RaftId>| members.iter().filter(|m| set.contains(&m.id) && is_live(m)).count();
    // Without a majority of the present voters no change could be committed.
    if live(current) <= current.len() / 2 {
        return None;
    }
    let seated = |standing: Standing| {
        let seated = members.iter().filter(|m| current.contains(&m.id) && m.standing == standing);
        let mut seated: Vec<&Candidate> = seated.collect();
        seated.sort_by_key(|m| (Reverse(m.leader), Reverse(is_live(m)), Reverse(m.stable_for), m.id));
        seated
    };
    let (dead, sound): (Vec<_>, Vec<_>) = seated(Standing::Willing).into_iter().partition(|m| is_dead(m, policy));
    let (leaving, gone): (Vec<_>, Vec<_>) = seated(Standing::Leaving).into_iter().partition(|m| is_live(m));
    let mut recruits: Vec<&Candidate> = members
        .iter()
        .filter(|m| !current.contains(&m.id))
        .filter(|m| m.standing == Standing::Willing && m.reachable && m.disk_ok && m.alive)
        .filter(|m| m.stable_for >= policy.stable_after)
        .collect();
    recruits.sort_by_key(|m| (Reverse(m.stable_for), m.id));

    // One step of growth at a time: each change waits for its newcomers to catch up.
    let largest = policy.voters_max.min(current.len() + 2);
    let choose = |groups: [&[&Candidate]; 5]| -> BTreeSet<RaftId> {
        let ids: Vec<RaftId> = groups.concat().iter().map(|m| m.id).collect();
        let odd = |n: usize| if n.is_multiple_of(2) { n.saturating_sub(1) } else { n };
        ids[..odd(ids.len().min(largest))].iter().copied().collect()
    };
    let without_dead = choose([&sound, &recruits, &leaving, &[], &[]]);
    let with_dead = choose([&sound, &dead, &recruits, &leaving, &gone]);
    let tolerates = |set: &BTreeSet<RaftId>| failures_tolerated(set.len(), live(set));
    let target = if tolerates(&without_dead) > tolerates(&with_dead) { without_dead } else { with_dead };

    (tolerates(&target).is_some() && target != *current).then_some(target)
}

/// How many voters may still fail before the ledger stops; `None` when it has stopped.
fn failures_tolerated(voters: usize, live: usize) -> Option<usize> {
    live.checked_sub(voters / 2 + 1)
}

fn is_live(member: &Candidate) -> bool {
    member.leader || member.alive
}

fn is_dead(member: &Candidate, policy: &VoterPolicy) -> bool {
    !is_live(member) && member.silent_for.is_some_and(|silent| silent >= policy.grace)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    /// Reads a mesh from text: one word a member, its id and what is special about it.
    ///
    /// `L` leader, `n` leaving (drained, say), `x` about to be revoked, `b` behind NAT, `f` disk full, `y` young (up 10 s), `g` gone for gossip only,
    /// `q` gone for both but not for long, `d` dead for both.
    fn mesh(text: &str) -> Vec<Candidate> {
        let member = |word: &str| {
            let split = word.find(|c: char| !c.is_ascii_digit()).unwrap_or(word.len());
            let (id, flags) = word.split_at(split);
            let is = |flag: char| flags.contains(flag);
            Candidate {
                id: id.parse().unwrap(),
                leader: is('L'),
                standing: match () {
                    () if is('x') => Standing::Out,
                    () if is('n') => Standing::Leaving,
                    () => Standing::Willing,
                },
                reachable: !is('b'),
                disk_ok: !is('f'),
                alive: !(is('g') || is('q') || is('d')),
                stable_for: if is('y') { Duration::from_secs(10) } else { HOUR },
                silent_for: match () {
                    () if is('d') => Some(HOUR),
                    () if is('q') => Some(Duration::from_secs(20)),
                    () => Some(Duration::ZERO),
                },
            }
        };
        text.split_whitespace().map(member).collect()
    }

    fn ids(text: &str) -> BTreeSet<RaftId> {
        text.split_whitespace().map(|id| id.parse().unwrap()).collect()
    }

    #[test]
    fn the_table() {
        // what it is about, members, voters now, voters to be ("" = stay)
        let cases = [
            ("alone", "1L", "1", ""),
            ("two nodes have one voter", "1L 2", "1", ""),
            ("three have three", "1L 2 3", "1", "1 2 3"),
            ("four have three", "1L 2 3 4", "1 2 3", ""),
            ("five have five", "1L 2 3 4 5", "1 2 3", "1 2 3 4 5"),
            ("from one to five by way of three", "1L 2 3 4 5", "1", "1 2 3"),
            ("six have five", "1L 2 3 4 5 6", "1 2 3 4 5", ""),
            ("a young node waits", "1L 2 3y", "1", ""),
            ("so does one behind NAT", "1L 2 3b", "1", ""),
            ("and one with a full disk", "1L 2 3f", "1", ""),
            ("a spot node never votes", "1L 2 3n", "1", ""),
            ("nobody votes who is silent now", "1L 2 3g", "1", ""),
            ("gossip alone removes nobody", "1L 2 3g 4", "1 2 3", ""),
            ("nor does a short silence", "1L 2 3q 4", "1 2 3", ""),
            ("a dead voter is replaced", "1L 2 3d 4", "1 2 3", "1 2 4"),
            ("but not by a young node", "1L 2 3d 4y", "1 2 3", ""),
            ("without a replacement it stays", "1L 2 3d", "1 2 3", ""),
            ("replaced and grown at once", "1L 2 3d 4 5 6", "1 2 3", "1 2 4 5 6"),
            ("no majority, no change", "1L 2d 3d 4 5", "1 2 3", ""),
            ("five with one dead stay", "1L 2 3 4 5d", "1 2 3 4 5", ""),
            ("five with two dead are stronger as three", "1L 2 3 4d 5d", "1 2 3 4 5", "1 2 3"),
            ("a voter that drains is replaced", "1L 2 3n 4", "1 2 3", "1 2 4"),
            ("without a replacement it stays", "1L 2 3n", "1 2 3", ""),
            ("the leader too", "1Ln 2 3", "1 2 3", ""),
            ("of two that drain, one can be replaced", "1L 2n 3n 4", "1 2 3", "1 2 4"),
            ("drained and gone is as good as dead", "1L 2 3 4nd 5nd", "1 2 3 4 5", "1 2 3"),
            ("drained and gone, without a replacement", "1L 2 3nd", "1 2 3", ""),
            ("one that is revoked goes, whatever it costs", "1L 2 3x", "1 2 3", "1"),
            ("it is replaced, if it can be", "1L 2 3x 4", "1 2 3", "1 2 4"),
            ("of five three are left", "1L 2 3 4 5x", "1 2 3 4 5", "1 2 3"),
            ("its own vote counts for the change", "1L 2d 3x", "1 2 3", "1"),
            ("the only voter cannot go", "1Lx 2y", "1", ""),
            ("unless another can take its place", "1Lx 2", "1", "2"),
            ("the leader too may drain", "1Ln 2 3 4", "1 2 3", "2 3 4"),
            ("a revoked voter is replaced", "1L 2 4", "1 2 3", "1 2 4"),
            ("two voters, from wherever, become one", "1L 2", "1 2", "1"),
            ("or three", "1L 2 3", "1 2", "1 2 3"),
            ("a quiet voter is kept when a drained one goes", "1L 2q 3n 4", "1 2 3", "1 2 4"),
        ];
        for (about, members, current, expected) in cases {
            let plan = plan_voters(&mesh(members), &ids(current), &VoterPolicy::default());
            let expected = Some(ids(expected)).filter(|ids| !ids.is_empty());
            assert_eq!(plan, expected, "{about}");
        }
    }

    /// Over every mesh of up to six nodes with a few states each.
    #[test]
    fn every_plan_is_odd_has_a_majority_and_is_final_or_grows() {
        let states = ["", "n", "x", "g", "d"];
        for members in 1..=5u32 {
            for code in 0..states.len().pow(members - 1) {
                let mut text = "1L".to_owned();
                let mut code = code;
                for id in 2..=members {
                    text += &format!(" {id}{}", states[code % states.len()]);
                    code /= states.len();
                }
                let mesh = mesh(&text);
                for voters in [1u64, 3, 5] {
                    let mut current: BTreeSet<RaftId> = (1..=voters.min(u64::from(members))).collect();
                    for step in 0.. {
                        let Some(next) = plan_voters(&mesh, &current, &VoterPolicy::default()) else { break };
                        assert_eq!(next.len() % 2, 1, "{text} from {current:?}: {next:?}");
                        let live = mesh.iter().filter(|m| next.contains(&m.id) && is_live(m)).count();
                        assert!(live > next.len() / 2, "{text} from {current:?}: {next:?}");
                        assert!(step < 3, "{text}: never settles");
                        current = next;
                    }
                }
            }
        }
    }
}
