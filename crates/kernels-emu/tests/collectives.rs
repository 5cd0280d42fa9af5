//! Barriers, warp collectives, tensor cores, atomics and parts of a grid do what they do on a GPU.
mod common;

use common::{bf16, from_bf16, noise};
use kernels_emu::{launch, names};
use std::process::Command;

#[test]
fn block_sum() {
    for (rows, n, threads) in [(5usize, 1000usize, 256u32), (3, 33, 64), (2, 4096, 128), (4, 7, 32)]
    {
        let x = noise(rows * n, 7);
        let mut y = vec![f32::NAN; rows];
        let (grid, block, shared) = ([rows as u32, 1, 1], [threads, 1, 1], threads as usize / 8);
        launch!("sound_block_sum", grid, block, shared; x.as_ptr(), y.as_mut_ptr(), n as i32)
            .unwrap();
        for (row, &got) in x.chunks(n).zip(&y) {
            let want: f64 = row.iter().map(|&v| f64::from(v)).sum();
            assert!((f64::from(got) - want).abs() < 1e-4, "{got} {want}");
        }
    }
}

#[test]
fn warp_collectives() {
    let mut out = vec![0i32; 8 * 32];
    launch!("sound_warp", [1, 1, 1], [32, 1, 1], 0; out.as_mut_ptr()).unwrap();
    let ballot = (0..32).filter(|l| l % 3 == 0).fold(0u32, |bits, l| bits | 1 << l) as i32;
    for lane in 0..32i32 {
        let got: Vec<i32> = (0..8).map(|row| out[(row * 32 + lane) as usize]).collect();
        let want = [
            if lane < 16 { 100 + (lane ^ 1) } else { 100 + lane },
            25,
            if lane < 3 { lane } else { lane - 3 },
            if lane % 8 < 5 { lane + 3 } else { lane },
            ballot,
            if lane < 16 { 120 } else { 376 },
            if lane < 16 { 3 } else { 1 },
            20,
        ];
        assert_eq!(got, want, "lane {lane}");
    }
}

#[test]
fn tensor_cores() {
    let (n, k) = (24usize, 64usize);
    let a: Vec<u16> = noise(16 * k, 5).into_iter().map(bf16).collect();
    let b: Vec<u16> = noise(n * k, 6).into_iter().map(bf16).collect();
    let mut c = vec![f32::NAN; 16 * n];
    let (grid, at) = ([n as u32 / 8, 1, 1], (a.as_ptr(), b.as_ptr(), c.as_mut_ptr()));
    launch!("sound_mma", grid, [32, 1, 1], 0; at.0, at.1, at.2, n as i32, k as i32).unwrap();
    for i in 0..16 {
        for j in 0..n {
            let (row, column) = (&a[i * k..][..k], &b[j * k..][..k]);
            let want: f32 =
                row.iter().zip(column).map(|(&x, &y)| from_bf16(x) * from_bf16(y)).sum();
            assert!((c[i * n + j] - want).abs() < 1e-4, "{i} {j}: {} {want}", c[i * n + j]);
        }
    }
}

#[test]
fn atomics() {
    let x: Vec<i32> = (0..10_000).map(|i| i * 7919 % 64).collect();
    let mut count = vec![0u32; 64];
    let n = x.len() as i32;
    launch!("sound_histogram", [8, 1, 1], [128, 1, 1], 0; x.as_ptr(), count.as_mut_ptr(), n)
        .unwrap();
    for value in 0..64 {
        assert_eq!(count[value as usize] as usize, x.iter().filter(|&&v| v == value).count());
    }
}

#[test]
fn part_of_a_grid() {
    let grid = [2_000_000_000u32, 3, 2];
    let last = grid.iter().map(|&g| u64::from(g)).product::<u64>();
    let mut out = vec![-1i64; 8];
    let first = last as i64 - 8;
    launch!("sound_blocks", grid, [1, 1, 1], 0; blocks = last - 5..last; out.as_mut_ptr(), first)
        .unwrap();
    assert_eq!(out[..3], [-1; 3], "these blocks were left out");
    assert_eq!(out[3..], (last as i64 - 5..last as i64).collect::<Vec<_>>());
}

/// All of this file again, with the variables that are read from the environment.
#[test]
fn neither_order_nor_os_threads_matter() {
    const NAME: &str = "neither_order_nor_os_threads_matter";
    for (variable, value) in [("EMU_ORDER", "reverse"), ("EMU_ORDER", "3"), ("EMU_THREADS", "3")] {
        let mut tests = Command::new(std::env::current_exe().unwrap());
        let output = tests.args(["--skip", NAME]).env(variable, value).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{variable}={value}: {said}");
    }
}

#[test]
fn names_are_unique() {
    let mut all: Vec<_> = names().collect();
    let count = all.len();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), count);
    assert!(count > 400, "{count} kernels: candle's are missing");
}
