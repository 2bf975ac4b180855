//! Object stores: shards, parts and results at `s3://`, `gs://`, `az://` and `https://`.
//!
//! A [`Storage`] is how stores are reached: options by the names that the `object_store` crate and
//! Polars give them, and limits of our own. It has no connection. Everything else is a verb of it
//! with a URI, and blocks until it is done: [`read`](Storage::read),
//! [`read_spans`](Storage::read_spans) (many ranges, concurrently), [`list`](Storage::list),
//! [`write`](Storage::write), [`download`](Storage::download) and so on.
//!
//! One policy applies to every request. It is at most [`request_bytes`](Limits::request_bytes)
//! long, so that its timeout covers it. What a server may repair (503, 429, a connection that
//! breaks, a body that ends early or stops coming) is asked for again, with pauses that grow, until
//! a deadline; what it will not repair (no such object, no permission, a wrong region) is an error
//! at once. An answer counts only where it has the length that was asked for and, where the object
//! was seen before, its etag: an object that was replaced in between is an error and never a
//! mixture.
//!
//! Errors name the URI and what to do. Options may contain secrets: they are never printed
//! ([`Debug`](std::fmt::Debug) hides them), and no error repeats a server's answer beyond its code.
//!
//! Requests run on a small runtime of their own, which is started by the first of them and belongs to
//! one process: a forked child starts its own (`process`). Without the Cargo feature `cloud` all
//! of this is there, and reports that it is not built in (`absent`).

mod cache;
#[cfg(feature = "cloud")]
mod client;
#[cfg(feature = "cloud")]
mod fault;
#[cfg(feature = "cloud")]
mod process;
#[cfg_attr(not(feature = "cloud"), path = "absent.rs")]
mod remote;
mod uri;

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub use self::uri::{Uri, is_remote};
use crate::job::Job;
use crate::publish::Unpublished;
use crate::{Error, Result};

/// Whether stores are built in.
pub const IS_BUILT_IN: bool = cfg!(feature = "cloud");

/// How requests are sized and how long they are tried.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Seconds for one request, its body included.
    pub timeout_s: f64,
    /// Seconds after which a request is not tried again.
    pub retry_s: f64,
    /// The longest request.
    pub request_bytes: u64,
    /// Ranges of one object with less between them are read together.
    pub gap_bytes: u64,
    /// Requests in flight at once.
    pub num_requests: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            timeout_s: 60.0,
            retry_s: 120.0,
            request_bytes: 8 << 20,
            gap_bytes: 1 << 20,
            num_requests: 64,
        }
    }
}

impl Limits {
    fn check(&self) -> Result<()> {
        let positive = |seconds: f64| seconds.is_finite() && seconds > 0.0;
        let wrong = if !positive(self.timeout_s) {
            "timeout_s: expected seconds above 0"
        } else if !(self.retry_s.is_finite() && self.retry_s >= 0.0) {
            "retry_s: expected seconds from 0"
        } else if !(1 << 16..=64 << 20).contains(&self.request_bytes) {
            "request_bytes: expected 64 KiB to 64 MiB, which a timeout can cover"
        } else if self.num_requests == 0 || self.num_requests > 1024 {
            "num_requests: expected 1 to 1024"
        } else {
            return Ok(());
        };
        Err(Error::usage(format!("storage: {wrong}")))
    }
}

/// What was asked of stores, and what it took.
#[derive(Debug, Default)]
pub struct Tally {
    num_requests: AtomicU64,
    num_retries: AtomicU64,
    wanted_bytes: AtomicU64,
    read_bytes: AtomicU64,
}

/// A [`Tally`] as numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Report {
    /// Requests that were answered or given up.
    pub num_requests: u64,
    /// Those of them that followed a failed one.
    pub num_retries: u64,
    /// Bytes that were asked for.
    pub wanted_bytes: u64,
    /// Bytes that came.
    pub read_bytes: u64,
}

impl Tally {
    /// The numbers so far.
    pub fn report(&self) -> Report {
        let number = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Report {
            num_requests: number(&self.num_requests),
            num_retries: number(&self.num_retries),
            wanted_bytes: number(&self.wanted_bytes),
            read_bytes: number(&self.read_bytes),
        }
    }

