//! One part of an index out of the scans and labels of the shards whose samples are in it.

use std::ops::Range;
use std::path::{Path, PathBuf};

use super::sections::{Sections, open_all, read_each};
use super::{About, Taking};
use crate::index::format::join_key;
use crate::index::format::{NO_SHARD, PART_ROWS, part_schema, write_table};
use crate::index::steps::scans::read_scans;
use crate::index::write::LabelSource;
use crate::index::write::join::FileLabels;
use crate::index::write::rows::Rows;
use crate::job::Job;
use crate::spill::partitions::Input;
use crate::store::Storage;
use crate::{Error, Result};

/// The scans of a group of shards, and which of their samples are wanted.
#[derive(Debug, Clone)]
pub struct PartGroup {
    /// The scans.
    pub scans: PathBuf,
    /// The names of the shards.
    pub shards: Vec<String>,
    /// Which group it is among all.
    pub number: usize,
    /// The number of its first shard in the index.
    pub first_shard: u32,
    /// The shard of the group that the first wanted sample is in, and how many samples are taken of
    /// those before it.
    pub skip: (usize, u64),
    /// Which of the samples that are taken of the group are wanted.
    pub rows: Range<u64>,
}

/// Writes a part as `out`. `labels` are the files of all buckets, none where labels are not joined.
pub fn write_part(
    groups: &[PartGroup],
    source: LabelSource,
    labels: &[PathBuf],
    taking: &Taking,
    storage: &Storage,
    out: &Path,
    job: &Job,
) -> Result<()> {
    check_num_rows(groups.iter().map(|group| &group.rows))?;
    let labels = open_all(labels, storage, job)?;
    let mut rows = Rows::default();
    for group in groups {
        let found = match source {
            LabelSource::Records => Some(labels_of(group, &labels, job)?),
            LabelSource::None | LabelSource::Members => None,
        };
        let before = rows.len();
        push_group(group, source, found.as_ref(), taking, &mut rows, job)?;
        if (rows.len() - before) as u64 != group.rows.end - group.rows.start {
            return Err(Error::data(format!(
                "{}: expected the samples {} to {} of these shards; the file does not hold them, so \
                 remove it and run the command again",
                group.scans.display(),
                group.rows.start,
                group.rows.end
            )));
        }
    }
    write_rows(&rows, out)
}

/// Refuses a part of more rows than one may have.
pub(super) fn check_num_rows<'a>(wanted: impl IntoIterator<Item = &'a Range<u64>>) -> Result<()> {
    let mut wanted = wanted.into_iter().map(|rows| rows.end.checked_sub(rows.start));
    let num_rows = wanted.try_fold(0_u64, |sum, rows| sum.checked_add(rows?));
    if num_rows.is_none_or(|number| number > PART_ROWS as u64) {
        return Err(Error::usage(format!("a part holds at most {PART_ROWS} rows")));
    }
    Ok(())
}

/// Writes rows as a part.
pub(super) fn write_rows(rows: &Rows, out: &Path) -> Result<()> {
    let name = out.file_name().and_then(|name| name.to_str());
    let (Some(folder), Some(name)) = (out.parent(), name) else {
        return Err(Error::usage(format!("{}: it is no name of a part", out.display())));
    };
    write_table(folder, name, &part_schema(), rows.batches())?;
    Ok(())
}

/// The labels of the wanted samples of a group.
fn labels_of(group: &PartGroup, files: &[Sections], job: &Job) -> Result<FileLabels> {
    let mut found = FileLabels::new((group.rows.end - group.rows.start) as usize);
    let bounds = |file: &Sections| {
        if !matches!(file.about, About::Labels { .. }) {
            return Err(file.damaged("it holds no labels"));
        }
        file.bounds(group.number..group.number + 1, job)
    };
    let bounds = files.iter().map(bounds).collect::<Result<Vec<_>>>()?;
    let files: Vec<_> = files.iter().zip(&bounds).collect();
    read_each(&files, &(0..1), job, |_, bytes| {
        let mut input = Input::new(bytes);
        while !input.is_empty() {
            let row = input.number()?;
            let row = row.checked_sub(group.rows.start).and_then(|row| row.try_into().ok());
            found.take(row.unwrap_or(usize::MAX), &mut input)?;
        }
        Ok(())
    })?;
    Ok(found)
}

fn push_group(
    group: &PartGroup,
    source: LabelSource,
    found: Option<&FileLabels>,
    taking: &Taking,
    rows: &mut Rows,
    job: &Job,
) -> Result<()> {
    // Rows are counted as the builder of one process counts them, so that the parts are the same
    // bytes.
    let (first, mut row) = group.skip;
    let mut scratch = Vec::new();
    let scans = read_scans(&group.scans, group.shards.len())?.skip_shards(first);
    for ((number, shard), scan) in group.shards.iter().enumerate().skip(first).zip(scans) {
        if row >= group.rows.end {
            break;
        }
        let scan = scan?;
        let place =
            u32::try_from(number).ok().and_then(|number| group.first_shard.checked_add(number));
        let place = place.filter(|&place| place < NO_SHARD).ok_or_else(too_many)?;
        for sample in 0..scan.len() {
            if sample % 65_536 == 0 {
                job.check()?;
            }
            let key = scan.key(sample);
            let joined = join_key(taking.scoped(shard), key, &mut scratch);
            if taking.lists.cause(joined).is_some() {
                continue;
            }

            // A group may reach over the ends of the part; the others belong to its neighbours.
            if group.rows.contains(&row) {
                let (offset, size) = scan.place(sample);
                let labels = match (source, found) {
                    (LabelSource::Members, _) => scan.class(sample),
                    (_, Some(found)) => {
                        found.get((row - group.rows.start) as usize).unwrap_or_default()
                    }
                    (_, None) => &[],
                };
                rows.push(key, (place, offset, size), labels);
            }
            row += 1;
        }
    }
    Ok(())
}

fn too_many() -> Error {
    Error::usage("an index holds at most 4,294,967,294 shards")
}
