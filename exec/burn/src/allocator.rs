//! What the C library's allocator does with memory that is given back.
//!
//! A training step asks for hundreds of blocks of megabytes and gives them back, again and again. Left alone the allocator
//! returns large ones, and the end of its heap, to the system at once, which hands out cleared pages anew when they are next
//! touched: a tenth of a small model's step. Nothing is held longer than until the next step, so the peak stays what it is.

/// Has it keep what is given back until the process ends, for all threads in one heap: to be called before there are others.
/// Nothing where the C library is another.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    for (setting, value) in SETTINGS {
        #[expect(unsafe_code, reason = "a foreign function that takes two numbers and touches no memory of ours")]
        // SAFETY: any number is taken, or refused.
        unsafe {
            libc::mallopt(setting, value);
        }
    }
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
const SETTINGS: [(libc::c_int, libc::c_int); 4] = [
    // Larger blocks than this are the system's own.
    (libc::M_MMAP_THRESHOLD, 1 << 30),
    // What is free at the end of the heap stays.
    (libc::M_TRIM_THRESHOLD, libc::c_int::MAX),
    // And it grows by this much at a time.
    (libc::M_TOP_PAD, 64 << 20),
    (libc::M_ARENA_MAX, 1),
];
