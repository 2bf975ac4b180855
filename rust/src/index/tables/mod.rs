//! Records in tables: their hashtags looked up without a look at every row, and an index of them without shards.

pub(super) mod group;
mod index;
mod lookup;
mod spool;

pub use self::spool::Spool;
