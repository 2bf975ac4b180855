//! Selection against a plain twin that sorts everything, for any order, partition and file.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;

use arrow_array::{ArrayRef, Float32Array, Float64Array, Int64Array, RecordBatch, UInt8Array};
use proptest::prelude::*;
use wsl_core::job::Job;
use wsl_core::selection::{MAX_PAIRS, Order, Samples, Selected, SelectedPair, Selection};
use wsl_core::spill::Memory;
use wsl_core::{Error, Result};

type Pair = (u64, u32, f32);

const NUM_CLASSES: u32 = 5;
const ORDERS: [Order; 2] = [Order::ClassFirst, Order::ImageFirst];

fn begin(num_classes: u32, k: u32, p: u32, order: Order) -> Result<Selection> {
    Selection::new(num_classes, k, p, order, Memory::unlimited())
}

/// What a selection came to, to be compared.
#[derive(Debug, Clone, PartialEq)]
struct Outcome {
    pairs: Vec<SelectedPair>,
    before: Vec<u64>,
    after: Vec<u64>,
}

fn outcome(selected: &Selected) -> Outcome {
    Outcome {
        pairs: selected.pairs().unwrap().map(Result::unwrap).collect(),
        before: selected.num_before().to_vec(),
        after: selected.num_after().to_vec(),
    }
}

fn better(a: &Pair, b: &Pair) -> std::cmp::Ordering {
    b.2.partial_cmp(&a.2).unwrap().then(a.0.cmp(&b.0)).then(a.1.cmp(&b.1))
}

/// The best `most` pairs of every group, sorted by group, then rank.
fn cut(pairs: &[Pair], most: u32, group: impl Fn(&Pair) -> u64) -> Vec<Pair> {
    let mut groups: BTreeMap<u64, Vec<Pair>> = BTreeMap::new();
    pairs.iter().for_each(|pair| groups.entry(group(pair)).or_default().push(*pair));
    groups.values_mut().for_each(|pairs| {
        pairs.sort_by(better);
        pairs.truncate(most as usize);
    });
    groups.into_values().flatten().collect()
}

/// The selection by its definition; `None` where a pair is doubled among the best of a class.
fn twin(pairs: &[Pair], k: u32, p: u32, order: Order) -> Option<Vec<SelectedPair>> {
    let by_class = |pair: &Pair| u64::from(pair.1);
    let taken = match order {
        Order::ClassFirst => cut(pairs, k, by_class),
        Order::ImageFirst => cut(&cut(pairs, p, |pair| pair.0), k, by_class),
    };
    let mut names: Vec<_> = taken.iter().map(|pair| (pair.0, pair.1)).collect();
    names.sort_unstable();
    if names.windows(2).any(|pair| pair[0] == pair[1]) {
        return None;
    }
    let kept = cut(&taken, p, |pair| pair.0);
    let mut rank = BTreeMap::new();
    let rows = taken.iter().map(|&(sample, class, score)| {
        let rank = rank.entry(class).and_modify(|rank| *rank += 1).or_insert(1);
        SelectedPair { sample, class, rank: *rank, score }
    });
    let is_kept = |row: &SelectedPair| kept.iter().any(|k| (k.0, k.1) == (row.sample, row.class));
    let mut rows: Vec<_> = rows.filter(|row| order == Order::ImageFirst || is_kept(row)).collect();
    let as_pair = |row: &SelectedPair| (row.sample, row.class, row.score);
    rows.sort_by(|a, b| a.sample.cmp(&b.sample).then(better(&as_pair(a), &as_pair(b))));
    Some(rows)
}

fn give(selection: &mut Selection, pairs: &[Pair]) -> Result<()> {
    let samples: Vec<_> = pairs.iter().map(|pair| pair.0).collect();
    let classes: Vec<_> = pairs.iter().map(|pair| pair.1).collect();
    let scores: Vec<_> = pairs.iter().map(|pair| pair.2).collect();
    selection.update_pairs(&samples, &classes, &scores, &Job::new())
}

fn finish(selection: &mut Selection, k: u32, p: u32) -> Result<Outcome> {
    selection.finish(Some(k), Some(p), &Job::new()).map(|selected| outcome(&selected))
}

fn saved(selection: &Selection) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.bin");
    selection.save(&path).unwrap();
    fs::read(path).unwrap()
}

fn loaded(bytes: &[u8]) -> Result<Selection> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.bin");
    fs::write(&path, bytes).unwrap();
    Selection::load(path, Memory::unlimited())
}

