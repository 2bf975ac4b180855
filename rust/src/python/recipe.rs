//! What Python describes as one value: the recipe of an index, and what a verb may take of the machine.
//!
//! Both are read by their attributes, so that an option crosses the border in one place.

use std::collections::BTreeMap;
use std::path::PathBuf;

use pyo3::prelude::*;

use super::exceptions::UsageError;
use crate::count::CountOptions;
use crate::index::format::{KeyScope, LabelKind};
use crate::index::steps::Taking;
use crate::index::{Columns, KeyFormat, LabelSource};
use crate::parquet::ParquetRecords;
use crate::spill::Memory;

/// What an index is built from beside its inputs: `wsl.workspace.recipe.Recipe`.
#[derive(FromPyObject)]
pub(super) struct Recipe {
    label_kind: Option<String>,
    key_column: String,
    hashtags_column: String,
    separator: Option<String>,
    key_scope: String,
    shard_column: Option<String>,
    key_format: Option<String>,
    pub(super) include: Option<Vec<String>>,
    pub(super) exclude: Vec<String>,
    pub(super) limits: BTreeMap<String, f64>,
    pub(super) part_rows: usize,
}

impl Recipe {
    /// What the labels are, if there are any.
    pub(super) fn label_kind(&self) -> PyResult<Option<LabelKind>> {
        match self.label_kind.as_deref() {
            None => Ok(None),
            Some("hashtag") => Ok(Some(LabelKind::Hashtag)),
            Some("class") => Ok(Some(LabelKind::Class)),
            Some(other) => Err(UsageError::new_err(format!(
                "label_kind: expected hashtag or class, got {other:?}"
            ))),
        }
    }

    /// Where the labels come from.
    pub(super) fn label_source(&self) -> PyResult<LabelSource> {
        Ok(match self.label_kind()? {
            None => LabelSource::None,
            Some(LabelKind::Class) => LabelSource::Members,
            Some(LabelKind::Hashtag) => LabelSource::Records,
        })
    }

    /// Within what keys name a sample.
    pub(super) fn key_scope(&self) -> PyResult<KeyScope> {
        Ok(KeyScope::parse(&self.key_scope)?)
    }

    /// Which columns of records have what, beside the hashtags.
    pub(super) fn columns(&self) -> PyResult<Columns> {
        let key_format = self.key_format.as_deref().map(KeyFormat::parse).transpose()?;
        Ok(Columns { key: self.key_column.clone(), shard: self.shard_column.clone(), key_format })
    }

    /// How hashtags are read.
    pub(super) fn counting(&self, num_threads: Option<usize>) -> CountOptions {
        let (column, separator) = (self.hashtags_column.clone(), self.separator.clone());
        CountOptions { column, separator, num_threads }
    }

    /// Which keys are taken.
    pub(super) fn taking(&self) -> PyResult<Taking> {
        Ok(Taking::new(self.key_scope()?, self.include.as_deref(), &self.exclude)?)
    }

    /// The records of Parquet files, where their columns are laid out in a common way.
    pub(super) fn parquet(&self, files: &[PathBuf]) -> Option<ParquetRecords> {
        ParquetRecords::open(files, &self.hashtags_column, &self.key_column)
    }
}

/// What a verb may take of the machine: `wsl.files.resources.Resources`.
#[derive(FromPyObject)]
pub(super) struct Resources {
    memory_bytes: Option<usize>,
    spill_dir: Option<PathBuf>,
    pub(super) num_threads: Option<usize>,
}

impl Resources {
    /// How much memory, and where the rest goes.
    pub(super) fn memory(&self) -> PyResult<Memory> {
        Ok(Memory::limited(self.memory_bytes, self.spill_dir.clone())?)
    }
}
