//! The functions, and what stands in their place until they are found.

use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering};

use libloading::os::unix::Library;

use crate::search::open;

include!(concat!(env!("OUT_DIR"), "/names.rs"));

/// A library as `symbols.txt` lists it.
pub(crate) struct Listed {
    /// Its file; empty for functions that no library of this build has.
    pub(crate) file: &'static str,
    /// Files that must be open before it, because it does not find them itself.
    first: &'static [&'static str],
    /// What its functions answer where it is absent: the library's own code for "nothing here".
    absent: extern "C" fn() -> i32,
}

/// In the order of `symbols.txt`.
pub(crate) const LIBRARIES: &[Listed] = &[
    Listed { file: "libcuda.so.1", first: &[], absent: no_device },
    Listed { file: "libcublas.so.13", first: &["libcublasLt.so.13"], absent: not_initialised },
    Listed { file: "libcublasLt.so.13", first: &[], absent: not_initialised },
    Listed { file: "libcurand.so.10", first: &[], absent: no_generator },
    Listed { file: "libnvrtc.so.13", first: &["libnvrtc-builtins.so.13.0"], absent: no_compiler },
    Listed { file: "libcusolver.so.12", first: &[], absent: not_initialised },
    Listed { file: "libcusparse.so.12", first: &[], absent: not_initialised },
    Listed { file: "", first: &[], absent: left_out },
];

/// The driver's place in the list.
pub(crate) const DRIVER: usize = 0;

/// `CUDA_ERROR_NO_DEVICE`.
extern "C" fn no_device() -> i32 {
    100
}

/// `CUBLAS_STATUS_NOT_INITIALIZED`, and the same of cuSOLVER and cuSPARSE.
extern "C" fn not_initialised() -> i32 {
    1
}

/// `CURAND_STATUS_NOT_INITIALIZED`.
extern "C" fn no_generator() -> i32 {
    101
}

/// `NVRTC_ERROR_INTERNAL_ERROR`.
extern "C" fn no_compiler() -> i32 {
    11
}

/// candle's kernels for GGUF tensors return nothing that could say so.
extern "C" fn left_out() -> i32 {
    eprintln!("this build leaves out candle's kernels for GGUF tensors");
    std::process::abort()
}

/// Where each function is; null until its first call.
#[unsafe(no_mangle)]
static cuda_lazy_table: [AtomicPtr<c_void>; COUNT] = [const { AtomicPtr::new(null_mut()) }; COUNT];

/// Library `index` of the list, opened when it is first asked for and never closed.
pub(crate) fn library(index: usize) -> Option<&'static Library> {
    static OPEN: [OnceLock<Option<Library>>; LIBRARIES.len()] =
        [const { OnceLock::new() }; LIBRARIES.len()];
    let listed = &LIBRARIES[index];
    let opened = OPEN[index].get_or_init(|| {
        if listed.file.is_empty() {
            return None;
        }
        for library in listed.first.iter().filter_map(|file| open(file)) {
            std::mem::forget(library);
        }
        open(listed.file)
    });
    opened.as_ref()
}

/// Finds function `index` and puts it into the table.
#[unsafe(no_mangle)]
extern "C" fn cuda_lazy_lookup(index: usize) -> *mut c_void {
    let (listed, name) = NAMES[index];
    let found = library(listed).and_then(|library| {
        // SAFETY: only the address is taken; callers know the function's type.
        unsafe { library.get::<*mut c_void>(name.as_bytes()) }.ok().map(|symbol| *symbol)
    });
    let function = found.unwrap_or(LIBRARIES[listed].absent as *mut c_void);
    cuda_lazy_table[index].store(function, Ordering::Release);
    function
}

std::arch::global_asm!(include_str!(concat!(env!("OUT_DIR"), "/jumps.s")), options(att_syntax));

// The number of the function lies on the stack. Every register that may hold an argument is kept
// across the look-up, then control goes where the call was meant to go.
std::arch::global_asm!(
    r#"
.text
.hidden cuda_lazy_resolve
.globl cuda_lazy_resolve
.type cuda_lazy_resolve,@function
cuda_lazy_resolve:
    pushq %rdi; pushq %rsi; pushq %rdx; pushq %rcx; pushq %r8; pushq %r9; pushq %rax; pushq %rbp
    movq %rsp, %rbp
    subq $128, %rsp
    andq $-16, %rsp
    movups %xmm0, (%rsp); movups %xmm1, 16(%rsp); movups %xmm2, 32(%rsp); movups %xmm3, 48(%rsp)
    movups %xmm4, 64(%rsp); movups %xmm5, 80(%rsp); movups %xmm6, 96(%rsp); movups %xmm7, 112(%rsp)
    movq 64(%rbp), %rdi
    callq {lookup}
    movq %rax, %r11
    movups (%rsp), %xmm0; movups 16(%rsp), %xmm1; movups 32(%rsp), %xmm2; movups 48(%rsp), %xmm3
    movups 64(%rsp), %xmm4; movups 80(%rsp), %xmm5; movups 96(%rsp), %xmm6; movups 112(%rsp), %xmm7
    movq %rbp, %rsp
    popq %rbp; popq %rax; popq %r9; popq %r8; popq %rcx; popq %rdx; popq %rsi; popq %rdi
    addq $8, %rsp
    jmpq *%r11
.size cuda_lazy_resolve, .-cuda_lazy_resolve
"#,
    lookup = sym cuda_lazy_lookup,
    options(att_syntax)
);
