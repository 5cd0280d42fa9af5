//! Tensors too large for memory, of which only the touched pages exist, each with a small twin that
//! holds what is at its end.
use std::ffi::{c_int, c_void};
use std::ptr::null_mut;

use crate::common::noise;

/// More elements than 32 bits can count, so that a narrow index falls back to the start.
pub const MANY: usize = 1 << 32;

unsafe extern "C" {
    fn mmap(
        at: *mut c_void,
        len: usize,
        access: c_int,
        flags: c_int,
        fd: c_int,
        off: i64,
    ) -> *mut c_void;
    fn munmap(at: *mut c_void, len: usize) -> c_int;
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    Huge,
    Small,
}
pub const BOTH: [Side; 2] = [Side::Huge, Side::Small];

pub struct Tensor<T> {
    huge: *mut T,
    elements: usize,
    small: Vec<T>,
}

impl<T: Copy + Default + PartialEq + std::fmt::Debug> Tensor<T> {
    /// `elements` of zero, and a twin of the last `tail` of them.
    pub fn new(elements: usize, tail: usize) -> Self {
        const READ_WRITE: c_int = 1 | 2;
        const PRIVATE_ANONYMOUS_NORESERVE: c_int = 0x2 | 0x20 | 0x4000;
        let bytes = elements * size_of::<T>();
        // SAFETY: a new mapping, which nothing else uses.
        let at = unsafe { mmap(null_mut(), bytes, READ_WRITE, PRIVATE_ANONYMOUS_NORESERVE, -1, 0) };
        assert_ne!(at as isize, -1, "no addresses for {bytes} bytes");
        Self { huge: at.cast(), elements, small: vec![T::default(); tail] }
    }

    /// The same with these values at the end of both.
    pub fn ending(elements: usize, values: &[T]) -> Self {
        let mut tensor = Self::new(elements, values.len());
        tensor.end().copy_from_slice(values);
        tensor.small.copy_from_slice(values);
        tensor
    }

    /// The last elements of the huge one, as many as the twin has.
    pub fn end(&mut self) -> &mut [T] {
        let tail = self.small.len();
        // SAFETY: within the mapping, which is readable, writable and not shared.
        unsafe { std::slice::from_raw_parts_mut(self.huge.add(self.elements - tail), tail) }
    }

    pub fn at(&mut self, side: Side) -> *mut T {
        match side {
            Side::Huge => self.huge,
            Side::Small => self.small.as_mut_ptr(),
        }
    }

    /// The kernel has written the same to both, and something.
    pub fn agree(&mut self, what: &str) {
        let small = self.small.clone();
        assert!(small.iter().any(|&v| v != T::default()), "{what}: nothing was written");
        for (i, (got, want)) in self.end().iter().zip(small).enumerate() {
            assert!(
                *got == want,
                "{what}: {got:?} at {i} of the tail, {want:?} in the small tensor"
            );
        }
    }
}

impl Tensor<f32> {
    pub fn noisy(elements: usize, tail: usize, seed: u64) -> Self {
        Self::ending(elements, &noise(tail, seed))
    }
}

impl<T> Drop for Tensor<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`, used by nobody any more.
        unsafe { munmap(self.huge.cast(), self.elements * size_of::<T>()) };
    }
}
