//! Scores as Arrow columns, in three layouts.
//!
//! * A row for each pair: `sample` and `class` of any integer type, `score` of float32.
//! * A row for each sample: `sample`, and the lists `classes` and `scores`, of one length.
//! * A row for each sample: `sample`, and `scores`, a fixed-size list with one for every class.
//!
//! Scores in half precision are refused rather than widened: so many of them tie that the tie rule,
//! not the teacher, would choose the images. Float64 is refused because rounding it may make ties
//! too; whoever has it rounds it on purpose.

use std::borrow::Cow;
use std::ops::Range;

use arrow_array::cast::AsArray;
use arrow_array::types::{
    ArrowPrimitiveType, Float32Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type,
    UInt16Type, UInt32Type, UInt64Type,
};
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::{DataType, Schema};

use super::out_of_range;
use crate::{Error, Result};

/// Refuses a schema without columns that can be read.
pub(super) fn check_schema(schema: &Schema, num_classes: u32) -> Result<()> {
    check_integers(type_of(schema, "sample")?, "sample")?;
    if schema.field_with_name("scores").is_err() {
        check_integers(type_of(schema, "class")?, "class")?;
        return check_score(type_of(schema, "score")?, "score");
    }
    let scores = type_of(schema, "scores")?;
    check_score(item_of(scores, "scores")?, "scores")?;
    if let Ok(classes) = schema.field_with_name("classes") {
        return check_integers(item_of(classes.data_type(), "classes")?, "classes");
    }
    match scores {
        DataType::FixedSizeList(_, width) if *width as u32 == num_classes => Ok(()),
        DataType::FixedSizeList(_, width) => Err(Error::usage(format!(
            "the scores: expected a score for each of {num_classes} classes in column \"scores\", got \
             lists of {width}; name the classes of each row in a column \"classes\", or select with \
             another number of classes"
        ))),
        other => Err(Error::usage(format!(
            "the scores: column \"scores\" is of type {other} and there is no column \"classes\"; \
             expected a list of classes beside it, or a fixed-size list of all {num_classes} classes"
        ))),
    }
}

fn check_integers(found: &DataType, name: &str) -> Result<()> {
    if found.is_integer() {
        return Ok(());
    }
    Err(Error::usage(format!(
        "the scored pairs: expected column {name:?} to hold integers, got {found}"
    )))
}

fn check_score(found: &DataType, name: &str) -> Result<()> {
    match found {
        DataType::Float32 => Ok(()),
        DataType::Float64 => Err(Error::usage(format!(
            "the scored pairs: expected column {name:?} as float32, got Float64; cast it to \
             float32 before"
        ))),
        found => Err(Error::usage(format!(
            "the scored pairs: expected column {name:?} as float32, got {found}; in a lower \
             precision many scores tie, so make them in float32 from the start"
        ))),
    }
}

fn item_of<'a>(list: &'a DataType, name: &str) -> Result<&'a DataType> {
    match list {
        DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _) => {
            Ok(item.data_type())
        }
        other => Err(Error::usage(format!(
            "the scores: expected column {name:?} to hold lists, got {other}"
        ))),
    }
}

fn type_of<'a>(schema: &'a Schema, name: &str) -> Result<&'a DataType> {
    schema.field_with_name(name).map(|field| field.data_type()).map_err(|_| {
        let known: Vec<_> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        Error::usage(format!(
            "the scored pairs have no column {name:?}; expected the columns sample, class and \
             score, or sample, classes and scores, got: {}",
            known.join(", ")
        ))
    })
}

/// Where the items of each row are in a flat array.
pub(super) enum Offsets<'a> {
    Small(&'a [i32]),
    Large(&'a [i64]),
    Fixed(usize),
}

impl Offsets<'_> {
    fn get(&self, row: usize) -> usize {
        match self {
            Self::Small(offsets) => offsets[row] as usize,
            Self::Large(offsets) => offsets[row] as usize,
            Self::Fixed(width) => row * width,
        }
    }
}

