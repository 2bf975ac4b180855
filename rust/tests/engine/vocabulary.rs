//! Vocabularies: labels, fingerprints, and tables from outside.

use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch, StringArray, UInt32Array};
use arrow_schema::ArrowError;
use proptest::prelude::*;
use wsl_core::job::Job;
use wsl_core::vocabulary::{Entry, Labels, Vocabulary};

use crate::count::{batch, counted, options};

fn of_one(name: &str, synset: Option<&str>, tag_count: u64, tags: &[&str]) -> Vocabulary {
    let mut labels = Labels::default();
    labels.push(Entry { name, synset, tag_count, tags: tags.iter().copied() }).unwrap();
    Vocabulary::new(labels).unwrap()
}

fn reread(vocabulary: &Vocabulary) -> Vocabulary {
    Vocabulary::from_table(vocabulary.table().unwrap().into_iter().map(Ok)).unwrap()
}

#[test]
fn labels_are_ranks_with_ties_in_byte_order() {
    let mut counts = counted(&["dog cat", "cat bird", "zebra ant", "cat"]);
    let vocabulary = Vocabulary::from_counts(&mut counts, 1, None).unwrap();
    let names: Vec<_> = vocabulary.labels().iter().map(|entry| entry.name).collect();
    assert_eq!(names, ["cat", "ant", "bird", "dog", "zebra"]);
    assert_eq!(vocabulary.encode("cat"), Some(0));
    assert_eq!(vocabulary.encode("zebra"), Some(4));
    assert_eq!(vocabulary.encode("fish"), None);
    assert_eq!(vocabulary.name(1), Some("ant"));
    assert_eq!(Vocabulary::from_counts(&mut counts, 2, None).unwrap().len(), 1);
    assert_eq!(Vocabulary::from_counts(&mut counts, 1, Some(3)).unwrap().len(), 3);
    assert!(Vocabulary::from_counts(&mut counts, 0, None).is_err());
}

#[test]
fn class_names_keep_their_numbers() {
    let vocabulary = Vocabulary::from_class_names(&["shirt", "Ankle boot", "bag"]).unwrap();
    assert_eq!(vocabulary.name(1), Some("Ankle boot"));
    assert_eq!(vocabulary.encode("bag"), Some(2));
    assert!(Vocabulary::from_class_names(&["bag", "bag"]).is_err());
    assert!(Vocabulary::from_class_names(&["bag", ""]).is_err());
}

#[test]
fn several_tags_may_lead_to_one_label() {
    let vocabulary = of_one("brown bear", Some("n02132136"), 7, &["brownbear", "ursusarctos"]);
    assert_eq!(vocabulary.encode("ursusarctos"), Some(0));
    assert_eq!(vocabulary.encode("brown bear"), None);
    assert_eq!(reread(&vocabulary).labels(), vocabulary.labels());
}

#[test]
fn the_fingerprint_sees_every_part_of_an_entry() {
    let all = [
        of_one("a", None, 1, &["a"]),
        of_one("b", None, 1, &["a"]),
        of_one("a", Some(""), 1, &["a"]),
        of_one("a", Some("n1"), 1, &["a"]),
        of_one("a", None, 2, &["a"]),
        of_one("a", None, 1, &["a", "b"]),
        of_one("a", None, 1, &["ab"]),
    ];
    let mut prints = all.map(|vocabulary| vocabulary.fingerprint());
    assert!(prints.iter().all(|print| print.len() == 32));
    prints.sort();
    assert!(prints.windows(2).all(|pair| pair[0] != pair[1]));
}

#[test]
fn tables_that_are_no_vocabulary_are_refused_with_the_fault() {
    let good = Vocabulary::from_class_names(&["a", "b"]).unwrap().table().unwrap().remove(0);
    let with = |name: &str, column: ArrayRef| {
        let schema = good.schema();
        let columns = schema.fields().iter().zip(good.columns()).map(|(field, array)| {
            let array = if field.name() == name { column.clone() } else { array.clone() };
            (field.name().clone(), array)
        });
        RecordBatch::try_from_iter(columns).unwrap()
    };
    let bad = [
        (with("label", Arc::new(UInt32Array::from(vec![0, 2]))), "label 1"),
        (with("label", Arc::new(UInt32Array::from(vec![Some(0), None]))), "label 1"),
        (with("label", Arc::new(StringArray::from(vec!["0", "1"]))), "\"label\""),
        (with("name", Arc::new(StringArray::from(vec![Some("a"), None]))), "no name"),
        (with("name", Arc::new(StringArray::from(vec!["a", ""]))), "empty name"),
        (with("tags", Arc::new(StringArray::from(vec!["a", "b"]))), "\"tags\""),
        (with("tag_count", Arc::new(UInt32Array::from(vec![1, 2]))), "\"tag_count\""),
        (good.project(&[0, 1]).unwrap(), "no column"),
    ];
    for (table, expected) in bad {
        let error = Vocabulary::from_table([Ok::<_, ArrowError>(table)]).unwrap_err();
        assert!(error.to_string().contains(expected), "{error} lacks {expected}");
    }
    let doubled = [Ok::<_, ArrowError>(good.clone()), Ok(good)];
    assert!(Vocabulary::from_table(doubled).is_err());
    let mut labels = Labels::default();
    for tags in [["cat", "dog"], ["a tag of more than fifteen bytes", "cat"]] {
        labels.push(Entry { name: tags[0], synset: None, tag_count: 1, tags }).unwrap();
    }
    let error = Vocabulary::new(labels).unwrap_err().to_string();
    assert!(error.contains("the tag \"cat\" leads to label 0 and to label 1"), "{error}");
    assert!(Vocabulary::from_table([] as [Result<_, ArrowError>; 0]).unwrap().is_empty());
}

proptest! {
    #[test]
    fn a_vocabulary_survives_its_table(records in prop::collection::vec("[a-e ]{0,8}", 0..30)) {
        let mut counts = wsl_core::count::HashtagCounts::default();
        let texts: Vec<_> = records.iter().map(String::as_str).collect();
        counts.update([Ok(batch(&texts))], &options(1), &Job::new()).unwrap();
        let vocabulary = Vocabulary::from_counts(&mut counts, 1, None).unwrap();
        let again = reread(&vocabulary);
        prop_assert_eq!(again.fingerprint(), vocabulary.fingerprint());
        for (label, entry) in vocabulary.labels().iter().enumerate() {
            prop_assert_eq!(again.encode(entry.name), Some(label as u32));
            prop_assert_eq!(entry.tag_count, counts.count_of(entry.name).unwrap());
        }
    }
}
