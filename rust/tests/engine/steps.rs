//! An index that many processes make: the bytes of one, however the work is parted.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch, StringArray};
use proptest::prelude::*;
use wsl_core::index::format::{KeyScope, LabelKind};
use wsl_core::index::steps::{
    Inputs, NUM_BUCKETS, PartGroup, Taking, join, num_samples, save_records, save_samples,
    write_part,
};
use wsl_core::index::{BuildOptions, Builder, Columns, LabelSource, save_scans};
use wsl_core::job::Job;
use wsl_core::spill::Memory;
use wsl_core::store::Storage;
use wsl_core::vocabulary::Vocabulary;
use wsl_core::{Error, Result};

use crate::count::{counted, options};
use crate::shard::member;

/// A shard, a key in it, and hashtags.
type Record = (usize, usize, Vec<u8>);

/// Shards of keys and tables of records, and how the work is parted.
#[derive(Debug, Clone)]
struct World {
    is_scoped: bool,
    shards: Vec<Vec<usize>>,
    tables: Vec<Vec<Record>>,
    exclude: Vec<(usize, usize)>,
    part_rows: usize,
    shards_together: usize,
    tables_together: usize,
    /// Buckets where a join ends.
    cuts: Vec<usize>,
}

fn worlds() -> impl Strategy<Value = World> {
    let keys = prop::collection::vec(0..40_usize, 0..9);
    let record = (0..5_usize, 0..40_usize, prop::collection::vec(0..9_u8, 0..4));
    let content = (
        any::<bool>(),
        prop::collection::vec(keys, 1..6),
        prop::collection::vec(prop::collection::vec(record, 1..12), 1..6),
        prop::collection::vec((0..5_usize, 0..40_usize), 0..5),
    );
    let parted = (1..9_usize, 1..4_usize, 1..4_usize, prop::collection::vec(1..NUM_BUCKETS, 0..5));
    (content, parted).prop_map(|((is_scoped, shards, tables, exclude), parted)| {
        let (part_rows, shards_together, tables_together, mut cuts) = parted;
        cuts.extend([0, NUM_BUCKETS]);
        cuts.sort_unstable();
        cuts.dedup();
        World {
            is_scoped,
            shards,
            tables,
            exclude,
            part_rows,
            shards_together,
            tables_together,
            cuts,
        }
    })
}

/// A table of records as a batch.
fn batch(records: &[Record]) -> std::result::Result<RecordBatch, arrow_schema::ArrowError> {
    let text = |text: &dyn Fn(&Record) -> String| -> ArrayRef {
        Arc::new(StringArray::from(records.iter().map(text).collect::<Vec<_>>()))
    };
    let tags = |record: &Record| {
        record.2.iter().map(|tag| format!("#t{tag}")).collect::<Vec<_>>().join(" ")
    };
    RecordBatch::try_from_iter([
        ("key", text(&|record| format!("k{}", record.1))),
        ("of", text(&|record| format!("s{}.tar", record.0))),
        ("hashtags", text(&tags)),
    ])
}

/// A world in a folder.
struct Laid {
    world: World,
    folder: tempfile::TempDir,
    shards: Vec<PathBuf>,
    names: Vec<String>,
    vocabulary: Vocabulary,
    job: Job,
}