/// The columns of a batch, without nulls.
pub(super) enum Columns<'a> {
    /// A row for each pair, in this machine's own types.
    Slices { samples: &'a [u64], classes: &'a [u32], scores: &'a [f32] },
    /// A row for each pair.
    Pairs { samples: &'a ArrayRef, classes: &'a ArrayRef, scores: &'a [f32] },
    /// A row for each sample.
    Lists {
        samples: &'a ArrayRef,
        classes: (Offsets<'a>, ArrayRef),
        scores: (Offsets<'a>, &'a [f32]),
    },
    /// A row for each sample with a score for every class.
    Dense { samples: &'a ArrayRef, scores: &'a [f32] },
}

/// Some pairs.
pub(super) struct Piece<'a> {
    pub(super) samples: Cow<'a, [u64]>,
    pub(super) classes: Cow<'a, [u32]>,
    pub(super) scores: &'a [f32],
}

impl<'a> Columns<'a> {
    pub(super) fn new(batch: &'a RecordBatch, num_classes: u32) -> Result<Self> {
        check_schema(&batch.schema(), num_classes)?;
        let samples = column(batch, "sample")?;
        if batch.schema().field_with_name("scores").is_err() {
            let classes = column(batch, "class")?;
            let scores = floats(column(batch, "score")?, "score")?;
            return Ok(Self::Pairs { samples, classes, scores });
        }
        let (offsets, items) = list(column(batch, "scores")?, "scores")?;
        let scores = floats(items, "scores")?;
        if batch.schema().field_with_name("classes").is_err() {
            let Offsets::Fixed(width) = offsets else { return Err(unreadable("scores")) };
            let scores =
                scores.get(..batch.num_rows() * width).ok_or_else(|| unreadable("scores"))?;
            return Ok(Self::Dense { samples, scores });
        }
        let classes = list(column(batch, "classes")?, "classes")?;
        Ok(Self::Lists {
            samples,
            classes: (classes.0, classes.1.clone()),
            scores: (offsets, scores),
        })
    }

    pub(super) fn num_rows(&self) -> usize {
        match self {
            Self::Slices { samples, .. } => samples.len(),
            Self::Pairs { samples, .. }
            | Self::Lists { samples, .. }
            | Self::Dense { samples, .. } => samples.len(),
        }
    }

    /// The end of the rows from `first` on that have `most` pairs at most, one row at least.
    pub(super) fn rows_of_pairs(&self, first: usize, most: usize) -> usize {
        let num_rows = self.num_rows();
        match self {
            Self::Lists { scores: (offsets, _), .. } => {
                let last = offsets.get(first) + most;
                let (mut low, mut high) = (first + 1, num_rows);
                while low < high {
                    let middle = low + (high - low).div_ceil(2);
                    if offsets.get(middle) <= last { low = middle } else { high = middle - 1 }
                }
                low
            }
            _ => (first + most).min(num_rows),
        }
    }

    /// The samples of some rows.
    pub(super) fn samples(&self, rows: Range<usize>) -> Result<Cow<'a, [u64]>> {
        match self {
            Self::Slices { samples, .. } => Ok(Cow::Borrowed(&samples[rows])),
            Self::Pairs { samples, .. }
            | Self::Lists { samples, .. }
            | Self::Dense { samples, .. } => integers(samples, "sample", rows),
        }
    }

    /// The pairs of some rows.
    pub(super) fn pairs(&self, rows: Range<usize>, num_classes: u32) -> Result<Piece<'_>> {
        match self {
            Self::Slices { samples, classes, scores } => Ok(Piece {
                samples: Cow::Borrowed(&samples[rows.clone()]),
                classes: Cow::Borrowed(&classes[rows.clone()]),
                scores: &scores[rows],
            }),
            Self::Pairs { samples, classes, scores } => {
                let samples = integers(samples, "sample", rows.clone())?;
                let classes =
                    class_numbers(classes, "class", rows.clone(), num_classes, |place| {
                        samples[place]
                    })?;
                Ok(Piece { samples, classes, scores: &scores[rows] })
            }
            Self::Lists { classes, scores, .. } => {
                let samples = self.samples(rows.clone())?;
                let mut repeated = Vec::new();
                for (row, &sample) in rows.clone().zip(samples.iter()) {
                    // The two lists may begin at different places of their arrays, so their lengths
                    // are compared.
                    let sizes = [&classes.0, &scores.0].map(|of| of.get(row + 1) - of.get(row));
                    if sizes[0] != sizes[1] {
                        return Err(Error::data(format!(
                            "sample {sample}: expected as many scores as classes, got {} and {}",
                            sizes[1], sizes[0]
                        )));
                    }
                    repeated.resize(repeated.len() + sizes[0], sample);
                }
                let items = classes.0.get(rows.start)..classes.0.get(rows.end);
                let classes = class_numbers(&classes.1, "classes", items, num_classes, |place| {
                    repeated[place]
                })?;
                let scores = &scores.1[scores.0.get(rows.start)..scores.0.get(rows.end)];
                Ok(Piece { samples: Cow::Owned(repeated), classes, scores })
            }
            Self::Dense { scores, .. } => {
                let width = num_classes as usize;
                let samples = self.samples(rows.clone())?;
                let repeat = |&sample| std::iter::repeat_n(sample, width);
                let classes = (0..samples.len()).flat_map(|_| 0..num_classes).collect();
                Ok(Piece {
                    samples: Cow::Owned(samples.iter().flat_map(repeat).collect()),
                    classes: Cow::Owned(classes),
                    scores: &scores[rows.start * width..rows.end * width],
                })
            }
        }
    }
}

