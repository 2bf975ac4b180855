//! Classes whose entries do not fit in memory: sorted runs of them on disk.
//!
//! A run has a segment for each part, with the K best entries of each of its classes that were in
//! memory, the classes ascending and the best entry first. How many a class has is kept in memory.
//! Runs are merged class by class, never more than [`FAN_IN`] of them, on as many threads as there
//! are; of each class the merge ends after K.
//!
//! **What is on disk keeps the floors up.** From every run a class keeps a few marks: so many
//! entries of it are at least as good as this one. Where marks add up to K, the last of them is a
//! cut, and nothing worse need be taken (Chronis, Do, Graefe, Peters 2020, "External merge sort for
//! top-K queries: eager input filtering guided by histograms").

use std::sync::Arc;

use rayon::prelude::*;

use super::class_run::{ClassCount, ClassRun, Mark};
use super::entry::{Entry, keep_best};
use super::pool::List;
use super::top_k::{Best, TopK};
use crate::Result;
use crate::radix;
use crate::spill::{FAN_IN, Merge, RunReader, RunWriter, Segment, SegmentWriter, Source};

impl Best {
    /// Learns from the entries of a run, the best first, where the cut must be.
    fn mark(&mut self, entries: &[Entry], k: usize) {
        let step = k.div_ceil(Mark::MOST / 2).max(1);
        let marks = entries.chunks_exact(step).map(|some| Mark {
            entry: some[step - 1],
            number: u32::try_from(step).unwrap_or(u32::MAX),
        });
        self.marks.extend(marks);
        self.marks.sort_unstable_by_key(|mark| mark.entry);
        let mut known = 0;
        let enough = self.marks.iter().position(|mark| {
            known += mark.number as usize;
            known >= k
        });
        if let Some(place) = enough {
            self.cut = self.cut.min(self.marks[place].entry);
            self.marks.truncate(place + 1);
        }
        while self.marks.len() > Mark::MOST {
            self.thin_out();
        }
        self.marks.shrink_to(Mark::MOST);
    }

    /// Joins marks two by two.
    fn thin_out(&mut self) {
        let joined = self.marks.chunks(2).map(|pair| Mark {
            entry: pair[pair.len() - 1].entry,
            number: pair.iter().fold(0, |sum: u32, mark| sum.saturating_add(mark.number)),
        });
        self.marks = joined.collect();
    }
}

impl TopK {
    /// Writes what is in memory to disk as one run.
    pub(super) fn spill(&mut self) -> Result<()> {
        if self.parts.iter().all(|part| part.pool.num_used() == 0) {
            return Ok(());
        }
        let writer = RunWriter::create::<Entry>(&self.spill.folder()?, self.spill.block_bytes())?;
        let (k, size) = (self.k, self.part_size());
        let parts = self.parts.par_iter_mut().zip(self.floors.par_chunks_mut(size)).enumerate();
        let memory = || (Vec::new(), Vec::new());
        let written = parts.map_init(memory, |(entries, scratch), (number, (part, floors))| {
            let mut segment = writer.segment::<Entry>(number);
            let mut counts = Vec::new();
            for (class, best) in part.classes.iter_mut().enumerate() {
                entries.clear();
                part.pool.read(best.list, entries);
                entries.retain(|entry| *entry <= best.cut);
                keep_best(entries, k);
                // A long list leaves no memory for another one.
                radix::sort_where_they_lie(entries, scratch, &|entry| u64::from(entry.key()));
                segment.push_all(entries)?;
                note_count(&mut counts, class, entries.len() as u64);
                best.mark(entries, k);
                floors[class] = best.floor();
                best.list = List::EMPTY;
            }
            part.pool.clear();
            Ok((segment.finish()?, counts))
        });
        let written = written.collect::<Result<Vec<_>>>()?;
        self.add_run(writer, written)?;
        if self.runs.len() < FAN_IN { Ok(()) } else { self.join_runs() }
    }

    fn add_run(&mut self, writer: RunWriter, parts: Vec<(Segment, Vec<ClassCount>)>) -> Result<()> {
        let (segments, counts) = parts.into_iter().unzip();
        self.runs.push(ClassRun { run: Arc::new(writer.finish(segments)?), counts });
        Ok(())
    }

    fn join_runs(&mut self) -> Result<()> {
        let writer = RunWriter::create::<Entry>(&self.spill.folder()?, self.spill.block_bytes())?;
        let join = |number: usize| {
            let mut segment: SegmentWriter<'_> = writer.segment::<Entry>(number);
            let mut counts = Vec::new();
            self.visit_part(number, self.k, &[], &mut |class, entries| {
                note_count(&mut counts, class, entries.len() as u64);
                segment.push_all(entries)
            })?;
            let first = number * self.part_size();
            counts.iter_mut().for_each(|count: &mut ClassCount| count.class -= first as u32);
            Ok((segment.finish()?, counts))
        };
        let written =
            (0..self.parts.len()).into_par_iter().map(join).collect::<Result<Vec<_>>>()?;
        self.runs.clear();
        self.add_run(writer, written)
    }

    /// Gives the memory of the lists back, which must be on disk.
    pub(super) fn release(&mut self) {
        self.parts.iter_mut().for_each(|part| part.pool.release());
    }

    /// How many of the K best entries of `class` there are.
    pub(super) fn num_best(&self, class: usize) -> u64 {
        let (part, class) = (class / self.part_size(), class % self.part_size());
        let listed = self.parts[part].classes[class].list.len() as u64;
        let on_disk = self.runs.iter().map(|run| count_of(&run.counts[part], class));
        (listed + on_disk.sum::<u64>()).min(self.k as u64)
    }