fn message(result: Result<impl std::fmt::Debug>) -> String {
    result.unwrap_err().to_string()
}

/// Scores of few values, so that most of them tie, and two zeros.
fn score() -> impl Strategy<Value = f32> {
    prop::sample::select(vec![-7.5f32, -1.0, -0.0, 0.0, 0.25, 1.0, 3e38, f32::MIN_POSITIVE])
}

/// Different pairs in any order.
fn pairs() -> impl Strategy<Value = Vec<Pair>> {
    let names = (prop_oneof![0..12u64, Just(u64::MAX), Just(1 << 32)], 0..NUM_CLASSES);
    prop::collection::btree_map(names, score(), 0..60)
        .prop_map(|map| map.into_iter().map(|((sample, class), score)| (sample, class, score)))
        .prop_map(Iterator::collect::<Vec<_>>)
        .prop_shuffle()
}

/// Puts the pairs of a sample together, where the first of them is.
fn grouped(pairs: &[Pair]) -> Vec<Pair> {
    let place = |pair: &Pair| pairs.iter().position(|other| other.0 == pair.0);
    let mut grouped = pairs.to_vec();
    grouped.sort_by_key(place);
    grouped
}

/// The same pairs in an order that `order` can take.
fn for_order(pairs: &[Pair], order: Order) -> Vec<Pair> {
    if order == Order::ImageFirst { grouped(pairs) } else { pairs.to_vec() }
}

