//! What a worker does next: a state machine over its journal, its child processes and what it hears.
