//! Nearest vectors by a graph of them (HNSW: Malkov and Yashunin 2018, algorithms 1, 2, 4 and 5).
//!
//! Own, because no crate has all three that an index over living documents needs: links that are stored as they change,
//! removal that removes (a deleted document's vector must not stay as a signpost), and a filter inside of the search. On
//! removal the neighbours of what is gone are linked with each other, as FreshDiskANN does (Singh et al. 2021).

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap, HashSet},
};

use super::vectors::Vectors;

/// The graph's measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Measures {
    /// Links of a node on each level but the lowest, which has twice as many.
    pub links: usize,
    /// Candidates that are looked at for a new node's links.
    pub build: usize,
    /// Candidates that are kept while searching; as many as are asked for, at least.
    pub search: usize,
}

impl Default for Measures {
    /// As in the paper's figures, for some hundred dimensions.
    fn default() -> Self {
        Self { links: 16, build: 100, search: 96 }
    }
}

/// A vector by its slot, and how alike it is to what was asked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Near {
    /// Cosine.
    pub score: f32,
    /// Where it is among the vectors.
    pub slot: u32,
}

impl Eq for Near {}

impl Ord for Near {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.score.total_cmp(&other.score).then(other.slot.cmp(&self.slot))
    }
}

impl PartialOrd for Near {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// Links by level, from the lowest.
type Node = Vec<Vec<u32>>;

/// The graph.
pub struct Graph {
    measures: Measures,
    nodes: Vec<Option<Node>>,
    entry: Option<u32>,
    changed: BTreeSet<u32>,
}

impl Graph {
    /// Without nodes.
    pub fn new(measures: Measures) -> Self {
        Self { measures, nodes: Vec::new(), entry: None, changed: BTreeSet::new() }
    }

    /// A node as it was stored.
    pub fn restore(&mut self, slot: u32, stored: &[u8]) -> Option<()> {
        let mut node = Node::new();
        let mut rest = stored;
        while let Some((count, after)) = rest.split_first_chunk::<2>() {
            let count = usize::from(u16::from_le_bytes(*count));
            let (links, after) = after.split_at_checked(count * 4)?;
            node.push(links.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).collect());
            rest = after;
        }
        self.place(slot, node);
        Some(())
    }

    /// Whether each link leads to a node that has that level: what was stored whole does.
    pub fn is_whole(&self) -> bool {
        self.nodes.iter().flatten().all(|node| {
            let level = |(level, links): (usize, &Vec<u32>)| {
                links
                    .iter()
                    .all(|to| self.nodes.get(*to as usize).and_then(Option::as_ref).is_some_and(|n| n.len() > level))
            };
            !node.is_empty() && node.iter().enumerate().all(level)
        })
    }

    /// Whether a slot has a node.
    pub fn has(&self, slot: u32) -> bool {
        self.nodes.get(slot as usize).is_some_and(Option::is_some)
    }

    /// What changed since it was last asked, as it is stored; `None` = gone.
    pub fn take_changed(&mut self) -> Vec<(u32, Option<Vec<u8>>)> {
        let stored = |node: &Node| {
            let mut bytes = Vec::new();
            for links in node {
                // Twice `links` at most, which is checked where the settings are.
                bytes.extend_from_slice(&u16::try_from(links.len()).unwrap_or(u16::MAX).to_le_bytes());
                links.iter().for_each(|to| bytes.extend_from_slice(&to.to_le_bytes()));
            }
            bytes
        };
        let changed = std::mem::take(&mut self.changed);
        changed.into_iter().map(|slot| (slot, self.nodes[slot as usize].as_ref().map(stored))).collect()
    }

    fn place(&mut self, slot: u32, node: Node) {
        let at = slot as usize;
        if self.nodes.len() <= at {
            self.nodes.resize_with(at + 1, || None);
        }
        if self.entry.is_none_or(|entry| self.height(entry) < node.len()) {
            self.entry = Some(slot);
        }
        self.nodes[at] = Some(node);
    }

    fn height(&self, slot: u32) -> usize {
        self.nodes.get(slot as usize).and_then(Option::as_ref).map_or(0, Vec::len)
    }

    fn links(&self, slot: u32, level: usize) -> &[u32] {
        let node = self.nodes.get(slot as usize).and_then(Option::as_ref);
        node.and_then(|node| node.get(level)).map_or(&[], Vec::as_slice)
    }

    fn set_links(&mut self, slot: u32, level: usize, links: Vec<u32>) {
        if let Some(own) = self.nodes[slot as usize].as_mut().and_then(|node| node.get_mut(level)) {
            *own = links;
            self.changed.insert(slot);
        }
    }

    fn links_max(&self, level: usize) -> usize {
        if level == 0 { self.measures.links * 2 } else { self.measures.links }
    }

