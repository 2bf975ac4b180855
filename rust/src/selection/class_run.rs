//! What is remembered of the entries of a class that are on disk.

use std::sync::Arc;

use super::entry::Entry;
use crate::spill::Run;

/// So many entries of a class are not worse than this one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mark {
    pub(super) entry: Entry,
    pub(super) number: u32,
}

impl Mark {
    /// Marks that a class keeps at most.
    pub(super) const MOST: usize = 16;
}

/// How many entries a class has in a run.
#[derive(Debug, Clone, Copy)]
pub(super) struct ClassCount {
    /// The class's number within its part.
    pub(super) class: u32,
    pub(super) number: u64,
}

/// A run on disk and what of which class is in it.
#[derive(Debug, Clone)]
pub(super) struct ClassRun {
    pub(super) run: Arc<Run>,
    /// By part, ascending classes that have entries.
    pub(super) counts: Vec<Vec<ClassCount>>,
}
