//! The order of an epoch, without a list of it.
