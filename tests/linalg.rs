//! Decompositions by the identities that define them, in f64, at awkward sizes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use bantam::error::Error;
use bantam::linalg::{self, Eigh, Svd};
use candle_core::{DType, Device, Tensor};

/// Unit roundoff of f64, by which errors are measured.
const U: f64 = f64::EPSILON / 2.0;

fn random(seed: u64, n: usize) -> Vec<f64> {
    let mut state = seed;
    (0..n)
        .map(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
        })
        .collect()
}

/// A row-major matrix with just enough arithmetic to state the identities.
#[derive(Debug, Clone, PartialEq)]
struct Matrix {
    rows: usize,
    columns: usize,
    values: Vec<f64>,
}

impl Matrix {
    fn new(rows: usize, columns: usize, values: Vec<f64>) -> Self {
        assert_eq!(values.len(), rows * columns);
        Self { rows, columns, values }
    }

    fn random(seed: u64, rows: usize, columns: usize) -> Self {
        Self::new(rows, columns, random(seed, rows * columns))
    }

    fn diagonal(values: &[f64]) -> Self {
        let n = values.len();
        let at = |i: usize| if i / n == i % n { values[i % n] } else { 0.0 };
        Self::new(n, n, (0..n * n).map(at).collect())
    }

    fn symmetric(seed: u64, n: usize) -> Self {
        let a = Self::random(seed, n, n);
        let values = (0..n * n).map(|i| a.at(i / n, i % n) + a.at(i % n, i / n)).collect();
        Self::new(n, n, values)
    }

    fn of(t: &Tensor) -> Self {
        assert_eq!(t.dtype(), DType::F64);
        assert!(t.is_contiguous());
        let (rows, columns) = t.dims2().unwrap();
        Self::new(rows, columns, t.flatten_all().unwrap().to_vec1().unwrap())
    }

    fn tensor(&self) -> Tensor {
        Tensor::from_slice(&self.values, (self.rows, self.columns), &Device::Cpu).unwrap()
    }

    fn at(&self, i: usize, j: usize) -> f64 {
        self.values[i * self.columns + j]
    }

    fn t(&self) -> Self {
        let (m, n) = (self.rows, self.columns);
        Self::new(n, m, (0..m * n).map(|i| self.at(i % m, i / m)).collect())
    }

    fn times(&self, other: &Self) -> Self {
        assert_eq!(self.columns, other.rows);
        let mut values = vec![0.0; self.rows * other.columns];
        for (i, row) in values.chunks_mut(other.columns.max(1)).enumerate() {
            for k in 0..self.columns {
                for (j, v) in row.iter_mut().enumerate() {
                    *v += self.at(i, k) * other.at(k, j);
                }
            }
        }
        Self::new(self.rows, other.columns, values)
    }

    fn first_columns(&self, k: usize) -> Self {
        let values = (0..self.rows * k).map(|i| self.at(i / k, i % k)).collect();
        Self::new(self.rows, k, values)
    }

    fn distance(&self, other: &Self) -> f64 {
        assert_eq!((self.rows, self.columns), (other.rows, other.columns));
        self.values.iter().zip(&other.values).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt()
    }

    fn norm(&self) -> f64 {
        self.values.iter().map(|v| v * v).sum::<f64>().sqrt()
    }
}

/// Columns are orthonormal to a small multiple of what rounding in dimension `rows` allows.
fn assert_orthonormal(q: &Matrix, what: &str) {
    let identity = Matrix::diagonal(&vec![1.0; q.columns]);
    let error = q.t().times(q).distance(&identity);
    let allowed = 40.0 * U * (q.rows.max(1) as f64) * (q.columns.max(1) as f64).sqrt();
    assert!(error <= allowed, "{what}: |QtQ - I| = {error:e}, allowed {allowed:e}");
}

fn assert_descending(values: &[f64], what: &str) {
    assert!(values.windows(2).all(|w| w[0] >= w[1]), "{what}: {values:?}");
}

/// The entry of largest magnitude of every column is positive.
fn assert_signs(q: &Matrix, what: &str) {
    for column in q.t().values.chunks(q.rows.max(1)) {
        let largest = column.iter().fold(0.0_f64, |m, &v| if v.abs() > m.abs() { v } else { m });
        assert!(largest > 0.0, "{what}: largest entry {largest}");
    }
}

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

#[test]
fn eigh_decomposes_symmetric_matrices() {
    for n in SIZES {
        let a = Matrix::symmetric(n as u64, n);
        let what = format!("order {n}");
        let found = linalg::eigh(&a.tensor(), &what).unwrap();
        assert_decomposes(&a, &found, &what);
        let alone = linalg::eigvalsh(&a.tensor(), &what).unwrap();
        assert_descending(&alone, &what);
        for (x, y) in alone.iter().zip(&found.values) {
            assert!((x - y).abs() <= 40.0 * U * n as f64 * a.norm(), "{what}: {x} and {y}");
        }
    }
}

