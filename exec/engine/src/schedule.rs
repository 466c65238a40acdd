//! Which sequences compute which tokens in the next step.
//!
//! First each sequence that is answering gets its next token, the oldest first. Prompts, cut into chunks, fill what is
//! left of the step, those that have begun first, and then new ones in the order of their coming: none overtakes
//! another. Guessed tokens take what is still left, for they are a bet. When blocks run out the newest sequence is thrown
//! out and computed again later, and none begins while one that has begun is short of blocks.
//!
//! Promises, checked by [`Scheduler::check`] and [`Step::check`]:
//! ```text
//! E1  a block that is written to is held once, and each block is held as often as tables have it
//! E2  a step has no more tokens and sequences than its limits
//! E3  every sequence that is taken ends (by tests), for in each step some sequence gets on
//! E4  a block that no table has is free
//! E5  a chunk begins where the computed tokens end, and its table covers it
//! E6  between steps a sequence holds the blocks of its computed tokens and no more
//! ```

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::blocks::Blocks;
use crate::forward::{BlockId, Chunk, Wanted};
use crate::sequence::{Key, Residence, Sequence, State};

/// How the cache's blocks are given out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cache {
    /// As they are needed: many sequences at once, some of which may be thrown out and computed again.
    #[default]
    Paged,
    /// A sequence begins when all it can ever need is set aside: fewer at once, none of which is ever thrown out.
    Static,
}

/// What a step may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Tokens a step, at least 1.
    pub step_tokens: usize,
    /// Sequences at once, at least 1.
    pub sequences: usize,
    /// How blocks are given out.
    pub cache: Cache,
}

/// A chunk of the next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Whose.
    pub key: Key,
    /// The position of its first token.
    pub start: usize,
    /// Tokens of the sequence.
    pub count: usize,
    /// Guessed tokens after them.
    pub guesses: usize,
    /// Of which tokens the logits are wanted.
    pub wanted: Wanted,
}

impl Part {
    /// Tokens to be computed.
    pub fn tokens(&self) -> usize {
        self.count + self.guesses
    }
}

/// What the next step computes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Step {
    /// The chunks, at most one a sequence.
    pub parts: Vec<Part>,
    /// Blocks to be copied before, `(from, to)`, in this order.
    pub copies: Vec<(BlockId, BlockId)>,
    /// Sequences that begin or go on after having been thrown out, and their tokens that were in the cache.
    pub admitted: Vec<(Key, usize)>,
    /// Sequences that were thrown out.
    pub preempted: usize,
    /// A running sequence found no blocks.
    short: bool,
}

impl Step {
    /// Tokens to be computed.
    pub fn tokens(&self) -> usize {
        self.parts.iter().map(Part::tokens).sum()
    }

    fn has(&self, key: Key) -> bool {
        self.parts.iter().any(|part| part.key == key)
    }

    /// E1, E2 and E5 of this step, just planned by this scheduler.
    ///
    /// # Errors
    /// What doesn't hold.
    pub fn check(&self, scheduler: &Scheduler) -> Result<(), String> {
        let Limits { step_tokens, sequences, .. } = scheduler.limits;
        if self.tokens() > step_tokens || self.parts.len() > sequences {
            return Err(format!("E2: {} tokens of {} sequences in a step", self.tokens(), self.parts.len()));
        }
        let mut written = BTreeSet::new();
        for part in &self.parts {
            let Some(residence) = scheduler.sequences[&part.key].residence() else {
                return Err(format!("E5: {:?} is in the step and doesn't run", part.key));
            };
            let end = part.start + part.tokens();
            let size = scheduler.blocks.block_tokens();
            if part.start != residence.computed || residence.table.len() != scheduler.blocks.needed(end) {
                return Err(format!("E5: {part:?} of {residence:?}"));
            }
            for id in &residence.table[part.start / size..] {
                if scheduler.blocks.references(*id) != 1 || !written.insert(*id) {
                    return Err(format!("E1: {:?} writes to {id:?}, which isn't its own", part.key));
                }
            }
        }
        Ok(())
    }
}

/// All sequences that have not ended, and the cache's blocks.
#[derive(Debug, Clone)]
pub struct Scheduler {
    blocks: Blocks,
    limits: Limits,
    sequences: BTreeMap<Key, Sequence>,
    running: BTreeSet<Key>,
    waiting: BTreeSet<Key>,
}

impl Scheduler {
    /// No sequences yet.
    pub fn new(blocks: Blocks, limits: Limits) -> Self {
        Self { blocks, limits, sequences: BTreeMap::new(), running: BTreeSet::new(), waiting: BTreeSet::new() }
    }

    /// The blocks.
    pub fn blocks(&self) -> &Blocks {
        &self.blocks
    }

