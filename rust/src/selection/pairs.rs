//! Pairs as Arrow columns: `sample` and `class` of any integer type, `score` of float32.
//!
//! Scores in half precision are refused rather than widened: so many of them tie that the tie rule,
//! not the teacher, would choose the images. Float64 is refused because rounding it may make ties
//! too; whoever has it rounds it on purpose.

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

/// Refuses a schema without the three columns in types that can be read.
pub(super) fn check_schema(schema: &Schema) -> Result<()> {
    for name in ["sample", "class"] {
        let found = type_of(schema, name)?;
        if !found.is_integer() {
            return Err(Error::usage(format!(
                "the scored pairs: expected column {name:?} to hold integers, got {found}"
            )));
        }
    }
    match type_of(schema, "score")? {
        DataType::Float32 => Ok(()),
        DataType::Float64 => Err(Error::usage(
            "the scored pairs: expected column \"score\" as float32, got Float64; cast it to \
             float32 before",
        )),
        found => Err(Error::usage(format!(
            "the scored pairs: expected column \"score\" as float32, got {found}; in a lower \
             precision many scores tie, so make them in float32 from the start"
        ))),
    }
}

fn type_of<'a>(schema: &'a Schema, name: &str) -> Result<&'a DataType> {
    schema.field_with_name(name).map(|field| field.data_type()).map_err(|_| {
        let known: Vec<_> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        Error::usage(format!(
            "the scored pairs have no column {name:?}; expected the columns sample, class and \
             score, got: {}",
            known.join(", ")
        ))
    })
}

/// The three columns of a batch.
pub(super) struct PairColumns<'a> {
    samples: &'a ArrayRef,
    classes: &'a ArrayRef,
    scores: &'a [f32],
}

impl<'a> PairColumns<'a> {
    pub(super) fn new(batch: &'a RecordBatch) -> Result<Self> {
        check_schema(&batch.schema())?;
        let column = |name: &str| {
            let array = batch.column_by_name(name).ok_or_else(|| unreadable(name))?;
            match (0..array.len()).find(|&row| array.null_count() > 0 && array.is_null(row)) {
                Some(row) => Err(Error::data(format!(
                    "the scored pairs: column {name:?} is null in row {row} of a batch of {} rows; \
                     every pair needs a sample, a class and a score",
                    array.len()
                ))),
                None => Ok(array),
            }
        };
        let scores = column("score")?.as_primitive_opt::<Float32Type>();
        let scores = scores.ok_or_else(|| unreadable("score"))?.values();
        Ok(Self { samples: column("sample")?, classes: column("class")?, scores })
    }

    /// The samples and classes of some rows.
    pub(super) fn rows(
        &self,
        rows: Range<usize>,
        num_classes: u32,
    ) -> Result<(Vec<u64>, Vec<u32>)> {
        let samples = integers(self.samples, "sample", rows.clone())?;
        let classes = integers(self.classes, "class", rows)?;
        let class = |(&sample, class): (&u64, u64)| {
            u32::try_from(class).map_err(|_| out_of_range(sample, class, num_classes))
        };
        let classes = samples.iter().zip(classes).map(class).collect::<Result<_>>()?;
        Ok((samples, classes))
    }

    pub(super) fn scores(&self, rows: Range<usize>) -> &'a [f32] {
        &self.scores[rows]
    }
}

fn unreadable(name: &str) -> Error {
    Error::data(format!(
        "the scored pairs: column {name:?} is not of the type that its schema says"
    ))
}

fn integers(array: &ArrayRef, name: &str, rows: Range<usize>) -> Result<Vec<u64>> {
    match array.data_type() {
        DataType::Int8 => widened::<Int8Type>(array, name, rows),
        DataType::Int16 => widened::<Int16Type>(array, name, rows),
        DataType::Int32 => widened::<Int32Type>(array, name, rows),
        DataType::Int64 => widened::<Int64Type>(array, name, rows),
        DataType::UInt8 => widened::<UInt8Type>(array, name, rows),
        DataType::UInt16 => widened::<UInt16Type>(array, name, rows),
        DataType::UInt32 => widened::<UInt32Type>(array, name, rows),
        _ => widened::<UInt64Type>(array, name, rows),
    }
}

fn widened<T>(array: &ArrayRef, name: &str, rows: Range<usize>) -> Result<Vec<u64>>
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
    rows.clone().zip(&values[rows]).map(widen).collect()
}
