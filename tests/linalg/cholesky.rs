//! Cholesky factors.

use bantam::error::{Error, ExitCode};
use bantam::linalg;
use candle_core::Device;

use crate::matrix::{Matrix, U};

/// `X X^T + n I`, well conditioned.
pub(crate) fn positive_definite(seed: u64, n: usize) -> Matrix {
    let x = Matrix::random(seed, n, n);
    let mut a = x.times(&x.t());
    for i in 0..n {
        a.values[i * n + i] += n as f64;
    }
    a
}

pub(crate) fn cholesky_factors_positive_definite_matrices(device: &Device) {
    for n in [1, 2, 3, 13, 32, 97, 150] {
        let a = positive_definite(n as u64, n);
        let what = format!("order {n}");
        let l = Matrix::of(&linalg::cholesky(&a.on(device), &what).unwrap());
        for i in 0..n {
            assert!(l.at(i, i) > 0.0, "{what}: L[{i}, {i}] = {}", l.at(i, i));
            for j in i + 1..n {
                assert_eq!(l.at(i, j).to_bits(), 0, "{what}: L[{i}, {j}]");
            }
        }
        let error = l.times(&l.t()).distance(&a);
        let allowed = 20.0 * U * n as f64 * a.norm();
        assert!(error <= allowed, "{what}: |LLt - A| = {error:e}, allowed {allowed:e}");
    }
}

pub(crate) fn cholesky_finds_a_known_factor(device: &Device) {
    // L with ones on and below the diagonal: A[i, j] = min(i, j) + 1, all sums exact.
    for n in [1, 2, 3, 64, 129] {
        let a = Matrix::new(n, n, (0..n * n).map(|i| (i / n).min(i % n) as f64 + 1.0).collect());
        let l = Matrix::of(&linalg::cholesky(&a.on(device), "ones").unwrap());
        let ones = (0..n * n).map(|i| f64::from(u8::from(i % n <= i / n))).collect();
        assert_eq!(l, Matrix::new(n, n, ones), "order {n}");
    }
}

pub(crate) fn cholesky_reads_only_the_lower_triangle(device: &Device) {
    for n in [2, 33] {
        let a = positive_definite(4, n);
        let clean = Matrix::of(&linalg::cholesky(&a.on(device), "clean").unwrap());
        for rubbish in [f64::NAN, 1e300, -7.0] {
            let mut dirty = a.clone();
            for i in 0..n {
                dirty.values[i * n + i + 1..(i + 1) * n].fill(rubbish);
            }
            let found = linalg::cholesky(&dirty.on(device), "dirty").unwrap();
            assert_eq!(Matrix::of(&found), clean, "{rubbish}");
        }
    }
}

pub(crate) fn cholesky_names_the_minor_that_is_not_positive(device: &Device) {
    let minor_of = |a: &Matrix| match linalg::cholesky(&a.on(device), "layer 3") {
        Err(error @ Error::NotPositiveDefinite { .. }) => {
            assert_eq!(error.exit_code(), ExitCode::Numerical);
            assert!(error.hint().is_some());
            assert!(error.to_string().contains("layer 3"), "{error}");
            let Error::NotPositiveDefinite { minor, .. } = error else { unreachable!() };
            minor
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(minor_of(&Matrix::new(1, 1, vec![0.0])), 1);
    assert_eq!(minor_of(&Matrix::new(1, 1, vec![-2.0])), 1);
    assert_eq!(minor_of(&Matrix::new(2, 2, vec![1.0, 2.0, 2.0, 4.0])), 2);
    for n in [3, 65, 150] {
        for minor in [1, 2, n / 2 + 1, n] {
            let mut a = positive_definite(5, n);
            a.values[(minor - 1) * n + minor - 1] = -1.0;
            assert_eq!(minor_of(&a), minor, "order {n}");
        }
    }
}
