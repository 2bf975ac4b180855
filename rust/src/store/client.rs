//! Clients of stores, made from options.
//!
//! The environment comes first (`AWS_*`, `GOOGLE_*`, `AZURE_*`, as the `object_store` crate reads it), our
//! own defaults next, the options last. One set of options may name several stores, so an option of
//! another store is passed over and one that no store knows is refused.

use std::collections::BTreeMap;
use std::str::FromStr;
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
    let set = Settings {
        defaults: [
            (ClientConfigKey::Timeout, timeout),
            (ClientConfigKey::PoolMaxIdlePerHost, MAX_IDLE.to_string()),
        ],
        options: &storage.inner.options,
    };
    // Every request is tried again by us, signed anew; one policy is enough.
    let retry = RetryConfig { max_retries: 0, ..RetryConfig::default() };

    // The environment first, then the options: what is given with the call replaces what was found.
    let made = match uri.scheme.as_str() {
        "s3" | "s3a" => {
            let builder = AmazonS3Builder::from_env().with_url(uri.root()).with_retry(retry);
            let with = |builder: AmazonS3Builder, key, value| builder.with_config(key, value);
            let builder = set.on(builder, AmazonS3ConfigKey::Client, with);
            let endpoint = builder.get_config_value(&AmazonS3ConfigKey::Endpoint);
            let builder = if is_plain(endpoint) { builder.with_allow_http(true) } else { builder };
            builder.build().map(Client::of)
        }
        "gs" => {
            let builder =
                GoogleCloudStorageBuilder::from_env().with_url(uri.root()).with_retry(retry);
            let with =
                |builder: GoogleCloudStorageBuilder, key, value| builder.with_config(key, value);
            set.on(builder, GoogleConfigKey::Client, with).build().map(Client::of)
        }
        "az" | "azure" | "adl" | "abfs" | "abfss" => {
            let builder = MicrosoftAzureBuilder::from_env().with_url(uri.root()).with_retry(retry);
            let with = |builder: MicrosoftAzureBuilder, key, value| builder.with_config(key, value);
            let builder = set.on(builder, AzureConfigKey::Client, with);
            let endpoint = builder.get_config_value(&AzureConfigKey::Endpoint);
            let builder = if is_plain(endpoint) { builder.with_allow_http(true) } else { builder };
            builder.build().map(Client::of)
        }
        "http" | "https" => {
            let client = ClientOptions::new().with_allow_http(uri.scheme == "http");
            let with = |client: ClientOptions, key, value| client.with_config(key, value);
            let builder = HttpBuilder::new()
                .with_url(uri.root())
                .with_client_options(set.on(client, |key| key, with))
                .with_retry(retry);
            builder.build().map(|store| Client { store: Arc::new(store), parts: None })
        }
        "memory" => Ok(Client::of(InMemory::new())),
        _ => return Err(Error::usage(format!("{uri}: a store of an unknown kind"))),
    };
    made.map_err(|error| super::fault::unusable(uri, &error))
}

/// A client's settings beside those of the environment.
struct Settings<'a> {
    defaults: [(ClientConfigKey, String); 2],
    options: &'a BTreeMap<String, String>,
}

impl Settings<'_> {
    /// Sets the defaults, then the options that are known as keys `K`, one after another by `with`.
    fn on<B, K: FromStr>(
        &self,
        builder: B,
        of_client: impl Fn(ClientConfigKey) -> K,
        with: impl Fn(B, K, String) -> B,
    ) -> B {
        let defaults = self.defaults.iter().map(|(key, value)| (of_client(*key), value));
        let options =
            self.options.iter().filter_map(|(name, value)| Some((name.parse().ok()?, value)));
        defaults
            .chain(options)
            .fold(builder, |builder, (key, value)| with(builder, key, value.clone()))
    }
}

/// Whether requests go without TLS: such an endpoint was named on purpose.
fn is_plain(endpoint: Option<String>) -> bool {
    endpoint.is_some_and(|url| url.starts_with("http://"))
}

/// Names the TLS implementation that clients take. Without it the first of them would panic, whatever
/// scheme it speaks; where somebody named one before, that one stays.
fn provide_tls() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}
