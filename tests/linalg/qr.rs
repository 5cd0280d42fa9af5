//! Orthonormal bases.

use bantam::linalg;
use candle_core::Device;

use crate::matrix::{Matrix, U, assert_orthonormal};

pub(crate) fn orthonormalise_gives_a_basis_of_the_columns(device: &Device) {
    for (m, r) in [(1, 1), (2, 1), (33, 33), (31, 7), (129, 64), (500, 97), (200, 200)] {
        let a = Matrix::random((m + r) as u64, m, r);
        let what = format!("[{m}, {r}]");
        let q = Matrix::of(&linalg::orthonormalise(&a.on(device), &what).unwrap());
        assert_eq!((q.rows, q.columns), (m, r));
        assert_orthonormal(&q, &what);
        // R = QtA is upper triangular with a diagonal that is not negative, and QR = A.
        let triangle = q.t().times(&a);
        let allowed = 40.0 * U * m as f64 * a.norm();
        for i in 0..r {
            assert!(triangle.at(i, i) > 0.0, "{what}: R[{i}, {i}] = {}", triangle.at(i, i));
            for j in 0..i {
                assert!(triangle.at(i, j).abs() <= allowed, "{what}: R[{i}, {j}]");
            }
        }
        assert!(q.times(&triangle).distance(&a) <= allowed, "{what}");
    }
}

pub(crate) fn orthonormalise_is_nested(device: &Device) {
    let (m, r) = (150, 60);
    let a = Matrix::random(9, m, r);
    let all = Matrix::of(&linalg::orthonormalise(&a.on(device), "all").unwrap());
    for k in [1, 2, 17, 31, 59] {
        let some = linalg::orthonormalise(&a.first_columns(k).on(device), "some").unwrap();
        let distance = Matrix::of(&some).distance(&all.first_columns(k));
        assert!(distance < 1e-12, "the first {k} columns differ by {distance:e}");
    }
}

pub(crate) fn orthonormalise_completes_dependent_columns(device: &Device) {
    for (m, r, rank) in [(40, 12, 5), (200, 90, 40), (30, 30, 1)] {
        let a = Matrix::random(5, m, rank).times(&Matrix::random(6, rank, r));
        let q = Matrix::of(&linalg::orthonormalise(&a.on(device), "dependent").unwrap());
        assert_orthonormal(&q, "dependent");
        let projected = q.times(&q.t().times(&a));
        assert!(projected.distance(&a) <= 1e-12 * a.norm(), "[{m}, {r}] of rank {rank}");
    }
    let zero = Matrix::new(6, 3, vec![0.0; 18]);
    let q = linalg::orthonormalise(&zero.on(device), "zero").unwrap();
    assert_orthonormal(&Matrix::of(&q), "zero");
}
