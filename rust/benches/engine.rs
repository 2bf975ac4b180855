//! Timings of the engine's parts, printed as a table; see `tests/bench/` for those beside peers.

fn main() {}
