//! Small images that the page cache holds, copied out of mapped shards to where the caller wants them: no
//! call of the system for each of them, and no memory between.
//!
//! Whether it pays shows in what was read before: shards are copied from after some chunks that were all
//! in the page cache, and after a page had to be waited for it is `pread` again for a while. What cannot be
//! copied, or looks wrong in the copy, is left to be [fetched](super::fetch), which tells what is wrong.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use hashbrown::HashMap;

use super::fetch::check_threads;
use super::files::Opened;
use super::live::{LiveMap, Span, major_faults, stands};
use crate::Result;
use crate::hints::prefetch;
use crate::index::format::NO_SHARD;
use crate::index::mapped::{Index, LOOKED_UP};
use crate::shard::{self, BLOCK};

/// Chunks in a row that are in the page cache before the next is copied.
const MIN_WARM: u32 = 2;
/// Chunks that are read after one that was not in the page cache.
const MIN_COLD: u32 = 64;
/// Where one run in so many has to be waited for, the disk is told of what comes after.
const RARE: usize = 16;
/// Fewer images are read.
const MIN_IMAGES: usize = 16;
/// Larger images are read: there a copy gains little. Python shares objects of one byte and of none.
const SIZES: std::ops::RangeInclusive<u32> = 2..=(32 << 10);
/// Shards that are copied from at once; each is an open file.
const MAX_SOURCES: usize = 256;
/// Images that are worth a thread.
const WORTH_A_THREAD: usize = 64;
/// Images between two looks at whether a page had to be waited for.
const LOOK_EVERY: usize = 64;
/// Images whose pages are looked up ahead, so that these ways to memory are made together.
const AHEAD: usize = 16;
/// Images whose bytes are fetched ahead, after their pages.
const NEXT: usize = 3;

/// Whether what is read is in the page cache, as the last chunks tell.
#[derive(Debug)]
pub(in crate::index) struct Warmth {
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
    pub(in crate::index) fn note(&self, num_waited: usize, num_runs: usize) {
        let left = self.left.load(Ordering::Relaxed);
        let left = if num_waited == 0 { left.saturating_sub(1) } else { left.max(MIN_WARM) };
        self.left.store(left, Ordering::Relaxed);
        self.is_cold.store(num_waited * RARE > num_runs, Ordering::Relaxed);
    }

    /// Whether more than a few runs of the last chunk had to be waited for.
    pub(in crate::index) fn is_cold(&self) -> bool {
        self.is_cold.load(Ordering::Relaxed)
    }

    /// Whether images are to be copied.
    fn is_warm(&self) -> bool {
        self.left.load(Ordering::Relaxed) == 0 && stands()
    }
}

/// A shard that is copied from.
#[derive(Debug)]
struct Source {
    opened: Arc<Opened>,
    map: Option<Arc<LiveMap>>,
    num_images: usize,
}

/// An image that may be copied, with the header before it.
#[derive(Debug)]
struct Image<'a> {
    key: &'a [u8],
    start: u64,
    size: u32,
    source: u32,
    place: usize,
}

/// Images that may be copied.
#[derive(Debug)]
pub struct Copies<'a> {
    index: &'a Index,
    num_threads: usize,
    sources: Vec<Source>,
    images: Vec<Image<'a>>,
}

impl Index {
    /// Those images of some samples that can be had out of mapped shards, as it seems: none where
    /// something had to be waited for lately. At most `num_threads` threads copy them.
    pub fn copies(&self, ordinals: &[u64], num_threads: usize) -> Result<Copies<'_>> {
        check_threads(num_threads)?;
        let (sources, images) = (Vec::new(), Vec::new());
        let mut copies = Copies { index: self, num_threads, sources, images };
        let is_worth_it = ordinals.len() >= MIN_IMAGES && !self.has_stored_shards();
        if is_worth_it && self.warmth.is_warm() {
            copies.find(ordinals);
        }
        Ok(copies)
    }
}

