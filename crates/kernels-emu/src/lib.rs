//! Runs CUDA kernels on the CPU, so that a machine with neither GPU nor CUDA toolkit can check
//! them, and programs that use CUDA. `include/cuda_emu.h` says how, and what it finds.
//!
//! Two ways in: [`launch!`] runs one kernel on the caller's memory; a program whose `CUDA_LIB_PATH`
//! is [`DRIVER`] takes this crate for its GPU. `scripts/emulate.sh` runs such a program.
//!
//! | variable         | what it does                                                        |
//! | ---------------- | ------------------------------------------------------------------- |
//! | `EMU_ORDER`      | order of a block's threads: `reverse` or a seed; it must not matter |
//! | `EMU_THREADS`    | OS threads that share the blocks of a launch; 1 if unset            |
//! | `EMU_MEMORY_MIB` | memory of the emulated device; 16384 if unset                       |
//! | `EMU_MEMORY_LOG` | file that is told the most bytes of it that were allocated at once  |
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::ops::Range;
use std::sync::OnceLock;

/// The folder with the emulated libraries: libcuda.so.1, libcublas.so.13, …
pub const DRIVER: &str = env!("EMU_DRIVER");

/// `emu::Shape` of include/emu/threads.h.
#[repr(C)]
struct Shape {
    grid: [c_uint; 3],
    block: [c_uint; 3],
    shared: usize,
    first: u64,
    last: u64,
}

/// `emu::Entry` of include/emu/threads.h.
#[repr(C)]
struct Entry {
    name: *const c_char,
    run: Option<unsafe extern "C" fn(*const Shape, *mut *mut c_void) -> c_int>,
    arguments: c_uint,
    max_threads: c_uint,
}

type LastError = unsafe extern "C" fn() -> *const c_char;

/// What this crate calls of the emulated driver.
struct Emulation {
    table: *const Entry,
    last_error: LastError,
}

// SAFETY: the table is constant, and the last error is one of each thread.
unsafe impl Send for Emulation {}
// SAFETY: as above.
unsafe impl Sync for Emulation {}

unsafe extern "C" {
    fn dlopen(file: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
    fn dlerror() -> *const c_char;
}

/// The emulated driver: the one that `CUDA_LIB_PATH` names, so that a program built without
/// AddressSanitizer can use libraries built with it, else this build's.
fn emulation() -> &'static Emulation {
    static LOADED: OnceLock<Emulation> = OnceLock::new();
    LOADED.get_or_init(|| {
        let library = library("libcuda.so.1").unwrap_or_else(|e| panic!("{e}"));
        // SAFETY: the emulated driver defines both functions, with these types.
        unsafe {
            let table = symbol(library, c"emu_table").unwrap_or_else(|e| panic!("{e}"));
            let table = std::mem::transmute::<*mut c_void, extern "C" fn() -> *const Entry>(table);
            let error = symbol(library, c"emu_last_error").unwrap_or_else(|e| panic!("{e}"));
            let error = std::mem::transmute::<*mut c_void, LastError>(error);
            Emulation { table: table(), last_error: error }
        }
    })
}

/// Opens one of the emulated libraries; returns dlopen's handle.
///
/// # Errors
///
/// dlopen's.
pub fn library(file: &str) -> Result<*mut c_void, String> {
    const NOW_AND_GLOBAL: c_int = 0x102;
    let folder = std::env::var("CUDA_LIB_PATH").unwrap_or_else(|_| DRIVER.to_string());
    let path = CString::new(format!("{folder}/{file}")).map_err(|e| e.to_string())?;
    // SAFETY: the path is a string that ends; the library is this crate's.
    let handle = unsafe { dlopen(path.as_ptr(), NOW_AND_GLOBAL) };
    if handle.is_null() { Err(last_dl_error()) } else { Ok(handle) }
}

/// A symbol of an opened library.
///
/// # Errors
///
/// dlsym's.
///
/// # Safety
///
/// The library must be open.
pub unsafe fn symbol(library: *mut c_void, name: &CStr) -> Result<*mut c_void, String> {
    // SAFETY: the caller's.
    let at = unsafe { dlsym(library, name.as_ptr()) };
    if at.is_null() { Err(last_dl_error()) } else { Ok(at) }
}

