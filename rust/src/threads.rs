//! Threads of a call's own.

use crate::{Error, Result};

/// A pool of so many threads; of as many as the machine has where `None`.
pub(crate) fn pool(num_threads: Option<usize>) -> Result<rayon::ThreadPool> {
    let num_threads = match num_threads {
        Some(0) => return Err(Error::usage("num_threads must be at least 1")),
        Some(number) => number,
        None => std::thread::available_parallelism().map_or(1, usize::from),
    };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(num_threads).build();
    pool.map_err(|error| Error::usage(format!("num_threads {num_threads}: {error}")))
}
