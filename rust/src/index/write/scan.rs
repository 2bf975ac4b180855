//! One shard scanned: the samples in it, put together from members that follow one another.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use hashbrown::HashSet;
use serde::{Deserialize, Serialize};

use crate::index::format::KeyScope;
use crate::job::Job;
use crate::shard::{IMAGE_EXTENSIONS, Member, Scanner, Summary, split_name};
use crate::store::Storage;
use crate::{Error, Result};

/// Longer `.cls` members are refused.
const MAX_CLASS_BYTES: u64 = 64;
/// Classes above this are taken for damage.
const MAX_CLASS: u32 = 100_000_000;
/// No class.
const NO_CLASS: u32 = u32::MAX;

/// The samples of a shard, in tar order.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::index) struct Scan {
    keys: String,
    key_ends: Vec<usize>,
    places: Vec<(u64, u32)>,
    classes: Vec<u32>,
    /// What was passed over, by cause.
    pub(in crate::index) left_out: BTreeMap<Cow<'static, str>, u64>,
    pub(in crate::index) summary: Summary,
    /// Of a shard in a store.
    pub(in crate::index) etag: Option<String>,
}

impl Scan {
    /// Whether its columns are of one length and its keys are cut where characters begin.
    pub(in crate::index) fn is_whole(&self) -> bool {
        let Self { keys, key_ends, places, classes, .. } = self;
        let ends = std::iter::once(&0).chain(key_ends);
        key_ends.len() == places.len()
            && classes.len() == places.len()
            && key_ends.last().copied().unwrap_or(0) == keys.len()
            && ends.clone().zip(key_ends).all(|(start, end)| start <= end)
            && key_ends.iter().all(|&end| keys.is_char_boundary(end))
    }

    pub(in crate::index) fn len(&self) -> usize {
        self.places.len()
    }

    pub(in crate::index) fn key(&self, sample: usize) -> &str {
        let start = if sample == 0 { 0 } else { self.key_ends[sample - 1] };
        &self.keys[start..self.key_ends[sample]]
    }

    /// Offset and size of the image.
    pub(in crate::index) fn place(&self, sample: usize) -> (u64, u32) {
        self.places[sample]
    }

    /// The class number, as a slice of none or one.
    pub(in crate::index) fn class(&self, sample: usize) -> &[u32] {
        let class = &self.classes[sample..=sample];
        if class[0] == NO_CLASS { &[] } else { class }
    }
}

/// Scans a shard; `with_classes` reads the `.cls` members.
pub(in crate::index) fn scan_shard(
    path: &Path,
    with_classes: bool,
    scope: KeyScope,
    storage: &Storage,
    job: &Job,
) -> Result<Scan> {
    let mut scanner = Scanner::open_in(path, storage, Some(job))?;
    let mut samples = Samples::default();
    let mut member = Member::default();
    let mut number = 0_u64;
    while scanner.next_into(&mut member)? {
        number += 1;
        if number.is_multiple_of(1024) {
            job.check()?;
        }

        // What is left out is counted by its cause: nothing disappears without a trace.
        let Ok(name) = std::str::from_utf8(&member.name) else {
            samples.leave_out("members_with_a_name_not_utf8");
            continue;
        };
        let Some((key, extension)) = split_name(name) else {
            samples.leave_out("members_without_key");
            continue;
        };
        if leads_outside(name) {
            samples.leave_out("members_whose_path_leads_outside");
            continue;
        }
        samples.enter(key);
        if IMAGE_EXTENSIONS.iter().any(|known| extension.eq_ignore_ascii_case(known)) {
            match u32::try_from(member.size) {
                Ok(_) if !member.size_in_header => {
                    samples.leave_out("members_whose_size_is_outside_their_header");
                }
                Ok(size) => samples.image(member.offset, size),
                Err(_) => samples.leave_out("members_over_4_GiB"),
            }
        } else if with_classes && extension.eq_ignore_ascii_case("cls") {
            samples.class = read_class(path, &mut scanner, &member)?;
        }
    }

    // A sample is whole only when the next one begins, or the shard ends.
    samples.leave();
    samples.find_split(scope);
    for (cause, number) in [
        ("members_that_are_links", scanner.num_links()),
        ("members_that_are_devices", scanner.num_devices()),
    ] {
        if number > 0 {
            *samples.left_out.entry(cause.into()).or_insert(0) += number;
        }
    }
    let Samples { keys, key_ends, places, classes, left_out, .. } = samples;
    let (summary, etag) = (scanner.summary(), scanner.etag().map(str::to_owned));
    Ok(Scan { keys, key_ends, places, classes, left_out, summary, etag })
}

