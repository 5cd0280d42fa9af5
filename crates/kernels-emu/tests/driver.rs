//! The emulated driver through its C interface: it works, and refuses what a GPU's driver refuses.
mod common;

use common::{Driver, noise};
use std::ffi::c_void;
use std::process::Command;

const INVALID_VALUE: i32 = 1;
const OUT_OF_MEMORY: i32 = 2;
const NOT_FOUND: i32 = 500;
const LAUNCH_OUT_OF_RESOURCES: i32 = 701;
const LAUNCH_FAILED: i32 = 719;

fn pointer<T>(v: &mut T) -> *mut c_void {
    std::ptr::from_mut(v).cast()
}

/// Launches a kernel of one pointer.
fn launch_on(
    kernel: &std::ffi::CStr,
    grid: [u32; 3],
    threads: u32,
    shared: u32,
) -> Result<(), i32> {
    let mut out = Driver::alloc(4096).unwrap();
    let kernel = Driver::kernel(kernel).unwrap();
    let result = Driver::launch(kernel, grid, [threads, 1, 1], shared, &mut [pointer(&mut out)]);
    Driver::free(out).unwrap();
    result
}

#[test]
fn kernel_on_device_memory() {
    let (rows, n) = (3usize, 100usize);
    let x = noise(rows * n, 1);
    let (mut at_x, mut at_y, mut count) =
        (Driver::upload(&x), Driver::alloc(12).unwrap(), n as i32);
    let kernel = Driver::kernel(c"sound_block_sum").unwrap();
    let mut args = [pointer(&mut at_x), pointer(&mut at_y), pointer(&mut count)];
    Driver::launch(kernel, [3, 1, 1], [64, 1, 1], 256, &mut args).unwrap();
    for (row, got) in x.chunks(n).zip(Driver::read::<f32>(at_y, rows).unwrap()) {
        assert!((got - row.iter().sum::<f32>()).abs() < 1e-4);
    }
    Driver::free(at_x).unwrap();
    Driver::free(at_y).unwrap();
}

#[test]
fn fresh_memory_is_nan() {
    let at = Driver::alloc(64).unwrap();
    assert!(Driver::read::<f32>(at, 16).unwrap().iter().all(|v| v.is_nan()));
    Driver::free(at).unwrap();
}

#[test]
fn double_free_is_refused() {
    let at = Driver::alloc(64).unwrap();
    Driver::free(at).unwrap();
    assert_eq!(Driver::free(at), Err(INVALID_VALUE));
    assert_eq!(Driver::free(at + 8), Err(INVALID_VALUE));
}

#[test]
fn copies_past_an_allocation_are_refused() {
    let at = Driver::alloc(64).unwrap();
    assert_eq!(Driver::write(at + 4, &[0f32; 15]), Ok(()));
    assert_eq!(Driver::write(at + 4, &[0f32; 16]), Err(INVALID_VALUE));
    assert_eq!(Driver::read::<u8>(at, 65), Err(INVALID_VALUE));
    Driver::free(at).unwrap();
}

#[test]
fn unknown_kernel_is_not_found() {
    assert_eq!(Driver::kernel(c"no_such_kernel"), Err(NOT_FOUND));
    assert_eq!(Driver::reason(NOT_FOUND), "the emulation has no kernel no_such_kernel");
}

#[test]
fn shapes_that_the_hardware_refuses() {
    assert_eq!(launch_on(c"unset_shared", [1, 1, 1], 1025, 0), Err(INVALID_VALUE));
    assert_eq!(launch_on(c"unset_shared", [1, 65536, 1], 32, 128), Err(INVALID_VALUE));
    assert_eq!(launch_on(c"unset_shared", [1, 1, 65536], 32, 128), Err(INVALID_VALUE));
    assert_eq!(launch_on(c"unset_shared", [0, 1, 1], 32, 128), Err(INVALID_VALUE));
    assert_eq!(launch_on(c"unset_shared", [1, 1, 1], 32, 128), Ok(()));
    // __launch_bounds__(256)
    assert_eq!(launch_on(c"sound_block_sum", [1, 1, 1], 288, 0), Err(LAUNCH_OUT_OF_RESOURCES));
}

#[test]
fn much_shared_memory_has_to_be_asked_for() {
    const MAX_DYNAMIC_SHARED: i32 = 8;
    let set = function!("libcuda.so.1", "cuFuncSetAttribute", fn(*mut c_void, i32, i32));
    let kernel = Driver::kernel(c"smem_overrun").unwrap();
    let launch = |shared| launch_on(c"smem_overrun", [1, 1, 1], 32, shared);
    assert_eq!(launch(48 * 1024), Ok(()));
    assert_eq!(launch(48 * 1024 + 1), Err(INVALID_VALUE));
    // SAFETY: a function and numbers, as the driver's interface has it.
    unsafe {
        assert_eq!(set(kernel, MAX_DYNAMIC_SHARED, 227 * 1024 + 1), INVALID_VALUE);
        assert_eq!(set(kernel, MAX_DYNAMIC_SHARED, 227 * 1024), 0);
    }
    assert_eq!(launch(227 * 1024), Ok(()));
}

#[test]
fn fault_of_a_kernel_fails_its_launch() {
    assert_eq!(launch_on(c"divergent_barrier", [1, 1, 1], 32, 0), Err(LAUNCH_FAILED));
    let said = Driver::reason(LAUNCH_FAILED);
    assert!(said.contains("divergent_barrier: deadlock"), "{said}");
}

