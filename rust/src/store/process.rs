//! What a process keeps for its requests: a runtime and the clients that were made.
//!
//! Threads do not survive a fork, and a lock that another thread had at that moment is locked for
//! ever in the child. So what is kept belongs to one process. The first call in a process takes the
//! next of a few slots, none of which an ancestor has touched, and what ancestors made is left as
//! it is: it is neither used nor dropped. No lock is waited for that was there before the fork.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use hashbrown::HashMap;
use object_store::ObjectStore;
use object_store::multipart::MultipartStore;
use tokio::runtime::{Builder, Runtime};

use crate::job::Job;
use crate::{Error, Result};

/// Forks within forks that each used stores.
const MAX_GENERATIONS: usize = 32;
/// How often a waiting call looks whether it should stop.
pub(super) const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Threads that wait for the network; decryption is their only work.
const MAX_THREADS: usize = 2;

/// The id of the process that took the newest slot, and in the last eight bits which it is.
static CURRENT: AtomicU64 = AtomicU64::new(0);
static SLOTS: [OnceLock<Process>; MAX_GENERATIONS] = [const { OnceLock::new() }; MAX_GENERATIONS];

/// The client of a bucket, and how it takes objects in parts where it can.
pub(super) struct Client {
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) parts: Option<Arc<dyn MultipartStore>>,
}

impl Client {
    pub(super) fn of<S: ObjectStore + MultipartStore>(store: S) -> Self {
        let store = Arc::new(store);
        Self { store: store.clone(), parts: Some(store) }
    }
}

/// What one process keeps.
pub(super) struct Process {
    runtime: Runtime,
    clients: Mutex<HashMap<(String, u128), Arc<Client>>>,
}

impl Process {
    /// That of this process.
    pub(super) fn here() -> Result<&'static Self> {
        let slot = &SLOTS[slot()?];
        if let Some(found) = slot.get() {
            return Ok(found);
        }
        // Threads that race here each make one, and one of them stays.
        let _ = slot.set(Self::new()?);
        slot.get().ok_or_else(|| Error::usage("the runtime of object stores cannot be kept"))
    }

    fn new() -> Result<Self> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
        let runtime = Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_name("wsl-store")
            .enable_all()
            .build()
            .map_err(|error| Error::io("the runtime of object stores", error))?;
        Ok(Self { runtime, clients: Mutex::new(HashMap::new()) })
    }

    /// The client that is known by `key`, made where there is none.
    pub(super) fn client(
        &self,
        key: (String, u128),
        make: impl FnOnce() -> Result<Arc<Client>>,
    ) -> Result<Arc<Client>> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = clients.get(&key) {
            return Ok(found.clone());
        }
        // Clients start tasks of their own.
        let _entered = self.runtime.enter();
        let made = make()?;
        clients.insert(key, made.clone());
        Ok(made)
    }

    /// Starts work in the background.
    pub(super) fn spawn<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> tokio::task::JoinHandle<T> {
        self.runtime.spawn(work)
    }

    /// Waits for work that runs in the background, or until the job is to stop.
    pub(super) fn wait<T: Send + 'static>(
        &self,
        job: &Job,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        let task = self.spawn(async move {
            let _ = sender.send(work.await);
        });
        loop {
            use std::sync::mpsc::RecvTimeoutError::{Disconnected, Timeout};
            match receiver.recv_timeout(POLL_INTERVAL) {
                Ok(outcome) => return outcome,
                Err(Timeout) => {
                    if let Err(stopped) = job.check() {
                        task.abort();
                        return Err(stopped);
                    }
                }
                Err(Disconnected) => return Err(broken()),
            }
        }
    }
}

/// What a task that panicked is reported as.
pub(super) fn broken() -> Error {
    Error::data("a request to a store failed an internal check; please report this as a bug")
}

/// The slot of this process.
fn slot() -> Result<usize> {
    let own = u64::from(std::process::id());
    loop {
        let seen = CURRENT.load(Ordering::Acquire);
        let (owner, number) = (seen >> 8, (seen & 0xff) as usize);
        if owner == own {
            return Ok(number);
        }
        let next = if owner == 0 { 0 } else { number + 1 };
        if next >= MAX_GENERATIONS {
            return Err(Error::usage(format!(
                "over {MAX_GENERATIONS} processes forked one from another have used object stores; \
                 start the innermost anew (spawn) instead of forking it"
            )));
        }
        let mine = own << 8 | next as u64;
        if CURRENT.compare_exchange(seen, mine, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            return Ok(next);
        }
    }
}
