//! Records in Parquet files, read by their dictionaries: every value of a row group is looked up once, and rows
//! are encoded without a look at their text.

pub(super) mod group;
mod lookup;
pub(super) mod spool;

pub use self::spool::Spool;