#[test]
fn eigh_finds_a_known_spectrum() {
    // The second difference matrix: 2 - 2 cos(k pi / (n + 1)).
    for n in [1, 2, 33, 160] {
        let entry = |i: usize, j: usize| match i.abs_diff(j) {
            0 => 2.0,
            1 => -1.0,
            _ => 0.0,
        };
        let a = Matrix::new(n, n, (0..n * n).map(|i| entry(i / n, i % n)).collect());
        let found = linalg::eigh(&a.tensor(), "second difference").unwrap();
        assert_decomposes(&a, &found, &format!("second difference of order {n}"));
        for (k, value) in (1..=n).rev().zip(&found.values) {
            let exact = 2.0 - 2.0 * (k as f64 * std::f64::consts::PI / (n + 1) as f64).cos();
            assert!((value - exact).abs() < 200.0 * U * n as f64, "{k} of {n}: {value} {exact}");
        }
    }
}

#[test]
fn eigh_copes_with_equal_zero_and_negative_eigenvalues() {
    for n in [1, 2, 33, 150] {
        let cases = [
            ("zero", Matrix::diagonal(&vec![0.0; n]), vec![0.0; n]),
            ("identity", Matrix::diagonal(&vec![1.0; n]), vec![1.0; n]),
            ("minus three", Matrix::diagonal(&vec![-3.0; n]), vec![-3.0; n]),
        ];
        for (what, a, values) in cases {
            let found = linalg::eigh(&a.tensor(), what).unwrap();
            assert_decomposes(&a, &found, what);
            assert_eq!(found.values, values, "{what} of order {n}");
            assert_eq!(linalg::eigvalsh(&a.tensor(), what).unwrap(), values);
        }
        // Two clusters: projector of rank r, turned.
        let r = n.div_ceil(3);
        let q = linalg::orthonormalise(&Matrix::random(7, n, r).tensor(), "basis").unwrap();
        let q = Matrix::of(&q);
        let a = q.times(&q.t());
        let found = linalg::eigh(&a.tensor(), "projector").unwrap();
        assert_decomposes(&a, &found, &format!("projector of order {n}"));
        for (i, value) in found.values.iter().enumerate() {
            let exact = if i < r { 1.0 } else { 0.0 };
            assert!((value - exact).abs() < 40.0 * U * n as f64, "value {i} of {n}: {value}");
        }
    }
}

#[test]
fn eigh_of_a_rank_deficient_gram_matrix_has_its_rank() {
    let (n, r) = (120, 17);
    let x = Matrix::random(3, r, n);
    let a = x.t().times(&x);
    let found = linalg::eigh(&a.tensor(), "gram").unwrap();
    assert_decomposes(&a, &found, "gram");
    let noise = 40.0 * U * n as f64 * a.norm();
    assert_eq!(found.values.iter().filter(|v| v.abs() > noise).count(), r);
    let squares: Vec<f64> =
        linalg::singular_values(&x.tensor(), "x").unwrap().iter().map(|s| s * s).collect();
    for (value, square) in found.values.iter().zip(&squares) {
        assert!((value - square).abs() <= noise, "{value} {square}");
    }
}

#[test]
fn eigh_spans_many_orders_of_magnitude() {
    for scale in [1e-200, 1e-30, 1e30, 1e140] {
        let a = Matrix::symmetric(11, 40);
        let a = Matrix::new(40, 40, a.values.iter().map(|v| v * scale).collect());
        let found = linalg::eigh(&a.tensor(), "scaled").unwrap();
        assert_orthonormal(&Matrix::of(&found.vectors), "scaled");
        let plain = linalg::eigh(&Matrix::symmetric(11, 40).tensor(), "plain").unwrap();
        for (scaled, plain) in found.values.iter().zip(&plain.values) {
            assert!((scaled / scale - plain).abs() < 1e-12, "{scaled} {plain} at {scale:e}");
        }
    }
}

#[test]
fn eigh_reads_only_the_lower_triangle() {
    for n in [2, 33, 150] {
        let a = Matrix::symmetric(5, n);
        let mut dirty = a.clone();
        for i in 0..n {
            for j in i + 1..n {
                dirty.values[i * n + j] = f64::NAN;
            }
        }
        let (clean, found) = (
            linalg::eigh(&a.tensor(), "clean").unwrap(),
            linalg::eigh(&dirty.tensor(), "dirty").unwrap(),
        );
        assert_eq!(clean.values, found.values);
        assert_eq!(Matrix::of(&clean.vectors), Matrix::of(&found.vectors));
    }
}

