//! Giving rows their labels that were written without them: the records did not fit in memory, and were joined
//! on disk.

use super::{Builder, scoped_name};
use crate::Result;
use crate::index::part::Part;
use crate::index::write::join::{FileLabels, Probes};
use crate::index::write::journal::{Kind, Step};
use crate::job::Job;

impl Builder {
    /// Gives the rows that wait for them their labels; returns a key of records that no sample has.
    pub(super) fn label_scans(&mut self, job: &Job) -> Result<Option<String>> {
        if !self.records.is_spilled() {
            return Ok(None);
        }

        // Taken out of the builder for as long as the names are borrowed.
        let (shards, scope) = (std::mem::take(&mut self.shards), self.options.key_scope);
        let names = |shard| scoped_name(&shards, scope, shard);
        let mut probes = Probes::new(&self.options.memory, &names)?;

        // Parts that were there before have their labels, and only use up their records.
        for entry in &self.parts[..self.num_parts_kept] {
            probes.mark(&Part::open(&self.folder, entry)?, job)?;
        }
        for entry in &self.scans[self.num_labelled..] {
            probes.ask(&Part::open(&self.folder, entry)?, job)?;
        }
        let records = std::mem::take(&mut self.records).into_partitions()?;
        let labels = probes.join(&records, &self.options.memory, job)?;

        // Their disk space is not needed any more.
        drop(records);
        self.shards = shards;
        *self.count("records_doubled") += labels.num_doubled;
        *self.count("records_without_sample") += labels.num_unused;
        let waiting = self.scans[self.num_labelled..].to_vec();
        for (file, entry) in waiting.iter().enumerate() {
            job.check()?;
            let scan = Part::open(&self.folder, entry)?;
            self.label_scan(&scan, &labels.of_file(file, scan.num_rows())?)?;
        }
        Ok(labels.unused_key)
    }

    /// Writes the rows of a file with their labels, as a part.
    fn label_scan(&mut self, scan: &Part, found: &FileLabels) -> Result<()> {
        let (mut num_without, mut num_empty) = (0, 0);
        for row in 0..scan.num_rows() {
            let place = scan.row(row)?;
            let of_row = found.get(row);
            num_without += u64::from(of_row.is_none());
            let of_row = of_row.unwrap_or_default();
            num_empty += u64::from(of_row.is_empty());
            self.rows.push(place.key, (place.shard, place.offset, place.size), of_row);
        }
        for (name, number) in
            [("samples_without_record", num_without), ("samples_without_labels", num_empty)]
        {
            if number > 0 {
                *self.count(name) += number;
            }
        }
        let file = self.write_file(Kind::Labelled)?;
        self.num_labelled += 1;
        // The counts of the join are made again by whoever resumes.
        let mut counts = self.counts.clone();
        counts.insert("records_doubled".to_owned(), 0);
        counts.insert("records_without_sample".to_owned(), 0);
        let (shards, num_done, first_sample) = (Vec::new(), 0, 0);
        let highest_class = self.highest_class;
        let kind = Kind::Labelled;
        let step = Step { kind, file, shards, num_done, first_sample, counts, highest_class };
        self.journal.note(&step)
    }
}
