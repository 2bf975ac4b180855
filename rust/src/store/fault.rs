//! What went wrong at a store: whether to try again, and what to report.
//!
//! A server's answer is not repeated beyond its status and error code: bodies of errors echo
//! request headers and signed text.

use std::error::Error as _;

use object_store::Error as StoreError;

use super::{Object, Uri};
use crate::Error;

/// Why an attempt failed.
#[derive(Debug)]
pub(super) enum Fault {
    /// The store, or the way to it.
    Store(StoreError),
    /// The body ended before its end, or no byte came for long.
    Body(String),
    /// The object is not the one that was seen before; what is there now.
    Changed(String),
    /// The store ignored the range.
    Whole,
}

/// What a server may have answered.
struct Said {
    status: Option<u16>,
    code: Option<String>,
    text: String,
}

impl Said {
    fn of(error: &StoreError) -> Self {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(inner) = source {
            let more = inner.to_string();
            if !text.contains(&more) {
                text = format!("{text}: {more}");
            }
            source = inner.source();
        }
        let status = number_after(&text, "status code: ");
        let code = text.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>"));
        Self { status, code: code.map(|(code, _)| code.trim().to_owned()), text }
    }

    fn has(&self, code: &str) -> bool {
        self.code.as_deref() == Some(code)
    }
}

fn number_after(text: &str, mark: &str) -> Option<u16> {
    let rest = text.split_once(mark)?.1;
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

impl Fault {
    /// Whether another try may succeed.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Body(_) => true,
            Self::Changed(_) | Self::Whole => false,
            Self::Store(error @ StoreError::Generic { .. }) => {
                let said = Said::of(error);
                match said.status {
                    Some(408 | 425 | 429) => true,
                    Some(status) => status >= 500 && status != 501,
                    // Nobody mends these: a range beyond the end, a certificate, no credentials.
                    None => ![
                        "non-partial",
                        "Wanted range",
                        "certificate",
                        "invalid peer",
                        "169.254.169.254",
                        "metadata",
                    ]
                    .iter()
                    .any(|lasting| said.text.contains(lasting)),
                }
            }
            Self::Store(_) => false,
        }
    }

    /// Whether the store reports that there is no such object or bucket.
    pub(super) fn is_not_found(&self) -> bool {
        matches!(self, Self::Store(StoreError::NotFound { .. }))
    }

    /// Whether the range is outside the object.
    pub(super) fn is_out_of_range(&self) -> bool {
        match self {
            Self::Store(error) => {
                let said = Said::of(error);
                said.status == Some(416) || said.text.contains("Wanted range starting at")
            }
            _ => false,
        }
    }

    /// Whether the store reports that there is no such bucket.
    pub(super) fn is_no_bucket(&self) -> bool {
        match self {
            Self::Store(error) => {
                let said = Said::of(error);
                said.has("NoSuchBucket") || said.has("ContainerNotFound")
            }
            _ => false,
        }
    }

    /// The error for the caller, after `num_tries`.
    pub(super) fn explain(&self, uri: &Uri, num_tries: usize, elapsed_s: f64) -> Error {
        let tried = if num_tries > 1 {
            format!(" (tried {num_tries} times in {elapsed_s:.0} s)")
        } else {
            String::new()
        };
        let store = |errno: i32, message: String| Error::Store {
            uri: uri.to_string(),
            errno,
            message: format!("{message}{tried}"),
        };
        match self {
            Self::Body(what) => store(
                errno::EIO,
                format!("{what}; the store or the network is at fault, so run the same command again"),
            ),
            Self::Changed(found) => changed(&uri.to_string(), found),
            Self::Whole => store(
                errno::EIO,
                "the server sends whole objects where a part was asked for, so shards on it cannot be \
                 read; copy them to local files or another store"
                    .to_owned(),
            ),
            Self::Store(error) => {
                let said = Said::of(error);
                let (errno, message) = describe(uri, error, &said);
                store(errno, message)
            }
        }
    }
}

/// An object that is not the one that was seen before.
pub(super) fn changed(uri: &str, found: &str) -> Error {
    Error::data(format!(
        "{uri}: the object was replaced after it was indexed or while it was read ({found}); build the \
         index again, or put the object back as it was"
    ))
}

/// The same, by etag and size.
pub(super) fn other(expected: &str, object: &Object) -> Fault {
    Fault::Changed(format!(
        "expected etag {expected}, found {} of {} bytes",
        object.etag, object.size
    ))
}

fn describe(uri: &Uri, error: &StoreError, said: &Said) -> (i32, String) {
    let bucket = &uri.bucket;
    let code = match (&said.code, said.status) {
        (Some(code), _) => format!(" ({code})"),
        (None, Some(status)) => format!(" (HTTP {status})"),
        (None, None) => String::new(),
    };

    // By the store's own code first: the crate's kinds of errors do not know a missing bucket from
    // a missing object.
    if said.has("NoSuchBucket") || said.has("ContainerNotFound") {
        return no_bucket(bucket);
    }
    let expired =
        ["ExpiredToken", "TokenRefreshRequired", "RequestExpired", "ExpiredTokenException"];
    if expired.iter().any(|name| said.has(name)) {
        let what = "the credentials have expired; give fresh ones (storage options, AWS_SESSION_TOKEN and \
                    the like) and run the same command again, which goes on where it was";
        return (errno::EACCES, format!("{what}{code}"));
    }
    match error {
        StoreError::NotFound { .. } => no_object(bucket),
        StoreError::PermissionDenied { .. } | StoreError::Unauthenticated { .. } => (
            errno::EACCES,
            format!(
                "the store refuses these credentials for the bucket {bucket:?}{code}; check the key, its \
                 secret and what it may do, or set aws_skip_signature=true (google_skip_signature, \
                 azure_skip_signature) where the bucket is public"
            ),
        ),
        StoreError::Precondition { .. } | StoreError::AlreadyExists { .. } => {
            (errno::EIO, format!("another process writes this object at the same time{code}"))
        }
        _ => otherwise(bucket, said, &code),
    }
}