fn positive(pairs: &[Pair]) -> Vec<Pair> {
    pairs.iter().map(|&(sample, class, score)| (sample, class, score + 0.0)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_order_of_pairs_over_any_updates_selects_what_the_twin_does(
        pairs in pairs(), k in 1..6u32, p in 1..7u32, size in 1..30usize, image_first: bool,
    ) {
        let order = ORDERS[usize::from(image_first)];
        let mut selection = begin(NUM_CLASSES, k, p, order).unwrap();
        for part in for_order(&pairs, order).chunks(size) {
            give(&mut selection, part).unwrap();
        }
        let selected = finish(&mut selection, k, p).unwrap();
        let expected = twin(&positive(&pairs), k, p, order).unwrap();
        prop_assert_eq!(&selected.pairs, &expected);
        prop_assert!(selected.pairs.iter().all(|pair| pair.score.to_bits() != 1 << 31));
        prop_assert_eq!(selection.num_pairs(), pairs.len() as u64);
        let total: u64 = selected.after.iter().sum();
        prop_assert_eq!(total, expected.len() as u64);
    }

    #[test]
    fn a_state_finishes_with_a_smaller_k_as_if_it_had_had_it(
        pairs in pairs(), k in 1..6u32, less in 0..5u32, p in 1..7u32, other_p in 1..7u32,
        image_first: bool,
    ) {
        let order = ORDERS[usize::from(image_first)];
        let mut selection = begin(NUM_CLASSES, k, p, order).unwrap();
        give(&mut selection, &for_order(&pairs, order)).unwrap();
        let (k, p) = (k.saturating_sub(less).max(1), if image_first { p } else { other_p });
        let selected = finish(&mut selection, k, p).unwrap();
        let expected = twin(&pairs, k, p, order).unwrap();
        prop_assert_eq!(&selected.pairs, &expected);
    }

    #[test]
    fn parts_merged_in_any_way_are_the_whole(
        pairs in pairs(), k in 1..6u32, p in 1..7u32, parts in 1..5u64, image_first: bool,
    ) {
        let order = ORDERS[usize::from(image_first)];
        let new = || begin(NUM_CLASSES, k, p, order).unwrap();
        let mut whole = new();
        let by_sample = for_order(&pairs, order);
        give(&mut whole, &by_sample).unwrap();
        let mut states: Vec<_> = (0..parts).map(|_| new()).collect();
        for pair in &by_sample {
            give(&mut states[(pair.0 % parts) as usize], &[*pair]).unwrap();
        }
        let mut merged = new();
        for state in states.iter().rev() {
            merged.merge(&loaded(&saved(state)).unwrap()).unwrap();
        }
        prop_assert_eq!(finish(&mut merged, k, p).unwrap(), finish(&mut whole, k, p).unwrap());
        if order == Order::ClassFirst {
            prop_assert_eq!(saved(&merged), saved(&whole));
        }
    }

    #[test]
    fn a_state_saved_and_loaded_anywhere_goes_on_where_it_was(
        pairs in pairs(), k in 1..6u32, p in 1..7u32, split in 0..60usize, image_first: bool,
    ) {
        let order = ORDERS[usize::from(image_first)];
        let pairs = for_order(&pairs, order);
        let (first, second) = pairs.split_at(split.min(pairs.len()));
        let mut selection = begin(NUM_CLASSES, k, p, order).unwrap();
        give(&mut selection, first).unwrap();
        let bytes = saved(&selection);
        let mut resumed = loaded(&bytes).unwrap();
        prop_assert_eq!(saved(&resumed), bytes);
        give(&mut selection, second).unwrap();
        give(&mut resumed, second).unwrap();
        prop_assert_eq!(finish(&mut resumed, k, p).unwrap(), finish(&mut selection, k, p).unwrap());
        prop_assert_eq!(saved(&resumed), saved(&selection));
    }

    #[test]
    fn a_doubled_pair_is_an_error_exactly_where_both_are_among_the_best(
        pairs in pairs(), again in 0..60usize, score in score(), k in 1..6u32, size in 1..30usize,
    ) {
        prop_assume!(!pairs.is_empty());
        let mut pairs = positive(&pairs);
        let (sample, class, _) = pairs[again % pairs.len()];
        pairs.insert(again % pairs.len(), (sample, class, score + 0.0));
        let mut selection = begin(NUM_CLASSES, k, 2, Order::ClassFirst).unwrap();
        pairs.chunks(size).for_each(|part| give(&mut selection, part).unwrap());
        match (finish(&mut selection, k, 2), twin(&pairs, k, 2, Order::ClassFirst)) {
            (Ok(selected), Some(expected)) => {
                prop_assert_eq!(&selected.pairs, &expected);
            }
            (Err(Error::Data(message)), None) => {
                let name = format!("sample {sample}, class {class}");
                prop_assert!(message.contains(&name), "{}", message);
            }
            (selected, expected) => prop_assert!(false, "{selected:?} against {expected:?}"),
        }
    }

    #[test]
    fn a_matrix_is_its_pairs(
        scores in prop::collection::vec(score(), 0..20 * 37), k in 1..6u32, p in 1..40u32,
        threads in 1..4usize, image_first: bool,
    ) {
        // 37 classes: more than one thread takes and more than whole lanes.
        let (width, order) = (37, ORDERS[usize::from(image_first)]);
        let scores = &scores[..scores.len() / width * width];
        let samples: Vec<_> = (0..(scores.len() / width) as u64).map(|row| row * 3 % 64).collect();
        let pairs: Vec<Pair> = (0..scores.len())
            .map(|i| (samples[i / width], (i % width) as u32, scores[i] + 0.0))
            .collect();
        let mut selection = begin(width as u32, k, p, order).unwrap();
        let pool = rayon_pool(threads);
        pool.install(|| selection.update(Samples::These(&samples), scores, &Job::new()))
            .unwrap();
        let expected = twin(&pairs, k, p, order).unwrap();
        let selected = finish(&mut selection, k, p).unwrap();
        prop_assert_eq!(&selected.pairs, &expected);
    }

    #[test]
    fn a_corrupt_file_is_an_error_and_never_a_panic(
        pairs in pairs(), place: prop::sample::Index, bit in 0..8u32, end: prop::sample::Index,
        image_first: bool, mend: bool,
    ) {
        let order = ORDERS[usize::from(image_first)];
        let mut selection = begin(NUM_CLASSES, 3, 2, order).unwrap();
        give(&mut selection, &for_order(&pairs, order)).unwrap();
        let mut bytes = saved(&selection);
        prop_assert!(matches!(loaded(&bytes[..end.index(bytes.len())]), Err(Error::Data(_))));
        let body = bytes.len() - 16;
        let place = place.index(if mend { body } else { bytes.len() });
        bytes[place] ^= 1 << bit;
        if mend {
            // As somebody would who wants the file to be taken.
            let digest = xxhash_rust::xxh3::xxh3_128(&bytes[..body]).to_le_bytes();
            bytes[body..].copy_from_slice(&digest);
            if let Ok(mut selection) = loaded(&bytes) {
                let _ = selection.finish(None, None, &Job::new());
                let _ = selection.clone().merge(&selection);
            }
        } else {
            prop_assert!(matches!(loaded(&bytes), Err(Error::Data(_))));
        }
    }
}

#[test]
fn a_number_of_pairs_that_no_job_has_seen_is_refused() {
    let mut selection = begin(NUM_CLASSES, 3, 2, Order::ClassFirst).unwrap();
    give(&mut selection, &[(0, 0, 1.0), (1, 0, 2.0)]).unwrap();
    let bytes = saved(&selection);
    let two = 2u64.to_le_bytes();
    let place = bytes.windows(8).position(|window| window == two).unwrap();
    let seen = |number: u64| {
        let mut bytes = bytes.clone();
        bytes[place..place + 8].copy_from_slice(&number.to_le_bytes());
        let body = bytes.len() - 16;
        let digest = xxhash_rust::xxh3::xxh3_128(&bytes[..body]).to_le_bytes();
        bytes[body..].copy_from_slice(&digest);
        loaded(&bytes)
    };
    assert!(matches!(seen(u64::MAX), Err(Error::Data(_))));
    let mut most = seen(MAX_PAIRS).unwrap();
    assert_eq!(most.num_pairs(), MAX_PAIRS);
    assert!(matches!(most.merge(&selection), Err(Error::Data(_))));
    assert_eq!(most.num_pairs(), MAX_PAIRS);
}

/// A tree of merges over all of `states`, in the order that `choices` says.
fn merged(mut states: Vec<Selection>, choices: &[prop::sample::Index]) -> Selection {
    let mut choices = choices.iter().cycle();
    while states.len() > 1 {
        let from = states.swap_remove(choices.next().unwrap().index(states.len()));
        let into = choices.next().unwrap().index(states.len());
        states[into].merge(&from).unwrap();
    }
    states.pop().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn splitting_merging_threads_and_spilling_never_change_a_byte(
        pairs in pairs(), k in 1..6u32, p in 1..7u32, parts in 1..6u64, size in 1..20usize,
        threads in prop::sample::select(vec![1usize, 2, 8]),
        spills in prop::collection::vec(any::<bool>(), 12),
        tiny: bool, choices in prop::collection::vec(any::<prop::sample::Index>(), 12),
        image_first: bool,
    ) {
        let order = ORDERS[usize::from(image_first)];
        let folder = tempfile::tempdir().unwrap();
        // A limit of one byte: whatever may be dropped to disk is.
        let memory = || Memory { limit: tiny.then_some(1), spill_dir: Some(folder.path().into()) };
        let new = || Selection::new(NUM_CLASSES, k, p, order, memory()).unwrap();
        let given = for_order(&pairs, order);
        let mut whole = begin(NUM_CLASSES, k, p, order).unwrap();
        give(&mut whole, &given).unwrap();
        let (outcome, bytes) = rayon_pool(threads).install(|| {
            let mut states: Vec<_> = (0..parts).map(|_| new()).collect();
            let mut spills = spills.iter().cycle();
            for (number, state) in (0..).zip(&mut states) {
                let own: Vec<_> = given.iter().copied().filter(|pair| pair.0 % parts == number).collect();
                for some in own.chunks(size) {
                    give(state, some).unwrap();
                    if *spills.next().unwrap() {
                        state.spill().unwrap();
                    }
                }
            }
            let mut merged = merged(states, &choices);
            let bytes = saved(&merged);
            (finish(&mut merged, k, p).unwrap(), bytes)
        });
        prop_assert_eq!(outcome, finish(&mut whole, k, p).unwrap());
        if order == Order::ClassFirst {
            prop_assert_eq!(bytes, saved(&whole));
        }
        prop_assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn scattered_pairs_select_what_grouped_ones_do(
        pairs in pairs(), k in 1..6u32, p in 1..7u32, size in 1..30usize, tiny: bool,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let memory = Memory { limit: tiny.then_some(1), spill_dir: Some(folder.path().into()) };
        let mut selection =
            Selection::new(NUM_CLASSES, k, p, Order::ImageFirst, memory).unwrap();
        let batches = pairs.chunks(size).map(|some| Ok(pair_batch(some)));
        selection.update_scattered(batches, &Job::new()).unwrap();
        let expected = twin(&positive(&pairs), k, p, Order::ImageFirst).unwrap();
        prop_assert_eq!(finish(&mut selection, k, p).unwrap().pairs, expected);
        prop_assert_eq!(selection.num_pairs(), pairs.len() as u64);
    }
}

fn pair_batch(pairs: &[Pair]) -> RecordBatch {
    let samples = arrow_array::UInt64Array::from_iter_values(pairs.iter().map(|pair| pair.0));
    let classes = arrow_array::UInt32Array::from_iter_values(pairs.iter().map(|pair| pair.1));
    let scores = Float32Array::from_iter_values(pairs.iter().map(|pair| pair.2));
    batch(vec![
        ("sample", Arc::new(samples) as ArrayRef),
        ("class", Arc::new(classes)),
        ("score", Arc::new(scores)),
    ])
}

/// Pairs of 40 classes, with many ties.
fn many() -> Vec<Pair> {
    let mut state = 3u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        state >> 33
    };
    (0..200_000)
        .map(|i| (i / 4 * 7, (i % 4 * 10 + next() % 10) as u32, (next() % 900) as f32))
        .collect()
}

#[test]
fn a_megabyte_of_memory_selects_what_all_of_it_does_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let limited = || Memory::limited(Some(Memory::LEAST), Some(folder.path().into())).unwrap();
    let pairs = many();
    for order in ORDERS {
        let mut whole = begin(40, 2000, 2, order).unwrap();
        give(&mut whole, &pairs).unwrap();
        let expected = finish(&mut whole, 2000, 2).unwrap();
        for threads in [1, 2, 8] {
            let mut small = Selection::new(40, 2000, 2, order, limited()).unwrap();
            rayon_pool(threads).install(|| {
                pairs.chunks(17_000).for_each(|some| give(&mut small, some).unwrap());
                // It had to spill, and what is on disk is in a private folder.
                assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
                assert!(finish(&mut small, 2000, 2).unwrap() == expected);
                assert!(finish(&mut small, 2000, 2).unwrap() == expected);
                assert!(saved(&small) == saved(&whole));
            });
            drop(small);
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        }
    }
}