    /// Levels of a new node: each next one has `links` times fewer. Chance is an argument.
    fn levels(&self, chance: u64) -> usize {
        /// With 16 links more than all the atoms.
        const HIGHEST: usize = 24;
        let uniform = ((chance >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
        let level = (-uniform.ln() / (self.measures.links as f64).ln()) as usize;
        level.min(HIGHEST) + 1
    }

    /// Adds a vector that is among `vectors`. `chance`: from which its height is made.
    pub fn insert(&mut self, slot: u32, chance: u64, vectors: &Vectors) {
        let levels = self.levels(chance);
        let query = vectors.get(slot);
        let mut near: Vec<Near> =
            self.entry.map(|entry| Near { score: vectors.score(query, entry), slot: entry }).into_iter().collect();
        let top = self.entry.map_or(0, |entry| self.height(entry));
        let mut links = vec![Vec::new(); levels];
        for level in (0..top).rev() {
            let keep = if level < levels { self.measures.build } else { 1 };
            near = self.around(query, &near, keep, level, vectors, |_| true);
            if level < levels {
                links[level] = chosen(&near, self.measures.links, vectors);
            }
        }
        self.place(slot, links.clone());
        self.changed.insert(slot);
        for (level, own) in links.iter().enumerate() {
            for &to in own {
                let mut theirs = self.links(to, level).to_vec();
                theirs.push(slot);
                if theirs.len() > self.links_max(level) {
                    theirs = chosen(&ranked(to, &theirs, vectors), self.links_max(level), vectors);
                }
                self.set_links(to, level, theirs);
            }
        }
    }

    /// Takes vectors out; who led to them leads to where they led. Looks at every node once.
    pub fn remove(&mut self, gone: &[u32], vectors: &Vectors) {
        let gone: HashSet<u32> = gone.iter().copied().filter(|slot| self.has(*slot)).collect();
        if gone.is_empty() {
            return;
        }
        let all = u32::try_from(self.nodes.len()).unwrap_or(u32::MAX);
        for slot in (0..all).filter(|slot| !gone.contains(slot)) {
            for level in 0..self.height(slot) {
                let own = self.links(slot, level);
                if !own.iter().any(|to| gone.contains(to)) {
                    continue;
                }
                let beyond = own.iter().filter(|to| gone.contains(to)).flat_map(|to| self.links(*to, level));
                let stay: BTreeSet<u32> =
                    own.iter().chain(beyond).copied().filter(|to| *to != slot && !gone.contains(to)).collect();
                let stay: Vec<u32> = stay.into_iter().collect();
                let links = chosen(&ranked(slot, &stay, vectors), self.links_max(level), vectors);
                self.set_links(slot, level, links);
            }
        }
        for slot in gone {
            self.nodes[slot as usize] = None;
            self.changed.insert(slot);
        }
        self.entry = (0..all).filter(|slot| self.has(*slot)).max_by_key(|slot| (self.height(*slot), Reverse(*slot)));
    }

    /// The `count` most alike of those that are accepted, best first.
    pub fn search(&self, query: &[f32], count: usize, vectors: &Vectors, accepted: impl Fn(u32) -> bool) -> Vec<Near> {
        let Some(entry) = self.entry else {
            return Vec::new();
        };
        let mut near = vec![Near { score: vectors.score(query, entry), slot: entry }];
        for level in (1..self.height(entry)).rev() {
            near = self.around(query, &near, 1, level, vectors, |_| true);
        }
        near = self.around(query, &near, self.measures.search.max(count), 0, vectors, accepted);
        near.truncate(count);
        near
    }

    /// From some nodes of a level to the `keep` most alike that are accepted, best first.
    fn around(
        &self,
        query: &[f32],
        from: &[Near],
        keep: usize,
        level: usize,
        vectors: &Vectors,
        accepted: impl Fn(u32) -> bool,
    ) -> Vec<Near> {
        let mut seen = vec![0_u64; self.nodes.len().div_ceil(64)];
        let mut is_new = |slot: u32| {
            let (word, bit) = (slot as usize / 64, 1 << (slot % 64));
            let new = seen[word] & bit == 0;
            seen[word] |= bit;
            new
        };
        let mut ahead = BinaryHeap::new();
        let mut best: BinaryHeap<Reverse<Near>> = BinaryHeap::new();
        for &near in from.iter().filter(|near| is_new(near.slot)) {
            ahead.push(near);
            if accepted(near.slot) {
                best.push(Reverse(near));
            }
        }
        while let Some(next) = ahead.pop() {
            let worst = best.peek().filter(|_| best.len() >= keep).map(|Reverse(near)| near.score);
            if worst.is_some_and(|worst| next.score < worst) {
                break;
            }
            for &to in self.links(next.slot, level) {
                if !is_new(to) {
                    continue;
                }
                let near = Near { score: vectors.score(query, to), slot: to };
                let full = best.len() >= keep;
                if full && best.peek().is_some_and(|Reverse(worst)| near <= *worst) {
                    continue;
                }
                ahead.push(near);
                if accepted(to) {
                    best.push(Reverse(near));
                    if best.len() > keep {
                        best.pop();
                    }
                }
            }
        }
        let mut best: Vec<Near> = best.into_iter().map(|Reverse(near)| near).collect();
        best.sort_by(|one, other| other.cmp(one));
        best
    }
}

/// By how alike they are to a slot, best first.
fn ranked(slot: u32, others: &[u32], vectors: &Vectors) -> Vec<Near> {
    let own = vectors.get(slot);
    let mut near: Vec<Near> = others.iter().map(|&to| Near { score: vectors.score(own, to), slot: to }).collect();
    near.sort_by(|one, other| other.cmp(one));
    near
}

/// Links out of candidates, best first: one that is nearer to a chosen one than to the node itself is reached over that;
/// such ones fill what is left.
fn chosen(candidates: &[Near], max: usize, vectors: &Vectors) -> Vec<u32> {
    let mut chosen: Vec<u32> = Vec::new();
    let mut spare = Vec::new();
    for near in candidates {
        if chosen.len() >= max {
            break;
        }
        let own = vectors.get(near.slot);
        if chosen.iter().all(|other| vectors.score(own, *other) < near.score) {
            chosen.push(near.slot);
        } else {
            spare.push(near.slot);
        }
    }
    let room = max - chosen.len();
    chosen.extend(spare.into_iter().take(room));
    chosen
}
