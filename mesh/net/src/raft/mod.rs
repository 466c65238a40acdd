//! Consensus: the ledger, replicated.

mod codec;
mod log;
mod log_writer;
mod machine;
mod snapshot;
mod standin;
#[cfg(test)]
mod tests;
mod types;