impl<'a> Copies<'a> {
    fn find(&mut self, ordinals: &[u64]) {
        let index = self.index;
        let mut sources = HashMap::new();
        self.images.reserve_exact(ordinals.len());
        for (number, some) in ordinals.chunks(LOOKED_UP).enumerate() {
            index.touch_rows(some);
            for (place, &ordinal) in (number * LOOKED_UP..).zip(some) {
                // What is wrong with any other is told where it is fetched.
                let Some(row) = index.raw_row(ordinal) else { continue };
                let start = row.offset.checked_sub(BLOCK as u64);
                let Some(start) = start.filter(|_| SIZES.contains(&row.size)) else { continue };
                let source = sources.entry(row.shard);
                let source = *source.or_insert_with(|| self.add_source(row.shard));
                let Some(source) = source else { continue };
                self.sources[source as usize].num_images += 1;
                self.images.push(Image { key: row.key, start, size: row.size, source, place });
            }
        }
        for source in &mut self.sources {
            source.map = source.opened.map(source.num_images);
        }
    }

    /// The number of a shard among the sources, where it can be one.
    fn add_source(&mut self, shard: u32) -> Option<u32> {
        let index = self.index;
        if shard == NO_SHARD || self.sources.len() == MAX_SOURCES {
            return None;
        }
        let opened = index.open.get(shard, || index.shard_path(shard)).ok()?;
        self.sources.push(Source { opened, map: None, num_images: 0 });
        Some(self.sources.len() as u32 - 1)
    }

    /// The place of each image among the ordinals asked for, and its bytes.
    pub fn images(&self) -> impl ExactSizeIterator<Item = (usize, usize)> + '_ {
        self.images.iter().map(|image| (image.place, image.size as usize))
    }

    /// Copies the images into `rooms`, which are as long; says of each whether it is there. What is left in
    /// the room of any other is of no use.
    pub fn copy_into(&self, mut rooms: Vec<&mut [u8]>) -> Vec<bool> {
        let num_threads = self.num_threads.min(self.images.len() / WORTH_A_THREAD).max(1);
        let share = self.images.len().div_ceil(num_threads).max(1);
        let pieces = self.images.chunks(share).zip(rooms.chunks_mut(share));
        let mut is_copied: Vec<bool> = if self.images.len() <= share {
            pieces.flat_map(|(images, rooms)| self.copy(images, rooms)).collect()
        } else {
            std::thread::scope(|scope| {
                let copy = |(images, rooms)| scope.spawn(move || self.copy(images, rooms));
                let threads: Vec<_> = pieces.map(copy).collect();
                threads.into_iter().flat_map(|one| one.join().unwrap_or_default()).collect()
            })
        };
        is_copied.resize(self.images.len(), false);
        // What was copied from a shard that was cut meanwhile is read again.
        let is_whole = |source: &Source| {
            source.map.as_ref().is_some_and(|map| map.is_whole(source.opened.file()))
        };
        let is_whole: Vec<bool> = self.sources.iter().map(is_whole).collect();
        if is_whole.contains(&false) {
            let sources = self.images.iter().map(|image| image.source as usize);
            is_copied.iter_mut().zip(sources).for_each(|(is, source)| *is &= is_whole[source]);
        }
        is_copied
    }

    fn span(&self, image: &Image<'_>) -> Option<Span<'_>> {
        let map = self.sources[image.source as usize].map.as_ref()?;
        map.span(image.start, BLOCK + image.size as usize)
    }

    /// Says of each image whether it was copied and is what the index says.
    fn copy(&self, images: &[Image<'_>], rooms: &mut [&mut [u8]]) -> Vec<bool> {
        let spans: Vec<Option<Span<'_>>> = images.iter().map(|image| self.span(image)).collect();
        let mut is_copied = vec![false; images.len()];
        let mut header = [0; BLOCK];
        let faults = major_faults();
        for (number, (image, room)) in images.iter().zip(rooms).enumerate() {
            if number % LOOK_EVERY == LOOK_EVERY - 1 && major_faults() != faults {
                break;
            }
            if number % AHEAD == 0 {
                spans.iter().skip(number + NEXT).take(AHEAD).flatten().for_each(|one| one.touch());
                let keys = images.iter().skip(number + NEXT).take(AHEAD).map(|image| image.key);
                keys.for_each(|key| prefetch(key, 0));
            }
            if let Some(Some(next)) = spans.get(number + NEXT) {
                next.prefetch();
            }
            if let Some(span) = spans[number] {
                span.copy_to(&mut header, room);
                // A key that is no text is told of where it is fetched.
                let is_text = image.key.is_ascii() || std::str::from_utf8(image.key).is_ok();
                is_copied[number] =
                    is_text && shard::header_matches(&header, image.key, image.size);
            }
        }
        if major_faults() != faults {
            self.index.warmth.left.store(MIN_COLD, Ordering::Relaxed);
        }
        is_copied
    }
}