    /// What a step may have.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// From now on a step has at most so many tokens.
    pub fn limit_step(&mut self, tokens: usize) {
        self.limits.step_tokens = tokens.max(1);
    }

    /// Sequences in the cache.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Sequences that have not begun or were thrown out.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// A sequence that has not ended.
    pub fn sequence(&self, key: Key) -> Option<&Sequence> {
        self.sequences.get(&key)
    }

    /// Sequences that answer: each has one token to be computed.
    pub fn decoding(&self) -> impl Iterator<Item = (Key, &Sequence)> {
        self.running.iter().map(|key| (*key, &self.sequences[key])).filter(|(_, sequence)| sequence.decodes())
    }

    /// Blocks that a sequence of this length and its forks need at once in the worst case.
    pub fn blocks_at_most(&self, prompt: usize, most: usize, forks: usize) -> usize {
        let whole = self.blocks.needed(most);
        match self.limits.cache {
            // Forks can be thrown out one by one.
            Cache::Paged => whole,
            Cache::Static => whole + forks * (whole - prompt / self.blocks.block_tokens()),
        }
    }

    /// Takes a sequence that has not begun. It must fit: [`Self::blocks_at_most`] is no more than there are, and its
    /// forks and itself are no more than run at once.
    pub fn add(&mut self, key: Key, sequence: Sequence) {
        debug_assert!(self.blocks_at_most(sequence.prompt, sequence.most, sequence.forks) <= self.blocks.total());
        self.sequences.insert(key, sequence);
        self.waiting.insert(key);
    }

    /// Proposes what comes next in a sequence, for the next step only.
    pub fn guess(&mut self, key: Key, guesses: Vec<u32>) {
        if let Some(sequence) = self.sequences.get_mut(&key) {
            sequence.guesses = guesses;
        }
    }

    /// What the next step computes. Its blocks are given out; [`Self::advance`] each part afterwards, or
    /// [`Self::undo`] the step.
    pub fn plan(&mut self) -> Step {
        let mut step = Step::default();
        let mut left = self.limits.step_tokens;
        self.plan_running(&mut step, &mut left, true);
        self.plan_running(&mut step, &mut left, false);
        self.plan_waiting(&mut step, &mut left);
        self.plan_guesses(&mut step, &mut left);
        step
    }

    fn plan_running(&mut self, step: &mut Step, left: &mut usize, decodes: bool) {
        let keys: Vec<Key> = self.running.iter().copied().collect();
        for key in keys {
            let sequence = &self.sequences[&key];
            // One that was thrown out for another of this step no longer runs.
            if *left == 0 || sequence.residence().is_none() || sequence.decodes() != decodes {
                continue;
            }
            let count = sequence.remaining().min(*left);
            if self.make_room(key, count, step) {
                *left -= count;
                self.put(key, count, step);
            } else {
                step.short = true;
            }
        }
    }

    fn plan_waiting(&mut self, step: &mut Step, left: &mut usize) {
        let mut slots: usize = self.running.iter().map(|key| 1 + self.sequences[key].forks).sum();
        while let Some(key) = self.waiting.first().copied()
            && *left > 0
            && !step.short
            && step.preempted == 0
        {
            let sequence = &self.sequences[&key];
            slots += 1 + sequence.forks;
            let length = sequence.tokens.len();
            let prefix = if sequence.scores_prompt {
                self.blocks.find(sequence.adapter, &[])
            } else {
                // The last token is computed in any case: its logits are wanted.
                self.blocks.find(sequence.adapter, &sequence.tokens[..length - 1])
            };
            // Found blocks that nobody holds count as free up to now.
            let revived = prefix.blocks.iter().filter(|id| self.blocks.references(**id) == 0).count();
            let demand = revived + self.demand(sequence) - prefix.blocks.len();
            if slots > self.limits.sequences || demand > self.blocks.free() {
                break;
            }
            prefix.blocks.iter().for_each(|id| self.blocks.hold(*id));
            let computed = prefix.blocks.len() * self.blocks.block_tokens();
            let remembered = prefix.blocks.len();
            let residence = Residence { table: prefix.blocks, computed, remembered, parent: prefix.parent };
            self.sequence_mut(key).state = State::Running(residence);
            self.waiting.remove(&key);
            self.running.insert(key);
            step.admitted.push((key, computed));
            let count = (length - computed).min(*left);
            if self.make_room(key, count, step) {
                *left -= count;
                self.put(key, count, step);
            }
        }
    }

    /// Free blocks that have to be there for this sequence to begin.
    fn demand(&self, sequence: &Sequence) -> usize {
        match self.limits.cache {
            // All its tokens at least, or it would be thrown out again soon.
            Cache::Paged => self.blocks.needed(sequence.tokens.len()),
            Cache::Static => {
                let promised: usize = self.running.iter().map(|key| self.outstanding(&self.sequences[key])).sum();
                promised + self.blocks_at_most(sequence.prompt, sequence.most, sequence.forks)
            }
        }
    }