fn otherwise(bucket: &str, said: &Said, code: &str) -> (i32, String) {
    let text = &said.text;
    let any = |words: &[&str]| words.iter().any(|word| text.contains(word));

    // The crate has no kind for these errors, so they are known by their texts.
    if any(&["169.254.169.254", "169.254.170", "metadata.google"]) {
        let what = "there are no credentials for the store, in the options or the environment, and this \
                    machine has none of its own; give them as options of storage (aws_access_key_id, \
                    aws_secret_access_key), in the environment (AWS_ACCESS_KEY_ID), or set \
                    aws_skip_signature=true where the bucket is public";
        return (errno::EACCES, what.to_owned());
    }
    if any(&["certificate", "invalid peer"]) {
        let what = "the certificate of the server is not trusted; install the machine's certificates \
                    (Debian package ca-certificates), or name a server with a valid one";
        return (errno::EIO, what.to_owned());
    }
    if any(&["redirect", "PermanentRedirect", "AuthorizationHeaderMalformed"])
        || said.status == Some(301)
    {
        let what = format!(
            "the bucket {bucket:?} lies in another region{code}; set aws_region, or aws_endpoint_url for a \
             store of your own"
        );
        return (errno::EIO, what);
    }
    if any(&["timed out", "Timeout", "timeout"]) && said.status.is_none() {
        let what = "the store does not answer in time; check the endpoint and the network, or raise \
                    timeout_s";
        return (errno::ETIMEDOUT, what.to_owned());
    }
    match said.status {
        Some(429 | 503) => (
            errno::EIO,
            format!("the store asks for fewer requests{code}; lower num_requests, or wait and run again"),
        ),
        Some(status @ 500..) => (
            errno::EIO,
            format!("the store fails (HTTP {status}{code}); wait and run the same command again"),
        ),
        Some(status) => (
            errno::EIO,
            format!("the store refuses the request (HTTP {status}{code}); check the bucket and the options"),
        ),
        None if any(&["dns", "resolve", "lookup"]) => (
            errno::EIO,
            "the store's name cannot be found; check aws_endpoint_url, the bucket's name and the network"
                .to_owned(),
        ),
        None => (
            errno::EIO,
            format!(
                "the store cannot be reached or its answer broke off ({}); check the endpoint and the \
                 network, and run the same command again",
                last_words(text)
            ),
        ),
    }
}

/// The innermost cause, without addresses and bodies.
fn last_words(text: &str) -> &str {
    let last = text.rsplit(": ").next().unwrap_or_default().trim();
    if last.len() <= 120 && !last.contains(['<', '=']) { last } else { "no more is known" }
}

pub(super) fn no_bucket(bucket: &str) -> (i32, String) {
    (errno::ENOENT, format!("there is no bucket {bucket:?}; check its name, or make it"))
}

pub(super) fn no_object(bucket: &str) -> (i32, String) {
    let what = "look for it by listing the bucket";
    (errno::ENOENT, format!("there is no such object in the bucket {bucket:?}; {what}"))
}

/// A client that cannot be made of these options.
pub(super) fn unusable(uri: &Uri, error: &StoreError) -> Error {
    let said = Said::of(error);
    if said.text.contains("certificate") || said.text.contains("CA ") {
        return Error::usage(format!(
            "{}: no certificates to trust are found on this machine; install them (Debian package \
             ca-certificates) or name their file in SSL_CERT_FILE",
            uri.root()
        ));
    }
    // Faults of options name the option and never its value.
    let what = last_words(&said.text);
    Error::usage(format!("{}: the options of storage do not make a client: {what}", uri.root()))
}

/// Numbers of the operating system's errors, by which Python distinguishes its exceptions.
pub(super) mod errno {
    pub(crate) const ENOENT: i32 = 2;
    pub(crate) const EIO: i32 = 5;
    pub(crate) const EACCES: i32 = 13;
    pub(crate) const ETIMEDOUT: i32 = 110;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> Fault {
        Fault::Store(StoreError::Generic { store: "S3", source: text.to_owned().into() })
    }

    #[test]
    fn what_a_server_may_mend_is_tried_again() {
        for status in [408, 429, 500, 503] {
            assert!(said(&format!("non-2xx status code: {status} x: ")).may_pass(), "{status}");
        }
        assert!(said("HTTP error: connection reset by peer").may_pass());
        assert!(Fault::Body("cut".to_owned()).may_pass());
        for status in [400, 403, 404, 416, 501] {
            assert!(!said(&format!("non-2xx status code: {status} x: ")).may_pass(), "{status}");
        }
    }

    #[test]
    fn errors_name_the_code_and_the_remedy_and_repeat_nothing_else() {
        let uri = Uri::parse("s3://box/a.tar").unwrap();
        let body =
            "status code: 400 Bad Request: <Error><Code>ExpiredToken</Code><Token>hunter2</Token>";
        let told = said(body).explain(&uri, 1, 0.0).to_string();
        assert!(told.contains("s3://box/a.tar") && told.contains("expired"), "{told}");
        assert!(!told.contains("hunter2"), "{told}");
        let gone =
            said("status code: 404: <Code>NoSuchBucket</Code>").explain(&uri, 1, 0.0).to_string();
        assert!(gone.contains("no bucket \"box\""), "{gone}");
    }
}
