//! The vocabulary: which tag is which label.
//!
//! A label is a number, made once: labels are the ranks of the tags by descending count when the
//! vocabulary is made (ties by byte order), and never change after. Every index, prediction file
//! and model that belongs together carries the same [fingerprint](Vocabulary::fingerprint).
//!
//! Besides its name a label has the raw tags that are merged into it: the name alone here, several
//! where tags of one meaning are joined, with the synset of that meaning. A class
//! vocabulary has no counts: its labels are the class numbers of a data set, with their names.
//!
//! Tables of columns `label` (u32), `name` (text), `synset` (text, nullable), `tag_count` (u64),
//! `tags` (list of text) carry it to and from files. What comes in is checked: labels run from 0,
//! names and tags are not empty, no tag leads to two labels.

mod canonical;
mod cover;
mod encoder;
mod labels;
mod table;
pub mod wordnet;

use crate::Result;
use crate::count::HashtagCounts;
use crate::hashtag::Tag;
use crate::job::Job;

pub use canonical::{Coverage, Selection, Share};
pub use cover::Covered;
pub use encoder::Encoder;
pub use labels::{Entry, Labels};

/// The most labels a vocabulary can have: labels are 32-bit, and the last number stays free.
pub const MAX_LABELS: usize = u32::MAX as usize;

/// Tags and their labels.
///
/// ```
/// use wsl_core::vocabulary::Vocabulary;
///
/// let vocabulary = Vocabulary::from_class_names(&["cat", "dog"])?;
/// assert_eq!(vocabulary.encode("dog"), Some(1));
/// assert_eq!(vocabulary.name(0), Some("cat"));
/// assert!(Vocabulary::from_class_names(&["cat", "cat"]).is_err());
/// # Ok::<(), wsl_core::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct Vocabulary {
    labels: Labels,
    encoder: Encoder,
}

impl Vocabulary {
    /// The vocabulary of these labels; no tag may lead to two of them.
    pub fn new(labels: Labels) -> Result<Self> {
        let encoder = Encoder::new(&labels)?;
        Ok(Self { labels, encoder })
    }

    /// The tags counted at least `min_count` times, the most frequent first, `max_labels` at most.
    pub fn from_counts(
        counts: &mut HashtagCounts,
        min_count: u64,
        max_labels: Option<usize>,
    ) -> Result<Self> {
        let selection = Selection { min_count, max_labels, wordnet: None };
        Ok(Self::from_ranked(&counts.ranked(&Job::new())?, selection)?.0)
    }

    /// Class `i` is called `names[i]`; the names must be distinct and not empty.
    pub fn from_class_names<S: AsRef<str>>(names: &[S]) -> Result<Self> {
        let mut labels = Labels::default();
        for name in names.iter().map(AsRef::as_ref) {
            labels.push(Entry { name, synset: None, tag_count: 0, tags: [name] })?;
        }
        Self::new(labels)
    }

    /// What the labels mean.
    pub fn labels(&self) -> &Labels {
        &self.labels
    }

    /// The labels of tags.
    pub fn encoder(&self) -> &Encoder {
        &self.encoder
    }

    /// Number of labels.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is no label.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// What `label` is called.
    pub fn name(&self, label: u32) -> Option<&str> {
        self.labels.name(label)
    }

    /// The label of a normalized tag.
    pub fn encode(&self, tag: &str) -> Option<u32> {
        self.encoder.encode(&Tag::new(tag))
    }

    /// A hash of the ordered content, 32 hexadecimal digits (XXH3, 128 bits).
    pub fn fingerprint(&self) -> String {
        format!("{:032x}", self.labels.digest())
    }
}
