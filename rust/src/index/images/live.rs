//! Shards mapped while somebody may change them: bytes are copied out of them and never borrowed.
//!
//! A copy out of a mapping costs a fifth of a `pread` of a kilobyte, but where the file was cut short,
//! or its disk fails, the kernel answers with SIGBUS, which ends the process. So a handler of that signal
//! stands whenever shards are copied from: a fault inside a mapping of ours puts zeros in place of all
//! of that mapping and marks it as broken, and the copy goes on. Whoever copies looks at the mark
//! afterwards ([`LiveMap::is_whole`]), throws the copy away and reads the file as usual, which tells
//! what is wrong with it. The mark also tells of a file that ends early inside a page, which raises no
//! signal: there the length of the file is looked at.
//!
//! Every other SIGBUS is passed on: the handler that stood before is put back, and the instruction
//! faults again. Handlers that others install later (torch's loader workers, Python's `faulthandler`)
//! are seen by [`stands`] at the start of each call and passed on to from then on. Only a signal that comes
//! back to ours while it is being passed on ends the process, by the default action.
//!
//! Where address space is limited nothing is mapped, and on systems other than Linux never.

#![allow(unsafe_code)]

use std::fs::File;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, Ordering};

use memmap2::{Advice, MmapOptions, MmapRaw};

use crate::hints::prefetch_address;

pub(in crate::index) use signal::{major_faults, stands};

/// Bytes of a page of most systems.
const PAGE: usize = 4096;

/// A shard, mapped for copies.
#[derive(Debug)]
pub(in crate::index) struct LiveMap {
    /// Given back before the addresses are: they may be another's at once.
    ticket: signal::Ticket,
    bytes: MmapRaw,
    /// Whether the file was seen to be shorter than the mapping.
    is_cut: AtomicBool,
}

/// Bytes of a mapping, checked to lie inside it.
#[derive(Debug, Clone, Copy)]
pub(in crate::index) struct Span<'a> {
    start: *const u8,
    length: usize,
    map: PhantomData<&'a LiveMap>,
}

impl LiveMap {
    /// Maps a file; none where that cannot be had.
    pub(in crate::index) fn of(file: &File) -> Option<Self> {
        if !signal::may_map() || file.metadata().ok()?.len() == 0 {
            return None;
        }
        let bytes = MmapOptions::new().map_raw_read_only(file).ok()?;
        // What the page cache lacks is read otherwise, so nothing around it is wanted.
        let _ = bytes.advise(Advice::Random);
        let ticket = signal::Ticket::take(bytes.as_ptr() as usize, bytes.len())?;
        Some(Self { ticket, bytes, is_cut: AtomicBool::new(false) })
    }

    /// Some bytes; none where the mapping does not reach so far or is broken.
    pub(in crate::index) fn span(&self, start: u64, length: usize) -> Option<Span<'_>> {
        let start = usize::try_from(start).ok()?;
        let end = start.checked_add(length)?;
        if end > self.bytes.len() || self.is_broken() {
            return None;
        }
        let start = self.bytes.as_ptr().wrapping_add(start);
        Some(Span { start, length, map: PhantomData })
    }

    /// Whether all copies so far are what the file held: no page of it was missing, and `file`, which is
    /// what was mapped, is as long as it was.
    pub(in crate::index) fn is_whole(&self, file: &File) -> bool {
        let length = rustix::fs::fstat(file).map_or(0, |seen| seen.st_size);
        if u64::try_from(length).unwrap_or(0) < self.bytes.len() as u64 {
            self.is_cut.store(true, Ordering::Relaxed);
        }
        !self.is_broken()
    }

    fn is_broken(&self) -> bool {
        self.is_cut.load(Ordering::Relaxed) || self.ticket.is_hit()
    }
}