    /// Adds bytes that a caller had use for.
    pub fn want(&self, bytes: u64) {
        self.wanted_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    #[cfg(feature = "cloud")]
    fn request(&self, is_retry: bool) {
        self.num_requests.fetch_add(1, Ordering::Relaxed);
        self.num_retries.fetch_add(u64::from(is_retry), Ordering::Relaxed);
    }

    #[cfg(feature = "cloud")]
    fn came(&self, bytes: u64) {
        self.read_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// A folder of whole shards, and how much may be in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheOptions {
    /// The folder; what is kept is in a folder of our own within it.
    pub folder: PathBuf,
    /// Bytes at most.
    pub limit_bytes: u64,
}

/// An object of a store as it was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Where it is.
    pub uri: String,
    /// Bytes.
    pub size: u64,
    /// What the store calls this state of it: its etag, or the time of its change where it has none.
    pub etag: String,
    /// When it was changed, in milliseconds since 1970.
    pub modified_ms: i64,
}

/// A range of an object that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Which object.
    pub uri: Arc<str>,
    /// Which bytes of it.
    pub range: Range<u64>,
    /// The etag that it must have, where it was seen before.
    pub etag: Option<Arc<str>>,
}

/// How stores are reached. Cheap to clone; has no connection, so it may be used after a fork.
#[derive(Clone, Default)]
pub struct Storage {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    options: BTreeMap<String, String>,
    limits: Limits,
    cache: Option<CacheOptions>,
    tally: Tally,
}

impl std::fmt::Debug for Storage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Values of options may be secrets.
        let names: Vec<&str> = self.inner.options.keys().map(String::as_str).collect();
        f.debug_struct("Storage")
            .field("options", &names)
            .field("limits", &self.inner.limits)
            .field("cache", &self.inner.cache)
            .finish()
    }
}

impl Storage {
    /// Options by the names of the `object_store` crate, such as `aws_region`; what they do not set
    /// comes from the environment (`AWS_REGION` and the like). An option that no store knows is
    /// refused.
    pub fn new(
        options: BTreeMap<String, String>,
        limits: Limits,
        cache: Option<CacheOptions>,
    ) -> Result<Self> {
        limits.check()?;
        remote::check_options(&options)?;
        Ok(Self { inner: Arc::new(Inner { options, limits, cache, tally: Tally::default() }) })
    }

    /// The same with a tally of its own.
    pub fn apart(&self) -> Self {
        let Inner { options, limits, cache, .. } = &*self.inner;
        let (options, limits, cache) = (options.clone(), limits.clone(), cache.clone());
        Self { inner: Arc::new(Inner { options, limits, cache, tally: Tally::default() }) }
    }

    /// The limits of requests.
    pub fn limits(&self) -> &Limits {
        &self.inner.limits
    }

    /// What was asked of stores through this value and its clones.
    pub fn tally(&self) -> &Tally {
        &self.inner.tally
    }

    /// Whether whole shards are kept in a local folder.
    pub fn has_cache(&self) -> bool {
        self.inner.cache.is_some()
    }

    /// What is known of an object; `None` where there is none.
    pub fn head(&self, uri: &str, job: &Job) -> Result<Option<Object>> {
        remote::head(self, &Uri::parse(uri)?, job)
    }

    /// The objects under a URI, in the byte order of their URIs: all of them, or those without a slash
    /// after it where not `recursive`.
    pub fn list(&self, uri: &str, recursive: bool, job: &Job) -> Result<Vec<Object>> {
        let mut found = remote::list(self, &Uri::parse(uri)?, recursive, job)?;
        found.sort_unstable_by(|one, other| one.uri.cmp(&other.uri));
        Ok(found)
    }

    /// The content of an object, and the object itself as it was then.
    pub fn read(&self, uri: &str, job: &Job) -> Result<(Vec<u8>, Object)> {
        let object = self.seen(uri, job)?;
        let mut content = vec![0; usize::try_from(object.size).unwrap_or(usize::MAX)];
        self.read_whole(&object, job, |start, bytes| {
            let start = start as usize;
            content[start..start + bytes.len()].copy_from_slice(bytes);
            Ok(())
        })?;
        Ok((content, object))
    }

