//! Counts: the same for every partition, and files that are refused when they are wrong.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;

use arrow_array::builder::{ListBuilder, StringBuilder, StringViewBuilder};
use arrow_array::{ArrayRef, RecordBatch, StringArray};
use proptest::prelude::*;
use wsl_core::Error;
use wsl_core::count::{CountOptions, HashtagCounts};
use wsl_core::job::Job;
use wsl_core::spill::Memory;

pub fn batch(records: &[&str]) -> RecordBatch {
    let column: ArrayRef = Arc::new(StringArray::from(records.to_vec()));
    RecordBatch::try_from_iter([("hashtags", column)]).unwrap()
}

pub fn options(num_threads: usize) -> CountOptions {
    CountOptions { column: "hashtags".into(), separator: None, num_threads: Some(num_threads) }
}

pub fn counted(records: &[&str]) -> HashtagCounts {
    let mut counts = HashtagCounts::default();
    counts.update([Ok(batch(records))], &options(2), &Job::new()).unwrap();
    counts
}

pub fn ranked(counts: &mut HashtagCounts) -> Vec<(String, u64)> {
    counts.ranked(&Job::new()).unwrap().iter().collect::<Result<_, _>>().unwrap()
}

fn bytes_of(counts: &HashtagCounts) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("counts.bin");
    counts.clone().save(&path).unwrap();
    fs::read(path).unwrap()
}

#[test]
fn tags_are_ranked_by_count_and_ties_by_bytes() {
    let mut counts = counted(&["dog cat", "cat a-tag-of-more-than-fifteen-bytes", "Cat cat", ""]);
    let expected = [("cat", 3), ("a-tag-of-more-than-fifteen-bytes", 1), ("dog", 1)];
    assert_eq!(ranked(&mut counts), expected.map(|(tag, count)| (tag.to_owned(), count)));
    assert_eq!(counts.tally().num_duplicates, 1);
    assert_eq!(counts.tags_per_record(), BTreeMap::from([(0, 1), (1, 1), (2, 2)]));
    assert_eq!(*counts.multiplicities().unwrap(), BTreeMap::from([(1, 2), (3, 1)]));
    let batches = counts.ranked(&Job::new()).unwrap().batches();
    assert_eq!(batches.map(|batch| batch.unwrap().num_rows()).sum::<usize>(), 3);
}

#[test]
fn a_missing_column_is_told_with_the_columns_there_are() {
    let mut counts = HashtagCounts::default();
    let wrong = CountOptions { column: "tags".into(), ..options(1) };
    let error = counts.update([Ok(batch(&["a"]))], &wrong, &Job::new()).unwrap_err();
    assert!(error.to_string().contains("\"tags\"") && error.to_string().contains("hashtags"));
    assert_eq!(counts.tally().num_records, 0);
}

#[test]
fn a_cancelled_count_leaves_the_counts_as_they_were() {
    let mut counts = counted(&["a b"]);
    let before = bytes_of(&counts);
    let job = Job::new();
    job.cancel();
    let result = counts.update([Ok(batch(&["c"]))], &options(1), &job);
    assert!(matches!(result, Err(Error::Cancelled)));
    assert_eq!(bytes_of(&counts), before);
}

/// Replaces the checksum by the right one, so that a test reaches what lies behind it.
fn resealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let body = bytes.len() - 16;
    let digest = xxhash_rust::xxh3::xxh3_128(&bytes[..body]);
    bytes[body..].copy_from_slice(&digest.to_le_bytes());
    bytes
}

fn fault(bytes: &[u8]) -> Option<String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("counts.bin");
    fs::write(&path, bytes).unwrap();
    match HashtagCounts::load(&path, Memory::unlimited(), &Job::new()) {
        Ok(_) => None,
        Err(Error::Data(message)) => Some(message),
        Err(other) => panic!("{other:?}"),
    }
}

