//! Files of sections that are read apart.
//!
//! ```text
//! section 0, section 1, ...      bytes that their writer understands
//! table                          for each section: where it ends (u64), XXH3 of it (u64)
//! about                          JSON: what the file is, and what was counted
//! trailer                        number of sections, bytes of about, XXH3 of about (u64 each), magic
//! ```
//!
//! Numbers are little-endian. A reader of one section reads the trailer, two entries of the table and the
//! section, and checks it against its checksum; nothing else of the file need be read or be right.

use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::About;
use crate::job::Job;
use crate::publish::Unpublished;
use crate::store::{Object, Span, Storage, is_remote};
use crate::{Error, Result, threads};

const MAGIC: &[u8; 8] = b"WSLSECT1";
const TRAILER: u64 = 32;
const ENTRY: u64 = 16;
/// What is read first: the trailer, and with it most often all that the file has about itself.
const TAIL: u64 = 1 << 14;
/// Files in stores that are opened, or read, at once.
const MAX_OPENED: usize = 16;

/// A file of sections being written.
pub(super) struct SectionsWriter {
    file: Unpublished,
    end: u64,
    hasher: Xxh3,
    table: Vec<u8>,
}

impl SectionsWriter {
    /// Starts a file that will become `out`.
    pub(super) fn create(out: &Path) -> Result<Self> {
        let file = Unpublished::create(out)?;
        Ok(Self { file, end: 0, hasher: Xxh3::new(), table: Vec::new() })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|error| Error::io(self.file.target(), error))
    }

    /// Adds to the section under way.
    pub(super) fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        self.end += bytes.len() as u64;
        self.write(bytes)
    }

    /// Ends the section under way.
    pub(super) fn end_section(&mut self) {
        self.table.extend_from_slice(&self.end.to_le_bytes());
        self.table.extend_from_slice(&self.hasher.digest().to_le_bytes());
        self.hasher.reset();
    }

    /// Makes the file visible.
    pub(super) fn publish(mut self, about: &About) -> Result<()> {
        let target = self.file.target().to_path_buf();
        let about = serde_json::to_vec(about)
            .map_err(|error| Error::usage(format!("{}: {error}", target.display())))?;
        let table = std::mem::take(&mut self.table);
        self.write(&table)?;
        self.write(&about)?;
        for number in [table.len() as u64 / ENTRY, about.len() as u64, xxh3_64(&about)] {
            self.write(&number.to_le_bytes())?;
        }
        self.write(MAGIC)?;
        self.file.publish()
    }
}

/// Where a file is.
#[derive(Debug)]
enum Place {
    File(PathBuf),
    Object(Storage, Object),
}

/// A file of sections. It is opened anew for each read: who joins has thousands of them.
#[derive(Debug)]
pub(in crate::index) struct Sections {
    place: Place,
    table_at: u64,
    num_sections: u64,
    /// The table, where it came with what was read first.
    table: Option<Vec<u8>>,
    pub(in crate::index) about: About,
}

/// Where some sections that follow one another are.
#[derive(Debug)]
pub(super) struct Bounds {
    /// Where each begins, and where the last ends.
    places: Vec<u64>,
    checksums: Vec<u64>,
}

impl Bounds {
    /// Bytes of a section.
    pub(super) fn num_bytes(&self, section: usize) -> u64 {
        self.places[section + 1] - self.places[section]
    }
}

/// Opens files, those in stores some at a time.
pub(super) fn open_all(places: &[PathBuf], storage: &Storage, job: &Job) -> Result<Vec<Sections>> {
    let open = |place: &PathBuf| {
        job.check()?;
        Sections::open(place, storage, job)
    };
    if !places.iter().any(|place| place.to_str().is_some_and(is_remote)) {
        return places.iter().map(open).collect();
    }
    let pool = threads::pool(Some(storage.limits().num_requests.min(MAX_OPENED)))?;
    pool.install(|| places.par_iter().map(open).collect())
}

