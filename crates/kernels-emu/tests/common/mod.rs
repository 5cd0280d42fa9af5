//! What the tests of the emulation share.
#![allow(dead_code, reason = "each test uses some of it")]
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};

/// bfloat16 of a number, rounded to nearest even.
pub fn bf16(x: f32) -> u16 {
    let u = x.to_bits();
    ((u + 0x7fff + (u >> 16 & 1)) >> 16) as u16
}

pub fn from_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Numbers in -0.5..0.5 that look random and are the same every time.
pub fn noise(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..count).map(|_| next()).collect()
}

pub type Code = c_int;
pub type Address = u64;

pub fn symbol(library: &str, name: &str) -> *mut c_void {
    // cuBLAS finds the driver, which it asks about memory, when it is loaded.
    kernels_emu::library("libcuda.so.1").unwrap();
    let library = kernels_emu::library(library).unwrap();
    // SAFETY: the library is open.
    unsafe { kernels_emu::symbol(library, &CString::new(name).unwrap()) }.unwrap()
}

/// A function of an emulated library.
#[macro_export]
macro_rules! function {
    ($library:expr, $name:literal, fn($($arg:ty),* $(,)?)) => {{
        let at = $crate::common::symbol($library, $name);
        #[allow(unused_unsafe, reason = "it may be called within another")]
        // SAFETY: the caller gives the function's own type.
        unsafe {
            std::mem::transmute::<*mut std::ffi::c_void, unsafe extern "C" fn($($arg),*) -> i32>(at)
        }
    }};
}

/// The emulated driver through its C interface.
pub struct Driver;

impl Driver {
    pub fn alloc(bytes: usize) -> Result<Address, Code> {
        let mut at = 0;
        let f = function!("libcuda.so.1", "cuMemAlloc_v2", fn(*mut Address, usize));
        // SAFETY: the driver's interface.
        check(unsafe { f(&raw mut at, bytes) }).map(|()| at)
    }

    pub fn free(at: Address) -> Result<(), Code> {
        // SAFETY: the driver's interface.
        check(unsafe { function!("libcuda.so.1", "cuMemFree_v2", fn(Address))(at) })
    }

    pub fn upload<T>(values: &[T]) -> Address {
        let at = Self::alloc(size_of_val(values)).unwrap();
        Self::write(at, values).unwrap();
        at
    }

    pub fn write<T>(at: Address, values: &[T]) -> Result<(), Code> {
        let f = function!("libcuda.so.1", "cuMemcpyHtoD_v2", fn(Address, *const c_void, usize));
        // SAFETY: the driver's interface.
        check(unsafe { f(at, values.as_ptr().cast(), size_of_val(values)) })
    }

    pub fn read<T: Clone + Default>(at: Address, count: usize) -> Result<Vec<T>, Code> {
        let mut values = vec![T::default(); count];
        let f = function!("libcuda.so.1", "cuMemcpyDtoH_v2", fn(*mut c_void, Address, usize));
        // SAFETY: the driver's interface.
        check(unsafe { f(values.as_mut_ptr().cast(), at, count * size_of::<T>()) })?;
        Ok(values)
    }

    pub fn kernel(name: &CStr) -> Result<*mut c_void, Code> {
        let mut kernel = std::ptr::null_mut();
        let f = function!(
            "libcuda.so.1",
            "cuModuleGetFunction",
            fn(*mut *mut c_void, *mut c_void, *const c_char)
        );
        // SAFETY: the driver's interface.
        check(unsafe { f(&raw mut kernel, std::ptr::null_mut(), name.as_ptr()) }).map(|()| kernel)
    }

    pub fn launch(
        kernel: *mut c_void,
        grid: [c_uint; 3],
        block: [c_uint; 3],
        shared: c_uint,
        args: &mut [*mut c_void],
    ) -> Result<(), Code> {
        type U = c_uint;
        type P = *mut *mut c_void;
        let f = function!(
            "libcuda.so.1",
            "cuLaunchKernel",
            fn(*mut c_void, U, U, U, U, U, U, U, *mut c_void, P, P)
        );
        let ([gx, gy, gz], [bx, by, bz], none) = (grid, block, std::ptr::null_mut::<c_void>());
        // SAFETY: the driver's interface; the arguments are the caller's.
        check(unsafe {
            f(kernel, gx, gy, gz, bx, by, bz, shared, none, args.as_mut_ptr(), none.cast())
        })
    }

    /// What cuGetErrorString says of a code.
    pub fn reason(code: Code) -> String {
        let mut text = std::ptr::null();
        let f = function!("libcuda.so.1", "cuGetErrorString", fn(Code, *mut *const c_char));
        // SAFETY: the driver's strings live for ever.
        unsafe {
            f(code, &raw mut text);
            CStr::from_ptr(text).to_string_lossy().into_owned()
        }
    }
}

fn check(code: Code) -> Result<(), Code> {
    if code == 0 { Ok(()) } else { Err(code) }
}
