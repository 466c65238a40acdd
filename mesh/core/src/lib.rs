//! Everything MLOC can decide without I/O: identities, tasks, the ledger, the scheduler, the worker.
