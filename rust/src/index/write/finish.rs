//! The end of a build: what is left is written, counts are checked against their limits, and the
//! manifest makes the index visible.

use std::path::{Path, PathBuf};

use hashbrown::HashSet;

use super::{Builder, LabelSource};
use crate::hashtag::unicode_version;
use crate::index::drop;
use crate::index::dropped::next_name;
use crate::index::format::{
    self, FORMAT, FORMAT_VERSION, FileEntry, KeyScope, LabelKind, MANIFEST, Manifest, entry_of,
    write_table,
};
use crate::index::keys::{self, AllParts};
use crate::index::mapped::Index;
use crate::index::write::journal::JOURNAL;
use crate::index::write::rows::shards_batch;
use crate::job::Job;
use crate::store::Storage;
use crate::vocabulary::Vocabulary;
use crate::{Error, Result, publish};

/// An index of which all is written but the manifest, whose text is final.
#[derive(Debug)]
pub struct Prepared {
    folder: PathBuf,
    manifest: Manifest,
    text: Vec<u8>,
    /// The file that becomes the vocabulary.
    vocabulary_file: Option<String>,
}

impl Prepared {
    /// The content that the manifest's file will have.
    pub fn text(&self) -> &[u8] {
        &self.text
    }

    /// Makes the index visible. Both renames come after every byte is written.
    pub fn publish(self) -> Result<Manifest> {
        use std::io::Write;

        let target = self.folder.join(MANIFEST);
        let mut file = publish::Unpublished::create(&target)?;
        file.write_all(&self.text).map_err(|error| Error::io(&target, error))?;
        file.sync()?;
        if let Some(name) = self.vocabulary_file.filter(|name| name != format::VOCABULARY) {
            let (from, to) = (self.folder.join(name), self.folder.join(format::VOCABULARY));
            std::fs::rename(from, &to).map_err(|error| Error::io(&to, error))?;
        }
        file.publish()?;
        remove_leftovers(&self.folder, &self.manifest);
        Ok(self.manifest)
    }
}

impl Builder {
    /// Writes what is left, and the manifest last of all: from then on the index is there.
    ///
    /// The arguments are those of [`prepare`](Self::prepare).
    pub fn publish(
        self,
        vocabulary: Option<(&Vocabulary, &str)>,
        label_kind: Option<LabelKind>,
        shard_root: &str,
        provenance: serde_json::Value,
        job: &Job,
    ) -> Result<Manifest> {
        self.prepare(vocabulary, label_kind, shard_root, provenance, job)?.publish()
    }

    /// Writes what is left, and makes the manifest.
    ///
    /// `vocabulary` is absent for an index without labels; its file is `vocabulary_file`, a name in the
    /// folder that becomes `vocabulary.parquet`. `shard_root` is what the names of shards start from,
    /// `provenance` what the manifest keeps of the inputs.
    pub fn prepare(
        mut self,
        vocabulary: Option<(&Vocabulary, &str)>,
        label_kind: Option<LabelKind>,
        shard_root: &str,
        provenance: serde_json::Value,
        job: &Job,
    ) -> Result<Prepared> {
        let num_labels = vocabulary.map_or(0, |(vocabulary, _)| vocabulary.len()) as u64;
        self.check_content(num_labels)?;

        // All rows are on disk before the labels that belong to them and the keys of all are
        // written.
        if self.rows.len() > 0 {
            self.write_rows(self.num_records, 0)?;
        }
        let unused_key = self.take_unused().or(self.unused_key.take());
        let unused_key = self.label_scans(job)?.or(unused_key);

        // Names that the old manifest does not use, since its index stays whole until this one is
        // published.
        let old = self.old.clone();
        let name = next_name("shards", "arrow", old.as_ref().map(|old| &old.shards));
        let batch = shards_batch(&self.shards)?;
        let schema = batch.schema();
        let shards = write_table(&self.folder, &name, &schema, [Ok(batch)])?;
        let keys = self.write_keys(old.as_ref(), job)?;

        // Only now is all counted; refused before the manifest, so that the old index stays.
        self.refuse_shares(unused_key.as_deref())?;
        let vocabulary_file = vocabulary.map(|(labels, file)| {
            let name = format::VOCABULARY;
            entry_of(&self.folder, file, name, labels.len() as u64)
        });
        let mut manifest = Manifest {
            format: FORMAT.to_owned(),
            format_version: FORMAT_VERSION,
            fingerprint: String::new(),
            num_samples: self.num_samples,
            num_labels,
            label_kind,
            vocabulary_fingerprint: vocabulary.map(|(vocabulary, _)| vocabulary.fingerprint()),
            unicode_version: (label_kind == Some(LabelKind::Hashtag)).then(unicode_version),
            key_scope: self.options.key_scope,
            shard_root: shard_root.to_owned(),
            parts: std::mem::take(&mut self.parts),
            shards,
            keys,
            vocabulary: vocabulary_file.transpose()?,
            dropped: old
                .as_ref()
                .filter(|_| self.options.append)
                .and_then(|old| old.dropped.clone()),
            counts: std::mem::take(&mut self.counts),
            provenance,
        };
        manifest.fingerprint = manifest.computed_fingerprint();

        // An index built anew has other ordinals, so removed samples are found again by their keys.
        if !self.options.append && !self.old_dropped.is_empty() {
            let fresh =
                Index::of_manifest(&self.folder, manifest.clone(), None, &Storage::default())?;
            manifest.dropped = drop::carry_over(&self.folder, &self.old_dropped, &fresh)?;
            if let Some(entry) = &manifest.dropped {
                manifest.counts.insert("samples_dropped".to_owned(), entry.num_rows);
            }
        }
        let text = manifest.to_text()?;
        let vocabulary_file = vocabulary.map(|(_, file)| file.to_owned());
        Ok(Prepared { folder: self.folder, manifest, text, vocabulary_file })
    }

