//! An index, built, read, altered and taken down, beside a plain list of its samples.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch, StringArray};
use proptest::prelude::*;
use wsl_core::index::drop::drop_keys;
use wsl_core::index::format::{KeyScope, LabelKind, Manifest};
use wsl_core::index::{BuildOptions, Builder, Columns, Index, LabelSource};
use wsl_core::job::Job;
use wsl_core::spill::Memory;
use wsl_core::store::Storage;
use wsl_core::vocabulary::Vocabulary;
use wsl_core::{Error, Result};

use crate::count::{counted, options};
use crate::shard::member;

/// A sample by the plain twin: its key, its image and its labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    pub key: String,
    pub image: Vec<u8>,
    pub labels: Vec<u32>,
}

/// Shards of samples, and what a build makes of them.
pub struct Laid {
    pub folder: PathBuf,
    pub shards: Vec<Vec<Sample>>,
    pub part_rows: usize,
    pub memory: Memory,
    job: Job,
}

/// The tags of labels, and one that the vocabulary lacks.
fn vocabulary() -> Vocabulary {
    // Labels go by descending count.
    let tags = ["#t0 #t1 #t2 #t3", "#t0 #t1 #t2", "#t0 #t1", "#t0"];
    Vocabulary::from_counts(&mut counted(&tags), 1, None).unwrap()
}

pub fn image_of(number: usize) -> Vec<u8> {
    (0..number * 97 % 1500).map(|at| (at * 31 + number) as u8).collect()
}

/// `lengths` samples a shard, numbered through.
pub fn samples(lengths: &[usize]) -> Vec<Vec<Sample>> {
    let mut number = 0;
    let mut next = || {
        number += 1;
        let labels = (0..4).filter(|label| number >> label & 1 == 1).collect();
        Sample { key: format!("k{number}"), image: image_of(number), labels }
    };
    lengths.iter().map(|&length| (0..length).map(|_| next()).collect()).collect()
}

impl Laid {
    pub fn new(folder: &Path, shards: Vec<Vec<Sample>>) -> Self {
        for (number, samples) in shards.iter().enumerate() {
            let mut bytes = Vec::new();
            for sample in samples {
                bytes.extend(member(format!("{}.jpg", sample.key).as_bytes(), b'0', &sample.image));
            }
            bytes.resize(bytes.len() + 1024, 0);
            fs::write(folder.join(format!("{number}.tar")), bytes).unwrap();
        }
        let (folder, memory) = (folder.to_path_buf(), Memory::unlimited());
        Self { folder, shards, part_rows: 5, memory, job: Job::new() }
    }

    pub fn index(&self) -> PathBuf {
        self.folder.join("index")
    }

    fn records(&self) -> RecordBatch {
        let text = |text: &dyn Fn(&Sample) -> String| -> ArrayRef {
            Arc::new(StringArray::from_iter_values(self.shards.iter().flatten().map(text)))
        };
        let tags = |sample: &Sample| {
            let known = sample.labels.iter().map(|label| format!("#t{label}"));
            known.chain(["#unknown".to_owned()]).collect::<Vec<_>>().join(" ")
        };
        let keys = text(&|sample| sample.key.clone());
        RecordBatch::try_from_iter([("key", keys), ("hashtags", text(&tags))]).unwrap()
    }

    /// A build of the first shards; it goes on with one that was killed.
    pub fn build(&self, num_shards: usize, append: bool) -> Result<Manifest> {
        let options_of_build = BuildOptions {
            labels: LabelSource::Records,
            key_scope: KeyScope::Global,
            num_threads: Some(1),
            include: None,
            exclude: Vec::new(),
            limits: BTreeMap::from([("records_without_sample".to_owned(), 1.0)]),
            memory: self.memory.clone(),
            part_rows: self.part_rows,
            resume_key: Some(format!("{num_shards} shards")),
            append,
            storage: Storage::default(),
        };
        let mut builder = Builder::new(self.index(), options_of_build)?;
        let (columns, labels) = (columns(), vocabulary());
        builder.add_records(
            [Ok(self.records())],
            &columns,
            &options(1),
            &labels,
            true,
            &self.job,
        )?;
        let names = (0..num_shards).map(|number| format!("{number}.tar"));
        let paths: Vec<_> = names.map(|name| (self.folder.join(&name), name)).collect();
        let begun = if append { Index::open(self.index(), None)?.shards().len() } else { 0 };
        builder.add_shards(&paths[begun..], &self.job)?;
        let staged = "building.parquet";
        fs::write(self.index().join(staged), b"labels").unwrap();
        let kind = Some(LabelKind::Hashtag);
        builder.publish(Some((&labels, staged)), kind, "..", serde_json::Value::Null, &self.job)
    }
}

fn columns() -> Columns {
    Columns { key: "key".into(), shard: None, key_format: None }
}

