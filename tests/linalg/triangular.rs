//! Triangular systems.

use bantam::linalg::{self, Triangle};
use candle_core::Device;

use crate::cholesky::positive_definite;
use crate::matrix::{Matrix, U};

/// A well conditioned triangular matrix: off the diagonal, a row sums to less than what is on it.
pub(crate) fn triangular(seed: u64, n: usize, triangle: Triangle) -> Matrix {
    let mut t = Matrix::random(seed, n, n);
    for i in 0..n {
        for j in 0..n {
            let inside = if triangle == Triangle::Lower { j < i } else { j > i };
            let v = &mut t.values[i * n + j];
            *v = match (i == j, inside) {
                (true, _) => v.signum() * (1.0 + v.abs()),
                (false, true) => *v / n as f64,
                (false, false) => 0.0,
            };
        }
    }
    t
}

pub(crate) fn solve_triangular_solves_all_four_systems(device: &Device) {
    let shapes = [(1, 1), (1, 5), (2, 1), (3, 4), (13, 7), (64, 64), (97, 1), (129, 31), (31, 200)];
    for (n, k) in shapes {
        for triangle in [Triangle::Lower, Triangle::Upper] {
            for transposed in [false, true] {
                let t = triangular((n + k) as u64, n, triangle);
                let b = Matrix::random(k as u64, n, k);
                let what = format!("{triangle:?} [{n}, {n}], [{n}, {k}], transposed: {transposed}");
                let (on, right) = (t.on(device), b.on(device));
                let x = linalg::solve_triangular(&on, &right, triangle, transposed, &what).unwrap();
                let x = Matrix::of(&x);
                let back = if transposed { t.t().times(&x) } else { t.times(&x) };
                let allowed = 10.0 * U * n as f64 * t.norm() * x.norm();
                let error = back.distance(&b);
                assert!(error <= allowed, "{what}: {error:e}, allowed {allowed:e}");
            }
        }
    }
}

pub(crate) fn solve_triangular_reads_only_its_triangle(device: &Device) {
    let (n, k) = (40, 9);
    let b = Matrix::random(1, n, k).on(device);
    for triangle in [Triangle::Lower, Triangle::Upper] {
        let clean = triangular(2, n, triangle);
        for rubbish in [f64::NAN, 3.0] {
            let mut dirty = clean.clone();
            for i in 0..n {
                match triangle {
                    Triangle::Lower => dirty.values[i * n + i + 1..(i + 1) * n].fill(rubbish),
                    Triangle::Upper => dirty.values[i * n..i * n + i].fill(rubbish),
                }
            }
            for transposed in [false, true] {
                let solve = |t: &Matrix| {
                    let t = t.on(device);
                    linalg::solve_triangular(&t, &b, triangle, transposed, "t").unwrap()
                };
                assert_eq!(Matrix::of(&solve(&dirty)), Matrix::of(&solve(&clean)));
            }
        }
    }
}

pub(crate) fn solve_triangular_whitens_with_a_cholesky_factor(device: &Device) {
    // With A = L L^T: the inverse of L turns A into the identity.
    let n = 61;
    let a = positive_definite(9, n).on(device);
    let l = linalg::cholesky(&a, "a").unwrap();
    let half = linalg::solve_triangular(&l, &a, Triangle::Lower, false, "l").unwrap();
    let half = half.t().unwrap();
    let white = linalg::solve_triangular(&l, &half, Triangle::Lower, false, "l").unwrap();
    let error = Matrix::of(&white).distance(&Matrix::diagonal(&vec![1.0; n]));
    assert!(error < 1e-12, "{error:e}");
}
