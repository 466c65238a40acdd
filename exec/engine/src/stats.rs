//! What the engine counts. Times, and a page for Prometheus, are the server's.

/// How requests ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Endings {
    /// Answers that ended by a stop token, a stop string or their constraint.
    pub stop: u64,
    /// Answers that ended by their length.
    pub length: u64,
    /// Answers whose client took them back.
    pub abort: u64,
    /// Requests that failed.
    pub error: u64,
}

/// Since the engine's beginning, but for what is said to be now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// Sequences in the cache now.
    pub running: usize,
    /// Sequences that wait now.
    pub waiting: usize,
    /// Cache blocks there are.
    pub blocks: usize,
    /// Cache blocks that sequences hold now.
    pub resident_blocks: usize,
    /// Tokens a step may have now: fewer than set after the device ran out of memory.
    pub step_tokens_limit: usize,
    /// Steps computed.
    pub steps: u64,
    /// Tokens that went through the model in them, guesses included.
    pub step_tokens: u64,
    /// Tokens that were looked for in the cache.
    pub prefix_queries: u64,
    /// And found there.
    pub prefix_hits: u64,
    /// Sequences thrown out.
    pub preemptions: u64,
    /// Steps for which the device had no memory.
    pub out_of_memory: u64,
    /// Prompt tokens of requests whose prompt is computed.
    pub prompt_tokens: u64,
    /// Tokens of answers.
    pub generation_tokens: u64,
    /// Sequences of a step for which something was guessed.
    pub drafts: u64,
    /// Tokens guessed.
    pub draft_tokens: u64,
    /// And right.
    pub accepted_tokens: u64,
    /// How answers ended.
    pub endings: Endings,
}