    /// An object that must be there.
    pub fn seen(&self, uri: &str, job: &Job) -> Result<Object> {
        let parsed = Uri::parse(uri)?;
        match remote::head(self, &parsed, job)? {
            Some(object) => Ok(object),
            None => Err(remote::missing(self, &parsed, job)),
        }
    }

    /// The first `length` bytes of an object, or all where it has fewer, and the object.
    pub fn read_start(&self, uri: &str, length: u64, job: &Job) -> Result<(Vec<u8>, Object)> {
        remote::read_start(self, &Uri::parse(uri)?, length, job)
    }

    /// Some ranges, as many at once as the limits allow; `take` gets the number of each and its bytes,
    /// in the order in which they come.
    ///
    /// A range is one request, or several where it is longer than [`Limits::request_bytes`].
    pub fn read_spans(
        &self,
        spans: Vec<Span>,
        job: &Job,
        take: impl FnMut(usize, &[u8]) -> Result<()>,
    ) -> Result<()> {
        remote::read_spans(self, spans, job, take)
    }

    /// One range.
    pub fn read_span(&self, span: Span, job: &Job) -> Result<Vec<u8>> {
        let mut content = Vec::new();
        self.read_spans(vec![span], job, |_, bytes| {
            content = bytes.to_vec();
            Ok(())
        })?;
        Ok(content)
    }

    /// All of an object in pieces, in any order; `take` gets where each begins.
    fn read_whole(
        &self,
        object: &Object,
        job: &Job,
        mut take: impl FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let step = self.limits().request_bytes;
        let (uri, etag): (Arc<str>, Arc<str>) =
            (object.uri.as_str().into(), object.etag.as_str().into());
        let starts: Vec<u64> = (0..object.size).step_by(step as usize).collect();
        let span = |&start: &u64| Span {
            uri: uri.clone(),
            range: start..(start + step).min(object.size),
            etag: Some(etag.clone()),
        };
        let spans = starts.iter().map(span).collect();
        self.read_spans(spans, job, |number, bytes| take(starts[number], bytes))
    }

    /// Makes `content` the object at `uri`, whole: nobody ever sees a part of it.
    pub fn write(&self, uri: &str, content: Vec<u8>, job: &Job) -> Result<()> {
        remote::write(self, &Uri::parse(uri)?, content, job)
    }

    /// Removes an object; one that is not there is none.
    pub fn delete(&self, uri: &str, job: &Job) -> Result<()> {
        remote::delete(self, &Uri::parse(uri)?, job)
    }

    /// Makes the file at `path` the object at `uri`, whole; `job` advances by its bytes at the end.
    pub fn upload(&self, path: &Path, uri: &str, job: &Job) -> Result<()> {
        let file = File::open(path).map_err(|error| Error::io(path, error))?;
        let size = file.metadata().map_err(|error| Error::io(path, error))?.len();
        remote::upload(self, &Uri::parse(uri)?, (path, file, size), job)
    }

    /// Makes the object at `uri` the file at `path`, whole; `job` advances by its bytes at the end.
    pub fn download(&self, uri: &str, path: &Path, job: &Job) -> Result<Object> {
        let object = self.seen(uri, job)?;
        let file = Unpublished::create(path)?;
        if let Some(opened) = file.file() {
            self.fill(&object, opened, path, job)?;
        }
        file.publish()?;
        job.advance(object.size);
        Ok(object)
    }

    /// Writes all of an object into `file`, which is at `path`.
    fn fill(&self, object: &Object, file: &File, path: &Path, job: &Job) -> Result<()> {
        self.read_whole(object, job, |start, bytes| {
            file.write_all_at(bytes, start).map_err(|error| Error::io(path, error))
        })
    }

    /// A shard as a local file, where whole shards are kept: it is fetched where it is not there yet.
    ///
    /// `None` where no shards are kept, and while others need all the room.
    pub fn cached(&self, object: &Object, job: &Job) -> Result<Option<File>> {
        match &self.inner.cache {
            Some(options) => cache::fetch(self, options, object, job),
            None => Ok(None),
        }
    }
}
