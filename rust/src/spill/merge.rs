//! Several sorted sources read as one.

use crate::Result;

/// Something sorted that is read record by record.
pub trait Source<R> {
    /// The next record, not smaller than the one before.
    fn next_record(&mut self) -> Result<Option<R>>;
}

impl<R: super::Record> Source<R> for super::RunReader<R> {
    #[inline]
    fn next_record(&mut self) -> Result<Option<R>> {
        Self::next_record(self)
    }
}

/// A merge of sources of one order; equal records come one after another.
#[derive(Debug)]
pub struct Merge<R, S> {
    sources: Vec<S>,
    /// A binary heap of the sources' next records, the smallest at its root.
    heap: Vec<(R, u32)>,
    started: bool,
}

impl<R: Copy + Ord, S: Source<R>> Merge<R, S> {
    /// A merge that has read nothing yet.
    pub fn new(sources: Vec<S>) -> Self {
        Self { heap: Vec::with_capacity(sources.len()), sources, started: false }
    }

    /// The next record of all.
    #[inline]
    pub fn next_record(&mut self) -> Result<Option<R>> {
        if !self.started {
            self.start()?;
        }
        let Some(&(record, source)) = self.heap.first() else { return Ok(None) };
        match self.sources[source as usize].next_record()? {
            Some(next) => self.heap[0] = (next, source),
            None => {
                self.heap.swap_remove(0);
            }
        }
        self.sift_down(0);
        Ok(Some(record))
    }

    /// The sources, as far as they were read: each is one record ahead of what was merged at most.
    pub fn into_sources(self) -> Vec<S> {
        self.sources
    }

    fn start(&mut self) -> Result<()> {
        self.started = true;
        for (number, source) in (0..).zip(&mut self.sources) {
            if let Some(record) = source.next_record()? {
                self.heap.push((record, number));
            }
        }
        (0..self.heap.len() / 2).rev().for_each(|root| self.sift_down(root));
        Ok(())
    }

    #[inline]
    fn sift_down(&mut self, mut root: usize) {
        let heap = &mut self.heap;
        loop {
            let mut child = 2 * root + 1;
            if child >= heap.len() {
                return;
            }
            if child + 1 < heap.len() && heap[child + 1].0 < heap[child].0 {
                child += 1;
            }
            if heap[root].0 <= heap[child].0 {
                return;
            }
            heap.swap(root, child);
            root = child;
        }
    }
}
