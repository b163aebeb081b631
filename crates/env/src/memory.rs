//! How much memory the process keeps that nothing in it uses.
//!
//! **Source**: mallopt(3), and what `cargo xtask bench host` says of two disks that are read at once.

/// Heaps that threads share.
const HEAP_COUNT: libc::c_int = 2;
/// Bytes from which on an allocation is the system's own, takes memory only where it was touched, and goes
/// back as soon as it is free: a connection's buffers. Those that come and go with each request are
/// smaller, and would be zeroed anew each time.
const MAPPED_LEN_MIN: libc::c_int = (1 << 20) + (32 << 10);
/// Free bytes at the end of a heap that go back to the system.
const TRIMMED_LEN_MIN: libc::c_int = 512 << 10;

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
