//! Singular value decompositions.

use bantam::linalg::{self, Svd};
use candle_core::{DType, Device};

use crate::matrix::{Matrix, U, assert_descending, assert_orthonormal, assert_signs};

fn assert_svd(a: &Matrix, found: &Svd, what: &str) {
    let k = a.rows.min(a.columns);
    let (u, vt) = (Matrix::of(&found.u), Matrix::of(&found.vt));
    assert_eq!((u.rows, u.columns), (a.rows, k), "{what}");
    assert_eq!((vt.rows, vt.columns), (k, a.columns), "{what}");
    assert_eq!(found.s.len(), k, "{what}");
    assert_descending(&found.s, what);
    assert!(found.s.iter().all(|&s| s >= 0.0), "{what}");
    assert_orthonormal(&u, what);
    assert_orthonormal(&vt.t(), what);
    assert_signs(&u, what);
    let error = u.times(&Matrix::diagonal(&found.s)).times(&vt).distance(a);
    let allowed = 40.0 * U * a.rows.max(a.columns) as f64 * a.norm();
    assert!(error <= allowed, "{what}: |USV - A| = {error:e}, allowed {allowed:e}");
}

const SHAPES: [(usize, usize); 14] = [
    (1, 1),
    (1, 7),
    (7, 1),
    (1, 129),
    (129, 1),
    (3, 3),
    (31, 33),
    (33, 31),
    (32, 32),
    (129, 127),
    (127, 129),
    (300, 37),
    (37, 300),
    (150, 150),
];

pub(crate) fn svd_reconstructs_tall_wide_and_square_matrices(device: &Device) {
    for (m, n) in SHAPES {
        let a = Matrix::random((m * 1000 + n) as u64, m, n);
        let what = format!("[{m}, {n}]");
        let found = linalg::svd(&a.on(device), &what).unwrap();
        assert_svd(&a, &found, &what);
        let alone = linalg::singular_values(&a.on(device), &what).unwrap();
        assert_eq!(alone.len(), found.s.len());
        for (x, y) in alone.iter().zip(&found.s) {
            assert!((x - y).abs() <= 40.0 * U * (m + n) as f64 * a.norm(), "{what}: {x} {y}");
        }
    }
}

pub(crate) fn svd_of_f32_is_that_of_the_same_numbers_in_f64(device: &Device) {
    let a = Matrix::random(1, 20, 13).on(device).to_dtype(DType::F32).unwrap();
    let found = linalg::svd(&a, "f32").unwrap();
    let exact = linalg::svd(&a.to_dtype(DType::F64).unwrap(), "f64").unwrap();
    assert_eq!(found.s, exact.s);
    assert_eq!(Matrix::of(&found.u), Matrix::of(&exact.u));
    assert_eq!(Matrix::of(&found.vt), Matrix::of(&exact.vt));
}

pub(crate) fn svd_finds_known_values_and_rank(device: &Device) {
    let zero = Matrix::new(4, 3, vec![0.0; 12]);
    let found = linalg::svd(&zero.on(device), "zero").unwrap();
    assert_svd(&zero, &found, "zero");
    assert_eq!(found.s, [0.0; 3]);

    let a = Matrix::diagonal(&[3.0, -7.0, 0.0, 2.0]);
    let found = linalg::svd(&a.on(device), "diagonal").unwrap();
    assert_svd(&a, &found, "diagonal");
    for (s, exact) in found.s.iter().zip([7.0, 3.0, 2.0, 0.0]) {
        assert!((s - exact).abs() < 1e-14, "{s} {exact}");
    }

    for (m, n, r) in [(60, 40, 5), (40, 60, 5), (300, 20, 7), (140, 140, 30)] {
        let a = Matrix::random(2, m, r).times(&Matrix::random(3, r, n));
        let found = linalg::svd(&a.on(device), "low rank").unwrap();
        assert_svd(&a, &found, &format!("rank {r} of [{m}, {n}]"));
        let noise = 40.0 * U * (m + n) as f64 * a.norm();
        assert_eq!(found.s.iter().filter(|&&s| s > noise).count(), r, "[{m}, {n}]");
    }
}

pub(crate) fn svd_spans_many_orders_of_magnitude(device: &Device) {
    let plain = linalg::svd(&Matrix::random(6, 30, 20).on(device), "plain").unwrap();
    for scale in [1e-100, 1e-30, 1e30, 1e140] {
        let a = Matrix::random(6, 30, 20);
        let a = Matrix::new(30, 20, a.values.iter().map(|v| v * scale).collect());
        let found = linalg::svd(&a.on(device), "scaled").unwrap();
        assert_orthonormal(&Matrix::of(&found.u), "scaled");
        assert_orthonormal(&Matrix::of(&found.vt).t(), "scaled");
        for (scaled, plain) in found.s.iter().zip(&plain.s) {
            assert!((scaled / scale - plain).abs() < 1e-12, "{scaled} {plain} at {scale:e}");
        }
    }
}

pub(crate) fn truncated_svd_errs_by_the_tail_of_the_spectrum(device: &Device) {
    let a = Matrix::random(4, 50, 30);
    let found = linalg::svd(&a.on(device), "a").unwrap();
    let (u, vt) = (Matrix::of(&found.u), Matrix::of(&found.vt));
    for r in [1, 10, 29] {
        let kept: Vec<f64> =
            found.s.iter().enumerate().map(|(i, &s)| if i < r { s } else { 0.0 }).collect();
        let error = u.times(&Matrix::diagonal(&kept)).times(&vt).distance(&a);
        let tail = found.s[r..].iter().map(|s| s * s).sum::<f64>().sqrt();
        assert!((error - tail).abs() < 1e-12 * a.norm(), "rank {r}: {error} {tail}");
    }
}
