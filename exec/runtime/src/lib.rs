//! The worker: journal, slots, probe, child processes, attempts.
