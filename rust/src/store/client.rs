//! Clients of stores, made from options.
//!
//! The environment comes first (`AWS_*`, `GOOGLE_*`, `AZURE_*`, as the `object_store` crate reads it), our
//! own defaults next, the options last. One set of options may name several stores, so an option of
//! another store is passed over and one that no store knows is refused.

use std::collections::BTreeMap;
use std::sync::Arc;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::http::HttpBuilder;
use object_store::memory::InMemory;
use object_store::{ClientConfigKey, ClientOptions, RetryConfig};
use xxhash_rust::xxh3::Xxh3;

use super::process::{Client, Process};
use super::{Storage, Uri};
use crate::{Error, Result};

/// Connections kept for the next request.
const MAX_IDLE: usize = 128;

/// The client of the bucket of `uri`, which is kept for the next call.
pub(super) fn client(storage: &Storage, uri: &Uri) -> Result<Arc<Client>> {
    let mut hasher = Xxh3::new();
    for (name, value) in &storage.inner.options {
        hasher.update(format!("{} {name} {} {value}", name.len(), value.len()).as_bytes());
    }
    hasher.update(&storage.limits().timeout_s.to_le_bytes());
    let key = (uri.root(), hasher.digest128());
    Process::here()?.client(key, || Ok(Arc::new(make(storage, uri)?)))
}

/// Whether some store knows each option.
pub(super) fn check_options(options: &BTreeMap<String, String>) -> Result<()> {
    for name in options.keys() {
        let known = name.parse::<AmazonS3ConfigKey>().is_ok()
            || name.parse::<GoogleConfigKey>().is_ok()
            || name.parse::<AzureConfigKey>().is_ok()
            || name.parse::<ClientConfigKey>().is_ok();
        if !known {
            return Err(Error::usage(format!(
                "storage: no store knows the option {name:?}; expected a name such as \
                 aws_access_key_id, aws_region, aws_endpoint_url, aws_skip_signature, \
                 google_service_account, azure_storage_account_name or proxy_url"
            )));
        }
    }
    Ok(())
}

fn make(storage: &Storage, uri: &Uri) -> Result<Client> {
    provide_tls();
    let timeout = format!("{}ms", (storage.limits().timeout_s * 1e3).ceil());
    let options = &storage.inner.options;
    // Every request is tried again by us, signed anew; one policy is enough.
    let retry = RetryConfig { max_retries: 0, ..RetryConfig::default() };
    let defaults = [
        (ClientConfigKey::Timeout, timeout),
        (ClientConfigKey::PoolMaxIdlePerHost, MAX_IDLE.to_string()),
    ];
    let made = match uri.scheme.as_str() {
        "s3" | "s3a" => {
            let mut builder = AmazonS3Builder::from_env().with_url(uri.root()).with_retry(retry);
            for (key, value) in defaults {
                builder = builder.with_config(AmazonS3ConfigKey::Client(key), value);
            }
            for (name, value) in options {
                if let Ok(key) = name.parse() {
                    builder = builder.with_config(key, value);
                }
            }
            let endpoint = builder.get_config_value(&AmazonS3ConfigKey::Endpoint);
            // An endpoint without TLS was named on purpose.
            if endpoint.is_some_and(|url| url.starts_with("http://")) {
                builder = builder.with_allow_http(true);
            }
            builder.build().map(Client::of)
        }
        "gs" => {
            let mut builder =
                GoogleCloudStorageBuilder::from_env().with_url(uri.root()).with_retry(retry);
            for (key, value) in defaults {
                builder = builder.with_config(GoogleConfigKey::Client(key), value);
            }
            for (name, value) in options {
                if let Ok(key) = name.parse() {
                    builder = builder.with_config(key, value);
                }
            }
            builder.build().map(Client::of)
        }
        "az" | "azure" | "adl" | "abfs" | "abfss" => {
            let mut builder =
                MicrosoftAzureBuilder::from_env().with_url(uri.root()).with_retry(retry);
            for (key, value) in defaults {
                builder = builder.with_config(AzureConfigKey::Client(key), value);
            }
            for (name, value) in options {
                if let Ok(key) = name.parse() {
                    builder = builder.with_config(key, value);
                }
            }
            let endpoint = builder.get_config_value(&AzureConfigKey::Endpoint);
            if endpoint.is_some_and(|url| url.starts_with("http://")) {
                builder = builder.with_allow_http(true);
            }
            builder.build().map(Client::of)
        }
        "http" | "https" => {
            let mut client = ClientOptions::new().with_allow_http(uri.scheme == "http");
            for (key, value) in defaults {
                client = client.with_config(key, value);
            }
            for (name, value) in options {
                if let Ok(key) = name.parse() {
                    client = client.with_config(key, value);
                }
            }
            let builder = HttpBuilder::new()
                .with_url(uri.root())
                .with_client_options(client)
                .with_retry(retry);
            builder.build().map(|store| Client { store: Arc::new(store), parts: None })
        }
        "memory" => Ok(Client::of(InMemory::new())),
        _ => return Err(Error::usage(format!("{uri}: a store of an unknown kind"))),
    };
    made.map_err(|error| super::fault::unusable(uri, &error))
}

/// Names the TLS implementation that clients take. Without it the first of them would panic, whatever
/// scheme it speaks; where somebody named one before, that one stays.
fn provide_tls() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}
