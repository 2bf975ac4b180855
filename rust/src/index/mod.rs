//! The memory-mapped index over tar shards: where every sample is, and what its labels are.
//!
//! [`mod@format`] describes its files. [`write`] makes it out of shards and their records
//! ([`tables`] reads the records of Parquet files), [`steps`] does the same in many processes,
//! [`mapped`] opens it, [`images`] reads images out of the shards and [`verify`] reads all of it.
//! [`mod@drop`] removes samples.

pub mod drop;
pub mod dropped;
mod factors;
pub mod format;
mod images;
mod keys;
pub mod mapped;
pub mod part;
pub mod steps;
mod tables;
mod verify;
mod write;

pub use self::images::shards::Shard;
pub use self::images::{Chunk, Fetch};
pub use self::mapped::Index;
pub use self::steps::save_scans;
pub use self::tables::Spool;
pub use self::write::records::{Columns, KeyFormat};
pub use self::write::{BuildOptions, Builder, LIMITS, LabelSource, Prepared};
