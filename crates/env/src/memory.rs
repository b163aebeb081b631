//! How much memory the process keeps that nothing in it uses.
//!
//! **Source**: mallopt(3). A daemon whose many short-lived threads had read a disk of 10 GiB over NBD
//! kept 108 MB where each had a heap of its own, and 61 MB where two are shared, at equal speed
//! (`cargo xtask bench host`).

/// Heaps that threads share.
const HEAP_COUNT: libc::c_int = 2;
/// Bytes from which on an allocation goes back to the system as soon as it is free: more than the
/// buffers that come and go with each request, which would be zeroed anew each time.
const MAPPED_LEN_MIN: libc::c_int = 2 << 20;
/// Free bytes at the end of a heap that go back to the system.
const TRIMMED_LEN_MIN: libc::c_int = 2 << 20;

/// Has this process keep little memory that is free. For processes that serve for long: those that
/// use all processors at once for a short time are slowed down by sharing. No guarantee: an allocator
/// that does not know of this goes on as it did.
pub fn keep_little() {
    // SAFETY: three calls that take numbers, set the allocator's options and touch no memory of ours.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, HEAP_COUNT);
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_LEN_MIN);
        libc::mallopt(libc::M_TRIM_THRESHOLD, TRIMMED_LEN_MIN);
    }
}
