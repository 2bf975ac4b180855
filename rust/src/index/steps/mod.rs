//! An index that many processes build: each makes a file of one step out of files of the step before.
//!
//! ```text
//! scans      of a group of shards: their headers, read
//! samples    of the same shards: keys of the samples that the lists take, parted by their hash
//! records    of a group of tables: keys and labels, parted by the hash of the key
//! labels     of a range of buckets: the labels of samples, a section for each group of shards
//! part       of a range of ordinals: rows of the index, to the byte as one process writes them
//! ```
//!
//! Records that are an index by themselves take two steps: rows of a group of tables, in their order, and
//! parts out of these ([`tables`]).
//!
//! A bucket is a partition of the join on disk ([`crate::spill::partitions`]), by the same bits of the same hash.
//! Every file but scans and parts has [`sections`] with a table at its end, so that who joins reads its
//! buckets out of every file, and M files of keys are enough for any number of them. One process
//! takes parts and counts over ([`Builder::add_part`](super::Builder::add_part)) and writes keys
//! and manifest, by the steps of a build of its own: what is counted, refused and written is the
//! same.
//!
//! Where such a file is in a store, ranges of it are read from there.

mod join;
mod part;
mod records;
mod samples;
mod scans;
mod sections;
mod tables;
mod takeover;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use self::join::{Inputs, join};
pub use self::part::{PartGroup, write_part};
pub use self::records::save_records;
pub use self::samples::{num_samples, save_known, save_samples};
pub use self::scans::save_scans;
pub use self::tables::{save_parquet_rows, save_rows, write_alone};
use super::format::KeyScope;
use super::write::lists::Lists;
use crate::Result;
use crate::spill::partitions::PARTITIONS;

/// Buckets that keys are parted into.
pub const NUM_BUCKETS: usize = PARTITIONS;

/// What decides which samples and records are taken.
#[derive(Debug)]
pub struct Taking {
    /// Within what keys name a sample.
    pub(super) scope: KeyScope,
    pub(super) lists: Lists,
}

impl Taking {
    /// `include` are the only keys to take, `exclude` keys to leave out.
    pub fn new(scope: KeyScope, include: Option<&[String]>, exclude: &[String]) -> Result<Self> {
        Ok(Self { scope, lists: Lists::new(scope, include, exclude)? })
    }

    /// What joins a key with its shard of this name, where keys begin anew in every shard.
    pub(super) fn scoped<'a>(&self, shard: &'a str) -> &'a str {
        if self.scope == KeyScope::Shard { shard } else { "" }
    }
}

/// What a file has about itself, beside its sections.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub(super) enum About {
    /// Keys and labels of records; a section for each bucket.
    Records { counts: BTreeMap<String, u64> },
    /// Keys of samples, with their numbers within the group; a section for each bucket, or none where
    /// nothing is joined.
    Samples {
        shards: Vec<ShardSamples>,
        counts: BTreeMap<String, u64>,
        highest_class: Option<u32>,
        num_without_class: u64,
    },
    /// Keys of samples that have their labels already; a section for each bucket.
    Known {},
    /// Rows of records that are an index by themselves; a section for so many of them.
    Rows {
        num_records: u64,
        num_unknown: u64,
        num_rows: u64,
        num_without_labels: u64,
        counts: BTreeMap<String, u64>,
    },
    /// Labels of samples, with their numbers; a section for each group of shards.
    Labels {
        num_doubled: u64,
        num_unused: u64,
        unused_key: Option<String>,
        num_without_record: u64,
        num_without_labels: u64,
    },
}

/// A shard, and how many of its samples are taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ShardSamples {
    pub(super) size: u64,
    pub(super) header_checksum: u64,
    pub(super) etag: Option<String>,
    pub(super) num_samples: u64,
}
