//! Taking samples down by their keys, and keeping them down when an index is built anew.

use std::path::Path;

use super::dropped::{self, Dropped};
use super::format::{FileEntry, KeyScope, Manifest, NO_SHARD, shard_stem, split_scoped};
use super::mapped::Index;
use crate::Result;

/// What dropping keys came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Samples removed now.
    pub num_dropped: u64,
    /// Samples that were removed before.
    pub num_known: u64,
    /// Keys that no sample has.
    pub unknown: Vec<String>,
}

/// Takes the samples with these keys down, in the index in `folder`.
///
/// Where keys begin anew in every shard, a key is `SHARD:KEY`, SHARD being the file's name without
/// `.tar`. The manifest is replaced last; readers that are open keep what they have.
pub fn drop_keys(folder: &Path, keys: &[String]) -> Result<Outcome> {
    let index = Index::open(folder, None)?;
    let mut outcome = Outcome::default();
    let mut rows = index.dropped().to_vec();
    for key in keys {
        let samples = find(&index, key)?;
        if samples.is_empty() {
            outcome.unknown.push(key.clone());
        }
        for sample in samples {
            if index.is_dropped(sample) {
                outcome.num_known += 1;
                continue;
            }
            let row = index.row(sample)?;
            let shard = index.shards().get(row.shard as usize).filter(|_| row.shard != NO_SHARD);
            let shard = shard.map_or(String::new(), |shard| shard.path.clone());
            rows.push(Dropped { sample, shard, key: row.key.to_owned() });
        }
    }
    rows.sort();
    rows.dedup();
    outcome.num_dropped = (rows.len() - index.dropped().len()) as u64;
    if outcome.num_dropped > 0 {
        // A new file beside the old one: readers that have the old manifest open need the old file
        // until the new manifest is there.
        let mut manifest = index.manifest().clone();
        let old = manifest.dropped.clone();
        let name = dropped::next_name("dropped", "arrow", old.as_ref());
        manifest.dropped = Some(dropped::write(folder, &name, &rows)?);
        manifest.counts.insert("samples_dropped".to_owned(), rows.len() as u64);
        manifest.write(folder)?;
        if let Some(old) = old {
            let _ = std::fs::remove_file(folder.join(old.file));
        }
    }
    Ok(outcome)
}

/// The samples that a line of a list of keys names.
fn find(index: &Index, key: &str) -> Result<Vec<u64>> {
    match index.manifest().key_scope {
        KeyScope::Global => index.find_all(key),
        KeyScope::Shard => {
            let (stem, key) = split_scoped(key)?;
            let mut found = index.find_all(key)?;
            let mut fault = None;
            found.retain(|&sample| match index.row(sample) {
                Ok(row) => {
                    let shard = index.shards().get(row.shard as usize);
                    shard.is_some_and(|shard| shard_stem(&shard.path) == stem)
                }
                Err(error) => {
                    fault = Some(error);
                    false
                }
            });
            fault.map_or(Ok(found), Err)
        }
    }
}

/// What was removed before an index was built anew, as far as its keys are there again.
pub(super) fn carry_over(
    folder: &Path,
    old: &[Dropped],
    fresh: &Index,
) -> Result<Option<FileEntry>> {
    let mut rows = Vec::new();
    for row in old {
        for sample in fresh.find_all(&row.key)? {
            let place = fresh.row(sample)?;
            let shard =
                fresh.shards().get(place.shard as usize).filter(|_| place.shard != NO_SHARD);
            let shard = shard.map_or("", |shard| shard.path.as_str());

            // Keys that begin anew in every shard are those of a sample only together with its
            // shard.
            let same = shard_stem(shard) == shard_stem(&row.shard);
            if fresh.manifest().key_scope == KeyScope::Global || same {
                rows.push(Dropped { sample, shard: shard.to_owned(), key: row.key.clone() });
            }
        }
    }
    rows.sort();
    rows.dedup();
    if rows.is_empty() {
        return Ok(None);
    }
    let name = dropped::next_name(
        "dropped",
        "arrow",
        Manifest::read(folder).ok().and_then(|m| m.dropped).as_ref(),
    );
    dropped::write(folder, &name, &rows).map(Some)
}