impl Laid {
    fn new(world: &World) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let names: Vec<_> =
            (0..world.shards.len()).map(|number| format!("s{number}.tar")).collect();
        for (name, keys) in names.iter().zip(&world.shards) {
            let mut bytes = Vec::new();
            for key in keys {
                bytes.extend(member(format!("k{key}.jpg").as_bytes(), b'0', &[7; 5][..key % 5]));
            }
            bytes.resize(bytes.len() + 1024, 0);
            fs::write(folder.path().join(name), bytes).unwrap();
        }
        let shards = names.iter().map(|name| folder.path().join(name)).collect();
        let mut counts = counted(&["#t0 #t1 #t2 #t3 #t4 #t5 #t6"]);
        let vocabulary = Vocabulary::from_counts(&mut counts, 1, None).unwrap();
        Self { world: world.clone(), folder, shards, names, vocabulary, job: Job::new() }
    }

    fn scope(&self) -> KeyScope {
        if self.world.is_scoped { KeyScope::Shard } else { KeyScope::Global }
    }

    fn exclude(&self) -> Vec<String> {
        let key = |&(shard, key): &(usize, usize)| match self.scope() {
            KeyScope::Global => format!("k{key}"),
            KeyScope::Shard => format!("s{shard}:k{key}"),
        };
        self.world.exclude.iter().map(key).collect()
    }

    fn taking(&self) -> Taking {
        Taking::new(self.scope(), None, &self.exclude()).unwrap()
    }

    fn columns(&self) -> Columns {
        let shard = self.world.is_scoped.then(|| "of".to_owned());
        Columns { key: "key".into(), shard, key_format: None }
    }

    fn builder(&self, out: &str) -> Builder {
        let names = ["keys_doubled", "samples_split", "samples_without_record"];
        let limits = names.into_iter().chain(["records_without_sample"]);
        let options = BuildOptions {
            labels: LabelSource::Records,
            key_scope: self.scope(),
            num_threads: Some(1),
            include: None,
            exclude: self.exclude(),
            limits: limits.map(|name| (name.to_owned(), 1.0)).collect(),
            memory: Memory::unlimited(),
            part_rows: self.world.part_rows,
            resume_key: None,
            append: false,
            storage: Storage::default(),
        };
        Builder::new(self.folder.path().join(out), options).unwrap()
    }

    /// What is in the folder of the index after it is published, or what was said.
    fn published(
        &self,
        out: &str,
        builder: Builder,
    ) -> std::result::Result<BTreeMap<String, Vec<u8>>, String> {
        let folder = self.folder.path().join(out);
        fs::write(folder.join("building.parquet"), b"labels").unwrap();
        let labels = Some((&self.vocabulary, "building.parquet"));
        let kind = Some(LabelKind::Hashtag);
        let provenance = serde_json::Value::Null;
        match builder.publish(labels, kind, "..", provenance, &self.job) {
            Ok(_) => {
                let entries = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap());
                let content = |entry: fs::DirEntry| {
                    let name = entry.file_name().into_string().unwrap();
                    (name, fs::read(entry.path()).unwrap())
                };
                Ok(entries.map(content).collect())
            }
            Err(error) => Err(error.to_string().replace(&format!("/{out}:"), ":")),
        }
    }

    /// What one process makes.
    fn alone(&self) -> std::result::Result<BTreeMap<String, Vec<u8>>, String> {
        let mut builder = self.builder("alone");
        let tables = self.world.tables.iter().map(|table| batch(table));
        let (columns, options) = (self.columns(), options(1));
        builder.add_records(tables, &columns, &options, &self.vocabulary, true, &self.job).unwrap();
        let paths: Vec<_> = self.shards.iter().cloned().zip(self.names.clone()).collect();
        builder.add_shards(&paths, &self.job).unwrap();
        self.published("alone", builder)
    }

    fn records(&self, number: usize, tables: &[Vec<Record>]) -> PathBuf {
        let out = self.folder.path().join(format!("records-{number}"));
        let tables = tables.iter().map(|table| batch(table));
        let (columns, options, memory) = (self.columns(), options(1), Memory::unlimited());
        let (labels, taking) = (&self.vocabulary, self.taking());
        save_records(tables, &columns, &options, labels, &taking, &memory, &out, &self.job)
            .unwrap();
        out
    }

    /// The files that are joined; those of scans beside those of samples.
    fn mapped(&self) -> (Inputs, Vec<PathBuf>) {
        let (mut inputs, mut scans) = (Inputs::default(), Vec::new());
        for (number, tables) in self.world.tables.chunks(self.world.tables_together).enumerate() {
            inputs.records.push(self.records(number, tables));
        }
        let (memory, storage) = (Memory::unlimited(), Storage::default());
        for (number, shards) in self.shards.chunks(self.world.shards_together).enumerate() {
            let scan = self.folder.path().join(format!("scan-{number}"));
            save_scans(shards, &scan, false, self.scope(), 1, &storage, &self.job).unwrap();
            let out = self.folder.path().join(format!("samples-{number}"));
            let first = number * self.world.shards_together;
            let names = &self.names[first..first + shards.len()];
            save_samples(&scan, names, &self.taking(), true, &memory, &out, &self.job).unwrap();
            inputs.samples.push(out);
            scans.push(scan);
        }
        (inputs, scans)
    }

    /// What many processes make.
    fn spread(&self) -> std::result::Result<BTreeMap<String, Vec<u8>>, String> {
        let (inputs, scans) = self.mapped();
        let storage = Storage::default();
        let mut labels = Vec::new();
        for pair in self.world.cuts.windows(2) {
            let out = self.folder.path().join(format!("labels-{}", pair[0]));
            let memory = Memory::unlimited();
            join(&inputs, pair[0]..pair[1], &memory, &storage, &out, &self.job).unwrap();
            labels.push(out);
        }
        let mut builder = self.builder("spread");
        builder.add_spread(&inputs, &labels, &self.names, true, &self.job).unwrap();
        let numbers = num_samples(&inputs.samples, &storage, &self.job).unwrap();
        let total: u64 = numbers.iter().flatten().sum();
        for start in (0..total).step_by(self.world.part_rows) {
            let stop = total.min(start + self.world.part_rows as u64);
            let out = self.folder.path().join("part");
            let groups = self.groups(&numbers, &scans, start, stop);
            let source = LabelSource::Records;
            write_part(&groups, source, &labels, &self.taking(), &storage, &out, &self.job)
                .unwrap();
            builder.add_part(&out, stop - start, &self.job).unwrap();
        }
        self.published("spread", builder)
    }

    /// The groups that the samples from `start` to `stop` lie in.
    fn groups(
        &self,
        numbers: &[Vec<u64>],
        scans: &[PathBuf],
        start: u64,
        stop: u64,
    ) -> Vec<PartGroup> {
        let (mut groups, mut first_sample) = (Vec::new(), 0);
        for (number, of_shards) in numbers.iter().enumerate() {
            let first = number * self.world.shards_together;
            let num_samples: u64 = of_shards.iter().sum();
            let rows = start.saturating_sub(first_sample)
                ..num_samples.min(stop.saturating_sub(first_sample));
            if !rows.is_empty() {
                groups.push(PartGroup {
                    scans: scans[number].clone(),
                    shards: self.names[first..first + of_shards.len()].to_vec(),
                    number,
                    first_shard: first as u32,
                    skip: (0, 0),
                    rows,
                });
            }
            first_sample += num_samples;
        }
        groups
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn an_index_is_the_same_in_however_many_groups_buckets_and_parts(world in worlds()) {
        let laid = Laid::new(&world);
        prop_assert_eq!(laid.alone(), laid.spread());
    }
}

