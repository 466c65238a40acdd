//! Cache blocks: who holds them, what they hold, and which one is given away next.
//!
//! A full block whose tokens are computed can be found again by what it holds: its own tokens, and what stands before
//! them ([`Parent`]). A block that nobody holds keeps its content until it is needed for another, the longest
//! unused first.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

use crate::forward::{AdapterId, BlockId};

/// What stands before a block: the beginning of a sequence, which keys and values of adapters make different, or the
/// content of another block. Numbers of contents are not used again, so that equal parents mean equal tokens up to
/// here; a mere hash of them could be made to collide by a client who would then be served another's cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Parent {
    /// The first block of a sequence with this adapter.
    Root(Option<AdapterId>),
    /// After the content of this number.
    Content(u64),
}

/// What a full block holds.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Content {
    number: u64,
    parent: Parent,
    tokens: Box<[u32]>,
}

/// The ends of the list of free blocks, and of a block that is on none.
const NONE: u32 = u32::MAX;

#[derive(Debug, Clone)]
struct Slot {
    references: u32,
    content: Option<Content>,
    previous: u32,
    next: u32,
}

/// All blocks of a cache.
#[derive(Debug, Clone)]
pub struct Blocks {
    block_tokens: usize,
    reuse: bool,
    slots: Vec<Slot>,
    /// By the hash of parent and tokens; what is found is compared in full.
    index: HashMap<u64, BlockId>,
    /// First to be given away.
    first: u32,
    last: u32,
    free: usize,
    next_number: u64,
}

/// A part of a sequence that is in the cache already.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prefix {
    /// Its blocks, all full.
    pub blocks: Vec<BlockId>,
    /// What stands before the block after them.
    pub parent: Parent,
}

impl Blocks {
    /// `count` free blocks of `block_tokens` tokens. Without `reuse` nothing is ever found again.
    pub fn new(count: usize, block_tokens: usize, reuse: bool) -> Self {
        let slot = Slot { references: 0, content: None, previous: NONE, next: NONE };
        let mut blocks = Self {
            block_tokens,
            reuse,
            slots: vec![slot; count],
            index: HashMap::new(),
            first: NONE,
            last: NONE,
            free: 0,
            next_number: 0,
        };
        for id in 0..count as u32 {
            blocks.push_last(id);
        }
        blocks
    }

    /// Tokens a block.
    pub fn block_tokens(&self) -> usize {
        self.block_tokens
    }

    /// Blocks there are.
    pub fn total(&self) -> usize {
        self.slots.len()
    }

    /// Blocks that nobody holds, whatever they remember.
    pub fn free(&self) -> usize {
        self.free
    }

    /// Blocks that somebody holds.
    pub fn resident(&self) -> usize {
        self.slots.len() - self.free
    }

    /// Blocks that so many tokens need.
    pub fn needed(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.block_tokens)
    }

    /// How many hold this block.
    pub fn references(&self, id: BlockId) -> usize {
        self.slots[id.0 as usize].references as usize
    }

    /// The longest beginning of these tokens that is in the cache; holds nothing yet.
    pub fn find(&self, adapter: Option<AdapterId>, tokens: &[u32]) -> Prefix {
        let mut prefix = Prefix { blocks: Vec::new(), parent: Parent::Root(adapter) };
        for tokens in tokens.chunks_exact(self.block_tokens) {
            let Some((id, number)) = self.lookup(prefix.parent, tokens) else { break };
            prefix.blocks.push(id);
            prefix.parent = Parent::Content(number);
        }
        prefix
    }

    fn lookup(&self, parent: Parent, tokens: &[u32]) -> Option<(BlockId, u64)> {
        let id = *self.index.get(&hash(parent, tokens))?;
        let content = self.slots[id.0 as usize].content.as_ref()?;
        (content.parent == parent && *content.tokens == *tokens).then_some((id, content.number))
    }

    /// A block for new content, held once; `None` if all are held. What it remembered is forgotten.
    pub fn take(&mut self) -> Option<BlockId> {
        let id = self.first;
        if id == NONE {
            return None;
        }
        self.unlink(id);
        let slot = &mut self.slots[id as usize];
        slot.references = 1;
        if let Some(content) = slot.content.take() {
            self.index.remove(&hash(content.parent, &content.tokens));
        }
        Some(BlockId(id))
    }

    /// One more holds this block.
    pub fn hold(&mut self, id: BlockId) {
        if self.slots[id.0 as usize].references == 0 {
            self.unlink(id.0);
        }
        self.slots[id.0 as usize].references += 1;
    }

    /// One less holds this block. Blocks of one sequence are to be released last first: what follows from a content
    /// is then forgotten before it.
    pub fn release(&mut self, id: BlockId) {
        let slot = &mut self.slots[id.0 as usize];
        slot.references -= 1;
        if slot.references > 0 {
            return;
        }
        if slot.content.is_some() {
            self.push_last(id.0);
        } else {
            self.push_first(id.0);
        }
    }

    /// This held block is full of these tokens, computed: it can be found from now on. Returns what stands before the
    /// next block. Where another block holds the same, that one stays the one to be found.
    pub fn remember(&mut self, id: BlockId, parent: Parent, tokens: &[u32]) -> Parent {
        if !self.reuse {
            return parent;
        }
        if let Some((_, number)) = self.lookup(parent, tokens) {
            return Parent::Content(number);
        }
        let number = self.next_number;
        self.next_number += 1;
        let hash = hash(parent, tokens);
        // Of two contents with one hash the first can be found.
        if let std::collections::hash_map::Entry::Vacant(entry) = self.index.entry(hash) {
            entry.insert(id);
            self.slots[id.0 as usize].content = Some(Content { number, parent, tokens: tokens.into() });
        }
        Parent::Content(number)
    }

    fn push_first(&mut self, id: u32) {
        let next = self.first;
        self.link(NONE, id);
        self.link(id, next);
        self.free += 1;
    }

    fn push_last(&mut self, id: u32) {
        let previous = self.last;
        self.link(previous, id);
        self.link(id, NONE);
        self.free += 1;
    }

    fn unlink(&mut self, id: u32) {
        let Slot { previous, next, .. } = self.slots[id as usize];
        self.link(previous, next);
        self.free -= 1;
    }

    /// Makes two neighbours; `NONE` is the list's beginning as the first, its end as the second.
    fn link(&mut self, previous: u32, next: u32) {
        match self.slots.get_mut(previous as usize) {
            Some(slot) => slot.next = next,
            None => self.first = next,
        }
        match self.slots.get_mut(next as usize) {
            Some(slot) => slot.previous = previous,
            None => self.last = previous,
        }
    }

    /// E1 and E4 as far as blocks know them: each is held as often as `tables` have it, and is free if none does; what
    /// can be found is what is remembered.
    ///
    /// # Errors
    /// What doesn't hold.
    pub fn check<'a>(&self, tables: impl Iterator<Item = &'a [BlockId]>) -> Result<(), String> {
        let mut held = vec![0_u32; self.slots.len()];
        tables.flatten().for_each(|id| held[id.0 as usize] += 1);
        for (id, (slot, held)) in self.slots.iter().zip(&held).enumerate() {
            if slot.references != *held {
                return Err(format!("E1: block {id} counts {} references, {held} tables have it", slot.references));
            }
        }
        let mut listed = 0;
        let mut id = self.first;
        while id != NONE {
            if self.slots[id as usize].references > 0 {
                return Err(format!("E1: block {id} is free and held"));
            }
            listed += 1;
            id = self.slots[id as usize].next;
        }
        let unheld = held.iter().filter(|held| **held == 0).count();
        if listed != unheld || self.free != unheld {
            return Err(format!(
                "E4: {unheld} blocks are held by none, {listed} listed and {} counted free",
                self.free
            ));
        }
        let remembered = self.slots.iter().filter(|slot| slot.content.is_some()).count();
        if remembered != self.index.len() {
            return Err(format!("{remembered} blocks remember something, {} can be found", self.index.len()));
        }
        Ok(())
    }
}