    /// Counts the records in memory that no sample has, and returns the key of one.
    fn take_unused(&mut self) -> Option<String> {
        if self.options.labels != LabelSource::Records || self.records.is_spilled() {
            return None;
        }
        let records = std::mem::take(&mut self.records);
        // Appending only records of new shards, those of older ones were counted before.
        *self.count("records_without_sample") += records.table.num_unused();
        records.table.unused_key()
    }

    fn check_content(&self, num_labels: u64) -> Result<()> {
        if let Some(class) = self.highest_class.filter(|&class| u64::from(class) >= num_labels) {
            return Err(Error::data(format!(
                "{}: there are samples of class {class}, but only {num_labels} classes have a name; \
                 list all of them in the file of class names",
                self.folder.display()
            )));
        }
        if self.num_samples == 0 {
            return Err(Error::data(format!(
                "{}: the shards hold no image, or the records no row, or the lists leave none, so there \
                 is nothing to index; members are called KEY.jpg, KEY.png and the like",
                self.folder.display()
            )));
        }
        Ok(())
    }

    fn write_keys(&mut self, old: Option<&Manifest>, job: &Job) -> Result<FileEntry> {
        let name = next_name("keys", "idx", old.map(|old| &old.keys));
        let distinct = self.options.key_scope == KeyScope::Global;
        let all = AllParts::new(&self.folder, &self.parts);
        let memory = &self.options.memory;
        let written = keys::write(&self.folder, &name, &all, distinct, memory, job)?;
        if distinct && written.num_doubled > 0 {
            self.counts.insert("keys_doubled".to_owned(), written.num_doubled);
            self.check_share("keys_doubled", written.doubled.as_deref())?;
        } else if distinct {
            self.counts.remove("keys_doubled");
        }
        Ok(written.entry)
    }
}

/// Removes what belongs to older states of the index, and what killed builds left.
fn remove_leftovers(folder: &Path, manifest: &Manifest) {
    let kept: HashSet<&str> = manifest.files().map(|entry| entry.file.as_str()).collect();
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    let _ = std::fs::remove_file(folder.join(JOURNAL));
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        // A temporary file is called after its target: .tmp-PROCESS-TARGET.
        let target =
            name.strip_prefix(publish::TEMPORARY_PREFIX).and_then(|rest| rest.split_once('-'));
        let target = target.map_or(name, |(_, target)| target);
        let ours = ["part-", "scan-", "shards", "keys", "dropped", "building", MANIFEST];
        let is_ours = ours.iter().any(|prefix| target.starts_with(prefix));
        if is_ours && !kept.contains(name) && name != MANIFEST {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}