#[test]
fn nothing_decomposes_into_nothing() {
    let empty = |m: usize, n: usize| Tensor::zeros((m, n), DType::F64, &Device::Cpu).unwrap();
    let found = linalg::eigh(&empty(0, 0), "nothing").unwrap();
    assert!(found.values.is_empty());
    assert_eq!(found.vectors.dims(), [0, 0]);
    assert!(linalg::eigvalsh(&empty(0, 0), "nothing").unwrap().is_empty());
    for (m, n) in [(0, 0), (0, 4), (4, 0)] {
        let found = linalg::svd(&empty(m, n), "nothing").unwrap();
        assert_eq!((found.u.dims(), found.vt.dims()), ([m, 0].as_slice(), [0, n].as_slice()));
        assert!(found.s.is_empty());
    }
    assert_eq!(linalg::orthonormalise(&empty(5, 0), "nothing").unwrap().dims(), [5, 0]);
}

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

#[test]
fn svd_reconstructs_tall_wide_and_square_matrices() {
    for (m, n) in SHAPES {
        let a = Matrix::random((m * 1000 + n) as u64, m, n);
        let what = format!("[{m}, {n}]");
        let found = linalg::svd(&a.tensor(), &what).unwrap();
        assert_svd(&a, &found, &what);
        let alone = linalg::singular_values(&a.tensor(), &what).unwrap();
        assert_eq!(alone.len(), found.s.len());
        for (x, y) in alone.iter().zip(&found.s) {
            assert!((x - y).abs() <= 40.0 * U * (m + n) as f64 * a.norm(), "{what}: {x} {y}");
        }
    }
}

#[test]
fn svd_of_f32_is_that_of_the_same_numbers_in_f64() {
    let a = Matrix::random(1, 20, 13).tensor().to_dtype(DType::F32).unwrap();
    let found = linalg::svd(&a, "f32").unwrap();
    let exact = linalg::svd(&a.to_dtype(DType::F64).unwrap(), "f64").unwrap();
    assert_eq!(found.s, exact.s);
    assert_eq!(Matrix::of(&found.u), Matrix::of(&exact.u));
    assert_eq!(Matrix::of(&found.vt), Matrix::of(&exact.vt));
}

#[test]
fn svd_finds_known_values_and_rank() {
    let zero = Matrix::new(4, 3, vec![0.0; 12]);
    let found = linalg::svd(&zero.tensor(), "zero").unwrap();
    assert_svd(&zero, &found, "zero");
    assert_eq!(found.s, [0.0; 3]);

    let a = Matrix::diagonal(&[3.0, -7.0, 0.0, 2.0]);
    let found = linalg::svd(&a.tensor(), "diagonal").unwrap();
    assert_svd(&a, &found, "diagonal");
    for (s, exact) in found.s.iter().zip([7.0, 3.0, 2.0, 0.0]) {
        assert!((s - exact).abs() < 1e-14, "{s} {exact}");
    }

    for (m, n, r) in [(60, 40, 5), (40, 60, 5), (300, 20, 7), (140, 140, 30)] {
        let a = Matrix::random(2, m, r).times(&Matrix::random(3, r, n));
        let found = linalg::svd(&a.tensor(), "low rank").unwrap();
        assert_svd(&a, &found, &format!("rank {r} of [{m}, {n}]"));
        let noise = 40.0 * U * (m + n) as f64 * a.norm();
        assert_eq!(found.s.iter().filter(|&&s| s > noise).count(), r, "[{m}, {n}]");
    }
}

#[test]
fn truncated_svd_errs_by_the_tail_of_the_spectrum() {
    let a = Matrix::random(4, 50, 30);
    let found = linalg::svd(&a.tensor(), "a").unwrap();
    let (u, vt) = (Matrix::of(&found.u), Matrix::of(&found.vt));
    for r in [1, 10, 29] {
        let kept: Vec<f64> =
            found.s.iter().enumerate().map(|(i, &s)| if i < r { s } else { 0.0 }).collect();
        let error = u.times(&Matrix::diagonal(&kept)).times(&vt).distance(&a);
        let tail = found.s[r..].iter().map(|s| s * s).sum::<f64>().sqrt();
        assert!((error - tail).abs() < 1e-12 * a.norm(), "rank {r}: {error} {tail}");
    }
}

