//! The memory-mapped index over tar shards.
