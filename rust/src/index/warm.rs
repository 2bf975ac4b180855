//! Runs that the page cache holds, copied out of mapped shards: no call of the system for each of them.
//!
//! Whether it pays shows in what was read before: shards are copied from after some chunks that were all
//! in the page cache, and after a page had to be waited for it is `pread` again for a while. What cannot be
//! copied, or looks wrong in the copy, is left to be read as usual, which tells what is wrong.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::files::Opened;
use super::live::{LiveMap, Span, major_faults, stands};
use super::read::Index;
use super::reading::Reading;
use crate::Result;

/// Chunks in a row that are in the page cache before the next is copied.
const MIN_WARM: u32 = 2;
/// Chunks that are read after one that was not in the page cache.
const MIN_COLD: u32 = 64;
/// Where one run in so many has to be waited for, the disk is told of what comes after.
const RARE: usize = 16;
/// Fewer runs in a call are read.
pub(super) const MIN_RUNS: usize = 16;
/// Longer runs are read: there a copy gains little.
pub(super) const MAX_RUN: usize = 32 << 10;
/// Runs between two looks at whether a page had to be waited for.
const LOOK_EVERY: usize = 64;
/// Runs whose pages are looked up ahead, so that these ways to memory are made together.
const AHEAD: usize = 16;
/// Runs whose bytes are fetched ahead, after their pages.
const NEXT: usize = 3;

/// Whether what is read is in the page cache, as the last chunks tell.
#[derive(Debug)]
pub(super) struct Warmth {
    /// Chunks to be read before one is copied.
    left: AtomicU32,
    is_cold: AtomicBool,
}

impl Default for Warmth {
    fn default() -> Self {
        Self { left: AtomicU32::new(MIN_WARM), is_cold: AtomicBool::new(false) }
    }
}

impl Warmth {
    /// Notes of a chunk how many of its runs were not in the page cache.
    pub(super) fn note(&self, num_waited: usize, num_runs: usize) {
        let left = self.left.load(Ordering::Relaxed);
        let left = if num_waited == 0 { left.saturating_sub(1) } else { left.max(MIN_WARM) };
        self.left.store(left, Ordering::Relaxed);
        self.is_cold.store(num_waited * RARE > num_runs, Ordering::Relaxed);
    }

    /// Whether more than a few runs of the last chunk had to be waited for.
    pub(super) fn is_cold(&self) -> bool {
        self.is_cold.load(Ordering::Relaxed)
    }

    /// Whether the next chunk is to be copied, where many runs were asked for.
    pub(super) fn is_warm(&self) -> bool {
        self.left.load(Ordering::Relaxed) == 0 && stands()
    }
}

/// Runs of one shard, and where they are copied from.
struct Source {
    opened: Arc<Opened>,
    map: Option<Arc<LiveMap>>,
    num_runs: usize,
}

impl Index {
    /// Copies runs, sorted by shard, where they can be had without waiting; returns those left to read.
    pub(super) fn copy<'a, 'b>(
        &self,
        mut readings: Vec<Reading<'a, 'b>>,
    ) -> Result<Vec<Reading<'a, 'b>>> {
        let sources = self.sources(&readings)?;
        let mut is_copied = self.copy_each(&sources, &mut readings);
        // What was copied from a shard that was cut meanwhile is read again.
        let mut first = 0;
        for source in &sources {
            let own = first..first + source.num_runs;
            if !source.map.as_ref().is_some_and(|map| map.is_whole(source.opened.file())) {
                is_copied[own.clone()].fill(false);
            }
            first = own.end;
        }
        let mut is_copied = is_copied.into_iter();
        readings.retain(|_| !is_copied.next().unwrap_or_default());
        Ok(readings)
    }

    fn sources(&self, readings: &[Reading<'_, '_>]) -> Result<Vec<Source>> {
        let shard = |reading: &Reading<'_, '_>| reading.wanted[0].shard;
        let groups = readings.chunk_by(|one, other| shard(one) == shard(other));
        groups
            .map(|group| {
                let shard = shard(&group[0]);
                let opened = self.open.get(shard, || self.shard_path(shard))?;
                let map = opened.map(group.len());
                Ok(Source { opened, map, num_runs: group.len() })
            })
            .collect()
    }

    /// Says of each run whether it was copied and is what the index says.
    fn copy_each(&self, sources: &[Source], readings: &mut [Reading<'_, '_>]) -> Vec<bool> {
        let maps = sources
            .iter()
            .flat_map(|source| std::iter::repeat_n(source.map.as_deref(), source.num_runs));
        let spans: Vec<Option<Span<'_>>> = maps
            .zip(readings.iter())
            .map(|(map, reading)| {
                let length = reading.length();
                map.filter(|_| length <= MAX_RUN)?.span(reading.wanted[0].start, length)
            })
            .collect();
        let mut is_copied = vec![false; readings.len()];
        let faults = major_faults();
        for (number, reading) in readings.iter_mut().enumerate() {
            if number % LOOK_EVERY == LOOK_EVERY - 1 && major_faults() != faults {
                break;
            }
            if number % AHEAD == 0 {
                spans.iter().skip(number + NEXT).take(AHEAD).flatten().for_each(|one| one.touch());
            }
            if let Some(Some(next)) = spans.get(number + NEXT) {
                next.prefetch();
            }
            if let Some(span) = spans[number] {
                span.copy_to(reading.bytes);
                is_copied[number] = reading.wanted.iter().all(|one| reading.holds(one));
            }
        }
        if major_faults() != faults {
            self.warmth.left.store(MIN_COLD, Ordering::Relaxed);
        }
        is_copied
    }
}
