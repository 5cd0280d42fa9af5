//! Leading singular values and vectors by subspace iteration, against those of the whole matrix.

use bantam::linalg::{self, Truncated, Truncation};
use candle_core::{DType, Device, Tensor};

use crate::matrix::{Matrix, assert_descending, assert_signs};

/// A matrix with these singular values.
fn with_values(seed: u64, m: usize, n: usize, s: &[f64]) -> Matrix {
    let basis = |seed: u64, rows: usize| {
        let a = Matrix::random(seed, rows, s.len()).on(&Device::Cpu);
        Matrix::of(&linalg::orthonormalise(&a, "a basis").unwrap())
    };
    basis(seed, m).times(&Matrix::diagonal(s)).times(&basis(seed + 1, n).t())
}

fn f32s(a: &Matrix, device: &Device) -> Tensor {
    a.on(device).to_dtype(DType::F32).unwrap()
}

fn wide(t: &Tensor) -> Matrix {
    assert_eq!(t.dtype(), DType::F32);
    Matrix::of(&t.to_dtype(DType::F64).unwrap())
}

/// The identities that `found` has to hold of `a`, to rounding of f32.
fn assert_leads(found: &Truncated, a: &Matrix, rank: usize, what: &str) {
    let (u, vt) = (wide(&found.u), wide(&found.vt));
    assert_eq!((u.rows, u.columns), (a.rows, rank), "{what}");
    assert_eq!((vt.rows, vt.columns, found.s.len()), (rank, a.columns, rank), "{what}");
    let identity = Matrix::diagonal(&vec![1.0; rank]);
    for (product, side) in [(u.t().times(&u), "u"), (vt.times(&vt.t()), "vt")] {
        let error = product.distance(&identity);
        assert!(error < 1e-5, "{what}: {side} is not orthonormal by {error:e}");
    }
    assert_descending(&found.s, what);
    assert_signs(&u, what);
    // u s = A v: the pairs belong together.
    let gap = a.times(&vt.t()).distance(&u.times(&Matrix::diagonal(&found.s)));
    assert!(gap < 1e-2 * a.norm(), "{what}: |A v - u s| = {gap:e}");
}

pub(crate) fn truncated_svd_finds_the_leading_values_and_vectors(device: &Device) {
    for (m, n, rank) in [(90, 70, 1), (70, 130, 8), (150, 150, 16)] {
        let s: Vec<f64> = (0..m.min(n)).map(|i| 100.0 / (1.0 + i as f64).powi(2)).collect();
        let a = with_values((m + n) as u64, m, n, &s);
        let what = format!("[{m}, {n}], rank {rank}");
        let options = Truncation { seed: 3, ..Truncation::to(rank) };
        let a_there = f32s(&a, device);
        let found = linalg::truncated_svd(&a_there, None, options, &what).unwrap();
        assert!(!found.exact && !found.fell_back, "{what}");
        assert!(found.u.device().same_device(device) && found.vt.device().same_device(device));
        assert_leads(&found, &a, rank, &what);
        for (found, expected) in found.s.iter().zip(&s) {
            assert!((found - expected).abs() < 1e-5 * s[0], "{what}: {found} for {expected}");
        }
        // The error is that of the best approximation.
        let rebuilt = wide(&found.u).times(&Matrix::diagonal(&found.s)).times(&wide(&found.vt));
        let tail = s[rank..].iter().map(|s| s * s).sum::<f64>().sqrt();
        let error = rebuilt.distance(&a);
        assert!(error < 1.001 * tail + 1e-5 * s[0], "{what}: {error:e} of {tail:e}");
        // From the sketch that it would have made itself, to the bit; and the same every time.
        let omega = linalg::gaussian(n, options.width(), 3, device).unwrap();
        let sketch = a_there.matmul(&omega).unwrap();
        let again = linalg::truncated_svd(&a_there, Some(&sketch), options, &what).unwrap();
        assert_eq!(again.s, found.s, "{what}");
        assert_eq!(wide(&again.u), wide(&found.u), "{what}");
        assert_eq!(wide(&again.vt), wide(&found.vt), "{what}");
    }
}