fn wide() -> Laid {
    let record = |number: usize| (0, number % 30_000, vec![(number % 9) as u8; number % 3]);
    let table = |first: usize| (first..first + 20_000).map(record).collect();
    Laid::new(&World {
        is_scoped: false,
        shards: vec![(0..900).collect(), (20_000..20_900).collect()],
        tables: vec![table(0), table(20_000)],
        exclude: Vec::new(),
        part_rows: 500,
        shards_together: 1,
        tables_together: 1,
        cuts: vec![0, NUM_BUCKETS],
    })
}

#[test]
fn what_does_not_fit_in_memory_is_joined_in_steps_and_comes_out_the_same() {
    let laid = wide();
    let (inputs, _) = laid.mapped();
    let (storage, job) = (Storage::default(), Job::new());
    let joined = |name: &str, memory: &Memory| {
        let out = laid.folder.path().join(name);
        join(&inputs, 0..NUM_BUCKETS, memory, &storage, &out, &job).unwrap();
        fs::read(out).unwrap()
    };
    let size: u64 = inputs.records.iter().map(|path| fs::metadata(path).unwrap().len()).sum();
    let least = Memory::limited(Some(Memory::LEAST), None).unwrap();
    assert!(3 * size > Memory::LEAST as u64 / 2, "the records would fit: {size}");
    let unlimited = joined("unlimited", &Memory::unlimited());
    assert!(joined("limited", &least) == unlimited, "memory changed the labels");
    assert!(laid.alone() == laid.spread(), "the indexes differ");
}

