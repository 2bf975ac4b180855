//! The memory-mapped index over tar shards: where every sample lies, and what its labels are.
//!
//! [`build`] writes it (with [`scan`], [`records`], [`join`] and [`keys`]; records alone by [`group`], out of a
//! [`spool`] where they were read once; on many machines by [`spread`]), [`read`] maps it and [`fetch`] reads
//! images (with [`reading`], [`files`] and [`disk`]), [`warm`] copies small ones out of mapped shards ([`live`]),
//! [`takedown`] takes samples down, [`mod@format`] says what its files are, [`map`] holds the maps.

pub mod alone;
mod build;
mod disk;
pub mod dropped;
mod encode;
mod factors;
mod fetch;
mod files;
pub mod format;
mod group;
mod join;
mod journal;
mod keys;
mod lists;
mod live;
mod lookup;
pub mod map;
pub mod part;
mod partitions;
pub mod read;
mod reading;
mod records;
mod rows;
mod scan;
mod scanned;
mod spool;
pub mod spread;
pub mod takedown;
mod warm;

pub use build::{BuildOptions, Builder, LIMITS, LabelSource, Prepared};
pub use fetch::{Chunk, Fetch};
pub use read::Index;
pub use records::{Columns, KeyFormat};
pub use scanned::save_scans;
pub use spool::Spool;
pub use warm::Copies;
