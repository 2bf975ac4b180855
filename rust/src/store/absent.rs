//! The verbs of stores where they are not built in: each is an error.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use super::{Object, Span, Storage, Uri};
use crate::job::Job;
use crate::{Error, Result};

fn absent(uri: impl std::fmt::Display) -> Error {
    Error::usage(format!(
        "{uri}: this wsl was built without object stores; build it with the Cargo feature 'cloud' \
         (maturin's features = [\"python\", \"cloud\"]), or copy the data to local files"
    ))
}

pub(super) fn check_options(_: &BTreeMap<String, String>) -> Result<()> {
    Ok(())
}

pub(super) fn head(_: &Storage, uri: &Uri, _: &Job) -> Result<Option<Object>> {
    Err(absent(uri))
}

pub(super) fn missing(_: &Storage, uri: &Uri, _: &Job) -> Error {
    absent(uri)
}

pub(super) fn list(_: &Storage, uri: &Uri, _: bool, _: &Job) -> Result<Vec<Object>> {
    Err(absent(uri))
}

pub(super) fn read_start(_: &Storage, uri: &Uri, _: u64, _: &Job) -> Result<(Vec<u8>, Object)> {
    Err(absent(uri))
}

pub(super) fn read_spans(
    _: &Storage,
    spans: Vec<Span>,
    _: &Job,
    _: impl FnMut(usize, &[u8]) -> Result<()>,
) -> Result<()> {
    spans.first().map_or(Ok(()), |span| Err(absent(&span.uri)))
}

pub(super) fn write(_: &Storage, uri: &Uri, _: Vec<u8>, _: &Job) -> Result<()> {
    Err(absent(uri))
}

pub(super) fn delete(_: &Storage, uri: &Uri, _: &Job) -> Result<()> {
    Err(absent(uri))
}

pub(super) fn upload(_: &Storage, uri: &Uri, _: (&Path, File, u64), _: &Job) -> Result<()> {
    Err(absent(uri))
}