fn read_class(path: &Path, scanner: &mut Scanner<'_>, member: &Member) -> Result<u32> {
    let content = scanner.content(member, MAX_CLASS_BYTES)?;
    let class = std::str::from_utf8(&content).ok().and_then(|text| text.trim().parse().ok());
    class.filter(|&class| class <= MAX_CLASS).ok_or_else(|| {
        Error::data(format!(
            "{}: the member {:?} at byte {}: expected a class number from 0 to {MAX_CLASS} as text, \
             found {:?}",
            path.display(),
            String::from_utf8_lossy(&member.name),
            member.offset,
            String::from_utf8_lossy(&content)
        ))
    })
}

/// Whether extracting by this name would leave the folder: `..` in it, or a slash before it.
fn leads_outside(name: &str) -> bool {
    name.starts_with('/') || (name.contains("..") && name.split('/').any(|part| part == ".."))
}

#[derive(Debug, Default)]
struct Samples {
    keys: String,
    key_ends: Vec<usize>,
    places: Vec<(u64, u32)>,
    classes: Vec<u32>,
    key: String,
    image: Option<(u64, u32)>,
    class: u32,
    /// Keys of groups of members without an image.
    imageless: Vec<String>,
    left_out: BTreeMap<Cow<'static, str>, u64>,
}

impl Samples {
    fn enter(&mut self, key: &str) {
        if key != self.key {
            self.leave();
            key.clone_into(&mut self.key);
            self.class = NO_CLASS;
        }
    }

    fn leave(&mut self) {
        match self.image.take() {
            Some(place) => {
                self.keys.push_str(&self.key);
                self.key_ends.push(self.keys.len());
                self.places.push(place);
                self.classes.push(self.class);
            }
            None if !self.key.is_empty() => {
                self.leave_out("samples_without_image");
                self.imageless.push(self.key.clone());
            }
            None => (),
        }
    }

    fn image(&mut self, offset: u64, size: u32) {
        if self.image.is_some() {
            self.leave_out("further_images_of_a_sample");
        } else {
            self.image = Some((offset, size));
        }
    }

    fn leave_out(&mut self, cause: &'static str) {
        *self.left_out.entry(cause.into()).or_insert(0) += 1;
    }

    /// Counts samples whose members are not together, and, where keys begin anew in every
    /// shard, those that share a key.
    fn find_split(&mut self, scope: KeyScope) {
        if scope == KeyScope::Global && self.imageless.is_empty() {
            return;
        }
        let mut start = 0;
        let mut known: HashSet<&str> = HashSet::with_capacity(self.key_ends.len());
        let mut num_doubled = 0;
        for &end in &self.key_ends {
            num_doubled += u64::from(!known.insert(&self.keys[start..end]));
            start = end;
        }
        let num_split = self.imageless.iter().filter(|key| known.contains(key.as_str())).count();
        if num_split > 0 {
            self.left_out.insert("samples_split".into(), num_split as u64);
        }
        if scope == KeyScope::Shard && num_doubled > 0 {
            self.left_out.insert("keys_doubled".into(), num_doubled);
        }
    }
}
