//! A row-major matrix with just enough arithmetic to state the identities, and the identities that
//! several decompositions share.

use candle_core::{DType, Device, Tensor};

/// Unit roundoff of f64, by which errors are measured.
pub(crate) const U: f64 = f64::EPSILON / 2.0;

pub(crate) fn random(seed: u64, n: usize) -> Vec<f64> {
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
pub(crate) struct Matrix {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) values: Vec<f64>,
}

impl Matrix {
    pub(crate) fn new(rows: usize, columns: usize, values: Vec<f64>) -> Self {
        assert_eq!(values.len(), rows * columns);
        Self { rows, columns, values }
    }

    pub(crate) fn random(seed: u64, rows: usize, columns: usize) -> Self {
        Self::new(rows, columns, random(seed, rows * columns))
    }

    pub(crate) fn diagonal(values: &[f64]) -> Self {
        let n = values.len();
        let at = |i: usize| if i / n == i % n { values[i % n] } else { 0.0 };
        Self::new(n, n, (0..n * n).map(at).collect())
    }

    pub(crate) fn symmetric(seed: u64, n: usize) -> Self {
        let a = Self::random(seed, n, n);
        let values = (0..n * n).map(|i| a.at(i / n, i % n) + a.at(i % n, i / n)).collect();
        Self::new(n, n, values)
    }

    pub(crate) fn of(t: &Tensor) -> Self {
        assert_eq!(t.dtype(), DType::F64);
        assert!(t.is_contiguous());
        let (rows, columns) = t.dims2().unwrap();
        Self::new(rows, columns, t.flatten_all().unwrap().to_vec1().unwrap())
    }

    pub(crate) fn on(&self, device: &Device) -> Tensor {
        Tensor::from_slice(&self.values, (self.rows, self.columns), device).unwrap()
    }

    pub(crate) fn at(&self, i: usize, j: usize) -> f64 {
        self.values[i * self.columns + j]
    }

    pub(crate) fn t(&self) -> Self {
        let (m, n) = (self.rows, self.columns);
        Self::new(n, m, (0..m * n).map(|i| self.at(i % m, i / m)).collect())
    }

    pub(crate) fn times(&self, other: &Self) -> Self {
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

    pub(crate) fn first_columns(&self, k: usize) -> Self {
        let values = (0..self.rows * k).map(|i| self.at(i / k, i % k)).collect();
        Self::new(self.rows, k, values)
    }

    pub(crate) fn distance(&self, other: &Self) -> f64 {
        assert_eq!((self.rows, self.columns), (other.rows, other.columns));
        self.values.iter().zip(&other.values).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt()
    }

    pub(crate) fn norm(&self) -> f64 {
        self.values.iter().map(|v| v * v).sum::<f64>().sqrt()
    }
}

/// Columns are orthonormal to a small multiple of what rounding in dimension `rows` allows.
pub(crate) fn assert_orthonormal(q: &Matrix, what: &str) {
    let identity = Matrix::diagonal(&vec![1.0; q.columns]);
    let error = q.t().times(q).distance(&identity);
    let allowed = 40.0 * U * (q.rows.max(1) as f64) * (q.columns.max(1) as f64).sqrt();
    assert!(error <= allowed, "{what}: |QtQ - I| = {error:e}, allowed {allowed:e}");
}

pub(crate) fn assert_descending(values: &[f64], what: &str) {
    assert!(values.windows(2).all(|w| w[0] >= w[1]), "{what}: {values:?}");
}

/// The entry of largest magnitude of every column is positive.
pub(crate) fn assert_signs(q: &Matrix, what: &str) {
    for column in q.t().values.chunks(q.rows.max(1)) {
        let largest = column.iter().fold(0.0_f64, |m, &v| if v.abs() > m.abs() { v } else { m });
        assert!(largest > 0.0, "{what}: largest entry {largest}");
    }
}
