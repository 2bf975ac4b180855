//! How far a build has come, so that a killed one resumes.
//!
//! `building.jsonl` is in the folder of the index while it is built: a line for what is built
//! (a key that the caller makes of inputs and options, and the index that is appended to), then one
//! line for every file that is finished. A line is written and synced after its file is published; a
//! line cut short by a crash is passed over, and its file written again.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::index::format::FileEntry;
use crate::index::images::shards::Shard;
use crate::{Error, Result, publish};

/// The name of the journal.
pub const JOURNAL: &str = "building.jsonl";

/// The name of the vocabulary that a build under way has made.
pub const STAGED: &str = "building.parquet";

/// What is built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::index) struct Head {
    /// Made by the caller of inputs and options.
    pub(in crate::index) key: String,
    /// The fingerprint of the index that is appended to.
    pub(in crate::index) base: Option<String>,
    /// The number of the first part.
    pub(in crate::index) first_number: u64,
}

/// What a finished file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(in crate::index) enum Kind {
    /// A part of the index.
    Part,
    /// Rows that wait for their labels.
    Scan,
    /// A part made of such rows.
    Labelled,
}

/// A finished file, and where the build stood then.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(in crate::index) struct Step {
    pub(in crate::index) kind: Kind,
    pub(in crate::index) file: FileEntry,
    /// Shards finished since the step before.
    pub(in crate::index) shards: Vec<Shard>,
    /// Samples of the shard under way that are done, and the ordinal of its first.
    pub(in crate::index) num_done: usize,
    pub(in crate::index) first_sample: u64,
    pub(in crate::index) counts: BTreeMap<String, u64>,
    pub(in crate::index) highest_class: Option<u32>,
}

/// The journal of a build under way.
#[derive(Debug)]
pub(in crate::index) struct Journal {
    path: PathBuf,
    file: Option<File>,
    /// Whether a build under way was found.
    pub(in crate::index) is_resumed: bool,
}

impl Journal {
    /// Opens the journal of `folder`, and returns the steps that are done where it is of the same
    /// build; otherwise begins a new one. Without a head nothing is kept.
    pub(in crate::index) fn open(folder: &Path, head: Option<&Head>) -> Result<(Self, Vec<Step>)> {
        let path = folder.join(JOURNAL);
        let Some(head) = head else {
            let _ = fs::remove_file(&path);
            let _ = fs::remove_file(folder.join(STAGED));
            return Ok((Self { path, file: None, is_resumed: false }, Vec::new()));
        };
        let steps = read(&path, head).filter(|steps| {
            let there = |step: &Step| {
                fs::metadata(folder.join(&step.file.file)).is_ok_and(|m| m.len() == step.file.size)
            };
            steps.iter().all(there)
        });
        let fault = |error| Error::io(&path, error);
        let is_resumed = steps.is_some();
        let steps = match steps {
            Some(steps) => steps,
            None => {
                let _ = fs::remove_file(folder.join(STAGED));
                let mut text = serde_json::to_vec(head).map_err(|error| bad(&path, &error))?;
                text.push(b'\n');
                publish::write_file(&path, &text)?;
                Vec::new()
            }
        };
        let mut file = File::options().append(true).open(&path).map_err(fault)?;
        // Ends a line that was cut short.
        file.write_all(b"\n").map_err(fault)?;
        Ok((Self { path, file: Some(file), is_resumed }, steps))
    }

    /// Notes a finished file.
    pub(in crate::index) fn note(&mut self, step: &Step) -> Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        let mut line = serde_json::to_vec(step).map_err(|error| bad(&self.path, &error))?;
        line.push(b'\n');
        let written = file.write_all(&line).and_then(|()| file.sync_data());
        written.map_err(|error| Error::io(&self.path, error))
    }
}

fn bad(path: &Path, error: &serde_json::Error) -> Error {
    Error::usage(format!("{}: {error}", path.display()))
}

/// The steps of the journal, where it is of this build.
fn read(path: &Path, head: &Head) -> Option<Vec<Step>> {
    let text = fs::read(path).ok()?;
    let mut lines = text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    let found: Head = serde_json::from_slice(lines.next()?).ok()?;
    let steps = lines.map_while(|line| serde_json::from_slice(line).ok());
    (found == *head).then(|| steps.collect())
}
