//! Normalization, and records out of every form of column.

use std::sync::Arc;

use arrow_array::builder::{ListBuilder, StringBuilder, StringDictionaryBuilder};
use arrow_array::types::Int8Type;
use arrow_array::{
    ArrayRef, BinaryArray, FixedSizeListArray, Int32Array, LargeListArray, LargeStringArray,
    ListArray, NullArray, StringArray, StringViewArray,
};
use arrow_buffer::OffsetBuffer;
use arrow_schema::{DataType, Field};
use proptest::prelude::*;
use wsl_core::hashtag::{MAX_BYTES, RecordReader, Rejection, Scratch, TagColumn, Tally, normalize};

fn normal(raw: &str) -> Result<String, Rejection> {
    normalize(raw.as_bytes(), &mut Scratch::default()).map(str::to_owned)
}

/// The rules once more, without paths for the common cases.
fn slow_twin(raw: &str) -> Result<String, Rejection> {
    use unicode_normalization::UnicodeNormalization;
    let mut text = raw.to_owned();
    loop {
        let folded: String = text.nfkc().collect();
        let folded = caseless::default_case_fold_str(&folded);
        let mut next: String = folded.nfkc().collect();
        next.retain(|c| !"\u{fe0f}\u{200b}\u{200c}\u{200d}\u{2060}\u{feff}".contains(c));
        let mut next = next.trim();
        while next.starts_with('#') {
            next = next.trim_start_matches('#').trim();
        }
        if next == text {
            break;
        }
        text = next.to_owned();
    }
    match () {
        () if text.is_empty() => Err(Rejection::Empty),
        () if text.chars().any(char::is_control) => Err(Rejection::ControlCharacter),
        () if text.len() > MAX_BYTES => Err(Rejection::TooLong),
        () => Ok(text),
    }
}

#[test]
fn spellings_of_one_tag_become_one() {
    for raw in ["#Straße", "STRASSE", "ｓｔｒａｓｓｅ", " # strasse\n", "\u{feff}##stra\u{200b}sse"]
    {
        assert_eq!(normal(raw).as_deref(), Ok("strasse"), "{raw:?}");
    }
    assert_eq!(normal("❤\u{fe0f}").as_deref(), Ok("❤"));
}

#[test]
fn every_cause_of_rejection_is_told() {
    assert_eq!(normalize(b"caf\xe9", &mut Scratch::default()), Err(Rejection::NotUtf8));
    assert_eq!(normal(" ## # "), Err(Rejection::Empty));
    assert_eq!(normal("a\u{0}b"), Err(Rejection::ControlCharacter));
    assert_eq!(normal("a\u{85}b"), Err(Rejection::ControlCharacter));
    assert_eq!(normal(&"x".repeat(MAX_BYTES + 1)), Err(Rejection::TooLong));
    assert_eq!(normal(&"x".repeat(MAX_BYTES)).map(|tag| tag.len()), Ok(MAX_BYTES));
}

#[test]
fn every_single_character_is_normalized_idempotently() {
    for character in '\0'..=char::MAX {
        if let Ok(once) = normal(&character.to_string()) {
            assert_eq!(normal(&once).as_deref(), Ok(once.as_str()), "{character:?}");
        }
    }
}

fn texts() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("#".to_owned()),
        "[ \t\u{a0}\u{3000}]",
        "[a-zA-Z0-9]{1,4}",
        "[\u{200b}-\u{200d}\u{2060}\u{feff}\u{fe0f}]",
        "[\u{300}-\u{345}\u{1fb3}\u{3b1}\u{1100}-\u{1112}\u{1161}-\u{1175}]",
        "\\PC",
        any::<char>().prop_map(String::from),
    ];
    prop::collection::vec(piece, 0..10).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn normalization_is_idempotent_and_agrees_with_its_slow_twin(raw in texts()) {
        let once = normal(&raw);
        prop_assert_eq!(&once, &slow_twin(&raw));
        if let Ok(once) = once {
            prop_assert_eq!(normal(&once), Ok(once));
        }
    }

    #[test]
    fn any_bytes_are_normalized_or_rejected(raw in prop::collection::vec(any::<u8>(), 0..40)) {
        let _ = normalize(&raw, &mut Scratch::default());
    }
}

fn read(array: ArrayRef, separator: Option<&str>) -> (Vec<Vec<String>>, Tally) {
    let column = TagColumn::new(&array, "hashtags").unwrap();
    let mut reader = RecordReader::new(separator).unwrap();
    let mut tally = Tally::default();
    let records = (0..column.len()).map(|row| {
        let mut tags = Vec::new();
        let kept = reader
            .read(&column, row, &mut tally, |tag| tags.push(tag.text(&mut [0; 16]).to_owned()));
        assert_eq!(kept, tags.len());
        tags
    });
    (records.collect(), tally)
}

