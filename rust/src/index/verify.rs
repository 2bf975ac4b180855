//! Verifying an index: every byte of its files, and the tar headers of every shard.

use rayon::prelude::*;

use super::format::{Manifest, NO_SHARD, open_checked, same_checksum};
use super::mapped::Index;
use super::part::{self, Part};
use crate::job::Job;
use crate::shard::{self, MAX_SCANS};
use crate::{Error, Result, threads};

impl Index {
    /// Reads every byte of the index and the headers of every shard and checks them against what
    /// was recorded; `job` advances by bytes of the index and by bytes of shards.
    pub fn verify(&self, job: &Job) -> Result<()> {
        for (part, entry) in self.parts.iter().zip(&self.manifest().parts) {
            same_checksum(part.path(), part.bytes(), &entry.checksum)?;
            self.verify_rows(part, job)?;
            job.advance(entry.size);
        }
        let keys = self.keys.map();
        same_checksum(keys.path(), keys, &self.manifest().keys.checksum)?;
        job.advance(self.manifest().keys.size);
        let others = [Some(&self.manifest().shards), self.manifest().vocabulary.as_ref()];
        for entry in others.into_iter().flatten().chain(&self.manifest().dropped) {
            open_checked(self.folder(), entry)?;
            job.advance(entry.size);
        }

        // Read once more for its checksum; the fingerprint is of vocabulary and parts alone.
        Manifest::read(self.folder())?;
        if self.manifest().computed_fingerprint() != self.manifest().fingerprint {
            return Err(Error::data(format!(
                "{}: the fingerprint of the manifest is not that of its content; build the index \
                 again",
                self.folder().display()
            )));
        }
        self.verify_shards(job)
    }

    fn verify_shards(&self, job: &Job) -> Result<()> {
        let verify_all = || {
            let numbers = (0..self.shards.rows().len() as u32).into_par_iter();
            numbers.try_for_each(|number| self.verify_shard(number, job))
        };
        if !self.shards.has_stored() {
            return verify_all();
        }
        // Shards in stores wait for answers.
        let num_threads = self.shards.storage().limits().num_requests.min(MAX_SCANS);
        threads::pool(Some(num_threads))?.install(verify_all)
    }

    fn verify_shard(&self, number: u32, job: &Job) -> Result<()> {
        let path = self.shards.path(number)?;
        let shard = &self.shards.rows()[number as usize];
        let (found, etag) = shard::summarize(&path, self.shards.storage(), job)?;
        job.advance(found.size);

        // A copy in another place has another etag, so etags count only where the shards are where
        // they were.
        let is_replaced =
            !self.shards.is_moved() && shard.etag.is_some() && etag.is_some() && shard.etag != etag;
        if is_replaced || (found.size, found.header_checksum) != (shard.size, shard.header_checksum)
        {
            let differs = match (found.size == shard.size, is_replaced) {
                (false, _) => "",
                (true, true) => " that were written anew",
                (true, false) => " with other tar headers",
            };
            return Err(Error::data(format!(
                "{}: expected the {} bytes that were indexed, found {} bytes{differs}; build the index \
                 again",
                path.display(),
                shard.size,
                found.size,
            )));
        }
        Ok(())
    }

    fn verify_rows(&self, part: &Part, job: &Job) -> Result<()> {
        for row in 0..part.num_rows() {
            if row % 65_536 == 0 {
                job.check()?;
            }
            let place = part.row(row)?;
            let end = place.offset.checked_add(u64::from(place.size));
            let size = match place.shard {
                NO_SHARD => Some(0),
                shard => self.shards.rows().get(shard as usize).map(|shard| shard.size),
            };
            let mut labels = part::numbers(part.label_bytes(row)?);
            let known = labels.all(|label| u64::from(label) < self.manifest().num_labels);
            if !known || end.zip(size).is_none_or(|(end, size)| end > size) {
                return Err(Error::data(format!(
                    "{}: row {row} points outside the shards or the vocabulary; build the index again",
                    part.path().display()
                )));
            }
        }
        Ok(())
    }
}