#[test]
fn a_run_that_somebody_altered_is_refused_by_name_whenever_it_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let limited = Memory { limit: None, spill_dir: Some(folder.path().into()) };
    let mut selection = Selection::new(40, 2000, 2, Order::ClassFirst, limited).unwrap();
    let pairs = many();
    for some in pairs.chunks(40_000) {
        give(&mut selection, some).unwrap();
        selection.spill().unwrap();
    }
    let inside = fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
    let run = |number: usize| inside.join(format!("run-{number:06}"));
    let good = fs::read(run(1)).unwrap();
    let mut altered = good.clone();
    altered[5000] ^= 1;
    let cases: [(Option<Vec<u8>>, &str); 4] = [
        (None, "missing"),
        (Some(fs::read(run(0)).unwrap()), "one is there twice"),
        (Some(good[..good.len() / 2].to_vec()), "cut short"),
        (Some(altered), "checksum"),
    ];
    for (content, expected) in cases {
        match content {
            Some(content) => fs::write(run(1), content).unwrap(),
            None => fs::remove_file(run(1)).unwrap(),
        }
        let found = message(selection.finish(None, None, &Job::new()));
        assert!(found.contains("run-000001") && found.contains(expected), "{found}");
    }
    fs::write(run(1), good).unwrap();
    let mut whole = begin(40, 2000, 2, Order::ClassFirst).unwrap();
    give(&mut whole, &pairs).unwrap();
    assert!(finish(&mut selection, 2000, 2).unwrap() == finish(&mut whole, 2000, 2).unwrap());
}