pub(crate) fn truncated_svd_decomposes_all_where_that_is_asked_for(device: &Device) {
    for (m, n, rank, exact) in [(20, 30, 5, false), (12, 12, 12, false), (60, 50, 4, true)] {
        let a = Matrix::random(8, m, n);
        let options = Truncation { exact, ..Truncation::to(rank) };
        let a = f32s(&a, device);
        let found = linalg::truncated_svd(&a, None, options, "all").unwrap();
        assert!(found.exact && !found.fell_back);
        assert_leads(&found, &wide(&a), rank, "all");
        let values = linalg::singular_values(&a, "all").unwrap();
        assert_eq!(found.s, values[..rank].to_vec());
    }
}

pub(crate) fn truncated_svd_falls_back_where_it_has_not_settled(device: &Device) {
    // Few steps do not tell values apart that hardly differ.
    let s: Vec<f64> = (0..120).map(|i| 1.0 - 0.002 * f64::from(i)).collect();
    let a = f32s(&with_values(5, 120, 120, &s), device);
    let options = Truncation { power_steps: 1, oversampling: 0, ..Truncation::to(8) };
    let found = linalg::truncated_svd(&a, None, options, "flat").unwrap();
    assert!(found.exact && found.fell_back);
    assert_leads(&found, &wide(&a), 8, "flat");
    for (found, expected) in found.s.iter().zip(&s) {
        assert!((found - expected).abs() < 1e-6, "{found} for {expected}");
    }
    // What squares of f32 have no room for is decomposed in f64, and so is nothing.
    for size in [1e-30, 1e30, 0.0] {
        let a = (&a * size).unwrap();
        let found = linalg::truncated_svd(&a, None, Truncation::to(8), "extreme").unwrap();
        assert!(found.exact && found.fell_back, "{size:e}");
        assert!((found.s[0] - size).abs() <= 1e-6 * size, "{size:e}: {:?}", found.s);
    }
}

pub(crate) fn truncated_svd_of_a_low_rank_matrix_has_its_rank(device: &Device) {
    let a = Matrix::random(11, 80, 3).times(&Matrix::random(12, 3, 90));
    let found = linalg::truncated_svd(&f32s(&a, device), None, Truncation::to(8), "low").unwrap();
    assert!(!found.exact);
    assert!(found.s[3..].iter().all(|s| *s < 1e-5 * found.s[0]), "{:?}", found.s);
    let rebuilt = wide(&found.u).times(&Matrix::diagonal(&found.s)).times(&wide(&found.vt));
    assert!(rebuilt.distance(&a) < 1e-5 * a.norm());
}

pub(crate) fn truncated_svd_refuses_what_it_cannot_decompose(device: &Device) {
    let refused = |a: &Tensor, sketch: Option<&Tensor>, rank: usize, part: &str| {
        let message = linalg::truncated_svd(a, sketch, Truncation::to(rank), "layer 3.up");
        let message = message.unwrap_err().to_string();
        assert!(message.contains("layer 3.up") && message.contains(part), "{message}");
    };
    let a = f32s(&Matrix::random(1, 60, 50), device);
    refused(&a, None, 0, "rank 0");
    refused(&a, None, 51, "rank 51");
    refused(&a.to_dtype(DType::F64).unwrap(), None, 4, "F64");
    refused(&a.narrow(1, 0, 1).unwrap().squeeze(1).unwrap(), None, 1, "matrix");
    refused(&a, Some(&a.narrow(1, 0, 3).unwrap()), 4, "sketch");
    refused(&a, Some(&a.narrow(0, 0, 50).unwrap()), 4, "sketch");
    for bad in [f64::NAN, f64::INFINITY] {
        let mut values = Matrix::random(1, 60, 50);
        values.values[7 * 50 + 9] = bad;
        refused(&f32s(&values, device), None, 4, "row 7, column 9");
    }
}

pub(crate) fn gaussian_is_normal_and_the_same_everywhere(device: &Device) {
    let t = linalg::gaussian(301, 67, 4, device).unwrap();
    assert_eq!(t.dims(), [301, 67]);
    let values = wide(&t).values;
    let mean = |power: i32| values.iter().map(|v| v.powi(power)).sum::<f64>() / values.len() as f64;
    let found = [mean(1), mean(2), mean(3), mean(4)];
    for (found, (expected, allowed)) in
        found.iter().zip([(0.0, 0.03), (1.0, 0.04), (0.0, 0.1), (3.0, 0.3)])
    {
        assert!((found - expected).abs() < allowed, "{found}, expected {expected}");
    }
    let same = linalg::gaussian(301, 67, 4, &Device::Cpu).unwrap();
    assert_eq!(wide(&same).values, values);
    assert_ne!(wide(&linalg::gaussian(301, 67, 5, device).unwrap()).values, values);
}