fn column<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a ArrayRef> {
    let array = batch.column_by_name(name).ok_or_else(|| unreadable(name))?;
    without_nulls(array, name)?;
    Ok(array)
}

fn without_nulls(array: &dyn Array, name: &str) -> Result<()> {
    // Asked once: it is a call through a pointer, and there are as many rows as pairs.
    if array.null_count() == 0 {
        return Ok(());
    }
    match (0..array.len()).find(|&row| array.is_null(row)) {
        Some(row) => Err(Error::data(format!(
            "the scored pairs: column {name:?} is null in row {row} of a batch of {} rows; \
             every pair needs a sample, a class and a score",
            array.len()
        ))),
        None => Ok(()),
    }
}

fn list<'a>(array: &'a ArrayRef, name: &str) -> Result<(Offsets<'a>, &'a ArrayRef)> {
    let (offsets, items) = match array.data_type() {
        DataType::List(_) => {
            let list = array.as_list_opt::<i32>().ok_or_else(|| unreadable(name))?;
            (Offsets::Small(list.value_offsets()), list.values())
        }
        DataType::LargeList(_) => {
            let list = array.as_list_opt::<i64>().ok_or_else(|| unreadable(name))?;
            (Offsets::Large(list.value_offsets()), list.values())
        }
        _ => {
            let list = array.as_fixed_size_list_opt().ok_or_else(|| unreadable(name))?;
            (Offsets::Fixed(list.value_length() as usize), list.values())
        }
    };
    without_nulls(items, name)?;
    Ok((offsets, items))
}

fn floats<'a>(array: &'a ArrayRef, name: &str) -> Result<&'a [f32]> {
    let array = array.as_primitive_opt::<Float32Type>().ok_or_else(|| unreadable(name))?;
    Ok(array.values())
}

fn unreadable(name: &str) -> Error {
    Error::data(format!(
        "the scored pairs: column {name:?} is not of the type that its schema says"
    ))
}

fn class_numbers<'a>(
    array: &'a ArrayRef,
    name: &str,
    rows: Range<usize>,
    num_classes: u32,
    sample: impl Fn(usize) -> u64,
) -> Result<Cow<'a, [u32]>> {
    if let Some(array) = array.as_primitive_opt::<UInt32Type>() {
        return Ok(Cow::Borrowed(&array.values()[rows]));
    }
    let narrow = |(place, &class): (usize, &u64)| {
        u32::try_from(class).map_err(|_| out_of_range(sample(place), class, num_classes))
    };
    let wide = integers(array, name, rows)?;
    Ok(Cow::Owned(wide.iter().enumerate().map(narrow).collect::<Result<_>>()?))
}

fn integers<'a>(array: &'a ArrayRef, name: &str, rows: Range<usize>) -> Result<Cow<'a, [u64]>> {
    match array.data_type() {
        DataType::Int8 => widened::<Int8Type>(array, name, rows),
        DataType::Int16 => widened::<Int16Type>(array, name, rows),
        DataType::Int32 => widened::<Int32Type>(array, name, rows),
        DataType::Int64 => widened::<Int64Type>(array, name, rows),
        DataType::UInt8 => widened::<UInt8Type>(array, name, rows),
        DataType::UInt16 => widened::<UInt16Type>(array, name, rows),
        DataType::UInt32 => widened::<UInt32Type>(array, name, rows),
        _ => {
            let array = array.as_primitive_opt::<UInt64Type>().ok_or_else(|| unreadable(name))?;
            Ok(Cow::Borrowed(&array.values()[rows]))
        }
    }
}

fn widened<T>(array: &ArrayRef, name: &str, rows: Range<usize>) -> Result<Cow<'static, [u64]>>
where
    T: ArrowPrimitiveType,
    T::Native: TryInto<u64> + std::fmt::Display,
{
    let values = array.as_primitive_opt::<T>().ok_or_else(|| unreadable(name))?.values();
    let widen = |(row, &value): (usize, &T::Native)| {
        value.try_into().map_err(|_| {
            Error::data(format!(
                "the scored pairs: column {name:?} is {value} in row {row} of a batch of {} rows; \
                 expected no negative number",
                values.len()
            ))
        })
    };
    Ok(Cow::Owned(rows.clone().zip(&values[rows]).map(widen).collect::<Result<_>>()?))
}
