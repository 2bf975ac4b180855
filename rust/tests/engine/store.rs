//! Object stores, with one in memory: what is written is read, and nothing is mixed.

use std::collections::BTreeMap;

use wsl_core::Error;
use wsl_core::job::Job;
use wsl_core::store::{Limits, Span, Storage};

fn storage(limits: Limits) -> Storage {
    Storage::new(BTreeMap::new(), limits, None).unwrap()
}

fn noise(length: usize, seed: u64) -> Vec<u8> {
    let byte = |at: usize| (at as u64 ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()[5];
    (0..length).map(byte).collect()
}

#[test]
fn an_object_is_read_whole_in_ranges_and_from_its_start() {
    let storage = storage(Limits { request_bytes: 1 << 16, ..Limits::default() });
    let (job, uri) = (Job::new(), "memory://ranges/a/b.bin");
    let content = noise(300_000, 1);
    storage.write(uri, content.clone(), &job).unwrap();
    let (read, object) = storage.read(uri, &job).unwrap();
    assert!(read == content && object.size == 300_000);
    let (start, same) = storage.read_start(uri, 1000, &job).unwrap();
    assert!(start == content[..1000] && same == object);
    let ends = [(0, 1), (5, 5), (299_999, 300_000), (10, 200_000)];
    let spans: Vec<Span> = ends
        .iter()
        .map(|&(start, end)| Span {
            uri: uri.into(),
            range: start..end,
            etag: Some(object.etag.as_str().into()),
        })
        .collect();
    let mut found = vec![Vec::new(); spans.len()];
    let take = |number: usize, bytes: &[u8]| {
        found[number] = bytes.to_vec();
        Ok(())
    };
    storage.read_spans(spans, &job, take).unwrap();
    for (found, (start, end)) in found.iter().zip(ends) {
        assert!(found == &content[start as usize..end as usize]);
    }
}

#[test]
fn an_object_that_was_replaced_or_cut_is_an_error() {
    let storage = storage(Limits::default());
    let (job, uri) = (Job::new(), "memory://replaced/a");
    storage.write(uri, noise(100, 1), &job).unwrap();
    let old = storage.head(uri, &job).unwrap().unwrap();
    storage.write(uri, noise(50, 2), &job).unwrap();
    let span =
        |range, etag: Option<&str>| Span { uri: uri.into(), range, etag: etag.map(Into::into) };
    for wanted in [span(0..10, Some(&old.etag)), span(0..60, None), span(60..80, None)] {
        let said = storage.read_span(wanted, &job).unwrap_err();
        assert!(matches!(said, Error::Data(_)), "{said}");
        assert!(said.to_string().contains("was replaced"), "{said}");
    }
}

#[test]
fn what_is_not_there_is_none_or_an_error_that_says_so() {
    let storage = storage(Limits::default());
    let job = Job::new();
    assert!(storage.head("memory://none/a", &job).unwrap().is_none());
    assert!(storage.list("memory://none/a", true, &job).unwrap().is_empty());
    storage.delete("memory://none/a", &job).unwrap();
    let said = storage.read("memory://none/a", &job).unwrap_err();
    assert!(matches!(said, Error::Store { errno: 2, .. }), "{said}");
}

#[test]
fn a_job_that_is_cancelled_stops_and_options_that_nobody_knows_are_refused() {
    let storage = storage(Limits { retry_s: 60.0, ..Limits::default() });
    let job = Job::new();
    job.cancel();
    // Nothing answers at this address for as long as it is tried.
    let said = storage.head("http://127.0.0.1:9/a", &job).unwrap_err();
    assert!(matches!(said, Error::Cancelled), "{said}");
    let unknown = BTreeMap::from([("aws_regin".to_owned(), "hunter2".to_owned())]);
    let said = Storage::new(unknown, Limits::default(), None).unwrap_err().to_string();
    assert!(said.contains("aws_regin") && !said.contains("hunter2"), "{said}");
    let known = BTreeMap::from([("aws_secret_access_key".to_owned(), "hunter2".to_owned())]);
    let shown = format!("{:?}", Storage::new(known, Limits::default(), None).unwrap());
    assert!(shown.contains("aws_secret_access_key") && !shown.contains("hunter2"), "{shown}");
}

#[test]
fn an_https_address_without_a_server_is_an_error_and_no_panic() {
    let storage = storage(Limits { retry_s: 0.0, ..Limits::default() });
    let said = storage.read("https://127.0.0.1:9/a", &Job::new()).unwrap_err();
    assert!(said.to_string().contains("cannot be reached"), "{said}");
}
