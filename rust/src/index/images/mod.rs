//! Images, read out of shards: many at once, in the order in which they lie.

pub(super) mod disk;
pub(super) mod fetch;
pub(super) mod files;
mod run;

pub use self::fetch::{Chunk, Fetch};
