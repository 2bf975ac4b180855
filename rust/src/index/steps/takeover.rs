//! Parts and counts of many processes, taken over by the one that publishes the index.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::Xxh3;

use super::sections::open_all;
use super::{About, Inputs, ShardSamples};
use crate::index::format::{FileEntry, NO_SHARD};
use crate::index::images::shards::Shard;
use crate::index::part::Part;
use crate::index::write::{Builder, LabelSource};
use crate::job::Job;
use crate::publish::{self, Unpublished};
use crate::{Error, Result};

/// Bytes that are read at a time.
const STEP: usize = 1 << 20;

impl Builder {
    /// Takes over what was counted while parts were made: of the files that were joined, and of the
    /// labels that came out. `names` is what the index calls the shards, in their order; `again` as in
    /// [`add_records`](Self::add_records).
    pub fn add_spread(
        &mut self,
        inputs: &Inputs,
        labels: &[PathBuf],
        names: &[String],
        again: bool,
        job: &Job,
    ) -> Result<()> {
        self.check_names(names.iter().map(String::as_str))?;
        self.add_joined(&[&inputs.records, labels].concat(), again, job)?;

        // The order of files and names is that of the shards, by which their samples were numbered.
        let mut names = names.iter();
        for file in open_all(&inputs.samples, &self.options.storage, job)? {
            let About::Samples { shards, counts, highest_class, num_without_class } = file.about
            else {
                return Err(file.damaged("it holds no samples"));
            };
            self.add_counts(&counts);
            let number: u64 = shards.iter().map(|shard| shard.num_samples).sum();
            for shard in shards {
                let name = names.next().ok_or_else(|| {
                    Error::usage("there are more shards in the files than were named")
                })?;
                self.push_shard(name, shard)?;
            }

            // With labels of records the join has counted these already.
            let without = |number| BTreeMap::from([("samples_without_labels".to_owned(), number)]);
            match self.options.labels {
                LabelSource::Records => (),
                LabelSource::None => self.add_counts(&without(number)),
                LabelSource::Members => {
                    self.add_counts(&without(num_without_class));
                    self.highest_class = self.highest_class.max(highest_class);
                }
            }
        }
        match names.next() {
            Some(name) => Err(Error::usage(format!("the shard {name} was not scanned"))),
            None => Ok(()),
        }
    }

    fn add_joined(&mut self, places: &[PathBuf], again: bool, job: &Job) -> Result<()> {
        let mut fresh: BTreeMap<String, u64> = BTreeMap::new();
        let mut add = |name: &str, number| *fresh.entry(name.to_owned()).or_insert(0) += number;
        for file in open_all(places, &self.options.storage, job)? {
            match file.about {
                About::Records { counts } => {
                    counts.iter().for_each(|(name, &number)| add(name, number));
                }
                About::Labels {
                    num_doubled,
                    num_unused,
                    unused_key,
                    num_without_record,
                    num_without_labels,
                } => {
                    add("records_doubled", num_doubled);
                    add("records_without_sample", num_unused);
                    self.add_counts(&BTreeMap::from([
                        ("samples_without_record".to_owned(), num_without_record),
                        ("samples_without_labels".to_owned(), num_without_labels),
                    ]));
                    self.unused_key = self.unused_key.take().or(unused_key);
                }
                _ => return Err(file.damaged("it holds neither records nor labels")),
            }
        }

        // Records that are all of the index's again replace its earlier counts; new ones are added
        // to them.
        self.set_counts(fresh, again);
        Ok(())
    }

    /// The same of records that are an index by themselves; `places` are their rows.
    pub fn add_rows(&mut self, places: &[PathBuf], job: &Job) -> Result<()> {
        let (mut all, mut unknown) = (0, 0);
        for file in open_all(places, &self.options.storage, job)? {
            let About::Rows { num_records, num_unknown, num_rows, num_without_labels, counts } =
                file.about
            else {
                return Err(file.damaged("it holds no rows"));
            };
            self.add_counts(&counts);
            let without = ("samples_without_labels".to_owned(), num_without_labels);
            self.add_counts(&BTreeMap::from([without]));
            self.num_samples += num_rows;
            all += num_records;
            unknown += num_unknown;
        }
        self.note_records(all, unknown);
        Ok(())
    }

    /// Adds counts; what was never found is not named.
    fn add_counts(&mut self, counts: &BTreeMap<String, u64>) {
        for (name, &number) in counts.iter().filter(|(_, number)| **number > 0) {
            *self.count(name) += number;
        }
    }

    fn push_shard(&mut self, name: &str, shard: ShardSamples) -> Result<()> {
        if self.shards.len() >= NO_SHARD as usize {
            return Err(Error::usage("an index holds at most 4,294,967,294 shards"));
        }
        let ShardSamples { size, header_checksum, etag, num_samples } = shard;
        let first_sample = self.num_samples;
        let path = name.to_owned();
        self.shards.push(Shard { path, size, header_checksum, first_sample, num_samples, etag });
        self.num_samples += num_samples;
        Ok(())
    }

    /// Takes over the next part, a file of `num_rows` that stays where it is: it gets a second name in the
    /// folder of the index where the file system can do that, and is copied where not. `job` advances by
    /// rows.
    pub fn add_part(&mut self, path: &Path, num_rows: u64, job: &Job) -> Result<()> {
        let name = format!("part-{:05}.arrow", self.next_number);
        let target = self.folder.join(&name);
        link_or_copy(path, &target, job)?;
        let (size, checksum) = checksum_of(&target, job)?;
        let entry = FileEntry { file: name, num_rows, size, checksum };
        Part::open(&self.folder, &entry)?;
        self.next_number += 1;
        self.parts.push(entry);
        job.advance(num_rows);
        Ok(())
    }
}

fn link_or_copy(path: &Path, target: &Path, job: &Job) -> Result<()> {
    match fs::remove_file(target) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(Error::io(target, error));
        }
        _ => (),
    }
    if fs::hard_link(path, target).is_ok() {
        return publish::sync_folder_of(target);
    }
    let mut copy = Unpublished::create(target)?;
    each_piece(path, job, |bytes| copy.write_all(bytes).map_err(|error| Error::io(target, error)))?;
    copy.publish()
}

/// Size and checksum of a file, as the manifest has them.
fn checksum_of(path: &Path, job: &Job) -> Result<(u64, String)> {
    let (mut hasher, mut size) = (Xxh3::new(), 0);
    each_piece(path, job, |bytes| {
        hasher.update(bytes);
        size += bytes.len() as u64;
        Ok(())
    })?;
    Ok((size, format!("{:032x}", hasher.digest128())))
}

fn each_piece(path: &Path, job: &Job, mut take: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let fault = |error| Error::io(path, error);
    let mut file = File::open(path).map_err(fault)?;
    let mut bytes = vec![0; STEP];
    loop {
        job.check()?;
        match file.read(&mut bytes).map_err(fault)? {
            0 => return Ok(()),
            length => take(&bytes[..length])?,
        }
    }
}
