//! The names and tags of labels, one after another in a few long buffers: there may be tens of
//! millions.

use std::collections::BTreeMap;
use std::ops::Range;

use xxhash_rust::xxh3::Xxh3;

use super::MAX_LABELS;
use crate::{Error, Result};

/// One label.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a, T> {
    /// What the label is called.
    pub name: &'a str,
    /// Its WordNet synset, where one is known.
    pub synset: Option<&'a str>,
    /// Occurrences of its tags when the vocabulary was made; 0 for classes.
    pub tag_count: u64,
    /// The normalized raw tags that lead to it.
    pub tags: T,
}

/// Texts one after another.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Texts {
    bytes: String,
    ends: Vec<usize>,
}

impl Texts {
    fn push(&mut self, text: &str) {
        self.bytes.push_str(text);
        self.ends.push(self.bytes.len());
    }

    fn get(&self, place: usize) -> Option<&str> {
        self.bytes.get(span(&self.ends, place)?)
    }

    fn len(&self) -> usize {
        self.ends.len()
    }
}

/// From the end of what is before a place to its own.
fn span(ends: &[usize], place: usize) -> Option<Range<usize>> {
    let start = place.checked_sub(1).map_or(0, |before| ends[before]);
    ends.get(place).map(|&end| start..end)
}

/// Labels, numbered from 0.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Labels {
    names: Texts,
    /// The synsets of those labels that have one.
    synsets: BTreeMap<u32, String>,
    tag_counts: Vec<u64>,
    tags: Texts,
    /// Where the tags of each label end.
    tag_ends: Vec<usize>,
}

impl Labels {
    /// Adds the next label, which has a name and one tag at least.
    pub fn push<'t>(
        &mut self,
        Entry { name, synset, tag_count, tags }: Entry<'_, impl IntoIterator<Item = &'t str>>,
    ) -> Result<()> {
        let label = self.len();
        if label >= MAX_LABELS {
            return Err(Error::usage(format!(
                "a vocabulary holds at most {MAX_LABELS} labels, and there are more; set max_labels"
            )));
        }
        let num_tags = self.tags.len();
        tags.into_iter().for_each(|tag| self.tags.push(tag));
        if name.is_empty() || self.tags.len() == num_tags {
            let what = if name.is_empty() { "name" } else { "list of tags" };
            return Err(Error::data(format!("vocabulary: label {label} has an empty {what}")));
        }
        self.names.push(name);
        self.synsets.extend(synset.map(|synset| (label as u32, synset.to_owned())));
        self.tag_counts.push(tag_count);
        self.tag_ends.push(self.tags.len());
        Ok(())
    }

    /// Number of labels.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether there is no label.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of tags.
    pub fn num_tags(&self) -> usize {
        self.tags.len()
    }

    /// What `label` is called.
    pub fn name(&self, label: u32) -> Option<&str> {
        self.names.get(label as usize)
    }

    /// All labels, in order.
    pub fn iter(
        &self,
    ) -> impl ExactSizeIterator<Item = Entry<'_, impl ExactSizeIterator<Item = &str>>> {
        (0..self.len()).map(|label| Entry {
            name: self.names.get(label).unwrap_or_default(),
            synset: self.synsets.get(&(label as u32)).map(String::as_str),
            tag_count: self.tag_counts[label],
            tags: span(&self.tag_ends, label)
                .unwrap_or_default()
                .map(|place| self.tags.get(place).unwrap_or_default()),
        })
    }

    /// A hash of all of it, in order (XXH3, 128 bits).
    pub(super) fn digest(&self) -> u128 {
        const BLOCK: usize = 1 << 16;
        let mut hasher = Xxh3::new();
        let mut block = b"wsl vocabulary 1".to_vec();
        for entry in self.iter() {
            put(&mut block, entry.name);
            put(&mut block, if entry.synset.is_some() { "synset" } else { "" });
            put(&mut block, entry.synset.unwrap_or_default());
            put(&mut block, &entry.tag_count.to_string());
            put(&mut block, &entry.tags.len().to_string());
            entry.tags.for_each(|tag| put(&mut block, tag));
            if block.len() >= BLOCK {
                hasher.update(&block);
                block.clear();
            }
        }
        hasher.update(&block);
        hasher.digest128()
    }
}

fn put(block: &mut Vec<u8>, text: &str) {
    block.extend_from_slice(&(text.len() as u64).to_le_bytes());
    block.extend_from_slice(text.as_bytes());
}
