//! Faults that were put into tests-kernels/broken.cu are found.
mod common;

use kernels_emu::launch;
use std::process::Command;

fn fault(kernel: &str, threads: u32, shared: usize) -> String {
    let mut out = vec![0f32; 64];
    launch!(kernel, [1, 1, 1], [threads, 1, 1], shared; out.as_mut_ptr()).unwrap_err()
}

#[test]
fn divergent_barrier_is_reported_and_does_not_hang() {
    let said = fault("divergent_barrier", 32, 0);
    assert!(said.contains("deadlock: this thread waits at"), "{said}");
    assert!(said.contains("(block 0,0,0 thread 0,0,0)"), "{said}");
}

#[test]
fn lanes_that_never_come_are_reported() {
    let said = fault("half_warp_full_mask", 32, 0);
    assert!(said.contains("warp collective"), "{said}");
}

#[test]
fn mask_without_the_caller_is_reported() {
    let said = fault("bad_mask", 32, 0);
    assert!(said.contains("mask leaves out the calling lane"), "{said}");
    assert!(said.contains("thread 16,0,0"), "{said}");
}

#[test]
fn masks_that_differ_are_reported() {
    // Lane 15 is in both masks and says the one, lanes from 16 on say the other.
    let said = fault("mixed_masks", 32, 0);
    assert!(said.contains("different masks"), "{said}");
}

#[test]
fn write_past_dynamic_shared_memory_is_reported() {
    let said = fault("smem_overrun", 64, 256);
    assert!(said.contains("write past the end of dynamic shared memory"), "{said}");
}

#[test]
fn shared_memory_starts_as_nan() {
    let mut out = vec![0f32; 32];
    launch!("unset_shared", [1, 1, 1], [32, 1, 1], 128; out.as_mut_ptr()).unwrap();
    assert!(out.iter().all(|v| v.is_nan()));
}

#[test]
fn wrong_number_of_arguments_and_unknown_kernels_are_reported() {
    let said = launch!("bad_mask", [1, 1, 1], [32, 1, 1], 0; 1f32, 2f32).unwrap_err();
    assert_eq!(said, "bad_mask: 2 arguments, it takes 1");
    let said = launch!("no_such", [1, 1, 1], [32, 1, 1], 0; 1f32).unwrap_err();
    assert_eq!(said, "no kernel no_such");
}

#[test]
fn more_threads_than_the_launch_bounds_are_refused() {
    let said = launch!("sound_block_sum", [1, 1, 1], [288, 1, 1], 0; 0u64, 0u64, 0i32).unwrap_err();
    assert!(said.contains("__launch_bounds__(256)"), "{said}");
}

/// The order of threads is read from the environment, so that each order has its own process.
#[test]
fn missing_barrier_shows_when_threads_run_in_another_order() {
    if std::env::var_os("EMU_TEST_PRINT").is_some() {
        let mut out = vec![0f32; 64];
        launch!("missing_barrier", [1, 1, 1], [64, 1, 1], 0; out.as_mut_ptr()).unwrap();
        println!("result {out:?}");
        return;
    }
    let with = |order: &str| {
        let name = "missing_barrier_shows_when_threads_run_in_another_order";
        let mut test = Command::new(std::env::current_exe().unwrap());
        test.args(["--exact", name, "--nocapture"]);
        let output = test.env("EMU_TEST_PRINT", "1").env("EMU_ORDER", order).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().find_map(|l| Some(l.split_once("result ")?.1.to_string())).unwrap()
    };
    assert_eq!(with("forward"), with("forward"));
    assert_ne!(with("forward"), with("reverse"));
    assert_ne!(with("forward"), with("7"));
}

/// Needs the libraries of `scripts/emulate.sh --asan`; without them there is nothing to see.
#[test]
fn read_past_the_end_is_seen_by_the_sanitizer() {
    const NAME: &str = "read_past_the_end_is_seen_by_the_sanitizer";
    if !std::fs::read_to_string("/proc/self/maps").unwrap().contains("libasan") {
        return;
    }
    if std::env::var_os("EMU_TEST_READ").is_some() {
        let (x, mut out) = (vec![0f32; 1000], vec![0f32; 32]);
        let n = x.len() as i32;
        launch!("read_past_end", [1, 1, 1], [32, 1, 1], 0; x.as_ptr(), out.as_mut_ptr(), n)
            .unwrap();
        return;
    }
    let mut test = Command::new(std::env::current_exe().unwrap());
    let output = test.args(["--exact", NAME]).env("EMU_TEST_READ", "1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(said.contains("heap-buffer-overflow"), "{said}");
    assert!(said.contains("broken.cu"), "{said}");
}