    /// Blocks that a running sequence and its forks may still take.
    fn outstanding(&self, sequence: &Sequence) -> usize {
        let Some(residence) = sequence.residence() else { return 0 };
        let copy = usize::from(self.shared_end(residence).is_some());
        self.blocks_at_most(sequence.prompt, sequence.most, sequence.forks) + copy - residence.table.len()
    }

    /// The last block's place where it isn't full and others hold it too: it is copied before it is written to.
    fn shared_end(&self, residence: &Residence) -> Option<usize> {
        let place = residence.computed / self.blocks.block_tokens();
        residence.table.get(place).is_some_and(|id| self.blocks.references(*id) > 1).then_some(place)
    }

    /// Gives a running sequence blocks for `count` more tokens, throwing out the newest ones that are not in the step
    /// yet. A prompt throws out only what is newer than itself. `false` = there is no room for it in this step.
    fn make_room(&mut self, key: Key, count: usize, step: &mut Step) -> bool {
        loop {
            let sequence = &self.sequences[&key];
            let Some(residence) = sequence.residence() else { return false };
            let shared = self.shared_end(residence);
            let more = self.blocks.needed(residence.computed + count) - residence.table.len();
            if more + usize::from(shared.is_some()) <= self.blocks.free() {
                return self.extend(key, shared, more, step);
            }
            let decodes = sequence.decodes();
            let victim = self.running.iter().rev().copied().find(|other| !step.has(*other));
            match victim {
                Some(victim) if victim > key || (decodes && victim == key) => self.preempt(victim, step),
                // An older one, or itself, waits with what it has: what is in the step gets on and ends some day.
                Some(_) | None => return false,
            }
        }
    }

    fn extend(&mut self, key: Key, shared: Option<usize>, more: usize, step: &mut Step) -> bool {
        let fresh: Vec<BlockId> = (0..more + usize::from(shared.is_some())).map_while(|_| self.blocks.take()).collect();
        let mut fresh = fresh.into_iter();
        let Some(residence) = self.sequences.get_mut(&key).and_then(Sequence::residence_mut) else { return false };
        if let Some(place) = shared
            && let Some(own) = fresh.next()
        {
            let old = std::mem::replace(&mut residence.table[place], own);
            self.blocks.release(old);
            step.copies.push((old, own));
        }
        residence.table.extend(fresh);
        true
    }

    fn put(&self, key: Key, count: usize, step: &mut Step) {
        let sequence = &self.sequences[&key];
        let start = sequence.tokens.len() - sequence.remaining();
        let wanted = if sequence.scores_prompt {
            Wanted::All
        } else if start + count == sequence.tokens.len() {
            Wanted::Last
        } else {
            Wanted::None
        };
        step.parts.push(Part { key, start, count, guesses: 0, wanted });
    }

    fn plan_guesses(&mut self, step: &mut Step, left: &mut usize) {
        for index in 0..step.parts.len() {
            let part = step.parts[index];
            let sequence = &self.sequences[&part.key];
            let Some(residence) = sequence.residence() else { continue };
            if sequence.guesses.is_empty() || part.wanted != Wanted::Last {
                continue;
            }
            let end = part.start + part.count;
            let covered = (residence.table.len() + self.blocks.free()) * self.blocks.block_tokens();
            // The last token of an answer is never computed, so it needs no guess.
            let room = (covered - end).min(sequence.most.saturating_sub(end + 1));
            let guesses = sequence.guesses.len().min(*left).min(room);
            if guesses == 0 {
                continue;
            }
            let more = self.blocks.needed(end + guesses) - residence.table.len();
            self.extend(part.key, None, more, step);
            *left -= guesses;
            step.parts[index].guesses = guesses;
            step.parts[index].wanted = Wanted::All;
        }
    }

    /// The chunk of a part that was just planned.
    pub fn chunk(&self, part: &Part) -> Chunk {
        let sequence = &self.sequences[&part.key];
        let mut tokens = Vec::with_capacity(part.tokens());
        tokens.extend_from_slice(&sequence.tokens[part.start..][..part.count]);
        tokens.extend_from_slice(&sequence.guesses[..part.guesses]);
        let blocks = sequence.residence().map_or_else(Vec::new, |residence| residence.table.clone());
        Chunk { tokens, start: part.start, blocks, adapter: sequence.adapter, wanted: part.wanted }
    }