fn last_dl_error() -> String {
    // SAFETY: called right after a failure, so there is a message.
    unsafe { CStr::from_ptr(dlerror()) }.to_string_lossy().into_owned()
}

/// The kernels that were compiled in, the project's and candle's.
fn table() -> impl Iterator<Item = (&'static str, &'static Entry)> {
    let first = emulation().table;
    // SAFETY: the table is never freed, and ends with an entry without a name.
    let at = move |i: usize| unsafe { &*first.add(i) };
    (0..).map(at).take_while(|e| !e.name.is_null()).map(|e| {
        // SAFETY: names are string literals of C++.
        let name = unsafe { CStr::from_ptr(e.name) };
        (name.to_str().expect("kernel names are ASCII"), e)
    })
}

/// The names of all kernels.
pub fn names() -> impl Iterator<Item = &'static str> {
    table().map(|(name, _)| name)
}

/// Launches a kernel. As with `cuLaunchKernel`, `args[i]` points at the i-th parameter.
///
/// # Errors
///
/// An unknown kernel, the wrong number of arguments, a shape the hardware refuses, and every fault
/// the emulation sees, with its block and thread.
///
/// # Safety
///
/// The parameters must have the kernel's types, and pointers among them must hold what it accesses.
pub unsafe fn launch(
    name: &str,
    grid: [u32; 3],
    block: [u32; 3],
    shared: usize,
    args: &mut [*mut c_void],
) -> Result<(), String> {
    // SAFETY: the caller's.
    unsafe { launch_blocks(name, grid, block, shared, 0..u64::MAX, args) }
}

/// Launches a kernel on a grid of which only the blocks with a linear index in `blocks` run, so
/// that a test can look at one end of a grid that would take hours.
///
/// # Errors
///
/// See [`launch`].
///
/// # Safety
///
/// See [`launch`].
pub unsafe fn launch_blocks(
    name: &str,
    grid: [u32; 3],
    block: [u32; 3],
    shared: usize,
    blocks: Range<u64>,
    args: &mut [*mut c_void],
) -> Result<(), String> {
    let (_, entry) =
        table().find(|(n, _)| *n == name).ok_or_else(|| format!("no kernel {name}"))?;
    if args.len() != entry.arguments as usize {
        return Err(format!("{name}: {} arguments, it takes {}", args.len(), entry.arguments));
    }
    if block.iter().map(|&b| u64::from(b)).product::<u64>() > u64::from(entry.max_threads) {
        return Err(format!("{name}: more threads than __launch_bounds__({})", entry.max_threads));
    }
    let shape = Shape { grid, block, shared, first: blocks.start, last: blocks.end };
    let run = entry.run.expect("an entry with a name has a function");
    // SAFETY: as many arguments as the kernel takes; their types are the caller's promise.
    match unsafe { run(&raw const shape, args.as_mut_ptr()) } {
        0 => Ok(()),
        _ => {
            // SAFETY: the string lives until this thread's next launch.
            let why = unsafe { CStr::from_ptr((emulation().last_error)()) };
            Err(format!("{name}: {}", why.to_string_lossy()))
        }
    }
}

/// `launch!("kernel", grid, block, shared; arg, arg, …)`, each argument passed by value.
/// With `blocks = first..last;` after the shared memory only these blocks run.
#[macro_export]
macro_rules! launch {
    ($name:expr, $grid:expr, $block:expr, $shared:expr; blocks = $blocks:expr;
        $($arg:expr),* $(,)?) => {{
        // The arguments live here while the kernel reads them.
        let mut values: Vec<Box<dyn std::any::Any>> = vec![$(Box::new($arg)),*];
        let mut args: Vec<*mut std::ffi::c_void> = values
            .iter_mut()
            .map(|v| std::ptr::from_mut(v.as_mut()).cast::<std::ffi::c_void>())
            .collect();
        unsafe { $crate::launch_blocks($name, $grid, $block, $shared, $blocks, &mut args) }
    }};
    ($name:expr, $grid:expr, $block:expr, $shared:expr; $($arg:expr),* $(,)?) => {
        $crate::launch!($name, $grid, $block, $shared; blocks = 0..u64::MAX; $($arg),*)
    };
}
