//! Where an object is: a URI taken apart.
//!
//! Keys are in a URI as they are, without percent signs that would hide bytes. A URI holds no
//! secrets: one with a user and password or with a query (a signed address) is refused, for URIs
//! are printed and recorded.

use crate::{Error, Result};

/// The stores there are, by the schemes of their URIs.
const SCHEMES: [&str; 12] =
    ["s3", "s3a", "gs", "az", "azure", "adl", "abfs", "abfss", "http", "https", "memory", "file"];

/// The URI of an object, or of a folder where the key is empty or ends in a slash.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Uri {
    /// `s3`, `gs`, `az` and so on, in lower case.
    pub scheme: String,
    /// The bucket or container; host and port of `http`.
    pub bucket: String,
    /// The key within it, without a slash before it.
    pub key: String,
}

/// Whether a path or URI names something in a store.
pub fn is_remote(path: &str) -> bool {
    path.split_once("://").is_some_and(|(scheme, _)| {
        !scheme.eq_ignore_ascii_case("file")
            && SCHEMES.iter().any(|known| known.eq_ignore_ascii_case(scheme))
    })
}

impl Uri {
    /// Takes `text` apart; usage error for anything that is no URI of a store.
    pub fn parse(text: &str) -> Result<Self> {
        // What may be a secret is not repeated.
        let shown = match text.split_once("://") {
            Some((scheme, rest)) if rest.contains(['@', '?']) => format!("{scheme}://..."),
            _ => text.to_owned(),
        };
        let bad = |what: &str| Error::usage(format!("{shown}: {what}"));
        let (scheme, rest) = text
            .split_once("://")
            .ok_or_else(|| bad("expected the URI of an object, such as s3://BUCKET/KEY"))?;
        let scheme = scheme.to_ascii_lowercase();
        if !is_remote(text) {
            return Err(bad(
                "a store of an unknown kind; expected s3://, gs://, az:// or https://",
            ));
        }
        let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
        // CONTAINER@ACCOUNT... is how Azure writes a container.
        let may_have_account = scheme.starts_with("abfs");
        let may_have_port = scheme.starts_with("http");
        let has_user = bucket.contains('@') && !may_have_account;
        if has_user || (bucket.contains(':') && (!may_have_port || bucket.contains('@'))) {
            return Err(bad(
                "a URI must not hold a user or password, for it is printed and recorded; give them as \
                 options of storage, such as aws_access_key_id",
            ));
        }
        if key.contains('?') && (key.contains('=') || scheme.starts_with("http")) {
            return Err(bad(
                "a URI must not hold a query or signature, for it is printed and recorded; give them as \
                 options of storage, such as azure_storage_sas_key",
            ));
        }
        if bucket.is_empty() {
            return Err(bad("expected a bucket after ://"));
        }
        Ok(Self { scheme, bucket: bucket.to_owned(), key: key.to_owned() })
    }

    /// The URI of the whole bucket.
    pub fn root(&self) -> String {
        format!("{}://{}", self.scheme, self.bucket)
    }

    /// The URI of another object of the bucket.
    pub fn with_key(&self, key: &str) -> String {
        format!("{}/{key}", self.root())
    }
}

impl std::fmt::Display for Uri {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}://{}/{}", self.scheme, self.bucket, self.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_is_taken_apart_and_put_together_again() {
        let uri = Uri::parse("s3://bucket/a/b c.tar").unwrap();
        assert_eq!((uri.bucket.as_str(), uri.key.as_str()), ("bucket", "a/b c.tar"));
        assert_eq!(uri.to_string(), "s3://bucket/a/b c.tar");
        assert_eq!(Uri::parse("gs://bucket").unwrap().key, "");
        assert!(Uri::parse("abfss://box@account.dfs.core.windows.net/a").is_ok());
    }

    #[test]
    fn a_uri_with_secrets_is_refused_without_repeating_them() {
        for text in [
            "s3://key:hunter2@bucket/a",
            "s3://key:hunter2/x@bucket/a",
            "https://k:hunter2@h:1/a",
            "az://box/a?sv=1&sig=hunter2",
        ] {
            let said = Uri::parse(text).unwrap_err().to_string();
            assert!(!said.contains("hunter2"), "{said}");
            assert!(said.contains("options of storage"), "{said}");
        }
    }

    #[test]
    fn paths_and_files_are_not_remote() {
        assert!(!is_remote("/a/b.tar") && !is_remote("file:///a") && !is_remote("hf://data/x"));
        assert!(is_remote("S3://b/k") && is_remote("https://host/a.tar"));
        assert!(Uri::parse("ftp://host/a").is_err() && Uri::parse("s3:///a").is_err());
    }
}