#[test]
fn files_that_are_wrong_are_refused_with_the_fault() {
    let good = bytes_of(&counted(&["cat dog", "cat"]));
    assert_eq!(fault(&good), None);
    for length in 0..good.len() {
        assert!(fault(&good[..length]).is_some(), "cut to {length} bytes");
    }
    for place in 0..good.len() {
        let mut bad = good.clone();
        bad[place] ^= 0x41;
        assert!(fault(&bad).is_some(), "byte {place} changed");
    }
    let fault_with = |place: usize, byte: u8| {
        let mut bad = good.clone();
        bad[place] = byte;
        fault(&resealed(bad)).unwrap_or_default()
    };
    assert!(fault_with(0, b'X').contains("magic"));
    assert!(fault_with(8, 9).contains("version 9"));
    assert!(fault_with(12, 7).contains("7 records"));
    assert!(fault(&[&good[..], b"x"].concat()).unwrap().contains("follows its end"));
    let cat = good.windows(3).position(|window| window == b"cat").unwrap();
    let dog = good.windows(3).position(|window| window == b"dog").unwrap();
    let mut swapped = good.clone();
    let (first, second) = (cat.min(dog) - 1, cat.max(dog) - 1);
    (0..5).for_each(|place| swapped.swap(first + place, second + place));
    assert!(fault(&resealed(swapped)).unwrap().contains("order"));
    assert!(fault_with(cat, 0xff).contains("UTF-8"));
    assert!(fault_with(cat - 1, 0).contains("0 bytes long"));
    assert!(fault_with(cat + 3, 0).contains("0 records"));
    assert!(fault_with(cat + 3, 1).contains("add up to"));
}

#[test]
fn a_missing_file_is_the_systems_error() {
    assert!(matches!(
        HashtagCounts::load("/nowhere/counts.bin", Memory::unlimited(), &Job::new()),
        Err(Error::Io { .. })
    ));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]

    #[test]
    fn threads_batches_and_merges_never_change_a_byte(
        records in prop::collection::vec("([a-d]|[e-h]{16,18}| |#){0,9}", 0..40),
        size in 1usize..12,
        threads in 1usize..9,
        cut in 0usize..40,
    ) {
        let texts: Vec<_> = records.iter().map(String::as_str).collect();
        let mut whole = counted(&texts);
        let tally = whole.tally().clone();
        prop_assert_eq!(tally.num_records, texts.len() as u64);
        let sum: u64 = ranked(&mut whole).iter().map(|(_, count)| count).sum();
        prop_assert_eq!(sum, tally.num_hashtags);

        let (left, right) = texts.split_at(cut.min(texts.len()));
        let mut parts = [left, right].map(|part| {
            let mut counts = HashtagCounts::default();
            let batches = part.chunks(size).map(|chunk| Ok(batch(chunk)));
            counts.update(batches, &options(threads), &Job::new()).unwrap();
            counts
        });
        let mut backwards = parts[1].clone();
        backwards.merge(&parts[0]).unwrap();
        let [first, second] = &mut parts;
        first.merge(second).unwrap();
        prop_assert_eq!(bytes_of(first), bytes_of(&whole));
        prop_assert_eq!(bytes_of(&backwards), bytes_of(&whole));
        prop_assert_eq!(fault(&bytes_of(&whole)), None);
    }

    #[test]
    fn a_limit_of_memory_never_changes_a_byte(
        records in prop::collection::vec("([a-k]{1,2}|[a-e]{16,17}| |#){0,12}", 0..200),
        limit in 1usize..400_000,
        threads in 1usize..5,
        cut in 0usize..200,
    ) {
        let texts: Vec<_> = records.iter().map(String::as_str).collect();
        let mut whole = counted(&texts);
        let folder = tempfile::tempdir().unwrap();
        let memory = Memory { limit: Some(limit), spill_dir: Some(folder.path().to_owned()) };
        let (left, right) = texts.split_at(cut.min(texts.len()));
        let count = |counts: &mut HashtagCounts, part: &[&str]| {
            let batches = part.chunks(7).map(|chunk| Ok(batch(chunk)));
            counts.update(batches, &options(threads), &Job::new()).unwrap();
        };
        let mut updated = HashtagCounts::new(memory.clone());
        count(&mut updated, left);
        count(&mut updated, right);
        let mut merged = HashtagCounts::new(memory.clone());
        count(&mut merged, right);
        let path = folder.path().join("part.bin");
        let mut part = counted(left);
        part.save(&path).unwrap();
        merged.merge(&HashtagCounts::load(&path, memory, &Job::new()).unwrap()).unwrap();

        for mut counts in [updated, merged] {
            prop_assert_eq!(bytes_of(&counts), bytes_of(&whole));
            prop_assert_eq!(ranked(&mut counts), ranked(&mut whole));
            prop_assert_eq!(counts.multiplicities().unwrap(), whole.multiplicities().unwrap());
            prop_assert_eq!(counts.num_distinct().unwrap(), whole.num_distinct().unwrap());
            for (tag, number) in ranked(&mut whole).into_iter().take(5) {
                prop_assert_eq!(counts.count_of(&tag).unwrap(), number);
            }
        }
        prop_assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]

    #[test]
    fn lists_of_views_count_as_lists_of_texts_do(
        records in prop::collection::vec(
            prop::collection::vec("(#| |)([a-d]|[A-B]|ö|Ö|)(|x| y|thirteen-byte|long-{12})", 0..12),
            0..300,
        ),
        long in 0usize..60,
        repeats in 1usize..15,
        threads in 1usize..4,
    ) {
        let mut records = records;
        if let Some(record) = records.get_mut(3) {
            record.extend((0..long).map(|number| format!("{}{}", ["t", "T"][number % 2], number % 7)));
        }
        let mut texts = ListBuilder::new(StringBuilder::new());
        let mut views = ListBuilder::new(StringViewBuilder::new());
        for record in &records {
            record.iter().for_each(|tag| texts.values().append_value(tag));
            record.iter().for_each(|tag| views.values().append_value(tag));
            texts.append(true);
            views.append(true);
        }
        let columns: [ArrayRef; 2] = [Arc::new(texts.finish()), Arc::new(views.finish())];
        let [of_texts, of_views] = columns.map(|column| {
            let batch = RecordBatch::try_from_iter([("hashtags", column)]).unwrap();
            // Repeated, so that places become hot and change hands; cut, so that blocks do not align.
            let batches = (0..repeats).map(|number| {
                let cut = number.min(batch.num_rows());
                Ok(batch.slice(cut, batch.num_rows() - cut))
            });
            let mut counts = HashtagCounts::default();
            counts.update(batches, &options(threads), &Job::new()).unwrap();
            counts
        });
        prop_assert_eq!(of_views.tally(), of_texts.tally());
        prop_assert_eq!(of_views.tags_per_record(), of_texts.tags_per_record());
        prop_assert_eq!(bytes_of(&of_views), bytes_of(&of_texts));
    }
}