#[test]
fn lists_and_arrays_of_scores_are_their_pairs() {
    use arrow_array::types::{Float32Type, Int64Type};
    use arrow_array::{FixedSizeListArray, LargeListArray, ListArray};
    let samples: ArrayRef = Arc::new(Int64Array::from(vec![4, 9, 2]));
    let some = |row: Vec<i64>| Some(row.into_iter().map(Some).collect::<Vec<_>>());
    let classes =
        ListArray::from_iter_primitive::<Int64Type, _, _>([vec![2, 0], vec![], vec![1]].map(some));
    let score = |row: Vec<f32>| Some(row.into_iter().map(Some).collect::<Vec<_>>());
    let lists = |rows: [Vec<f32>; 3]| {
        LargeListArray::from_iter_primitive::<Float32Type, _, _>(rows.map(score))
    };
    let update = |columns| {
        let mut selection = begin(3, 5, 3, Order::ClassFirst).unwrap();
        selection.update_batches([Ok(batch(columns))], &Job::new())?;
        finish(&mut selection, 5, 3)
    };
    let rows = |outcome: Outcome| -> Vec<_> {
        outcome.pairs.iter().map(|pair| (pair.sample, pair.class, pair.score)).collect()
    };
    let good: ArrayRef = Arc::new(lists([vec![0.5, 0.75], vec![], vec![-1.0]]));
    let columns = vec![("sample", samples.clone()), ("classes", Arc::new(classes) as ArrayRef)];
    let with = |scores: ArrayRef| [columns.clone(), vec![("scores", scores)]].concat();
    assert_eq!(rows(update(with(good)).unwrap()), [(2, 1, -1.0), (4, 0, 0.75), (4, 2, 0.5)]);
    let uneven: ArrayRef = Arc::new(lists([vec![0.5], vec![], vec![-1.0]]));
    let found = message(update(with(uneven)));
    assert!(found.contains("sample 4: expected as many scores as classes, got 1 and 2"), "{found}");
    let dense = |width: i32, rows: Vec<Vec<f32>>| -> ArrayRef {
        let rows = rows.into_iter().map(score);
        Arc::new(FixedSizeListArray::from_iter_primitive::<Float32Type, _, _>(rows, width))
    };
    let scores = dense(3, vec![vec![0.0, 1.0, 2.0], vec![3.0, 4.0, 5.0], vec![6.0, 7.0, 8.0]]);
    let sliced = batch(vec![("sample", samples.clone()), ("scores", scores)]).slice(1, 2);
    let mut selection = begin(3, 1, 1, Order::ClassFirst).unwrap();
    selection.update_batches([Ok(sliced)], &Job::new()).unwrap();
    assert_eq!(
        rows(finish(&mut selection, 1, 3).unwrap()),
        [(2, 2, 8.0), (2, 1, 7.0), (2, 0, 6.0)]
    );
    let narrow = dense(2, vec![vec![0.0, 1.0]; 3]);
    let found = message(update(vec![("sample", samples.clone()), ("scores", narrow)]));
    assert!(found.contains("each of 3 classes") && found.contains("lists of 2"), "{found}");
    let found = message(update(vec![("sample", samples.clone()), ("scores", samples)]));
    assert!(found.contains("column \"scores\" to hold lists, got Int64"), "{found}");
}