/// The images of some samples, in the order asked for; nothing for one that was taken down.
fn read(index: &Index, ordinals: &[u64], num_threads: usize) -> Result<Vec<Vec<u8>>> {
    let mut images = vec![Vec::new(); ordinals.len()];
    let mut fetch = index.fetch(ordinals, num_threads)?;
    while let Some(chunk) = fetch.next_chunk(&Job::new())? {
        chunk.images().for_each(|(place, image)| images[place] = image.to_vec());
    }
    Ok(images)
}

/// All samples of an index, as the plain twin has them.
pub fn content(index: &Index) -> Result<Vec<Sample>> {
    let ordinals: Vec<u64> = (0..index.num_samples()).collect();
    let images = read(index, &ordinals, 1)?;
    let sample = |(&ordinal, image): (&u64, Vec<u8>)| {
        let key = index.row(ordinal)?.key.to_owned();
        Ok(Sample { key, image, labels: index.labels(ordinal)?.collect() })
    };
    ordinals.iter().zip(images).map(sample).collect()
}

/// Names and bytes of the files of a folder.
pub fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let content = |entry: fs::DirEntry| {
        (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())
    };
    entries.map(content).collect()
}

fn laid(lengths: &[usize]) -> (tempfile::TempDir, Laid) {
    let folder = tempfile::tempdir().unwrap();
    let laid = Laid::new(folder.path(), samples(lengths));
    (folder, laid)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn an_index_answers_like_a_plain_list_of_samples(
        lengths in prop::collection::vec(0..9_usize, 1..5),
        part_rows in 1..9_usize,
        asked in prop::collection::vec(any::<prop::sample::Index>(), 0..60),
        num_threads in 1..4_usize,
    ) {
        prop_assume!(lengths.iter().sum::<usize>() > 0);
        let (_folder, mut laid) = laid(&lengths);
        laid.part_rows = part_rows;
        laid.build(lengths.len(), false).unwrap();
        let expected: Vec<Sample> = laid.shards.concat();
        let index = Index::open(laid.index(), None).unwrap();
        prop_assert_eq!(content(&index).unwrap(), expected.clone());
        index.verify(&Job::new()).unwrap();
        let ordinals: Vec<u64> =
            asked.iter().map(|one| one.index(expected.len()) as u64).collect();
        let wanted: Vec<_> = ordinals.iter().map(|&one| expected[one as usize].image.clone()).collect();
        prop_assert_eq!(read(&index, &ordinals, num_threads).unwrap(), wanted);
        for (ordinal, sample) in expected.iter().enumerate() {
            prop_assert_eq!(index.find(&sample.key).unwrap(), Some(ordinal as u64));
        }
        prop_assert_eq!(index.find("k0").unwrap(), None);
        let of = |label| expected.iter().filter(|sample| sample.labels.contains(&label)).count();
        let counts: Vec<u64> = (0..4).map(|label| of(label) as u64).collect();
        prop_assert_eq!(index.label_counts(&Job::new()).unwrap(), &counts[..]);
    }
}

#[test]
fn shards_are_appended_and_the_index_is_that_of_all_of_them() {
    let (_folder, laid) = laid(&[7, 4, 6]);
    laid.build(1, false).unwrap();
    let before = Index::open(laid.index(), None).unwrap();
    laid.build(3, true).unwrap();
    let index = Index::open(laid.index(), None).unwrap();
    index.verify(&Job::new()).unwrap();
    assert_eq!(content(&index).unwrap(), laid.shards.concat());
    assert_eq!(content(&before).unwrap(), laid.shards[0], "who has the old index open keeps it");
}

#[test]
fn a_dropped_sample_keeps_its_ordinal_and_stays_dropped_when_the_index_is_built_anew() {
    let (_folder, laid) = laid(&[7, 4]);
    laid.build(2, false).unwrap();
    let keys = ["k3", "k11", "nobody"].map(str::to_owned);
    let outcome = drop_keys(&laid.index(), &keys).unwrap();
    assert_eq!((outcome.num_dropped, outcome.num_known), (2, 0));
    assert_eq!(outcome.unknown, ["nobody"]);
    assert_eq!(drop_keys(&laid.index(), &keys[..1]).unwrap().num_known, 1);
    let mut expected = laid.shards.concat();
    for ordinal in [2, 10] {
        (expected[ordinal].image, expected[ordinal].labels) = (Vec::new(), Vec::new());
    }
    for _ in 0..2 {
        let index = Index::open(laid.index(), None).unwrap();
        index.verify(&Job::new()).unwrap();
        assert_eq!(content(&index).unwrap(), expected);
        assert_eq!(index.dropped().iter().map(|row| row.sample).collect::<Vec<_>>(), [2, 10]);
        laid.build(2, false).unwrap();
    }
}