fn hash(parent: Parent, tokens: &[u32]) -> u64 {
    BuildHasherDefault::<DefaultHasher>::new().hash_one((parent, tokens))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes blocks for these tokens, remembers them, and lets them go.
    fn pass(blocks: &mut Blocks, adapter: Option<AdapterId>, tokens: &[u32]) -> Vec<BlockId> {
        let mut parent = Parent::Root(adapter);
        let mut table = Vec::new();
        for tokens in tokens.chunks_exact(blocks.block_tokens()) {
            let id = blocks.take().expect("a free block");
            parent = blocks.remember(id, parent, tokens);
            table.push(id);
        }
        table.iter().rev().for_each(|id| blocks.release(*id));
        table
    }

    #[test]
    fn a_prefix_is_found_by_all_of_its_tokens_and_its_adapter() {
        let mut blocks = Blocks::new(8, 2, true);
        let table = pass(&mut blocks, None, &[1, 2, 3, 4]);
        assert_eq!(blocks.find(None, &[1, 2, 3, 4, 5]).blocks, table);
        assert_eq!(blocks.find(None, &[1, 2, 3, 5]).blocks, table[..1]);
        assert_eq!(blocks.find(None, &[9, 2, 3, 4]).blocks, []);
        // The same tokens after others are another content.
        assert_eq!(blocks.find(None, &[3, 4]).blocks, []);
        assert_eq!(blocks.find(Some(AdapterId(0)), &[1, 2, 3, 4]).blocks, []);
        assert_eq!(blocks.resident(), 0);
    }

    #[test]
    fn the_longest_unused_is_forgotten_first_and_an_end_before_its_beginning() {
        let mut blocks = Blocks::new(4, 1, true);
        let old = pass(&mut blocks, None, &[1, 2]);
        let new = pass(&mut blocks, None, &[7, 8]);
        // Using the old one again makes the other the longest unused.
        old.iter().for_each(|id| blocks.hold(*id));
        old.iter().rev().for_each(|id| blocks.release(*id));
        let taken = blocks.take();
        assert_eq!(taken, Some(new[1]));
        assert_eq!(blocks.find(None, &[7, 8]).blocks, new[..1]);
        assert_eq!(blocks.find(None, &[1, 2]).blocks, old);
        blocks.check([taken.as_slice()].into_iter()).expect("all is well");
    }

    #[test]
    fn without_reuse_nothing_is_found() {
        let mut blocks = Blocks::new(4, 2, false);
        pass(&mut blocks, None, &[1, 2, 3, 4]);
        assert_eq!(blocks.find(None, &[1, 2, 3, 4]).blocks, []);
    }

    #[test]
    fn of_two_blocks_with_one_content_either_can_go() {
        let mut blocks = Blocks::new(4, 1, true);
        let (a, b) = (blocks.take().expect("free"), blocks.take().expect("free"));
        let root = Parent::Root(None);
        assert_eq!(blocks.remember(a, root, &[5]), blocks.remember(b, root, &[5]));
        blocks.release(b);
        assert_eq!(blocks.find(None, &[5]).blocks, [a]);
        blocks.release(a);
        assert_eq!(blocks.take(), Some(b), "what remembers nothing is given away before what does");
        assert_eq!(blocks.find(None, &[5]).blocks, [a]);
    }
}
