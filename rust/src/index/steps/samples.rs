//! Samples of a group of shards: how many are taken of each, and their keys parted by hash.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64;

use super::records::write_buckets;
use super::sections::{Sections, SectionsWriter, open_all};
use super::{About, ShardSamples, Taking};
use crate::Result;
use crate::index::format::Manifest;
use crate::index::format::join_key;
use crate::index::mapped::Index;
use crate::index::part::Part;
use crate::index::steps::scans::read_scans;
use crate::job::Job;
use crate::spill::Memory;
use crate::spill::partitions::{Partitions, partition_of, put, put_bytes};
use crate::store::Storage;

/// Writes the samples of scanned shards, whose names are `shards`, as `out`; their keys too where they
/// are `joined` with records. `job` advances by shards.
pub fn save_samples(
    scans: &Path,
    shards: &[String],
    taking: &Taking,
    joined: bool,
    memory: &Memory,
    out: &Path,
    job: &Job,
) -> Result<()> {
    let mut buckets = if joined { Some(Partitions::new(memory)?) } else { None };
    let (mut taken, mut counts) = (Vec::new(), BTreeMap::<String, u64>::new());
    let (mut highest_class, mut num_without_class) = (None, 0);
    let (mut number, mut scratch) = (0, Vec::new());
    for (scan, place) in read_scans(scans, shards.len())?.zip(0..) {
        // More scans than shards are an error of the reader.
        let (scan, shard) = (scan?, shards.get(place).map_or("", String::as_str));
        let before = number;
        for sample in 0..scan.len() {
            if sample % 65_536 == 0 {
                job.check()?;
            }

            // What is left out has no number: numbers are rows of the index.
            let key = join_key(taking.scoped(shard), scan.key(sample), &mut scratch);
            if taking.lists.leaves_out(key, &mut counts) {
                continue;
            }
            let class = scan.class(sample).last().copied();
            highest_class = highest_class.max(class);
            num_without_class += u64::from(class.is_none());
            if let Some(buckets) = &mut buckets {
                push(buckets, number, key)?;
            }
            number += 1;
        }
        for (cause, &number) in &scan.left_out {
            *counts.entry(cause.to_string()).or_insert(0) += number;
        }
        taken.push(ShardSamples {
            size: scan.summary.size,
            header_checksum: scan.summary.header_checksum,
            etag: scan.etag.clone(),
            num_samples: number - before,
        });
        job.advance(1);
    }

    // Who makes the parts needs the numbers of samples even where nothing is joined.
    let about = About::Samples { shards: taken, counts, highest_class, num_without_class };
    match buckets {
        Some(buckets) => write_buckets(buckets, &about, out, job),
        None => SectionsWriter::create(out)?.publish(&about),
    }
}

/// Writes the keys of the index in `folder`, which is appended to, as `out`.
pub fn save_known(
    folder: &Path,
    taking: &Taking,
    memory: &Memory,
    out: &Path,
    job: &Job,
) -> Result<()> {
    let shards = Index::open(folder, None)?.shards().to_vec();
    let (mut buckets, mut scratch) = (Partitions::new(memory)?, Vec::new());
    for entry in &Manifest::read(folder)?.parts {
        let part = Part::open(folder, entry)?;
        for row in 0..part.num_rows() {
            if row % 65_536 == 0 {
                job.check()?;
            }
            let found = part.row(row)?;
            let shard = shards.get(found.shard as usize).map_or("", |shard| shard.path.as_str());
            let key = join_key(taking.scoped(shard), found.key, &mut scratch);
            push(&mut buckets, 0, key)?;
        }
    }
    write_buckets(buckets, &About::Known {}, out, job)
}

fn push(buckets: &mut Partitions, number: u64, key: &[u8]) -> Result<()> {
    buckets.push(partition_of(xxh3_64(key)), |out| {
        put(out, number);
        put_bytes(out, key);
    })
}

/// Samples that are taken of each shard, for each file of samples; of a file of rows one number.
pub fn num_samples(places: &[PathBuf], storage: &Storage, job: &Job) -> Result<Vec<Vec<u64>>> {
    let files = open_all(places, storage, job)?;
    let of_file = |file: &Sections| match &file.about {
        About::Samples { shards, .. } => Ok(shards.iter().map(|one| one.num_samples).collect()),
        About::Rows { num_rows, .. } => Ok(vec![*num_rows]),
        _ => Err(file.damaged("it holds no samples")),
    };
    files.iter().map(of_file).collect()
}