    /// A part is computed, `right` of its guesses came true, and these tokens follow: the guesses that came true among
    /// them, none while the prompt isn't computed. The prompt's logits are wanted no longer when it is.
    pub fn advance(&mut self, part: &Part, right: usize, next: &[u32]) {
        let Some(sequence) = self.sequences.get_mut(&part.key) else { return };
        sequence.tokens.extend_from_slice(next);
        sequence.guesses.clear();
        let size = self.blocks.block_tokens();
        let State::Running(residence) = &mut sequence.state else { return };
        residence.computed = part.start + part.count + right;
        if residence.computed >= sequence.prompt {
            sequence.scores_prompt = false;
        }
        for (id, tokens) in residence
            .table
            .iter()
            .zip(sequence.tokens[..residence.computed].chunks_exact(size))
            .skip(residence.remembered)
        {
            residence.parent = self.blocks.remember(*id, residence.parent, tokens);
        }
        residence.remembered = residence.computed / size;
        self.trim(part.key);
    }

    /// The step failed: nothing of it is computed.
    pub fn undo(&mut self, step: &Step) {
        for part in &step.parts {
            self.sequence_mut(part.key).guesses.clear();
            self.trim(part.key);
        }
    }

    /// Releases the blocks after the computed tokens.
    fn trim(&mut self, key: Key) {
        let Some(residence) = self.sequences.get_mut(&key).and_then(Sequence::residence_mut) else { return };
        let keep = self.blocks.needed(residence.computed);
        while residence.table.len() > keep {
            residence.table.pop().into_iter().for_each(|id| self.blocks.release(id));
        }
    }

    /// The other answers of a request begin, when its prompt is computed and before its first token is added. They
    /// share its blocks.
    pub fn fork(&mut self, lead: Key) -> Vec<Key> {
        let sequence = self.sequence_mut(lead);
        let forks = std::mem::take(&mut sequence.forks);
        let sequence = sequence.clone();
        let keys: Vec<Key> = (1..=forks).map(|choice| Key { choice: lead.choice + choice, ..lead }).collect();
        for key in &keys {
            let table = sequence.residence().map_or(&[][..], |residence| &residence.table);
            table.iter().for_each(|id| self.blocks.hold(*id));
            self.sequences.insert(*key, sequence.clone());
            self.running.insert(*key);
        }
        keys
    }

    /// Adds the first token of an answer that was forked.
    pub fn begin(&mut self, key: Key, token: u32) {
        self.sequence_mut(key).tokens.push(token);
    }

    /// A sequence ends, wherever it stands: its blocks are free, what they hold can be found until they are needed.
    pub fn end(&mut self, key: Key) {
        self.release(key);
        self.sequences.remove(&key);
        self.running.remove(&key);
        self.waiting.remove(&key);
    }

    fn preempt(&mut self, key: Key, step: &mut Step) {
        self.release(key);
        let sequence = self.sequence_mut(key);
        sequence.state = State::Preempted;
        sequence.guesses.clear();
        self.running.remove(&key);
        self.waiting.insert(key);
        step.preempted += 1;
    }

    fn release(&mut self, key: Key) {
        let Some(residence) = self.sequences.get_mut(&key).and_then(Sequence::residence_mut) else { return };
        std::mem::take(&mut residence.table).into_iter().rev().for_each(|id| self.blocks.release(id));
    }

    /// Panics if there is no such sequence: keys come from this scheduler.
    fn sequence_mut(&mut self, key: Key) -> &mut Sequence {
        self.sequences.get_mut(&key).expect("a sequence that has not ended")
    }

    /// E1, E4 and E6, between steps.
    ///
    /// # Errors
    /// What doesn't hold.
    pub fn check(&self) -> Result<(), String> {
        let resident = || self.sequences.iter().filter_map(|(key, sequence)| Some((key, sequence.residence()?)));
        self.blocks.check(resident().map(|(_, residence)| residence.table.as_slice()))?;
        for (key, residence) in resident() {
            let sequence = &self.sequences[key];
            let Residence { table, computed, remembered, .. } = residence;
            if table.len() != self.blocks.needed(*computed) || *computed >= sequence.tokens.len() {
                return Err(format!(
                    "E6: {key:?} holds {} blocks for {computed} tokens of {}",
                    table.len(),
                    sequence.tokens.len()
                ));
            }
            if *remembered != computed / self.blocks.block_tokens() {
                return Err(format!("E6: {key:?} has {remembered} full blocks remembered of {computed} tokens"));
            }
        }
        let running: BTreeSet<Key> = resident().map(|(key, _)| *key).collect();
        let waiting: BTreeSet<Key> = self.sequences.keys().filter(|key| !running.contains(key)).copied().collect();
        if running != self.running || waiting != self.waiting {
            return Err("sequences stand elsewhere than the queues say".to_owned());
        }
        Ok(())
    }
}
