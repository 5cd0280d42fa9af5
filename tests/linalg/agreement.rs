//! Both devices find the same: values to 1e-10 of the largest, and what is unique of the vectors,
//! which for separate values are the vectors themselves and for a cluster the space they span.

use bantam::linalg::{self, Triangle};

use crate::cholesky::positive_definite;
use crate::matrix::{Matrix, random};
use crate::triangular::triangular;
use crate::{cpu, gpu};

const TOLERANCE: f64 = 1e-10;

fn assert_values(found: &[f64], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0.0_f64, |m, v| m.max(v.abs()));
    for (i, (x, y)) in found.iter().zip(expected).enumerate() {
        assert!((x - y).abs() <= TOLERANCE * largest, "{what}: value {i} is {x}, expected {y}");
    }
}

fn assert_matrices(found: &Matrix, expected: &Matrix, what: &str) {
    let distance = found.distance(expected);
    assert!(distance <= TOLERANCE * expected.norm(), "{what}: {distance:e} apart");
}

/// Columns `from..to` span the same space: the projectors onto it agree.
fn assert_spaces(found: &Matrix, expected: &Matrix, from: usize, to: usize, what: &str) {
    let projector = |q: &Matrix| {
        let columns = q.t().values[from * q.rows..to * q.rows].to_vec();
        let rows = Matrix::new(to - from, q.rows, columns);
        rows.t().times(&rows)
    };
    let what = format!("{what}: space of columns {from} to {to}");
    assert_matrices(&projector(found), &projector(expected), &what);
}

/// `Q diag(values) Q^T` with a random orthogonal Q.
fn with_spectrum(seed: u64, values: &[f64]) -> Matrix {
    let n = values.len();
    let q = linalg::orthonormalise(&Matrix::random(seed, n, n).on(&cpu()), "q").unwrap();
    let q = Matrix::of(&q);
    let a = q.times(&Matrix::diagonal(values)).times(&q.t());
    let symmetric = (0..n * n).map(|i| a.at(i / n, i % n).midpoint(a.at(i % n, i / n))).collect();
    Matrix::new(n, n, symmetric)
}

#[test]
fn eigenvalues_and_separate_eigenvectors() {
    for n in [1, 2, 3, 17, 64, 131] {
        let spectrum: Vec<f64> =
            random(n as u64, n).iter().enumerate().map(|(i, v)| i as f64 + 0.3 * v).collect();
        let a = with_spectrum(1, &spectrum);
        let what = format!("order {n}");
        let on_cpu = linalg::eigh(&a.on(&cpu()), &what).unwrap();
        let on_gpu = linalg::eigh(&a.on(&gpu()), &what).unwrap();
        assert_values(&on_gpu.values, &on_cpu.values, &what);
        assert_matrices(&Matrix::of(&on_gpu.vectors), &Matrix::of(&on_cpu.vectors), &what);
        let alone = linalg::eigvalsh(&a.on(&gpu()), &what).unwrap();
        assert_values(&alone, &on_cpu.values, &what);
    }
}

#[test]
fn spaces_of_clustered_eigenvalues() {
    let (n, sizes) = (60, [5, 20, 1, 34]);
    let mut spectrum = Vec::new();
    for (value, &size) in [4.0, 1.0, 1e-3, 0.0].iter().zip(&sizes) {
        spectrum.extend((0..size).map(|i| value + 1e-14 * i as f64));
    }
    let a = with_spectrum(2, &spectrum);
    let on_cpu = linalg::eigh(&a.on(&cpu()), "clusters").unwrap();
    let on_gpu = linalg::eigh(&a.on(&gpu()), "clusters").unwrap();
    assert_values(&on_gpu.values, &on_cpu.values, "clusters");
    let (found, expected) = (Matrix::of(&on_gpu.vectors), Matrix::of(&on_cpu.vectors));
    let mut from = 0;
    for size in sizes {
        assert_spaces(&found, &expected, from, from + size, "clusters");
        from += size;
    }
    assert_eq!(from, n);
}

