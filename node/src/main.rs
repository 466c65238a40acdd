//! MLOC: LLM work on machines nobody planned as a cluster.

fn main() {}
