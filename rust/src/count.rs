//! Counting hashtags over streams of records.
