"""The index over tar shards: built, opened, sampled, put in order, exported."""
