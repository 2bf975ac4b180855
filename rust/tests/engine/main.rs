//! The engine from outside, one module per part.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod count;
mod hashtag;
mod index;
mod killed;
mod selection;
mod shard;
mod steps;
#[cfg(feature = "cloud")]
mod store;
mod vocabulary;
