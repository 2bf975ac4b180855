//! Tar shards, scanned by their headers alone.
