//! What goes wrong, and what users do in the middle of it.

use mloc_core::{id::TaskId, ledger::Entry};
use rand::{Rng, rngs::SmallRng};

use crate::world::{Happening, Then, World};

#[derive(Clone, Debug)]
pub enum Fault {
    /// The process dies, children with it; `reboot` sets its clock back to nought.
    Crash {
        node: usize,
        reboot: bool,
        down_ms: u64,
    },
    /// The process ends in good order, and comes back.
    ShutDown {
        node: usize,
        down_ms: u64,
    },
    Restart {
        node: usize,
    },
    /// Nobody hears it, and it hears nobody.
    Cut {
        node: usize,
        for_ms: u64,
    },
    Heal {
        node: usize,
    },
    /// Another leader after a while; the old one may not know.
    NewLeader {
        unaware: bool,
        after_ms: u64,
    },
    Elect,
    /// A user cancels some task.
    Cancel {
        pick: usize,
    },
    Drain {
        node: usize,
        draining: bool,
    },
    /// A member is shut out for good.
    Revoke {
        node: usize,
    },
    /// No faults from here on.
    Peace,
}

impl Fault {
    pub fn any(rng: &mut SmallRng, nodes: usize) -> Self {
        let node = rng.random_range(0..nodes);
        match rng.random_range(0..12) {
            // The first stays, for every task fits there.
            10 if node > 0 && rng.random_bool(0.3) => Fault::Revoke { node },
            10..12 => Fault::ShutDown { node, down_ms: rng.random_range(50..5_000) },
            0..3 => Fault::Crash { node, reboot: rng.random_bool(0.3), down_ms: rng.random_range(50..30_000) },
            3..5 => Fault::Cut { node, for_ms: rng.random_range(500..30_000) },
            5..8 => Fault::NewLeader { unaware: rng.random_bool(0.7), after_ms: rng.random_range(1..6_000) },
            8 => Fault::Cancel { pick: rng.random_range(0..100) },
            _ => Fault::Drain { node, draining: rng.random_bool(0.5) },
        }
    }
}

impl World {
    /// A node's process has ended: what it led it leads no more, and it comes back.
    fn gone(&mut self, node: usize, down_ms: u64) -> Result<(), String> {
        self.after(down_ms, Happening::Fault(Fault::Restart { node }));
        self.deposed.retain(|d| d.was.node != node);
        if self.leader.as_ref().is_some_and(|l| l.node == node) {
            self.depose(false)?;
            self.after(1_500, Happening::Fault(Fault::Elect));
        }
        Ok(())
    }

    pub fn strike(&mut self, fault: Fault) -> Result<(), String> {
        match fault {
            Fault::Crash { node, reboot, down_ms } => {
                if self.nodes[node].up {
                    self.tally.crashes += 1;
                    self.crash(node, reboot);
                    self.gone(node, down_ms)?;
                }
            }
            Fault::ShutDown { node, down_ms } => {
                if self.nodes[node].up {
                    self.tally.restarts += 1;
                    self.shut_down(node);
                    self.gone(node, down_ms)?;
                }
            }
            Fault::Restart { node } => {
                if !self.nodes[node].up {
                    self.boot(node)?;
                }
                if self.leader.is_none() {
                    self.elect();
                }
            }
            Fault::Cut { node, for_ms } => {
                self.nodes[node].cut = true;
                self.after(for_ms, Happening::Fault(Fault::Heal { node }));
                // Alone among several it cannot keep its voters.
                if self.nodes.len() > 1 && self.leader.as_ref().is_some_and(|l| l.node == node) {
                    self.depose(true)?;
                    self.after(1_000, Happening::Fault(Fault::Elect));
                }
            }
            Fault::Heal { node } => {
                self.nodes[node].cut = false;
                if self.leader.is_none() {
                    self.elect();
                }
            }
            Fault::NewLeader { unaware, after_ms } => {
                self.depose(unaware)?;
                self.after(after_ms, Happening::Fault(Fault::Elect));
            }
            Fault::Elect => {
                if self.leader.is_none() {
                    self.elect();
                }
            }
            Fault::Cancel { pick } => {
                let tasks: Vec<TaskId> = self.ledger.tasks.keys().cloned().collect();
                if let Some(task) = tasks.get(pick % tasks.len().max(1)).cloned() {
                    let at = self.requests_clock();
                    self.propose(Entry::Cancelled { task, by: "user".to_owned(), at }, Then::Nobody);
                }
            }
            Fault::Drain { node, draining } => {
                let at = self.requests_clock();
                self.propose(Entry::MemberDrained { node: self.nodes[node].id.clone(), draining, at }, Then::Nobody);
            }
            Fault::Revoke { node } => {
                // A voter is taken out first.
                if self.leader.as_ref().is_some_and(|l| l.node == node) {
                    return Ok(());
                }
                let at = self.requests_clock();
                self.propose(Entry::MemberRevoked { node: self.nodes[node].id.clone(), at }, Then::Nobody);
            }
            Fault::Peace => {
                for node in 0..self.nodes.len() {
                    self.nodes[node].cut = false;
                    if !self.nodes[node].up {
                        self.boot(node)?;
                    }
                }
                if self.leader.is_none() {
                    self.elect();
                }
                // After the slowest commit of an earlier drain.
                for node in 0..self.nodes.len() {
                    self.after(3_000, Happening::Fault(Fault::Drain { node, draining: false }));
                }
            }
        }
        Ok(())
    }
}
