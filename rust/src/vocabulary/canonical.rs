//! Making a vocabulary of counts: which tags are merged, which are kept, what they cover.
//!
//! Tags come ranked, and are read once. Those that mean a synset are added up by synset; of the
//! others no more than could be kept are remembered. So memory is bounded by the vocabulary and
//! WordNet, not by the number of tags.

use hashbrown::HashMap;

use super::{Entry, MAX_LABELS, Vocabulary};
use crate::wordnet::{WordNet, wnid};
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

impl Vocabulary {
    /// Makes labels of ranked tags (by descending count, ties by bytes): by descending `tag_count`,
    /// ties by the bytes of their names.
    pub fn from_ranked(
        ranked: impl IntoIterator<Item = Result<(String, u64)>>,
        selection: Selection<'_>,
    ) -> Result<(Self, Coverage)> {
        let Selection { min_count, max_labels, wordnet } = selection;
        if min_count == 0 || max_labels == Some(0) {
            return Err(Error::usage(
                "a vocabulary: min_count and max_labels must be at least 1; leave max_labels out \
                 for no limit",
            ));
        }
        let limit = max_labels.unwrap_or(MAX_LABELS);
        let mut coverage = Coverage::default();
        let mut synsets: HashMap<u32, Entry> = HashMap::new();
        let mut entries = Vec::new();
        for row in ranked {
            let (tag, count) = row?;
            coverage.all.add(count);
            if let Some(meaning) = wordnet.and_then(|wordnet| wordnet.meaning(&tag)) {
                coverage.matched.add(count);
                if meaning.ambiguous {
                    coverage.ambiguous.add(count);
                }
                let entry = synsets.entry(meaning.synset).or_default();
                entry.tag_count += count;
                entry.tags.push(tag);
            } else if count >= min_count && entries.len() < limit {
                let tags = vec![tag.clone()];
                entries.push(Entry { name: tag, synset: None, tag_count: count, tags });
            }
        }
        if let Some(wordnet) = wordnet {
            entries.extend(synsets.into_iter().map(|(synset, entry)| Entry {
                name: wordnet.name(synset),
                synset: Some(wnid(synset)),
                ..entry
            }));
        }
        entries.retain(|entry| entry.tag_count >= min_count);
        entries.sort_by(|a, b| {
            let order = b.tag_count.cmp(&a.tag_count);
            order.then_with(|| a.name.cmp(&b.name)).then_with(|| a.synset.cmp(&b.synset))
        });
        entries.truncate(limit);
        for entry in &entries {
            coverage.covered.num_tags += entry.tags.len() as u64;
            coverage.covered.num_hashtags += entry.tag_count;
        }
        Ok((Self::from_entries(entries)?, coverage))
    }
}