#[test]
fn more_memory_than_there_is() {
    let (mut free, mut total) = (0usize, 0usize);
    let info = function!("libcuda.so.1", "cuMemGetInfo_v2", fn(*mut usize, *mut usize));
    // SAFETY: the driver's interface.
    assert_eq!(unsafe { info(&raw mut free, &raw mut total) }, 0);
    assert!(free <= total);
    assert_eq!(Driver::alloc(total + 1), Err(OUT_OF_MEMORY));
    assert_eq!(Driver::alloc(usize::MAX), Err(OUT_OF_MEMORY));
}

/// Size and log are read from the environment, so that this test has its own process.
#[test]
fn memory_is_accounted() {
    if std::env::var_os("EMU_MEMORY_LOG").is_some() {
        let a = Driver::alloc(2 << 20).unwrap();
        let b = Driver::alloc(3 << 20).unwrap();
        Driver::free(a).unwrap();
        let c = Driver::alloc(1 << 20).unwrap();
        assert_eq!(Driver::alloc((4 << 20) + 1), Err(OUT_OF_MEMORY));
        assert!(Driver::reason(OUT_OF_MEMORY).contains("4194305 bytes wanted, free are 4194304"));
        Driver::free(b).unwrap();
        Driver::free(c).unwrap();
        return;
    }
    let log = std::env::temp_dir().join(format!("kernels-emu-{}", std::process::id()));
    let mut test = Command::new(std::env::current_exe().unwrap());
    test.args(["--exact", "memory_is_accounted"]);
    let status = test.env("EMU_MEMORY_MIB", "8").env("EMU_MEMORY_LOG", &log).status().unwrap();
    assert!(status.success());
    assert_eq!(std::fs::read_to_string(&log).unwrap(), format!("{}\n", 5 << 20));
    std::fs::remove_file(log).unwrap();
}

/// Whatever crates/cuda-lazy can call of these libraries is there.
#[test]
fn libraries_have_every_symbol_that_is_called() {
    let list = concat!(env!("CARGO_MANIFEST_DIR"), "/../cuda-lazy/symbols.txt");
    let files = [
        ("cuda", "libcuda.so.1"),
        ("cublas", "libcublas.so.13"),
        ("cublasLt", "libcublasLt.so.13"),
        ("curand", "libcurand.so.10"),
        ("nvrtc", "libnvrtc.so.13"),
        ("cusolver", "libcusolver.so.12"),
        ("cusparse", "libcusparse.so.12"),
    ];
    let mut library = None;
    for line in std::fs::read_to_string(list).unwrap().lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("lib ") {
            library = files.iter().find(|(n, _)| *n == name).map(|(_, file)| *file);
        } else if !line.is_empty() && !line.starts_with('#') {
            // What follows "lib cudart" is in no library.
            library.map(|file| common::symbol(file, line));
        }
    }
}

#[test]
fn streams_and_events_are_objects() {
    type Handle = *mut c_void;
    let create = function!("libcuda.so.1", "cuStreamCreate", fn(*mut Handle, u32));
    let destroy = function!("libcuda.so.1", "cuStreamDestroy_v2", fn(Handle));
    let synchronize = function!("libcuda.so.1", "cuStreamSynchronize", fn(Handle));
    let event = function!("libcuda.so.1", "cuEventCreate", fn(*mut Handle, u32));
    let record = function!("libcuda.so.1", "cuEventRecord", fn(Handle, Handle));
    let elapsed = function!("libcuda.so.1", "cuEventElapsedTime_v2", fn(*mut f32, Handle, Handle));
    let none = std::ptr::null_mut();
    let (mut a, mut b, mut start, mut end, mut time) = (none, none, none, none, -1f32);
    // SAFETY: the driver's interface.
    unsafe {
        assert_eq!((create(&raw mut a, 1), create(&raw mut b, 1)), (0, 0));
        assert_ne!(a, b);
        assert_eq!((event(&raw mut start, 0), event(&raw mut end, 0)), (0, 0));
        assert_eq!(elapsed(&raw mut time, start, end), 400, "not recorded yet");
        assert_eq!((record(start, a), record(end, a)), (0, 0));
        assert_eq!(elapsed(&raw mut time, start, end), 0);
        assert!(time >= 0.0);
        assert_eq!((destroy(a), destroy(a), synchronize(a), synchronize(b)), (0, 400, 400, 0));
        assert_eq!(record(start, a), 400);
    }
}

#[test]
fn pinned_memory() {
    type Pointer = *mut c_void;
    let alloc = function!("libcuda.so.1", "cuMemHostAlloc", fn(*mut Pointer, usize, u32));
    let flags = function!("libcuda.so.1", "cuMemHostGetFlags", fn(*mut u32, Pointer));
    let free = function!("libcuda.so.1", "cuMemFreeHost", fn(Pointer));
    let (mut at, mut got) = (std::ptr::null_mut(), 0);
    // SAFETY: the driver's interface.
    unsafe {
        assert_eq!(alloc(&raw mut at, 100, 4), 0);
        assert_eq!((flags(&raw mut got, at), got), (0, 4));
        assert_eq!((free(at), free(at)), (0, INVALID_VALUE));
    }
}
