//! Images, read out of shards: many at once, in the order of their places.
//!
//! [`shards`] has what is open; [`fetch`] makes runs of what is wanted and [`run`] reads them, by
//! way of the [`files`] and the [`disk`]. Nothing here knows of an index but the name of its
//! folder.

pub(super) mod disk;
pub(super) mod fetch;
pub(super) mod files;
pub(super) mod run;
pub(super) mod shards;

pub use self::fetch::{Chunk, Fetch};