impl Span<'_> {
    /// Makes the processor look up the pages it begins and ends in, without waiting for it.
    #[inline]
    pub(in crate::index) fn touch(self) {
        let end = self.start.wrapping_add(self.length);
        prefetch_address(self.start);
        if (self.start as usize ^ end as usize) >= PAGE {
            prefetch_address(end);
        }
    }

    /// Makes the processor fetch its first bytes, without waiting for them.
    #[inline]
    pub(in crate::index) fn prefetch(self) {
        (0..self.length.min(1024))
            .step_by(64)
            .for_each(|line| prefetch_address(self.start.wrapping_add(line)));
    }

    /// Copies the bytes into `first` and `rest`, which together are as long. They count only if the
    /// mapping [is whole](LiveMap::is_whole) afterwards.
    #[inline]
    pub(in crate::index) fn copy_to<const N: usize>(self, first: &mut [u8; N], rest: &mut [u8]) {
        assert_eq!(N + rest.len(), self.length);
        // SAFETY: the span was checked to lie inside the mapping, which it keeps alive, and memory given
        // out by Rust never overlaps a mapping. A page that is missing is replaced by zeros while the
        // copy waits. That somebody else may write to the file meanwhile leaves the copy with some
        // bytes or others, and nothing is concluded from the mapping itself.
        unsafe {
            std::ptr::copy_nonoverlapping(self.start, first.as_mut_ptr(), N);
            std::ptr::copy_nonoverlapping(self.start.add(N), rest.as_mut_ptr(), rest.len());
        }
    }
}

