//! The verbs of stores: requests that are tried again, checked and counted.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path as Key;
use object_store::{GetOptions, GetRange, ObjectMeta, ObjectStoreExt, PutPayload};

use super::client::client;
use super::fault::{Fault, no_bucket, no_object, other};
use super::process::{Client, POLL_INTERVAL, Process, broken};
use super::{Object, Span, Storage, Uri};
use crate::job::Job;
use crate::{Error, Result};

/// The first pause before another try, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A body of which nothing came for so long has stopped.
const MAX_STALL: Duration = Duration::from_secs(15);
/// What requests in flight may keep in memory.
const MAX_IN_FLIGHT_BYTES: u64 = 256 << 20;
/// Objects over this go up in parts of this size.
const PART_BYTES: u64 = 16 << 20;
const PARTS_IN_FLIGHT: usize = 4;

pub(super) fn check_options(options: &BTreeMap<String, String>) -> Result<()> {
    super::client::check_options(options)
}

/// One object of a store, and how requests to it are made.
#[derive(Clone)]
struct Access {
    storage: Storage,
    client: Arc<Client>,
    uri: Uri,
    key: Key,
}

impl Access {
    fn new(storage: &Storage, uri: &Uri) -> Result<Self> {
        if uri.key.starts_with('/') || uri.key.contains("//") {
            return Err(Error::usage(format!(
                "{uri}: this is no key of an object: it has an empty part"
            )));
        }
        let key = Key::parse(uri.key.trim_end_matches('/')).map_err(|error| {
            Error::usage(format!("{uri}: this is no key of an object: {error}"))
        })?;
        let client = client(storage, uri)?;
        Ok(Self { storage: storage.clone(), client, uri: uri.clone(), key })
    }