#[test]
fn too_little_memory_for_so_many_classes_is_wrong_usage_and_a_full_disk_says_what_to_do() {
    let little = Memory::limited(Some(Memory::LEAST), None).unwrap();
    let found = message(Selection::new(100_000, 1, 1, Order::ClassFirst, little));
    assert!(found.contains("at least") && found.contains("100000 classes"), "{found}");
    let nowhere = Memory { limit: None, spill_dir: Some("/nowhere/at/all".into()) };
    let mut selection = Selection::new(40, 10, 2, Order::ClassFirst, nowhere).unwrap();
    give(&mut selection, &many()).unwrap();
    let found = message(selection.spill());
    assert!(found.contains("/nowhere/at/all") && found.contains("--spill-dir"), "{found}");
    assert!(message(give(&mut selection, &[])).contains("half updated"));
}

fn rayon_pool(threads: usize) -> rayon::ThreadPool {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap()
}

/// A matrix large enough for several blocks and for bitmaps of samples.
fn large() -> (Vec<f32>, usize) {
    let width = 130;
    let mut state = 7u64;
    let scores = (0..9000 * width).map(|_| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 52) as f32 - 2048.0
    });
    (scores.collect(), width)
}

#[test]
fn a_large_matrix_is_the_same_whatever_the_blocks_and_threads() {
    let (scores, width) = large();
    let pairs: Vec<Pair> = (0..scores.len())
        .map(|i| ((i / width) as u64 + 70_000, (i % width) as u32, scores[i]))
        .collect();
    for order in ORDERS {
        let mut whole = begin(width as u32, 50, 3, order).unwrap();
        whole.update(Samples::From(70_000), &scores, &Job::new()).unwrap();
        let mut parts = begin(width as u32, 50, 3, order).unwrap();
        for (part, rows) in scores.chunks(width * 700).enumerate().collect::<Vec<_>>().iter().rev()
        {
            let samples = Samples::From(70_000 + *part as u64 * 700);
            rayon_pool(2).install(|| parts.update(samples, rows, &Job::new())).unwrap();
        }
        let mut single = begin(width as u32, 50, 3, order).unwrap();
        give(&mut single, &pairs).unwrap();
        let selected = finish(&mut whole, 50, 3).unwrap();
        assert_eq!(selected, finish(&mut parts, 50, 3).unwrap());
        assert_eq!(selected, finish(&mut single, 50, 3).unwrap());
        assert_eq!(saved(&whole), saved(&parts));
        assert_eq!(finish(&mut loaded(&saved(&whole)).unwrap(), 50, 3).unwrap(), selected);
        let full = |rows: &[u64]| rows.iter().all(|&images| images == 50);
        assert!(full(&selected.before));
    }
}