fn item() -> Arc<Field> {
    Arc::new(Field::new("item", DataType::Utf8, true))
}

#[test]
fn every_layout_of_column_gives_the_same_records() {
    let expected = vec![vec!["cat", "dog"], vec!["fish", "a long tag of many bytes"]];
    let texts = ["Cat", "#dog", "fish", "a long tag of many bytes"];
    let mut builder = ListBuilder::new(StringDictionaryBuilder::<Int8Type>::new());
    for (row, text) in texts.iter().enumerate() {
        builder.values().append_value(text);
        if row % 2 == 1 {
            builder.append(true);
        }
    }
    let strings: ArrayRef = Arc::new(StringArray::from(texts.to_vec()));
    let large: ArrayRef = Arc::new(LargeStringArray::from(texts.to_vec()));
    let views: ArrayRef = Arc::new(StringViewArray::from(texts.to_vec()));
    let bytes: ArrayRef = Arc::new(BinaryArray::from_iter_values(texts));
    let mut arrays: Vec<ArrayRef> = vec![
        Arc::new(builder.finish()),
        Arc::new(FixedSizeListArray::new(item(), 2, strings.clone(), None)),
    ];
    for values in [strings, large, views, bytes] {
        let field = Arc::new(Field::new("item", values.data_type().clone(), true));
        let offsets = OffsetBuffer::from_lengths([2, 2]);
        arrays.push(Arc::new(ListArray::new(field.clone(), offsets, values.clone(), None)));
        let offsets = OffsetBuffer::from_lengths([2, 2]);
        arrays.push(Arc::new(LargeListArray::new(field, offsets, values, None)));
    }
    let joined = texts.chunks(2).map(|pair| pair.join("|")).collect::<Vec<_>>();
    for array in arrays {
        let kind = array.data_type().to_string();
        let (records, tally) = read(array.clone(), None);
        assert_eq!(records, expected, "{kind}");
        assert_eq!(tally.num_tags_in(), 4);
        let (sliced, _) = read(array.slice(1, 1), None);
        assert_eq!(sliced, expected[1..], "{kind}, sliced");
    }
    let (records, _) = read(Arc::new(StringArray::from(joined)), Some("|"));
    assert_eq!(records, expected);
}

#[test]
fn a_tag_twice_in_a_record_counts_once() {
    let many = (0..100).map(|number| format!("tag{}", number % 40)).collect::<Vec<_>>().join(" ");
    let (records, tally) = read(Arc::new(StringArray::from(vec!["Cat #cat dog", &many])), None);
    assert_eq!(records[0], ["cat", "dog"]);
    assert_eq!(records[1].len(), 40);
    assert_eq!((tally.num_records, tally.num_hashtags, tally.num_duplicates), (2, 42, 61));
}

#[test]
fn a_null_list_is_a_record_without_tags_and_a_null_tag_is_rejected() {
    let mut builder = ListBuilder::new(StringBuilder::new());
    builder.append(false);
    builder.values().append_null();
    builder.values().append_value("cat");
    builder.append(true);
    let (records, tally) = read(Arc::new(builder.finish()), None);
    assert_eq!(records, [vec![], vec!["cat"]]);
    assert_eq!(tally.rejected[Rejection::Null as usize], 1);
    assert_eq!((tally.num_records, tally.num_tags_in()), (2, 2));

    let (records, tally) = read(Arc::new(StringArray::from(vec![None, Some("")])), Some(","));
    assert_eq!((records.len(), tally.num_records, tally.num_tags_in()), (2, 2, 0));
    let (_, tally) = read(Arc::new(NullArray::new(3)), None);
    assert_eq!((tally.num_records, tally.num_tags_in()), (3, 0));
}

#[test]
fn pieces_of_a_text_are_judged_one_by_one() {
    let bytes: ArrayRef = Arc::new(BinaryArray::from_iter_values([
        b"cat \xff dog\xe3\x80\x80fish".as_slice(),
        b"cat,,\xff",
    ]));
    let (records, tally) = read(bytes.clone(), None);
    assert_eq!(records[0], ["cat", "dog", "fish"]);
    assert_eq!(tally.rejected, [2, 0, 0, 0, 0]);
    let (records, tally) = read(bytes.slice(1, 1), Some(","));
    assert_eq!(records[0], ["cat"]);
    assert_eq!(tally.rejected, [1, 1, 0, 0, 0]);
}

#[test]
fn a_column_of_another_type_is_refused_by_name() {
    let numbers: ArrayRef = Arc::new(Int32Array::from(vec![1]));
    let message = TagColumn::new(&numbers, "likes").unwrap_err().to_string();
    assert!(message.contains("\"likes\"") && message.contains("Int32"), "{message}");
    assert!(RecordReader::new(Some("")).is_err());
}
