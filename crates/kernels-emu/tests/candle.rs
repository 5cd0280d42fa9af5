//! candle's own kernels, which come out of macros, compute what candle computes.
mod common;

use common::{bf16, from_bf16, noise};
use kernels_emu::launch;

const NONE: *const usize = std::ptr::null();

#[test]
fn add() {
    let (x, y) = (noise(1000, 1), noise(1000, 2));
    let mut out = vec![f32::NAN; 1000];
    let at = (x.as_ptr(), y.as_ptr(), out.as_mut_ptr());
    launch!("badd_f32", [1, 1, 1], [1024, 1, 1], 0; 1000usize, 1usize, NONE, at.0, at.1, at.2)
        .unwrap();
    assert!((0..1000).all(|i| out[i] == x[i] + y[i]));
}

/// A transposed operand: candle passes dims and strides of both sides in one array.
#[test]
fn add_of_a_transposed_matrix() {
    let (rows, columns) = (3usize, 5usize);
    let (x, y) = (noise(15, 1), noise(15, 2));
    let info = [rows, columns, 1, rows, columns, 1];
    let mut out = vec![f32::NAN; 15];
    let at = (info.as_ptr(), x.as_ptr(), y.as_ptr(), out.as_mut_ptr());
    launch!("badd_f32", [1, 1, 1], [32, 1, 1], 0; 15usize, 2usize, at.0, at.1, at.2, at.3).unwrap();
    for (i, &got) in out.iter().enumerate() {
        assert_eq!(got, x[i % columns * rows + i / columns] + y[i]);
    }
}

#[test]
fn affine() {
    let x = noise(100, 3);
    let mut out = vec![f32::NAN; 100];
    let at = (x.as_ptr(), out.as_mut_ptr());
    launch!("affine_f32", [1, 1, 1], [128, 1, 1], 0;
        100usize, 1usize, NONE, at.0, at.1, 3f32, -1f32)
    .unwrap();
    assert!((0..100).all(|i| out[i] == x[i].mul_add(3., -1.)));
}

#[test]
fn sum_of_rows() {
    let (rows, n) = (4usize, 300usize);
    let x = noise(rows * n, 4);
    let info = [rows, n, n, 1];
    let mut out = vec![f32::NAN; rows];
    let at = (info.as_ptr(), x.as_ptr(), out.as_mut_ptr());
    let grid = [rows as u32, 1, 1];
    launch!("fast_sum_f32", grid, [256, 1, 1], 0; rows * n, n, 2usize, at.0, at.1, at.2).unwrap();
    for (row, got) in x.chunks(n).zip(out) {
        let want: f32 = row.iter().sum();
        assert!((got - want).abs() < 1e-4, "{got} {want}");
    }
}

#[test]
fn cast_to_bf16() {
    let mut x = noise(99, 5);
    x.extend([f32::INFINITY, -0.0, 1. + 1. / 256., 1. + 3. / 256.]);
    let mut out = vec![0u16; x.len()];
    let at = (x.as_ptr(), out.as_mut_ptr());
    launch!("cast_f32_bf16", [1, 1, 1], [128, 1, 1], 0; x.len(), 1usize, NONE, at.0, at.1).unwrap();
    assert_eq!(out, x.iter().map(|&v| bf16(v)).collect::<Vec<_>>());
}

/// Arithmetic on bf16 rounds after every operation.
#[test]
fn product_in_bf16() {
    let x: Vec<u16> = noise(20, 6).into_iter().map(bf16).collect();
    let y: Vec<u16> = noise(20, 7).into_iter().map(bf16).collect();
    let mut out = vec![0u16; 20];
    let at = (x.as_ptr(), y.as_ptr(), out.as_mut_ptr());
    launch!("bmul_bf16", [1, 1, 1], [32, 1, 1], 0; 20usize, 1usize, NONE, at.0, at.1, at.2)
        .unwrap();
    assert!((0..20).all(|i| out[i] == bf16(from_bf16(x[i]) * from_bf16(y[i]))));
}

#[test]
fn index_select() {
    let (rows, n) = (7usize, 3usize);
    let x = noise(rows * n, 8);
    let ids = [6u32, 0, 2, 2];
    let info = [ids.len(), 1];
    let mut out = vec![f32::NAN; ids.len() * n];
    let at = (info.as_ptr(), ids.as_ptr(), x.as_ptr(), out.as_mut_ptr());
    launch!("is_u32_f32", [1, 1, 1], [32, 1, 1], 0;
        ids.len() * n, 1usize, at.0, at.1, at.2, at.3, 1usize, rows, ids.len(), n)
    .unwrap();
    for (i, &id) in ids.iter().enumerate() {
        assert_eq!(out[i * n..][..n], x[id as usize * n..][..n]);
    }
}

/// Its dynamic shared memory is declared as an array of int under another name.
#[test]
fn argsort() {
    let x = noise(50, 9);
    let mut out = vec![0u32; 50];
    let at = (x.as_ptr(), out.as_mut_ptr());
    launch!("asort_asc_f32", [1, 1, 1], [64, 1, 1], 64 * 4; at.0, at.1, 50i32, 64i32).unwrap();
    assert!(out.windows(2).all(|w| x[w[0] as usize] <= x[w[1] as usize]));
}