#[test]
fn both_orders_agree_where_no_image_is_cut() {
    let (scores, width) = large();
    let [a, b] = ORDERS.map(|order| {
        let mut selection = begin(width as u32, 20, width as u32, order).unwrap();
        selection.update(Samples::From(0), &scores, &Job::new()).unwrap();
        outcome(&selection.finish(None, None, &Job::new()).unwrap())
    });
    assert_eq!(a, b);
}

#[test]
fn logits_rank_by_their_log_odds() {
    let mut selection = begin(2, 2, 2, Order::ClassFirst).unwrap();
    let logits = [50.0, 0.0, 90.0, 0.0, 1.0, 3.0];
    selection.update_logits(Samples::From(5), &logits, &Job::new()).unwrap();
    let selected = selection.finish(None, None, &Job::new()).unwrap();
    let found: Vec<_> =
        outcome(&selected).pairs.iter().map(|p| (p.sample, p.class, p.score)).collect();
    assert_eq!(found, [(5, 0, 50.0), (5, 1, -50.0), (6, 0, 90.0), (7, 1, 2.0)]);
}

#[test]
fn options_and_shapes_that_make_no_sense_are_wrong_usage_and_change_nothing() {
    for (num_classes, k, p) in [(0, 1, 1), (1, 0, 1), (1, 1, 0), (u32::MAX, 1, 1)] {
        let made = begin(num_classes, k, p, Order::ClassFirst);
        assert!(matches!(made, Err(Error::Usage(_))));
    }
    assert!(Order::parse("classes-first").is_err());
    let mut selection = begin(3, 4, 2, Order::ImageFirst).unwrap();
    let job = Job::new();
    let usage = |result: Result<()>| assert!(matches!(result, Err(Error::Usage(_))), "{result:?}");
    usage(selection.update(Samples::From(0), &[0.0; 4], &job));
    usage(selection.update(Samples::From(u64::MAX), &[0.0; 6], &job));
    usage(selection.update(Samples::These(&[1]), &[0.0; 6], &job));
    usage(selection.update_pairs(&[1], &[1, 2], &[0.5], &job));
    usage(selection.merge(&begin(3, 4, 1, Order::ImageFirst).unwrap()));
    usage(begin(1, 1, 1, Order::ClassFirst).unwrap().update_logits(Samples::From(0), &[1.0], &job));
    usage(selection.finish(Some(5), None, &job).map(drop));
    usage(selection.finish(Some(0), None, &job).map(drop));
    usage(selection.finish(None, Some(1), &job).map(drop));
    selection.update(Samples::From(u64::MAX), &[0.0; 3], &job).unwrap();
    assert_eq!(selection.finish(None, None, &job).unwrap().num_after(), [1, 1, 0]);
}

#[test]
fn bad_scores_are_named_and_leave_a_state_that_nobody_can_use() {
    let (job, order) = (Job::new(), Order::ClassFirst);
    let mut selection = begin(3, 4, 2, order).unwrap();
    let scores = [0.0, 0.0, 0.0, 0.0, f32::NAN, 0.0];
    let found = message(selection.update(Samples::From(8), &scores, &job));
    assert!(found.starts_with("sample 9, class 1: the score is NaN"), "{found}");
    for result in [
        give(&mut selection, &[]),
        selection.finish(None, None, &job).map(drop),
        selection.save("/nowhere/at/all"),
        begin(3, 4, 2, order).unwrap().merge(&selection),
    ] {
        assert!(message(result).contains("half updated"));
    }
    let mut selection = begin(3, 4, 2, order).unwrap();
    let found = message(selection.update_logits(Samples::From(8), &[f32::INFINITY; 3], &job));
    assert!(found.starts_with("sample 8, class 0: the logit is inf"), "{found}");
    let mut selection = begin(3, 4, 2, order).unwrap();
    let found = message(give(&mut selection, &[(4, 3, 0.5)]));
    assert!(found.starts_with("sample 4: the class is 3, and the selection has 3"), "{found}");
    let mut selection = begin(3, 4, 2, order).unwrap();
    job.cancel();
    assert!(matches!(selection.update(Samples::From(0), &[0.0; 3], &job), Err(Error::Cancelled)));
    assert!(message(give(&mut selection, &[])).contains("half updated"));
}