    /// Calls `each(class, entries)` with the `k` best entries of every class of a part that has any, the
    /// best first. `more` are entries beside those of the state, by ascending class.
    pub(super) fn visit_part(
        &self,
        number: usize,
        k: usize,
        more: &[(u32, Entry)],
        each: &mut impl FnMut(usize, &[Entry]) -> Result<()>,
    ) -> Result<()> {
        let part = &self.parts[number];

        // A run has the classes in the order in which they are visited, so each is read once, from
        // front to back.
        let mut readers = Vec::with_capacity(self.runs.len());
        for run in &self.runs {
            readers.push(run.run.open()?.reader::<Entry>(number));
        }
        let mut places = vec![0; readers.len()];
        let (mut entries, mut scratch) = (Vec::new(), Vec::new());
        for class in 0..part.classes.len() {
            let global = number * self.part_size() + class;
            entries.clear();
            part.pool.read(part.classes[class].list, &mut entries);
            entries.extend(own_entries(more, global));
            // A few more are sooner sorted than left out.
            if entries.len() / 2 > k {
                keep_best(&mut entries, k);
            }
            radix::sort(&mut entries, &mut scratch, |entry| u64::from(entry.key()));
            entries.truncate(k);
            if readers.is_empty() {
                // Most selections fit in memory, and there is nothing to merge.
                if !entries.is_empty() {
                    each(global, &entries)?;
                }
                continue;
            }
            let mut sources = vec![ClassSource::Listed(entries.iter())];
            for ((run, reader), place) in self.runs.iter().zip(&mut readers).zip(&mut places) {
                let counts = &run.counts[number];
                if let Some(count) = counts.get(*place).filter(|c| c.class as usize == class) {
                    *place += 1;
                    sources.push(ClassSource::Run { reader, left: count.number });
                }
            }

            // All sources are sorted, best first, so that the K best are the first K of the merge.
            let mut merge = Merge::new(sources);
            scratch.clear();
            while scratch.len() < k
                && let Some(entry) = merge.next_record()?
            {
                scratch.push(entry);
            }
            if !scratch.is_empty() {
                each(global, &scratch)?;
            }

            // The rest of the class is passed over, so that the reader is at the next one.
            for source in merge.into_sources() {
                if let ClassSource::Run { reader, left } = source {
                    reader.skip(left)?;
                }
            }
        }
        Ok(())
    }

    /// Entries in memory, about.
    pub(super) fn num_listed(&self) -> usize {
        self.parts.iter().map(|part| part.pool.num_used() * part.pool.chunk_len()).sum()
    }

    /// Calls `each` for the entries of a part that are in memory, at least the K best of each of its
    /// classes where nothing is on disk; those of one chunk in `step` only.
    pub(super) fn visit_listed(
        &self,
        number: usize,
        more: &[(u32, Entry)],
        step: usize,
        each: &mut impl FnMut(Entry),
    ) {
        let part = &self.parts[number];
        for (class, best) in part.classes.iter().enumerate() {
            part.pool.for_each(best.list, step, each);
            own_entries(more, number * self.part_size() + class).for_each(&mut *each);
        }
    }

    /// Calls `each(class, entry)` for all entries that are kept, in no order.
    pub(super) fn for_each(&self, each: &mut dyn FnMut(usize, Entry) -> Result<()>) -> Result<()> {
        let mut entries = Vec::new();
        for (number, part) in self.parts.iter().enumerate() {
            let first = number * self.part_size();
            for (class, best) in part.classes.iter().enumerate() {
                entries.clear();
                part.pool.read(best.list, &mut entries);
                for &entry in &entries {
                    each(first + class, entry)?;
                }
            }
            for run in &self.runs {
                let mut reader = run.run.open()?.reader::<Entry>(number);
                for count in &run.counts[number] {
                    for _ in 0..count.number {
                        if let Some(entry) = reader.next_record()? {
                            each(first + count.class as usize, entry)?;
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

/// The entries of one class among those of all, by ascending class.
fn own_entries(more: &[(u32, Entry)], class: usize) -> impl Iterator<Item = Entry> {
    let first = more.partition_point(|(of, _)| (*of as usize) < class);
    more[first..].iter().take_while(move |(of, _)| *of as usize == class).map(|(_, entry)| *entry)
}

fn note_count(counts: &mut Vec<ClassCount>, class: usize, number: u64) {
    if number > 0 {
        counts.push(ClassCount { class: class as u32, number });
    }
}

fn count_of(counts: &[ClassCount], class: usize) -> u64 {
    let place = counts.binary_search_by_key(&(class as u32), |count| count.class);
    place.map_or(0, |place| counts[place].number)
}

/// The entries of one class, in memory or in a run.
enum ClassSource<'a> {
    Listed(std::slice::Iter<'a, Entry>),
    Run { reader: &'a mut RunReader<Entry>, left: u64 },
}

impl Source<Entry> for ClassSource<'_> {
    #[inline]
    fn next_record(&mut self) -> Result<Option<Entry>> {
        match self {
            Self::Listed(entries) => Ok(entries.next().copied()),
            Self::Run { left: 0, .. } => Ok(None),
            Self::Run { reader, left } => {
                *left -= 1;
                reader.next_record()
            }
        }
    }
}
