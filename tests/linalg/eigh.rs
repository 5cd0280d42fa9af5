//! Symmetric eigendecompositions.

use bantam::linalg::{self, Eigh};
use candle_core::Device;

use crate::matrix::{Matrix, U, assert_descending, assert_orthonormal, assert_signs};

fn assert_decomposes(a: &Matrix, found: &Eigh, what: &str) {
    let v = Matrix::of(&found.vectors);
    assert_eq!((v.rows, v.columns), (a.rows, a.rows), "{what}");
    assert_descending(&found.values, what);
    assert_orthonormal(&v, what);
    assert_signs(&v, what);
    let error = a.times(&v).distance(&v.times(&Matrix::diagonal(&found.values)));
    let allowed = 40.0 * U * a.rows as f64 * a.norm();
    assert!(error <= allowed, "{what}: |AV - VL| = {error:e}, allowed {allowed:e}");
}

const SIZES: [usize; 12] = [1, 2, 3, 5, 13, 31, 32, 33, 97, 127, 129, 200];

pub(crate) fn eigh_decomposes_symmetric_matrices(device: &Device) {
    for n in SIZES {
        let a = Matrix::symmetric(n as u64, n);
        let what = format!("order {n}");
        let found = linalg::eigh(&a.on(device), &what).unwrap();
        assert_decomposes(&a, &found, &what);
        let alone = linalg::eigvalsh(&a.on(device), &what).unwrap();
        assert_descending(&alone, &what);
        for (x, y) in alone.iter().zip(&found.values) {
            assert!((x - y).abs() <= 40.0 * U * n as f64 * a.norm(), "{what}: {x} and {y}");
        }
    }
}

pub(crate) fn eigh_finds_a_known_spectrum(device: &Device) {
    // The second difference matrix: 2 - 2 cos(k pi / (n + 1)).
    for n in [1, 2, 33, 160] {
        let entry = |i: usize, j: usize| match i.abs_diff(j) {
            0 => 2.0,
            1 => -1.0,
            _ => 0.0,
        };
        let a = Matrix::new(n, n, (0..n * n).map(|i| entry(i / n, i % n)).collect());
        let found = linalg::eigh(&a.on(device), "second difference").unwrap();
        assert_decomposes(&a, &found, &format!("second difference of order {n}"));
        for (k, value) in (1..=n).rev().zip(&found.values) {
            let exact = 2.0 - 2.0 * (k as f64 * std::f64::consts::PI / (n + 1) as f64).cos();
            assert!((value - exact).abs() < 200.0 * U * n as f64, "{k} of {n}: {value} {exact}");
        }
    }
}

pub(crate) fn eigh_copes_with_equal_zero_and_negative_eigenvalues(device: &Device) {
    for n in [1, 2, 33, 150] {
        let cases = [
            ("zero", Matrix::diagonal(&vec![0.0; n]), vec![0.0; n]),
            ("identity", Matrix::diagonal(&vec![1.0; n]), vec![1.0; n]),
            ("minus three", Matrix::diagonal(&vec![-3.0; n]), vec![-3.0; n]),
        ];
        for (what, a, values) in cases {
            let found = linalg::eigh(&a.on(device), what).unwrap();
            assert_decomposes(&a, &found, what);
            let alone = linalg::eigvalsh(&a.on(device), what).unwrap();
            for ((x, y), exact) in found.values.iter().zip(&alone).zip(values) {
                let far = |v: &f64| (v - exact).abs() > 4.0 * U * exact.abs();
                assert!(!far(x) && !far(y), "{what} of order {n}: {x} and {y}");
            }
        }
        // Two clusters: projector of rank r, turned.
        let r = n.div_ceil(3);
        let q = linalg::orthonormalise(&Matrix::random(7, n, r).on(device), "basis").unwrap();
        let q = Matrix::of(&q);
        let a = q.times(&q.t());
        let found = linalg::eigh(&a.on(device), "projector").unwrap();
        assert_decomposes(&a, &found, &format!("projector of order {n}"));
        for (i, value) in found.values.iter().enumerate() {
            let exact = if i < r { 1.0 } else { 0.0 };
            assert!((value - exact).abs() < 40.0 * U * n as f64, "value {i} of {n}: {value}");
        }
    }
}

pub(crate) fn eigh_tells_clusters_apart(device: &Device) {
    // Clusters much tighter than rounding, of values that differ by ten orders of magnitude.
    let clusters = [(1.0, 7), (1e-3, 30), (1e-10, 24)];
    let n = clusters.iter().map(|c| c.1).sum();
    let q = Matrix::random(12, n, n).on(&Device::Cpu);
    let q = Matrix::of(&linalg::orthonormalise(&q, "basis").unwrap());
    let spectrum: Vec<f64> = clusters
        .iter()
        .flat_map(|&(value, size)| (0..size).map(move |i| value * (1.0 + 1e-17 * i as f64)))
        .collect();
    let a = q.times(&Matrix::diagonal(&spectrum)).times(&q.t());
    let found = linalg::eigh(&a.on(device), "clusters").unwrap();
    assert_decomposes(&a, &found, "clusters");
    for (value, exact) in found.values.iter().zip(&spectrum) {
        assert!((value - exact).abs() < 40.0 * U * n as f64, "{value} {exact}");
    }
}

pub(crate) fn eigh_of_a_rank_deficient_gram_matrix_has_its_rank(device: &Device) {
    let (n, r) = (120, 17);
    let x = Matrix::random(3, r, n);
    let a = x.t().times(&x);
    let found = linalg::eigh(&a.on(device), "gram").unwrap();
    assert_decomposes(&a, &found, "gram");
    let noise = 40.0 * U * n as f64 * a.norm();
    assert_eq!(found.values.iter().filter(|v| v.abs() > noise).count(), r);
    let squares: Vec<f64> =
        linalg::singular_values(&x.on(device), "x").unwrap().iter().map(|s| s * s).collect();
    for (value, square) in found.values.iter().zip(&squares) {
        assert!((value - square).abs() <= noise, "{value} {square}");
    }
}

pub(crate) fn eigh_spans_many_orders_of_magnitude(device: &Device) {
    for scale in [1e-200, 1e-30, 1e30, 1e140] {
        let a = Matrix::symmetric(11, 40);
        let a = Matrix::new(40, 40, a.values.iter().map(|v| v * scale).collect());
        let found = linalg::eigh(&a.on(device), "scaled").unwrap();
        assert_orthonormal(&Matrix::of(&found.vectors), "scaled");
        let plain = linalg::eigh(&Matrix::symmetric(11, 40).on(device), "plain").unwrap();
        for (scaled, plain) in found.values.iter().zip(&plain.values) {
            assert!((scaled / scale - plain).abs() < 1e-12, "{scaled} {plain} at {scale:e}");
        }
    }
}

pub(crate) fn eigh_reads_only_the_lower_triangle(device: &Device) {
    for n in [2, 33, 150] {
        let a = Matrix::symmetric(5, n);
        let mut dirty = a.clone();
        for i in 0..n {
            for j in i + 1..n {
                dirty.values[i * n + j] = f64::NAN;
            }
        }
        let (clean, found) = (
            linalg::eigh(&a.on(device), "clean").unwrap(),
            linalg::eigh(&dirty.on(device), "dirty").unwrap(),
        );
        assert_eq!(clean.values, found.values);
        assert_eq!(Matrix::of(&clean.vectors), Matrix::of(&found.vectors));
    }
}
