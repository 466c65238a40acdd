//! Memory that the threads of a step write to, each its own part.
#![expect(unsafe_code, reason = "threads write disjoint parts of one buffer between two phases")]

use std::cell::UnsafeCell;

/// Numbers behind a shared reference. Who may write what is the step's affair: see `stage.rs`.
pub(crate) struct Buffer<T>(Box<[UnsafeCell<T>]>);

// SAFETY: a cell is reached through `slice`, `slice_mut` and `ptr` alone, whose callers promise that nobody writes what
// another reads or writes; between phases the pool orders all accesses.
unsafe impl<T: Send + Sync> Sync for Buffer<T> {}

impl<T: Copy + Default> Buffer<T> {
    /// `len` zeros.
    pub(crate) fn new(len: usize) -> Self {
        Self((0..len).map(|_| UnsafeCell::new(T::default())).collect())
    }

    /// The first number.
    pub(crate) fn ptr(&self) -> *mut T {
        UnsafeCell::raw_get(self.0.as_ptr())
    }

    /// From number `at` on.
    pub(crate) fn at(&self, at: usize) -> *mut T {
        assert!(at <= self.0.len(), "{at} is past the {} of this buffer", self.0.len());
        self.ptr().wrapping_add(at)
    }

    /// # Safety
    /// Nobody writes to `at..at + len` while the slice lives.
    pub(crate) unsafe fn slice(&self, at: usize, len: usize) -> &[T] {
        assert!(at + len <= self.0.len(), "{at}+{len} is past the {} of this buffer", self.0.len());
        // SAFETY: within the buffer, by the caller not written to; UnsafeCell<T> is laid out as T.
        unsafe { std::slice::from_raw_parts(self.at(at), len) }
    }

    /// # Safety
    /// Nobody else reads or writes `at..at + len` while the slice lives.
    #[expect(clippy::mut_from_ref, reason = "the caller promises that this part is its own")]
    pub(crate) unsafe fn slice_mut(&self, at: usize, len: usize) -> &mut [T] {
        assert!(at + len <= self.0.len(), "{at}+{len} is past the {} of this buffer", self.0.len());
        // SAFETY: within the buffer, by the caller this part is its own.
        unsafe { std::slice::from_raw_parts_mut(self.at(at), len) }
    }
}
