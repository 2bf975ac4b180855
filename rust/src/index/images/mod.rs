//! Images, read out of shards: many at once, in the order in which they lie.

pub(super) mod disk;
pub(super) mod fetch;
pub(super) mod files;
mod live;
mod run;
pub(super) mod warm;

pub use self::fetch::{Chunk, Fetch};
pub use self::warm::Copies;
