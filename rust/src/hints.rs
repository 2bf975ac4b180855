//! Hints to the processor and the system, which change how long something takes and nothing else.

#![allow(unsafe_code)]

/// Makes the processor fetch the cache line of an item, without waiting for it; none where there is no
/// such item.
#[inline(always)]
pub fn prefetch<T>(items: &[T], at: usize) {
    if let Some(item) = items.get(at) {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            // SAFETY: every x86-64 processor has the instruction; it changes nothing but caches and raises
            // no signal, whatever the address.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(item).cast()) }
        }
        #[cfg(not(target_arch = "x86_64"))]
        std::hint::black_box(item);
    }
}

/// Asks for pages of two mebibytes for memory that was not written yet: a page that is written for the first
/// time costs a call of the kernel, and large memory written once is mostly that.
pub(crate) fn prefer_large_pages<T>(memory: &mut [T]) {
    #[cfg(target_os = "linux")]
    {
        const HUGE: usize = 2 << 20;
        let start = memory.as_mut_ptr() as usize;
        let (first, end) = (start.next_multiple_of(HUGE), start + size_of_val(memory));
        if first + HUGE <= end {
            let length = (end - first) / HUGE * HUGE;
            // SAFETY: the range is inside memory that is borrowed, begins and ends where pages do,
            // and the advice changes nothing of what is there.
            unsafe { libc::madvise(first as *mut libc::c_void, length, libc::MADV_HUGEPAGE) };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = memory;
}
