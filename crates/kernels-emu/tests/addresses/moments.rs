//! Sums over rows and second moments.
use kernels_emu::launch;

use crate::common::noise;
use crate::tensor::{BOTH, MANY, Side, Tensor};

/// The last 16 of many columns, in the last row beyond 2^33.
#[test]
fn columns() {
    const N: usize = MANY + 16;
    const T: usize = 3;
    let mut x = Tensor::<f32>::new(T * N, 16);
    let values: Vec<Vec<f32>> = (0..T as u64).map(|row| noise(16, row + 1)).collect();
    for (row, values) in values.iter().enumerate() {
        // SAFETY: the end of a row, within the tensor.
        let end = unsafe { x.at(Side::Huge).add((row + 1) * N - 16) };
        // SAFETY: sixteen elements, which nothing else uses.
        unsafe { std::slice::from_raw_parts_mut(end, 16) }.copy_from_slice(values);
    }
    let mut small = values.concat();
    let mut sums = [(); 2].map(|()| Tensor::<f64>::new(N, 16));
    for side in BOTH {
        let (x, n) = match side {
            Side::Huge => (x.at(side), N),
            Side::Small => (small.as_mut_ptr(), 16),
        };
        let blocks = (n / 16) as u64;
        let (grid, run, t, n) = ([blocks as u32, 1, 1], blocks - 1..blocks, T as i64, n as i64);
        for (name, sum) in ["column_sum", "column_squares"].iter().zip(&mut sums) {
            launch!(name, grid, [16, 64, 1], 0; blocks = run.clone(); x, sum.at(side), t, n)
                .unwrap();
        }
    }
    sums[0].agree("column_sum");
    sums[1].agree("column_squares");
}

/// The last tile of a moment of more than 2^32 elements. Rows of x come to more than 2^32 elements
/// as well; all but the last are zero.
#[test]
fn gram() {
    const N: usize = 513 * 128;
    const T: usize = 513 * 128;
    let tail = noise(128, 1);
    let mut x = Tensor::ending(T * N, &tail);
    let mut master = Tensor::<f64>::new(N * N, 128);
    let blocks = 513 * 514 / 2;
    let grid = [blocks as u32, 1, 1];
    let at = (x.at(Side::Huge), master.at(Side::Huge));
    let run = blocks - 1..blocks;
    launch!("gram", grid, [256, 1, 1], 0; blocks = run; at.0, at.1, T as i64, N as i64).unwrap();
    for (&got, &v) in master.end().iter().zip(&tail) {
        assert_eq!(got, f64::from(v * tail[127]));
    }
}

/// The tile left of the last one on the diagonal.
#[test]
fn symmetrise() {
    const N: usize = 513 * 128;
    let mut master = Tensor::<f64>::new(N * N, 64);
    let values: Vec<f64> = noise(32, 1).into_iter().map(f64::from).collect();
    master.end()[..32].copy_from_slice(&values);
    let side = (N / 32) as u64;
    let blocks = side * (side + 1) / 2;
    let (grid, run) = ([blocks as u32, 1, 1], blocks - 2..blocks);
    launch!("symmetrise", grid, [256, 1, 1], 0; blocks = run; master.at(Side::Huge), N as i64)
        .unwrap();
    for (i, value) in values.into_iter().enumerate() {
        // SAFETY: row i of the last 64, last column; within the tensor.
        assert_eq!(unsafe { *master.at(Side::Huge).add((N - 64 + i) * N + N - 1) }, value);
    }
}
