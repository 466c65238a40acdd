//! The contract between a task and the module that runs it.
