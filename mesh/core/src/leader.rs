//! What the orchestrator does next: a function of ledger, live capabilities, leases and now.