#[test]
fn image_first_refuses_samples_that_come_back_and_classes_twice_in_a_row() {
    let new = || begin(3, 4, 2, Order::ImageFirst).unwrap();
    let came_back = |result: Result<()>| {
        let found = message(result);
        assert!(found.starts_with("sample 1 came back"), "{found}");
    };
    came_back(give(&mut new(), &[(1, 0, 0.5), (2, 0, 0.5), (1, 1, 0.5)]));
    let mut selection = new();
    give(&mut selection, &[(1, 0, 0.5)]).unwrap();
    came_back(selection.update(Samples::From(0), &[0.0; 6], &Job::new()));
    let mut selection = new();
    came_back(selection.update(Samples::These(&[1, 2, 1]), &[0.0; 9], &Job::new()));
    let doubled = message(give(&mut new(), &[(1, 0, 0.1), (1, 2, 0.5), (1, 0, 0.5), (3, 0, 0.5)]));
    assert!(doubled.starts_with("sample 1, class 0: the pair was scored twice"), "{doubled}");
    let endless: Vec<_> = (0..4).map(|class| (1, class % 3, 0.5)).collect();
    assert!(message(give(&mut new(), &endless)).contains("scored twice"));

    let (mut a, mut b) = (new(), new());
    give(&mut a, &[(7, 0, 0.5), (9, 1, 0.5)]).unwrap();
    give(&mut b, &[(8, 0, 0.5), (9, 2, 0.5)]).unwrap();
    assert!(message(a.merge(&b)).starts_with("merge: sample 9 was scored in both"));
    // The row of sample 9 is still open, and a failed merge has changed nothing.
    give(&mut a, &[(9, 0, 0.75)]).unwrap();
    assert_eq!(finish(&mut a, 4, 2).unwrap().after, [2, 1, 0]);
}

fn batch(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    RecordBatch::try_from_iter(columns).unwrap()
}

#[test]
fn record_batches_may_hold_any_integers_and_float32_only() {
    let samples: ArrayRef = Arc::new(Int64Array::from(vec![5, 6, 7]));
    let classes: ArrayRef = Arc::new(UInt8Array::from(vec![0, 1, 1]));
    let scores: ArrayRef = Arc::new(Float32Array::from(vec![0.5, 0.25, 0.75]));
    let update = |columns| {
        let mut selection = begin(2, 1, 1, Order::ClassFirst).unwrap();
        selection.update_batches([Ok(batch(columns))], &Job::new())?;
        selection.finish(None, None, &Job::new())
    };
    let good = vec![("class", classes), ("score", scores), ("sample", samples)];
    let selected = update(good.clone()).unwrap();
    let rows: Vec<_> =
        outcome(&selected).pairs.iter().map(|pair| (pair.sample, pair.class)).collect();
    assert_eq!(rows, [(5, 0), (7, 1)]);
    let table = selected.batches().unwrap().next().unwrap().unwrap();
    assert_eq!((table.num_rows(), table.schema()), (2, Selected::schema()));

    let wide: ArrayRef = Arc::new(Float64Array::from(vec![0.5, 0.25, 0.75]));
    let below: ArrayRef = Arc::new(Int64Array::from(vec![0, -1, 2]));
    let null: ArrayRef = Arc::new(Int64Array::from(vec![Some(0), None, Some(1)]));
    let large: ArrayRef = Arc::new(Int64Array::from(vec![0, 1 << 40, 1]));
    for (column, values, expected) in [
        (1, wide.clone(), "expected column \"score\" as float32, got Float64; cast it"),
        (0, wide, "expected column \"class\" to hold integers, got Float64"),
        (2, below, "column \"sample\" is -1 in row 1"),
        (0, null, "column \"class\" is null in row 1"),
        (0, large, "sample 6: the class is 1099511627776, and the selection has 2 classes"),
    ] {
        let mut columns = good.clone();
        columns[column].1 = values;
        let found = message(update(columns));
        assert!(found.contains(expected), "{found}");
    }
    assert!(message(update(good[..2].to_vec())).contains("no column \"sample\""));
}

#[test]
fn a_file_of_something_else_is_refused() {
    let bytes = saved(&begin(2, 3, 1, Order::ImageFirst).unwrap());
    let mut other = bytes.clone();
    other[8] = 9;
    assert!(message(loaded(&other)).contains("format version 9"));
    assert!(message(loaded(b"PAR1 and so on")).contains("no state of a selection"));
    let longer = [bytes.as_slice(), b"x"].concat();
    assert!(message(loaded(&longer)).contains("something follows its end"));
    assert!(matches!(
        Selection::load("/nowhere/at/all", Memory::unlimited()),
        Err(Error::Io { .. })
    ));
}