    /// Makes a request until it succeeds, cannot succeed, or the deadline is over.
    async fn attempt<T, F>(&self, mut request: impl FnMut() -> F) -> std::result::Result<T, Gone>
    where
        F: Future<Output = std::result::Result<T, Fault>>,
    {
        let limits = self.storage.limits();
        let (begun, deadline) = (Instant::now(), Duration::from_secs_f64(limits.retry_s));
        let mut pause = FIRST_PAUSE;
        let mut num_tries = 0;
        loop {
            self.storage.tally().request(num_tries > 0);
            num_tries += 1;
            let fault = match request().await {
                Ok(found) => return Ok(found),
                Err(fault) => fault,
            };
            let elapsed = begun.elapsed();
            if !fault.may_pass() || elapsed + pause > deadline {
                return Err(Gone { fault, num_tries, elapsed_s: elapsed.as_secs_f64() });
            }
            tokio::time::sleep(pause.mul_f64(jitter(begun))).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn explain(&self, gone: &Gone) -> Error {
        gone.fault.explain(&self.uri, gone.num_tries, gone.elapsed_s)
    }

    /// The same of a request for an object: where that is not there, its bucket may be missing.
    async fn explain_read(&self, gone: &Gone) -> Error {
        if gone.fault.is_not_found() { self.missing().await } else { self.explain(gone) }
    }

    /// The error for an object that is not there: it, or its whole bucket.
    async fn missing(&self) -> Error {
        let listed = self.client.store.list_with_delimiter(Some(&self.key)).await;
        let is_no_bucket = listed.is_err_and(|error| Fault::Store(error).is_no_bucket());
        let (errno, message) =
            if is_no_bucket { no_bucket(&self.uri.bucket) } else { no_object(&self.uri.bucket) };
        Error::Store { uri: self.uri.to_string(), errno, message }
    }

    fn object(&self, meta: &ObjectMeta) -> Object {
        object_of(&self.uri, meta)
    }

    async fn head(&self) -> std::result::Result<Object, Gone> {
        self.attempt(|| async {
            let meta = self.client.store.head(&self.key).await.map_err(Fault::Store)?;
            Ok(self.object(&meta))
        })
        .await
    }

    /// The bytes of a range and the object; fewer where it ends before.
    async fn range(
        &self,
        range: std::ops::Range<u64>,
        etag: Option<&str>,
    ) -> std::result::Result<(Bytes, Object), Gone> {
        self.attempt(|| async {
            let options = GetOptions {
                range: Some(GetRange::Bounded(range.clone())),
                ..GetOptions::default()
            };
            let found = self.client.store.get_opts(&self.key, options).await;
            let found = found.map_err(|error| match error.to_string().contains("non-partial") {
                true => Fault::Whole,
                false => Fault::Store(error),
            })?;
            let object = self.object(&found.meta);
            if let Some(expected) = etag
                && expected != object.etag
            {
                return Err(other(expected, &object));
            }
            let length = (found.range.end - found.range.start) as usize;
            Ok((self.body(found.into_stream(), length).await?, object))
        })
        .await
    }

    async fn body(
        &self,
        mut body: stream::BoxStream<'static, object_store::Result<Bytes>>,
        length: usize,
    ) -> std::result::Result<Bytes, Fault> {
        // A timeout of the whole answer would end large ones too, so only a pause is one.
        let stall = MAX_STALL.min(Duration::from_secs_f64(self.storage.limits().timeout_s));
        let mut first: Option<Bytes> = None;
        let mut all: Vec<u8> = Vec::new();
        let mut came = 0;
        while came < length {
            let piece = match tokio::time::timeout(stall, body.next()).await {
                Ok(Some(Ok(piece))) => piece,
                Ok(Some(Err(_)) | None) => {
                    return Err(Fault::Body(format!(
                        "the answer broke off after {came} of {length} bytes"
                    )));
                }
                Err(_) => {
                    return Err(Fault::Body(format!(
                        "the answer stands still after {came} of {length} bytes"
                    )));
                }
            };
            came += piece.len();
            self.storage.tally().came(piece.len() as u64);
            if came == length && all.is_empty() && first.is_none() {
                return Ok(piece);
            }
            // A small body comes in one piece; memory for a large one is taken once.
            if all.capacity() == 0 {
                all.reserve_exact(length);
            }
            if let Some(first) = first.take() {
                all.extend_from_slice(&first);
            }
            all.extend_from_slice(&piece);
        }

        // Too much is as wrong as too little: the caller's memory is for exactly this length.
        if came > length {
            return Err(Fault::Body(format!("the answer has more than its {length} bytes")));
        }
        Ok(Bytes::from(all))
    }
}

/// Why a request was given up.
struct Gone {
    fault: Fault,
    num_tries: usize,
    elapsed_s: f64,
}

/// Between a half and one and a half, so that those who failed together do not come back together.
fn jitter(begun: Instant) -> f64 {
    let noise = xxhash_rust::xxh3::xxh3_64(&begun.elapsed().as_nanos().to_le_bytes());
    0.5 + (noise >> 11) as f64 / (1_u64 << 53) as f64
}

fn object_of(uri: &Uri, meta: &ObjectMeta) -> Object {
    let modified_ms = meta.last_modified.timestamp_millis();
    let etag = meta.e_tag.clone().unwrap_or_else(|| format!("of {modified_ms}"));
    Object { uri: uri.with_key(meta.location.as_ref()), size: meta.size, etag, modified_ms }
}

pub(super) fn head(storage: &Storage, uri: &Uri, job: &Job) -> Result<Option<Object>> {
    let access = Access::new(storage, uri)?;
    Process::here()?.wait(job, async move {
        match access.head().await {
            Ok(object) => Ok(Some(object)),
            Err(gone) if gone.fault.is_not_found() && !gone.fault.is_no_bucket() => Ok(None),
            // An answer to HEAD has no body with the reason; one to GET has.
            Err(gone) if matches!(gone.fault, Fault::Store(_)) && !gone.fault.may_pass() => {
                match access.range(0..1, None).await {
                    Ok((_, object)) => Ok(Some(object)),
                    Err(said) if said.fault.is_not_found() && !said.fault.is_no_bucket() => {
                        Ok(None)
                    }
                    Err(said) => Err(access.explain(&said)),
                }
            }
            Err(gone) => Err(access.explain(&gone)),
        }
    })
}

/// The error for an object that is not there: it, or its whole bucket.
pub(super) fn missing(storage: &Storage, uri: &Uri, job: &Job) -> Error {
    let asked = || {
        let access = Access::new(storage, uri)?;
        Process::here()?.wait(job, async move { Ok(access.missing().await) })
    };
    asked().unwrap_or_else(|error| error)
}

pub(super) fn list(
    storage: &Storage,
    uri: &Uri,
    recursive: bool,
    job: &Job,
) -> Result<Vec<Object>> {
    let access = Access::new(storage, uri)?;
    Process::here()?.wait(job, async move {
        let found = access
            .attempt(|| async {
                let prefix = (!access.key.as_ref().is_empty()).then_some(&access.key);
                let metas: Vec<ObjectMeta> = if recursive {
                    access.client.store.list(prefix).try_collect().await.map_err(Fault::Store)?
                } else {
                    let listed = access.client.store.list_with_delimiter(prefix).await;
                    listed.map_err(Fault::Store)?.objects
                };
                Ok(metas.iter().map(|meta| access.object(meta)).collect::<Vec<_>>())
            })
            .await;
        found.map_err(|gone| access.explain(&gone))
    })
}

pub(super) fn read_start(
    storage: &Storage,
    uri: &Uri,
    length: u64,
    job: &Job,
) -> Result<(Vec<u8>, Object)> {
    let access = Access::new(storage, uri)?;
    Process::here()?.wait(job, async move {
        match access.range(0..length.max(1), None).await {
            Ok((bytes, object)) => Ok((bytes.to_vec(), object)),
            // An empty object has no first byte.
            Err(gone) if gone.fault.is_out_of_range() => match access.head().await {
                Ok(object) => Ok((Vec::new(), object)),
                Err(gone) => Err(access.explain(&gone)),
            },
            Err(gone) => Err(access.explain_read(&gone).await),
        }
    })
}

pub(super) fn read_spans(
    storage: &Storage,
    spans: Vec<Span>,
    job: &Job,
    mut take: impl FnMut(usize, &[u8]) -> Result<()>,
) -> Result<()> {
    let num_spans = spans.len();

    // Answers wait in memory until they are taken, so fewer requests are under way where they are
    // large.
    let longest = spans.iter().map(|span| span.range.end - span.range.start).max().unwrap_or(0);
    let room = (MAX_IN_FLIGHT_BYTES / longest.max(1)).max(1);
    let in_flight = storage.limits().num_requests.min(room as usize);
    let mut accesses: Vec<(Arc<str>, Access)> = Vec::new();
    let mut requests = Vec::with_capacity(spans.len());
    for (number, span) in spans.into_iter().enumerate() {
        // Ranges of an object are together.
        if accesses.last().is_none_or(|(uri, _)| *uri != span.uri) {
            let access = Access::new(storage, &Uri::parse(&span.uri)?)?;
            accesses.push((span.uri.clone(), access));
        }
        let Some((_, access)) = accesses.last() else { continue };
        requests.push((number, access.clone(), span));
    }

    // The caller's thread takes the answers, and asks between them whether it should stop.
    let (sender, receiver) = channel();
    let task = Process::here()?.spawn(async move {
        let each = requests
            .into_iter()
            .map(|(number, access, span)| async move { (number, one_span(&access, &span).await) });
        let mut answers = stream::iter(each).buffer_unordered(in_flight);
        while let Some(answer) = answers.next().await {
            if sender.send(answer).is_err() {
                break;
            }
        }
    });
    let mut num_left = num_spans;
    let outcome = loop {
        let step = match receiver.recv_timeout(POLL_INTERVAL) {
            Ok((number, answer)) => {
                num_left -= 1;
                answer.and_then(|bytes: Bytes| take(number, &bytes))
            }
            Err(RecvTimeoutError::Timeout) => job.check(),
            Err(RecvTimeoutError::Disconnected) if num_left == 0 => break Ok(()),
            Err(RecvTimeoutError::Disconnected) => break Err(broken()),
        };
        if step.is_err() {
            break step;
        }
    };

    // After an error the rest is not wanted any more.
    task.abort();
    outcome
}

async fn one_span(access: &Access, span: &Span) -> Result<Bytes> {
    let length = span.range.end - span.range.start;
    let step = access.storage.limits().request_bytes;
    if length <= step {
        return one_request(access, span).await;
    }
    // A single image that is longer than a request.
    let mut content = Vec::with_capacity(length as usize);
    for start in (span.range.start..span.range.end).step_by(step as usize) {
        let range = start..(start + step).min(span.range.end);
        content.extend_from_slice(&one_request(access, &Span { range, ..span.clone() }).await?);
    }
    Ok(Bytes::from(content))
}

async fn one_request(access: &Access, span: &Span) -> Result<Bytes> {
    let length = span.range.end - span.range.start;
    if length == 0 {
        return Ok(Bytes::new());
    }
    match access.range(span.range.clone(), span.etag.as_deref()).await {
        Ok((bytes, _)) if bytes.len() as u64 == length => Ok(bytes),
        Ok((_, object)) => Err(super::fault::changed(
            &access.uri.to_string(),
            &format!("expected bytes up to {}, found {} bytes", span.range.end, object.size),
        )),
        Err(gone) if gone.fault.is_out_of_range() => Err(super::fault::changed(
            &access.uri.to_string(),
            &format!("it ends before byte {}", span.range.start),
        )),
        Err(gone) => Err(access.explain_read(&gone).await),
    }
}

pub(super) fn write(storage: &Storage, uri: &Uri, content: Vec<u8>, job: &Job) -> Result<()> {
    let access = Access::new(storage, uri)?;
    let content = Bytes::from(content);
    let length = content.len() as u64;
    Process::here()?.wait(job, async move {
        match access.client.parts.clone() {
            Some(parts) if length > 4 * PART_BYTES => {
                let piece = |start: u64, end: u64| Ok(content.slice(start as usize..end as usize));
                in_parts(&access, &parts, length, piece, |_| ()).await
            }
            _ => whole(&access, content).await,
        }
    })
}

pub(super) fn upload(
    storage: &Storage,
    uri: &Uri,
    (path, file, size): (&Path, File, u64),
    job: &Job,
) -> Result<()> {
    let access = Access::new(storage, uri)?;
    let path = path.to_path_buf();
    let read = move |start: u64, end: u64| {
        let mut piece = vec![0; (end - start) as usize];
        file.read_exact_at(&mut piece, start).map_err(|error| Error::io(&path, error))?;
        Ok(Bytes::from(piece))
    };
    Process::here()?.wait(job, async move {
        match access.client.parts.clone() {
            Some(parts) if size > 4 * PART_BYTES => {
                in_parts(&access, &parts, size, read, |_| ()).await
            }
            _ => whole(&access, read(0, size)?).await,
        }
    })?;
    job.advance(size);
    Ok(())
}

async fn whole(access: &Access, content: Bytes) -> Result<()> {
    let put = access.attempt(|| async {
        let payload = PutPayload::from_bytes(content.clone());
        access.client.store.put(&access.key, payload).await.map_err(Fault::Store)
    });
    put.await.map(drop).map_err(|gone| access.explain(&gone))
}

/// Uploads in parts; what is there appears as a whole when the last request is answered.
async fn in_parts(
    access: &Access,
    parts: &Arc<dyn MultipartStore>,
    length: u64,
    piece: impl Fn(u64, u64) -> Result<Bytes>,
    done: impl Fn(u64),
) -> Result<()> {
    let explain = |gone: Gone| access.explain(&gone);
    let begun = access
        .attempt(|| async { parts.create_multipart(&access.key).await.map_err(Fault::Store) });
    let id = begun.await.map_err(explain)?;
    // A store takes at most 10,000 parts.
    let step = PART_BYTES.max(length.div_ceil(9_000).next_multiple_of(1 << 20));
    let one = |number: u64| {
        let (id, piece, done) = (&id, &piece, &done);
        async move {
            let (start, end) = (number * step, ((number + 1) * step).min(length));
            let content = piece(start, end)?;
            let put = access.attempt(|| async {
                let payload = PutPayload::from_bytes(content.clone());
                let number = number as usize;
                parts.put_part(&access.key, id, number, payload).await.map_err(Fault::Store)
            });
            let part = put.await.map_err(|gone| access.explain(&gone))?;
            done(end - start);
            Ok::<PartId, Error>(part)
        }
    };
    let sent: Result<Vec<PartId>> = stream::iter((0..length.div_ceil(step)).map(one))
        .buffered(PARTS_IN_FLIGHT)
        .try_collect()
        .await;
    let ended = match sent {
        Ok(sent) => {
            let end = access.attempt(|| async {
                let sent = sent.clone();
                parts.complete_multipart(&access.key, &id, sent).await.map_err(Fault::Store)
            });
            end.await.map(drop).map_err(explain)
        }
        Err(error) => Err(error),
    };

    // Parts of an upload that was not ended are kept, and paid for, until it is given up.
    if ended.is_err() {
        let _ = parts.abort_multipart(&access.key, &id).await;
    }
    ended
}

pub(super) fn delete(storage: &Storage, uri: &Uri, job: &Job) -> Result<()> {
    let access = Access::new(storage, uri)?;
    Process::here()?.wait(job, async move {
        let deleted = access.attempt(|| async {
            access.client.store.delete(&access.key).await.map_err(Fault::Store)
        });
        match deleted.await {
            Err(gone) if gone.fault.is_not_found() && !gone.fault.is_no_bucket() => Ok(()),
            other => other.map_err(|gone| access.explain(&gone)),
        }
    })
}
