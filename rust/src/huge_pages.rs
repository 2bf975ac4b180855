//! Memory in pages of two mebibytes, where the system has them: a page that is written for the first time
//! costs a call of the kernel, and large memory written once is mostly that.

#![allow(unsafe_code)]

/// Asks for large pages for memory that was not written yet; only a hint.
pub(crate) fn prefer<T>(memory: &mut [T]) {
    #[cfg(target_os = "linux")]
    {
        const HUGE: usize = 2 << 20;
        let start = memory.as_mut_ptr() as usize;
        let (first, end) = (start.next_multiple_of(HUGE), start + size_of_val(memory));
        if first + HUGE <= end {
            let length = (end - first) / HUGE * HUGE;
            // SAFETY: the range lies inside memory that is borrowed, begins and ends where pages do, and the
            // advice changes nothing of what stands there.
            unsafe { libc::madvise(first as *mut libc::c_void, length, libc::MADV_HUGEPAGE) };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = memory;
}
