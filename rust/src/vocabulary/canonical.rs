//! Making a vocabulary of counts: which tags are merged, which are kept, what they cover.
//!
//! Tags come ranked, and are read once. Those that mean a synset are added up by synset; of the
//! others no more than could be kept are remembered. So memory is bounded by the vocabulary and
//! WordNet, not by the number of tags.

use std::cmp::Reverse;

use hashbrown::HashMap;

use super::{Entry, Labels, MAX_LABELS, Vocabulary};
use crate::count::Ranked;
use crate::vocabulary::wordnet::{WordNet, wnid};
use crate::{Error, Result};

/// Tags, and the records they are on added up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Share {
    /// Different tags.
    pub num_tags: u64,
    /// Their counts added up.
    pub num_hashtags: u64,
}

impl Share {
    fn add(&mut self, count: u64) {
        self.num_tags += 1;
        self.num_hashtags += count;
    }
}

/// What a vocabulary made of counts covers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Coverage {
    /// All tags.
    pub all: Share,
    /// Tags that lead to a label.
    pub covered: Share,
    /// Tags that match a noun of WordNet.
    pub matched: Share,
    /// Those of them that match nouns of several synsets.
    pub ambiguous: Share,
}

/// Which tags become labels.
#[derive(Debug, Clone, Copy)]
pub struct Selection<'a> {
    /// Labels on fewer records are left out (the tags of a synset added up).
    pub min_count: u64,
    /// At most this many labels, the most frequent.
    pub max_labels: Option<usize>,
    /// Merges tags of one meaning.
    pub wordnet: Option<&'a WordNet>,
}

/// A label of a synset.
#[derive(Debug, Default)]
struct Meaning {
    name: String,
    synset: String,
    tag_count: u64,
    tags: Vec<String>,
}

impl Meaning {
    fn rank(&self) -> (Reverse<u64>, &str, Option<&str>) {
        (Reverse(self.tag_count), &self.name, Some(&self.synset))
    }

    fn add_to(&self, labels: &mut Labels) -> Result<()> {
        let Self { name, synset, tag_count, tags } = self;
        let (synset, tags) = (Some(synset.as_str()), tags.iter().map(String::as_str));
        labels.push(Entry { name, synset, tag_count: *tag_count, tags })
    }
}

impl Vocabulary {
    /// Makes labels of ranked tags: by descending `tag_count`, ties by the bytes of their names.
    pub fn from_ranked(ranked: &Ranked, selection: Selection<'_>) -> Result<(Self, Coverage)> {
        let Selection { min_count, max_labels, wordnet } = selection;
        if min_count == 0 || max_labels == Some(0) {
            return Err(Error::usage(
                "a vocabulary: min_count and max_labels must be at least 1; leave max_labels out \
                 for no limit",
            ));
        }

        // Tags come by descending count, so those without a meaning are ranked already, and the
        // first are enough.
        let limit = max_labels.unwrap_or(MAX_LABELS);
        let mut coverage = Coverage::default();
        let mut meanings: HashMap<u32, Meaning> = HashMap::new();
        let mut alone = Labels::default();
        ranked.each(|tag, count| {
            coverage.all.add(count);
            if let Some(meaning) = wordnet.and_then(|wordnet| wordnet.meaning(tag)) {
                coverage.matched.add(count);
                if meaning.ambiguous {
                    coverage.ambiguous.add(count);
                }
                let merged = meanings.entry(meaning.synset).or_default();
                merged.tag_count += count;
                merged.tags.push(tag.to_owned());
            } else if count >= min_count && alone.len() < limit {
                alone.push(Entry { name: tag, synset: None, tag_count: count, tags: [tag] })?;
            }
            Ok(())
        })?;

        // A synset's count is known only when all its tags are, so its limit comes after.
        let mut merged: Vec<Meaning> = Vec::new();
        if let Some(wordnet) = wordnet {
            let known = meanings.into_iter().filter(|(_, meaning)| meaning.tag_count >= min_count);
            merged.extend(known.map(|(synset, meaning)| Meaning {
                name: wordnet.name(synset),
                synset: wnid(synset),
                ..meaning
            }));
        }
        merged.sort_by(|a, b| a.rank().cmp(&b.rank()));
        let labels = if merged.is_empty() { alone } else { joined(&alone, &merged, limit)? };
        coverage.covered.num_tags = labels.num_tags() as u64;
        coverage.covered.num_hashtags = labels.iter().map(|entry| entry.tag_count).sum();
        Ok((Self::new(labels)?, coverage))
    }
}

/// The first `limit` of labels of a tag alone and of labels of a synset, both in
/// the order of their ranks.
fn joined(alone: &Labels, merged: &[Meaning], limit: usize) -> Result<Labels> {
    let mut labels = Labels::default();
    let mut merged = merged.iter().peekable();
    for entry in alone.iter() {
        let rank = (Reverse(entry.tag_count), entry.name, entry.synset);
        while let Some(meaning) = merged.next_if(|meaning| meaning.rank() < rank) {
            if labels.len() < limit {
                meaning.add_to(&mut labels)?;
            }
        }
        if labels.len() == limit {
            return Ok(labels);
        }
        labels.push(entry)?;
    }
    for meaning in merged.take(limit - labels.len()) {
        meaning.add_to(&mut labels)?;
    }
    Ok(labels)
}