/// The handler of SIGBUS, and which ranges of addresses it knows.
#[cfg(target_os = "linux")]
mod signal {
    use std::ffi::{c_int, c_void};
    use std::ptr::{null, null_mut};
    use std::sync::atomic::Ordering::SeqCst;
    use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize};

    /// Ranges known at once; what is beyond is not mapped.
    const MAX_RANGES: usize = 1024;

    /// A range of addresses that the handler may replace.
    struct Range {
        is_taken: AtomicBool,
        /// Odd while start and length stand.
        turn: AtomicUsize,
        start: AtomicUsize,
        length: AtomicUsize,
        is_hit: AtomicBool,
    }

    static RANGES: [Range; MAX_RANGES] = [const {
        Range {
            is_taken: AtomicBool::new(false),
            turn: AtomicUsize::new(0),
            start: AtomicUsize::new(0),
            length: AtomicUsize::new(0),
            is_hit: AtomicBool::new(false),
        }
    }; MAX_RANGES];

    /// What stood before our handler; never freed, since a signal may come at any time.
    static BEFORE: AtomicPtr<libc::sigaction> = AtomicPtr::new(null_mut());
    /// Whether a signal was passed on since our handler was last installed.
    static IS_PASSED: AtomicBool = AtomicBool::new(false);

    /// A place among the ranges, given back when it is dropped.
    #[derive(Debug)]
    pub(in crate::index) struct Ticket(usize);

    impl Ticket {
        /// Makes a mapping known; none where there are too many.
        pub(in crate::index) fn take(start: usize, length: usize) -> Option<Self> {
            let place = RANGES.iter().position(|range| !range.is_taken.swap(true, SeqCst))?;
            let range = &RANGES[place];
            range.is_hit.store(false, SeqCst);
            range.start.store(start, SeqCst);
            range.length.store(length, SeqCst);
            range.turn.fetch_add(1, SeqCst);
            Some(Self(place))
        }

        pub(in crate::index) fn is_hit(&self) -> bool {
            RANGES[self.0].is_hit.load(SeqCst)
        }
    }

    impl Drop for Ticket {
        fn drop(&mut self) {
            let range = &RANGES[self.0];
            range.turn.fetch_add(1, SeqCst);
            range.is_taken.store(false, SeqCst);
        }
    }

    impl Range {
        /// Start and length, where they stand and `address` lies between.
        fn with(&self, address: usize) -> Option<(usize, usize)> {
            let turn = self.turn.load(SeqCst);
            let (start, length) = (self.start.load(SeqCst), self.length.load(SeqCst));
            let stands = turn % 2 == 1 && self.turn.load(SeqCst) == turn;
            (stands && (start..start + length).contains(&address)).then_some((start, length))
        }
    }

    /// Puts zeros in place of the mapping that an address lies in; says whether it did.
    ///
    /// Whoever faulted holds the mapping, so its range stands meanwhile.
    fn replace(address: usize) -> bool {
        for range in &RANGES {
            let Some((start, length)) = range.with(address) else { continue };
            range.is_hit.store(true, SeqCst);
            let flags =
                libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            // SAFETY: the range is that of a mapping of ours which nobody borrows from, and it stays one
            // that can be read until it is unmapped as a whole.
            let at =
                unsafe { libc::mmap(start as *mut c_void, length, libc::PROT_READ, flags, -1, 0) };
            return at != libc::MAP_FAILED;
        }
        false
    }

    extern "C" fn on_signal(signal: c_int, info: *mut libc::siginfo_t, _context: *mut c_void) {
        // SAFETY: the kernel gives a valid `info` to a handler with SA_SIGINFO, and for a signal that it
        // raised itself (a positive code) the address is the one that faulted. Everything called here may
        // be called in a signal handler, and `errno` is left as it was.
        unsafe {
            let errno = *libc::__errno_location();
            let is_fault = (*info).si_code > 0;
            if !(is_fault && replace((*info).si_addr() as usize)) {
                let default: libc::sigaction = std::mem::zeroed();
                let before = BEFORE.load(SeqCst);
                let again = IS_PASSED.swap(true, SeqCst) || before.is_null();
                libc::sigaction(
                    signal,
                    if again { &raw const default } else { before },
                    null_mut(),
                );
                // A fault comes again by itself.
                if !is_fault {
                    libc::raise(signal);
                }
            }
            *libc::__errno_location() = errno;
        }
    }

    /// Whether our handler stands, as it does after this unless the system refuses.
    pub(in crate::index) fn stands() -> bool {
        let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = on_signal;
        // SAFETY: plain calls with memory of our own; all-zero bytes are a valid `sigaction`. What
        // `BEFORE` points to was leaked here and is never changed.
        unsafe {
            let mut now: libc::sigaction = std::mem::zeroed();
            if libc::sigaction(libc::SIGBUS, null(), &raw mut now) != 0 {
                return false;
            }
            if now.sa_sigaction == handler as usize {
                return true;
            }
            let before = BEFORE.load(SeqCst).as_ref();
            let is_known = before.is_some_and(|before| {
                before.sa_sigaction == now.sa_sigaction && before.sa_flags == now.sa_flags
            });
            if !is_known {
                BEFORE.store(Box::into_raw(Box::new(now)), SeqCst);
            }
            IS_PASSED.store(false, SeqCst);
            let mut ours: libc::sigaction = std::mem::zeroed();
            ours.sa_sigaction = handler as usize;
            ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigemptyset(&raw mut ours.sa_mask);
            libc::sigaction(libc::SIGBUS, &raw const ours, null_mut()) == 0
        }
    }

    /// Whether address space is without limit, so that mappings take none from others.
    pub(in crate::index) fn may_map() -> bool {
        // SAFETY: a plain call with memory of our own.
        unsafe {
            let mut limit: libc::rlimit = std::mem::zeroed();
            libc::getrlimit(libc::RLIMIT_AS, &raw mut limit) == 0
                && limit.rlim_cur == libc::RLIM_INFINITY
        }
    }

    /// Pages that this thread waited for the disk to bring, so far.
    pub(in crate::index) fn major_faults() -> i64 {
        // SAFETY: a plain call with memory of our own.
        unsafe {
            let mut usage: libc::rusage = std::mem::zeroed();
            libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage);
            usage.ru_majflt
        }
    }
}

/// Elsewhere nothing is mapped.
#[cfg(not(target_os = "linux"))]
mod signal {
    #[derive(Debug)]
    pub(in crate::index) struct Ticket;

    impl Ticket {
        pub(in crate::index) fn take(_start: usize, _length: usize) -> Option<Self> {
            None
        }

        pub(in crate::index) fn is_hit(&self) -> bool {
            true
        }
    }

    pub(in crate::index) fn stands() -> bool {
        false
    }

    pub(in crate::index) fn may_map() -> bool {
        false
    }

    pub(in crate::index) fn major_faults() -> i64 {
        0
    }
}