#[test]
fn singular_values_and_vectors() {
    for (m, n) in [(1, 1), (1, 9), (9, 1), (17, 17), (40, 23), (23, 40), (131, 60)] {
        // The singular values are 1, 2, 3 ...: far enough apart for the vectors to be unique.
        let k = m.min(n);
        let basis = |seed, rows| {
            let a = Matrix::random(seed, rows, k).on(&cpu());
            Matrix::of(&linalg::orthonormalise(&a, "basis").unwrap())
        };
        let spectrum: Vec<f64> = (1..=k).map(|i| i as f64).collect();
        let a = basis(1, m).times(&Matrix::diagonal(&spectrum)).times(&basis(2, n).t());
        let what = format!("[{m}, {n}]");
        let on_cpu = linalg::svd(&a.on(&cpu()), &what).unwrap();
        let on_gpu = linalg::svd(&a.on(&gpu()), &what).unwrap();
        assert_values(&on_gpu.s, &on_cpu.s, &what);
        assert_matrices(&Matrix::of(&on_gpu.u), &Matrix::of(&on_cpu.u), &what);
        assert_matrices(&Matrix::of(&on_gpu.vt), &Matrix::of(&on_cpu.vt), &what);
        let alone = linalg::singular_values(&a.on(&gpu()), &what).unwrap();
        assert_values(&alone, &on_cpu.s, &what);
    }
}

#[test]
fn spaces_of_rank_deficient_matrices() {
    for (m, n, r) in [(60, 40, 7), (40, 60, 7), (50, 50, 1)] {
        let a = Matrix::random(3, m, r).times(&Matrix::random(4, r, n));
        let on_cpu = linalg::svd(&a.on(&cpu()), "low rank").unwrap();
        let on_gpu = linalg::svd(&a.on(&gpu()), "low rank").unwrap();
        assert_values(&on_gpu.s, &on_cpu.s, "low rank");
        assert_spaces(&Matrix::of(&on_gpu.u), &Matrix::of(&on_cpu.u), 0, r, "u");
        assert_spaces(&Matrix::of(&on_gpu.vt).t(), &Matrix::of(&on_cpu.vt).t(), 0, r, "v");
    }
}

#[test]
fn what_is_unique() {
    for n in [1, 2, 3, 41, 128] {
        let a = positive_definite(7, n);
        let factor = |device| Matrix::of(&linalg::cholesky(&a.on(device), "a").unwrap());
        assert_matrices(&factor(&gpu()), &factor(&cpu()), "Cholesky factor");

        let tall = Matrix::random(8, n + n / 2, n);
        let basis = |device| Matrix::of(&linalg::orthonormalise(&tall.on(device), "tall").unwrap());
        assert_matrices(&basis(&gpu()), &basis(&cpu()), "basis");

        let b = Matrix::random(9, n, 5);
        for triangle in [Triangle::Lower, Triangle::Upper] {
            let t = triangular(10, n, triangle);
            for transposed in [false, true] {
                let solve = |device| {
                    let (t, b) = (t.on(device), b.on(device));
                    let x = linalg::solve_triangular(&t, &b, triangle, transposed, "t").unwrap();
                    Matrix::of(&x)
                };
                assert_matrices(&solve(&gpu()), &solve(&cpu()), "solution");
            }
        }
    }
}

#[test]
fn signs_of_tied_entries() {
    // Eigenvectors with entries of equal magnitude and both signs: the first decides.
    for values in [vec![1.0, 2.0, 2.0, 1.0], vec![0.0, -3.0, -3.0, 0.0]] {
        let a = Matrix::new(2, 2, values);
        for device in [cpu(), gpu()] {
            let found = Matrix::of(&linalg::eigh(&a.on(&device), "swap").unwrap().vectors);
            for j in 0..2 {
                let (first, second) = (found.at(0, j), found.at(1, j));
                let decides = if second.abs() > first.abs() { second } else { first };
                assert!(decides > 0.0, "{found:?}");
            }
        }
    }
}