/// Reads sections of files, by their numbers within the bounds of each, in the order of the files; of
/// files in stores some are read at a time. `take` gets the number of the file and each section.
pub(super) fn read_each(
    files: &[(&Sections, &Bounds)],
    sections: &Range<usize>,
    job: &Job,
    mut take: impl FnMut(usize, &[u8]) -> Result<()>,
) -> Result<()> {
    let in_store = files.iter().any(|(file, _)| matches!(file.place, Place::Object(..)));
    let step = if in_store { MAX_OPENED } else { 1 };
    for (number, some) in files.chunks(step).enumerate() {
        job.check()?;
        let read = read_together(some, sections, job)?;
        for ((place, (file, bounds)), bytes) in some.iter().enumerate().zip(read) {
            let number = number * step + place;
            file.each(bounds, sections.clone(), &bytes, |section| take(number, section))?;
        }
    }
    Ok(())
}

/// The bytes of sections of each file.
fn read_together(
    files: &[(&Sections, &Bounds)],
    sections: &Range<usize>,
    job: &Job,
) -> Result<Vec<Vec<u8>>> {
    let mut read = vec![Vec::new(); files.len()];
    let (mut spans, mut numbers, mut reached) = (Vec::new(), Vec::new(), None);
    for (number, (file, bounds)) in files.iter().enumerate() {
        let range = bounds.places[sections.start]..bounds.places[sections.end];
        match &file.place {
            Place::Object(storage, object) if !range.is_empty() => {
                let (uri, etag) = (object.uri.as_str().into(), object.etag.as_str().into());
                spans.push(Span { uri, range, etag: Some(etag) });
                numbers.push(number);
                reached = Some(storage);
            }
            _ => read[number] = file.read_at(range, job)?,
        }
    }
    if let Some(storage) = reached {
        storage.read_spans(spans, job, |span, bytes| {
            read[numbers[span]] = bytes.to_vec();
            Ok(())
        })?;
    }
    Ok(read)
}

impl Sections {
    /// Opens the file, or the object, at `place`.
    pub(in crate::index) fn open(place: &Path, storage: &Storage, job: &Job) -> Result<Self> {
        let uri = place.to_str().filter(|text| is_remote(text));
        let (place, size) = match uri {
            Some(uri) => {
                let object = storage.seen(uri, job)?;
                let size = object.size;
                (Place::Object(storage.clone(), object), size)
            }
            None => {
                let found = std::fs::metadata(place).map_err(|error| Error::io(place, error))?;
                (Place::File(place.to_path_buf()), found.len())
            }
        };

        // It is not known yet, and is replaced at the end; with it faults can name the place.
        let about = About::Known {};
        let mut opened = Self { place, table_at: 0, num_sections: 0, table: None, about };

        // One read at the end brings the trailer, and mostly all that is before it: a store answers
        // each request only after a while.
        let end = size.checked_sub(TRAILER).ok_or_else(|| opened.damaged("it is too short"))?;
        let tail = opened.read_at(size - size.min(TAIL)..size, job)?;
        let (before, trailer) = tail.split_at(tail.len() - TRAILER as usize);
        let number = |at: usize| u64_of(&trailer[8 * at..]);
        if &trailer[24..] != MAGIC {
            return Err(opened.damaged("it does not end as such a file does"));
        }

        // The numbers come from a file that may be damaged, so none is used before it is checked.
        let about_at = end.checked_sub(number(1));
        let table_at = about_at
            .zip(number(0).checked_mul(ENTRY))
            .and_then(|(at, table)| at.checked_sub(table));
        let (Some(about_at), Some(table_at)) = (about_at, table_at) else {
            return Err(opened.damaged("its table is longer than the file"));
        };
        let within = |at: u64| (before.len() as u64).checked_sub(end - at).map(|at| at as usize);
        let about = match within(about_at) {
            Some(start) => before[start..].to_vec(),
            None => opened.read_at(about_at..end, job)?,
        };
        if let (Some(start), Some(end)) = (within(table_at), within(about_at)) {
            opened.table = Some(before[start..end].to_vec());
        }

        // The checksum first: a damaged file must not be reported as one of another kind.
        if xxh3_64(&about) != number(2) {
            return Err(opened.damaged("what it says of itself is not as it was written"));
        }
        (opened.table_at, opened.num_sections) = (table_at, number(0));
        opened.about = serde_json::from_slice(&about)
            .map_err(|error| opened.damaged(&format!("it is of another kind: {error}")))?;
        Ok(opened)
    }