/// An error that names the file.
fn assert_names(error: &Error, name: &str) {
    assert!(error.to_string().contains(name), "{name} is not named: {error}");
}

#[test]
fn a_changed_byte_of_any_file_of_the_index_is_found_and_the_file_is_named() {
    let (_folder, laid) = laid(&[7, 4]);
    laid.build(2, false).unwrap();
    drop_keys(&laid.index(), &["k3".to_owned()]).unwrap();
    let verified = || Index::open(laid.index(), None)?.verify(&Job::new());
    verified().unwrap();
    for (name, whole) in
        files(&laid.index()).into_iter().filter(|(name, _)| name != "manifest.json")
    {
        let path = laid.index().join(&name);
        for place in (0..whole.len()).step_by(whole.len().div_ceil(60)) {
            let mut bytes = whole.clone();
            bytes[place] ^= 1 << (place % 8);
            fs::write(&path, bytes).unwrap();
            assert_names(&verified().expect_err(&format!("{name}, byte {place}")), &name);
        }
        fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        assert_names(&verified().unwrap_err(), &name);
        fs::write(&path, whole).unwrap();
    }
    verified().unwrap();
}

#[test]
fn a_changed_manifest_is_refused_or_another_words_of_the_same() {
    let (_folder, laid) = laid(&[3]);
    laid.build(1, false).unwrap();
    let path = laid.index().join("manifest.json");
    let whole = fs::read(&path).unwrap();
    for place in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[place] ^= 1;
        fs::write(&path, bytes).unwrap();
        // Never a panic; what is refused says where, and what is taken has the same samples.
        match Index::open(laid.index(), None).and_then(|index| content(&index)) {
            Ok(found) => assert_eq!(found, laid.shards.concat(), "byte {place}"),
            Err(error) => assert!(error.to_string().contains("index"), "{error}"),
        }
    }
}

#[test]
fn a_shard_that_is_cut_or_replaced_is_an_error_that_names_it_and_its_sample() {
    let (_folder, laid) = laid(&[7, 4]);
    laid.build(2, false).unwrap();
    let path = laid.folder.join("1.tar");
    let whole = fs::read(&path).unwrap();
    let verified = || Index::open(laid.index(), None)?.verify(&Job::new());
    let last = laid.shards[1].last().unwrap();
    let cut = whole.len() - 1024 - last.image.len().next_multiple_of(512);
    fs::write(&path, &whole[..cut + 1]).unwrap();
    let index = Index::open(laid.index(), None).unwrap();
    let error = read(&index, &[9, 10], 1).unwrap_err();
    assert_names(&error, "1.tar: sample 10 (\"k11\")");
    assert_eq!(read(&index, &[9], 1).unwrap(), [laid.shards[1][2].image.clone()]);
    assert_names(&verified().unwrap_err(), "1.tar");
    let mut replaced = whole.clone();
    replaced[..5].copy_from_slice(b"other");
    fs::write(&path, &replaced).unwrap();
    assert_names(&read(&index, &[7], 1).unwrap_err(), "another member stands there");
    assert_names(&verified().unwrap_err(), "1.tar");
    fs::remove_file(&path).unwrap();
    let index = Index::open(laid.index(), None).unwrap();
    assert_names(&read(&index, &[7], 1).unwrap_err(), "1.tar is not there");
    assert_names(&verified().unwrap_err(), "1.tar");
    fs::write(&path, &whole).unwrap();
    verified().unwrap();
}

#[test]
fn records_by_themselves_have_labels_and_no_image() {
    let (_folder, laid) = laid(&[5]);
    let job = Job::new();
    let build = BuildOptions {
        labels: LabelSource::Records,
        key_scope: KeyScope::Global,
        num_threads: Some(1),
        include: None,
        exclude: Vec::new(),
        limits: BTreeMap::new(),
        memory: Memory::unlimited(),
        part_rows: 2,
        resume_key: None,
        append: false,
        storage: Storage::default(),
    };
    let mut builder = Builder::new(laid.index(), build).unwrap();
    let labels = vocabulary();
    builder.index_records([Ok(laid.records())], &columns(), &options(1), &labels, &job).unwrap();
    fs::write(laid.index().join("staged"), b"labels").unwrap();
    let kind = Some(LabelKind::Hashtag);
    builder.publish(Some((&labels, "staged")), kind, "..", serde_json::Value::Null, &job).unwrap();
    let index = Index::open(laid.index(), None).unwrap();
    index.verify(&job).unwrap();
    for (ordinal, sample) in laid.shards.concat().iter().enumerate() {
        assert_eq!(index.row(ordinal as u64).unwrap().key, sample.key);
        let labels: Vec<u32> = index.labels(ordinal as u64).unwrap().collect();
        assert_eq!(labels, sample.labels);
    }
    assert_names(&read(&index, &[3], 1).unwrap_err(), "has no image");
}
