//! The memory-mapped index over tar shards: where every sample lies, and what its labels are.
//!
//! [`build`] writes it, [`read`] maps it, [`format`] says what its files are, [`map`] holds the maps.

pub mod alone;
mod build;
pub mod format;
pub mod map;
pub mod part;
pub mod read;
mod records;

pub use build::{BuildOptions, Builder, LabelSource};
pub use read::Index;
