//! A sequence: one answer's tokens, and where it stands.

use crate::blocks::Parent;
use crate::forward::{AdapterId, BlockId};
use crate::request::RequestId;

/// Which answer of which request. Their order is that of their coming.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The request.
    pub request: RequestId,
    /// Which of its answers, from 0.
    pub choice: usize,
}

/// Where a sequence stands. One that has ended is no longer kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Not begun.
    Waiting,
    /// Begun, and thrown out for want of blocks: all its tokens are to be computed again.
    Preempted,
    /// In the cache.
    Running(Residence),
}

/// What a running sequence has in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Residence {
    /// Its blocks, from its first token on.
    pub table: Vec<BlockId>,
    /// Tokens whose keys and values are there.
    pub computed: usize,
    /// Blocks of the table that the cache remembers, all full.
    pub remembered: usize,
    /// What stands before the block after those.
    pub parent: Parent,
}

/// One answer's tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequence {
    /// Those of the prompt, then those of the answer. At least one of them isn't computed between two steps.
    pub tokens: Vec<u32>,
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Tokens, prompt and answer together, it can have at most.
    pub most: usize,
    /// The adapter.
    pub adapter: Option<AdapterId>,
    /// Further answers that begin when its prompt is computed.
    pub forks: usize,
    /// Whether the logits of each token of the prompt are wanted, so that the prompt has to be computed even where it is
    /// in the cache.
    pub scores_prompt: bool,
    /// What may come next, to be checked in one step. Given anew for each step.
    pub guesses: Vec<u32>,
    /// Where it stands.
    pub state: State,
}

impl Sequence {
    /// What it has in the cache, if it runs.
    pub fn residence(&self) -> Option<&Residence> {
        match &self.state {
            State::Running(residence) => Some(residence),
            State::Waiting | State::Preempted => None,
        }
    }

    pub(crate) fn residence_mut(&mut self) -> Option<&mut Residence> {
        match &mut self.state {
            State::Running(residence) => Some(residence),
            State::Waiting | State::Preempted => None,
        }
    }

    /// Tokens that are not computed yet.
    pub fn remaining(&self) -> usize {
        self.tokens.len() - self.residence().map_or(0, |residence| residence.computed)
    }

    /// Whether it answers, and only its newest token isn't computed.
    pub fn decodes(&self) -> bool {
        self.residence().is_some() && self.remaining() == 1 && self.tokens.len() > self.prompt
    }
}