    /// Sections of the file.
    pub(super) fn len(&self) -> usize {
        self.num_sections as usize
    }

    /// Where some sections are.
    pub(super) fn bounds(&self, sections: Range<usize>, job: &Job) -> Result<Bounds> {
        let (start, end) = (sections.start as u64, sections.end as u64);
        if start >= end || end > self.num_sections {
            let what = format!("expected the sections {start} to {end}, it has {}", self.len());
            return Err(self.damaged(&what));
        }

        // An entry is where its section ends, so the one before is needed for where the first
        // begins.
        let from = start.saturating_sub(1);
        let bytes = ENTRY * from..ENTRY * end;
        let table = match &self.table {
            Some(table) => table[bytes.start as usize..bytes.end as usize].to_vec(),
            None => self.read_at(self.table_at + bytes.start..self.table_at + bytes.end, job)?,
        };
        let mut entries = table.chunks_exact(ENTRY as usize);
        let first = if start == 0 { 0 } else { entries.next().map_or(0, u64_of) };
        let (mut places, mut checksums) = (vec![first], Vec::new());
        for entry in entries {
            let place = u64_of(entry);

            // The table may be damaged: sections must follow one another, and end before the table.
            if place < places[places.len() - 1] || place > self.table_at {
                return Err(self.damaged("its table leads outside it"));
            }
            places.push(place);
            checksums.push(u64_of(&entry[8..]));
        }
        Ok(Bounds { places, checksums })
    }

    /// Calls `take` with each of some sections, whose bytes were read in one step.
    fn each(
        &self,
        bounds: &Bounds,
        sections: Range<usize>,
        bytes: &[u8],
        mut take: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let first = bounds.places[sections.start];
        for section in sections {
            let start = (bounds.places[section] - first) as usize;
            let content = bytes.get(start..start + bounds.num_bytes(section) as usize);
            let content = content.filter(|bytes| xxh3_64(bytes) == bounds.checksums[section]);
            take(content.ok_or_else(|| self.damaged("a section of it is not as it was written"))?)?;
        }
        Ok(())
    }

    fn read_at(&self, range: Range<u64>, job: &Job) -> Result<Vec<u8>> {
        if range.is_empty() {
            return Ok(Vec::new());
        }
        match &self.place {
            Place::File(path) => {
                let mut bytes = vec![0; (range.end - range.start) as usize];
                let file = File::open(path);
                file.and_then(|file| file.read_exact_at(&mut bytes, range.start))
                    .map_err(|error| Error::io(path, error))?;
                Ok(bytes)
            }
            Place::Object(storage, object) => {
                let (uri, etag) = (object.uri.as_str().into(), object.etag.as_str().into());
                storage.read_span(Span { uri, range, etag: Some(etag) }, job)
            }
        }
    }

    /// An error that names the file.
    pub(in crate::index) fn damaged(&self, what: &str) -> Error {
        let place = match &self.place {
            Place::File(path) => path.display().to_string(),
            Place::Object(_, object) => object.uri.clone(),
        };
        Error::data(format!(
            "{place}: expected a file of a build on many machines: {what}; remove the file and run the \
             command again"
        ))
    }
}

fn u64_of(bytes: &[u8]) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[..8]);
    u64::from_le_bytes(number)
}