fn small() -> Laid {
    Laid::new(&World {
        is_scoped: false,
        shards: vec![vec![1, 2, 3], vec![4, 5]],
        tables: vec![vec![(0, 1, vec![1]), (0, 2, vec![]), (0, 9, vec![2, 3])]],
        exclude: Vec::new(),
        part_rows: 9,
        shards_together: 2,
        tables_together: 1,
        cuts: vec![0, NUM_BUCKETS],
    })
}

/// Joins and writes the one part, with `bytes` in place of the file `of`.
fn with_altered(laid: &Laid, of: &Path, bytes: &[u8]) -> Result<Vec<u8>> {
    let (storage, job) = (Storage::default(), Job::new());
    let at = |name: &str| laid.folder.path().join(name);
    let whole = fs::read(of).unwrap();
    fs::write(of, bytes).unwrap();
    let inputs =
        Inputs { records: vec![at("records-0")], samples: vec![at("samples-0")], known: None };
    let labels = at("labels-0");
    let is_labels = of == labels;
    let group = PartGroup {
        scans: at("scan-0"),
        shards: laid.names.clone(),
        number: 0,
        first_shard: 0,
        skip: (0, 0),
        rows: 0..5,
    };
    let made = if is_labels {
        Ok(())
    } else {
        join(&inputs, 0..NUM_BUCKETS, &Memory::unlimited(), &storage, &at("labels-1"), &job)
    };
    let labels = if is_labels { labels } else { at("labels-1") };
    let source = LabelSource::Records;
    let made = made.and_then(|()| {
        write_part(&[group], source, &[labels], &laid.taking(), &storage, &at("part"), &job)
    });
    fs::write(of, whole).unwrap();
    made.map(|()| fs::read(at("part")).unwrap())
}

#[test]
fn a_file_that_is_cut_or_altered_anywhere_is_an_error_or_changes_nothing() {
    let laid = small();
    laid.spread().unwrap();
    let expected = fs::read(laid.folder.path().join("part")).unwrap();
    for name in ["records-0", "samples-0", "labels-0"] {
        let path = laid.folder.path().join(name);
        let whole = fs::read(&path).unwrap();
        let mut num_refused = 0;
        let mut check = |bytes: &[u8]| match with_altered(&laid, &path, bytes) {
            Ok(part) => assert!(part == expected, "{name}: other rows, and no error"),
            Err(Error::Data(text)) => {
                assert!(text.contains("remove the file and run the command again"), "{text}");
                num_refused += 1;
            }
            Err(error) => assert!(matches!(error, Error::Io { .. }), "{error}"),
        };
        for place in (0..whole.len()).step_by(if whole.len() > 1000 { 7 } else { 1 }) {
            let mut bytes = whole.clone();
            bytes[place] ^= 1 << (place % 8);
            check(&bytes);
        }
        for length in [0, 1, 31, 32, 33, whole.len() / 2, whole.len() - 1] {
            check(&whole[..length]);
        }
        assert!(num_refused > 20, "{name}: only {num_refused} were refused");
    }
}

#[test]
fn files_of_another_kind_are_refused() {
    let laid = small();
    laid.spread().unwrap();
    let (storage, job) = (Storage::default(), Job::new());
    let at = |name: &str| laid.folder.path().join(name);
    let out = at("out");
    let joined = |records: &str, samples: &str| {
        let inputs = Inputs { records: vec![at(records)], samples: vec![at(samples)], known: None };
        join(&inputs, 0..NUM_BUCKETS, &Memory::unlimited(), &storage, &out, &job)
    };
    for (records, samples) in
        [("samples-0", "samples-0"), ("records-0", "records-0"), ("labels-0", "samples-0")]
    {
        let error = joined(records, samples).unwrap_err().to_string();
        assert!(error.contains("expected a file of a build on many machines"), "{error}");
    }
    assert!(joined("records-0", "samples-0").is_ok());
    assert!(num_samples(&[at("records-0")], &storage, &job).is_err());
}