#[test]
fn hot_tags_and_texts_that_stand_for_them_count_once_in_a_record() {
    let long = "a-tag-of-more-than-fifteen-bytes";
    let longest = "x".repeat(120);
    let texts = [
        "cat",
        "Cat",
        "#cat",
        "c\u{200b}at",
        long,
        &long.to_uppercase(),
        &format!(" #{long}"),
        &longest,
        &longest.to_uppercase(),
        "z\u{f6}k\u{f6}d\u{f6}p\u{e9}-z\u{f6}k\u{f6}",
        "Z\u{f6}k\u{f6}d\u{f6}p\u{e9}-z\u{f6}k\u{f6}",
        "\u{df}",
        "SS",
        "ss",
        "\u{fb01}sh",
        "fish",
        "thirteen-byte",
        "Thirteen-byte",
        "",
        "#",
    ];
    let normal = |text: &str| {
        let mut scratch = wsl_core::hashtag::Scratch::default();
        wsl_core::hashtag::normalize(text.as_bytes(), &mut scratch).ok().map(str::to_owned)
    };
    let mut random = 1_u64;
    let mut next = |below: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (random >> 33) % below
    };
    let mut views = ListBuilder::new(StringViewBuilder::new());
    let (mut expected, mut num_duplicates) = (BTreeMap::<String, u64>::new(), 0);
    for _ in 0..60_000 {
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..next(8) {
            // The first ones are the commonest, and there are some that are rare.
            let number = (next(25) * next(25) / 24) as usize;
            let text =
                texts.get(number).map_or_else(|| format!("rare-{}", next(500)), |&t| t.to_owned());
            views.values().append_value(&text);
            if let Some(tag) = normal(&text)
                && !seen.insert(tag)
            {
                num_duplicates += 1;
            }
        }
        views.append(true);
        seen.into_iter().for_each(|tag| *expected.entry(tag).or_default() += 1);
    }
    let column: ArrayRef = Arc::new(views.finish());
    let batch = RecordBatch::try_from_iter([("hashtags", column)]).unwrap();
    let mut counts = HashtagCounts::default();
    counts.update([Ok(batch)], &options(2), &Job::new()).unwrap();
    assert_eq!(counts.tally().num_duplicates, num_duplicates);
    assert_eq!(ranked(&mut counts).into_iter().collect::<BTreeMap<_, _>>(), expected);
}
