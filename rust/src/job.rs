//! A long call seen from outside: how far it is, and whether it should stop.
//!
//! The engine works on its own threads and never calls back; it only adds to a counter and looks
//! at a flag. Whoever started the call (the binding, a test) reads the one and sets the other.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::{Error, Result};

/// The shared state of one long call.
///
/// ```
/// use wsl_core::job::Job;
///
/// let job = Job::new();
/// job.advance(3);
/// assert_eq!(job.done(), 3);
/// job.cancel();
/// assert!(job.check().is_err());
/// ```
#[derive(Debug, Default)]
pub struct Job {
    done: AtomicU64,
    cancelled: AtomicBool,
}

impl Job {
    /// A job nobody has asked to stop, with nothing done.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds `units` (rows or bytes, as the call documents) to what is done.
    pub fn advance(&self, units: u64) {
        self.done.fetch_add(units, Ordering::Relaxed);
    }

    /// Units done so far.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Asks the call to stop at its next [`check`](Self::check).
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Fails with [`Error::Cancelled`] once somebody has asked the call to stop; cheap enough to
    /// be called for every few thousand rows.
    pub fn check(&self) -> Result<()> {
        if self.cancelled.load(Ordering::Relaxed) { Err(Error::Cancelled) } else { Ok(()) }
    }
}
