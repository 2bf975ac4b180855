//! The engine of `wsl`: everything that must be done a billion times.
//!
//! Hashtag records come in as Arrow record batches and leave as counts, a vocabulary and a
//! memory-mapped index over tar shards; teacher scores come in as pairs or dense rows and leave as
//! the K best images of every class. Nothing here knows of Python except the [`python`] folder,
//! which is compiled only with the feature `python`.
//!
//! Three rules apply in every module:
//!
//! * **The result is a function of the input and the options alone.** Threads, memory limits and
//!   the partition of the input never change a byte of it.
//! * **Bytes from outside are hostile.** Lengths are capped, arithmetic is checked, and the answer
//!   to bad input is an [`Error`] with the place, what was expected and what to do.
//! * **A file becomes visible only when it is whole** ([`publish`]).

pub mod count;
pub mod epoch;
mod error;
pub mod hashtag;
mod hints;
pub mod index;
pub mod job;
mod leb128;
pub mod map;
pub mod parquet;
pub mod publish;
mod radix;
pub mod selection;
pub mod shard;
pub mod spill;
pub mod store;
mod threads;
pub mod vocabulary;

#[cfg(feature = "python")]
mod python;

pub use error::{Error, Result};
