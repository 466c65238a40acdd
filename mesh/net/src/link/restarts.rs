//! Which peers have restarted, as gossip shows it.

use std::collections::BTreeMap;

use crate::{gossip::Members, names::NodeId};

/// Remembers the starts seen.
#[derive(Debug, Default)]
pub(crate) struct Restarts {
    generations: BTreeMap<NodeId, u64>,
}

impl Restarts {
    /// Peers that have a later start than when last looked at.
    pub(crate) fn observe(&mut self, members: &Members) -> Vec<NodeId> {
        let mut restarted = Vec::new();
        for (node, view) in members {
            let known = self.generations.entry(node.clone()).or_insert(view.generation);
            if view.generation > *known {
                *known = view.generation;
                restarted.push(node.clone());
            }
        }
        restarted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gossip::PeerView;

    #[test]
    fn a_rise_is_a_restart_and_nothing_else_is() {
        let node = NodeId::new("n");
        let at = |generation| {
            let gossip_address = ([127, 0, 0, 1], 1).into();
            let view =
                PeerView { node: node.clone(), generation, alive: true, gossip_address, values: BTreeMap::new() };
            Members::from([(node.clone(), view)])
        };
        let mut restarts = Restarts::default();
        let seen: Vec<_> = [at(5), at(5), Members::new(), at(6), at(5), at(6), at(9)]
            .iter()
            .map(|members| restarts.observe(members).len())
            .collect();
        assert_eq!(seen, [0, 0, 0, 1, 0, 0, 1]);
    }
}