#[test]
fn orthonormalise_gives_a_basis_of_the_columns() {
    for (m, r) in [(1, 1), (2, 1), (33, 33), (31, 7), (129, 64), (500, 97), (200, 200)] {
        let a = Matrix::random((m + r) as u64, m, r);
        let what = format!("[{m}, {r}]");
        let q = Matrix::of(&linalg::orthonormalise(&a.tensor(), &what).unwrap());
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

#[test]
fn orthonormalise_is_nested() {
    let (m, r) = (150, 60);
    let a = Matrix::random(9, m, r);
    let all = Matrix::of(&linalg::orthonormalise(&a.tensor(), "all").unwrap());
    for k in [1, 2, 17, 31, 59] {
        let some = linalg::orthonormalise(&a.first_columns(k).tensor(), "some").unwrap();
        let distance = Matrix::of(&some).distance(&all.first_columns(k));
        assert!(distance < 1e-12, "the first {k} columns differ by {distance:e}");
    }
}

#[test]
fn orthonormalise_completes_dependent_columns() {
    for (m, r, rank) in [(40, 12, 5), (200, 90, 40), (30, 30, 1)] {
        let a = Matrix::random(5, m, rank).times(&Matrix::random(6, rank, r));
        let q = Matrix::of(&linalg::orthonormalise(&a.tensor(), "dependent").unwrap());
        assert_orthonormal(&q, "dependent");
        let projected = q.times(&q.t().times(&a));
        assert!(projected.distance(&a) <= 1e-12 * a.norm(), "[{m}, {r}] of rank {rank}");
    }
    let zero = Matrix::new(6, 3, vec![0.0; 18]);
    let q = linalg::orthonormalise(&zero.tensor(), "zero").unwrap();
    assert_orthonormal(&Matrix::of(&q), "zero");
}

#[test]
fn views_are_decomposed_as_what_they_show() {
    let a = Matrix::random(8, 24, 17);
    let view = a.t().tensor().t().unwrap();
    assert!(!view.is_contiguous());
    let plain = linalg::svd(&a.tensor(), "plain").unwrap();
    assert_eq!(linalg::svd(&view, "view").unwrap().s, plain.s);
    let q = linalg::orthonormalise(&view, "view").unwrap();
    assert_eq!(Matrix::of(&q), Matrix::of(&linalg::orthonormalise(&a.tensor(), "plain").unwrap()));
    let part = a.tensor().narrow(0, 5, 17).unwrap();
    let copy = Matrix::of(&part.force_contiguous().unwrap()).tensor();
    assert_eq!(linalg::eigvalsh(&part, "part").unwrap(), linalg::eigvalsh(&copy, "copy").unwrap());
}

#[test]
fn what_is_not_finite_is_refused_by_name() {
    let is_refused = |found: Option<Error>, value: f64| match found {
        Some(Error::NonFinite { what, detail }) => {
            assert_eq!(what, "model.layers.3");
            assert_eq!(detail, format!("row 4, column 2: {value}"));
        }
        other => panic!("{other:?}"),
    };
    for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let mut a = Matrix::symmetric(1, 6);
        a.values[4 * 6 + 2] = value;
        let a = a.tensor();
        let subject = "model.layers.3";
        is_refused(linalg::eigh(&a, subject).err(), value);
        is_refused(linalg::eigvalsh(&a, subject).err(), value);
        is_refused(linalg::svd(&a, subject).err(), value);
        is_refused(linalg::singular_values(&a, subject).err(), value);
        is_refused(linalg::orthonormalise(&a, subject).err(), value);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let refusal = |found: Option<Error>, part: &str| match found {
        Some(Error::Bug(message)) => {
            assert!(message.contains("layer 7") && message.contains(part), "{message}");
        }
        other => panic!("{other:?}"),
    };
    let a = Matrix::random(1, 3, 4).tensor();
    let flat = a.flatten_all().unwrap();
    let wide = a.to_dtype(DType::BF16).unwrap();
    refusal(linalg::eigh(&a, "layer 7").err(), "not square");
    refusal(linalg::eigvalsh(&flat, "layer 7").err(), "expected a matrix");
    refusal(linalg::svd(&flat, "layer 7").err(), "expected a matrix");
    refusal(linalg::svd(&wide, "layer 7").err(), "BF16");
    refusal(linalg::orthonormalise(&a, "layer 7").err(), "cannot be orthonormal");
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    // Large enough that faer goes parallel.
    let n = 420;
    let all = || {
        let a = Matrix::symmetric(2, n);
        let b = Matrix::random(3, n, n - 20);
        let eigh = linalg::eigh(&a.tensor(), "a").unwrap();
        let svd = linalg::svd(&b.tensor(), "b").unwrap();
        let q = linalg::orthonormalise(&b.tensor(), "b").unwrap();
        let mut values = eigh.values;
        values.extend(linalg::eigvalsh(&a.tensor(), "a").unwrap());
        values.extend(svd.s);
        values.extend(linalg::singular_values(&b.tensor(), "b").unwrap());
        for t in [eigh.vectors, svd.u, svd.vt, q] {
            values.extend(Matrix::of(&t).values);
        }
        values.into_iter().map(f64::to_bits).collect::<Vec<_>>()
    };
    let on_threads = |threads: usize| {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(all)
    };
    let one = on_threads(1);
    assert!(one == on_threads(2), "1 and 2 threads differ");
    assert!(one == on_threads(5), "1 and 5 threads differ");
}
