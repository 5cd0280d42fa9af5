//! The bridge between candle's row-major tensors and faer's matrices, and the code that all
//! decompositions share: finite input, scratch memory, degree of parallelism, signs.

use std::ops::Range;

use candle_core::{DType, Device, Storage, Tensor};
use faer::dyn_stack::{MemBuffer, StackReq};
use faer::{MatRef, Par};
use rayon::prelude::*;

use crate::error::{Error, Result};

/// Pieces faer cuts its work into. Fixed, because partial sums follow the pieces: a count taken
/// from the machine would change the last bits with the number of cores.
pub(super) const DEGREE: usize = 4;

pub(super) fn par() -> Par {
    Par::rayon(DEGREE)
}

/// Rows and columns of a matrix; anything else is refused.
pub(super) fn dims(op: &'static str, a: &Tensor, subject: &str) -> Result<(usize, usize)> {
    match *a.dims() {
        [m, n] => Ok((m, n)),
        ref dims => {
            Err(Error::Bug(format!("{op} of {subject}: shape is {dims:?}, expected a matrix")))
        }
    }
}

/// Rows of a square matrix; anything else is refused.
pub(super) fn order(op: &'static str, a: &Tensor, subject: &str) -> Result<usize> {
    match dims(op, a, subject)? {
        (m, n) if m == n => Ok(n),
        (m, n) => Err(Error::Bug(format!("{op} of {subject}: [{m}, {n}] is not square"))),
    }
}

/// Returns `a` as contiguous f64 on its device: `a` itself if it is contiguous f64 already.
pub(super) fn as_f64(op: &'static str, a: &Tensor, subject: &str) -> Result<Tensor> {
    match a.dtype() {
        DType::F32 | DType::F64 => Ok(a.to_dtype(DType::F64)?.contiguous()?),
        dtype => {
            Err(Error::Bug(format!("{op} of {subject}: dtype is {dtype:?}, expected f32 or f64")))
        }
    }
}

/// Lends the elements of `a`, row after row, as f64: as they lie where `a` is contiguous f64, else
/// of a copy.
pub(super) fn with_rows<R>(
    op: &'static str,
    a: &Tensor,
    subject: &str,
    work: impl FnOnce(&[f64]) -> Result<R>,
) -> Result<R> {
    let a = as_f64(op, a, subject)?;
    let (storage, layout) = a.storage_and_layout();
    let (Storage::Cpu(storage), Some((start, end))) = (&*storage, layout.contiguous_offsets())
    else {
        return Err(Error::Bug(format!("{op} of {subject}: the matrix is not on the CPU")));
    };
    work(&storage.as_slice::<f64>()?[start..end])
}

/// The entries of a matrix that a computation reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entries {
    All,
    Lower,
    Upper,
}

impl Entries {
    /// The columns of row `i` that belong to it.
    pub(super) fn columns(self, i: usize, columns: usize) -> Range<usize> {
        match self {
            Self::All => 0..columns,
            Self::Lower => 0..i + 1,
            Self::Upper => i..columns,
        }
    }
}

/// Refuses a matrix whose `part` holds NaN or infinity, naming the first.
pub(super) fn expect_finite(a: &[f64], columns: usize, part: Entries, subject: &str) -> Result<()> {
    if columns == 0 {
        return Ok(());
    }
    let found = a.par_chunks(columns).enumerate().find_map_first(|(i, row)| {
        part.columns(i, columns).find(|&j| !row[j].is_finite()).map(|j| (i, j))
    });
    match found {
        None => Ok(()),
        Some((i, j)) => Err(Error::NonFinite {
            what: subject.to_owned(),
            detail: format!("row {i}, column {j}: {}", a[i * columns + j]),
        }),
    }
}

/// Scratch memory for one decomposition.
pub(super) fn scratch(op: &'static str, subject: &str, need: StackReq) -> Result<MemBuffer> {
    let bytes = need.size_bytes();
    MemBuffer::try_new(need).map_err(|_| {
        Error::Bug(format!("{op} of {subject}: no memory for {bytes} bytes of scratch"))
    })
}

/// For every column, the factor (1 or -1) that makes its entry of largest magnitude positive, the
/// first of equals.
pub(super) fn signs(columns: MatRef<'_, f64>) -> Vec<f64> {
    (0..columns.ncols())
        .into_par_iter()
        .map(|j| {
            let largest =
                columns.col(j).iter().fold(0.0_f64, |m, &v| if v.abs() > m.abs() { v } else { m });
            if largest < 0.0 { -1.0 } else { 1.0 }
        })
        .collect()
}

/// The tensor `[m, r]` whose column `j` is `factors[j]` times column `pick(j)` of `columns [m, _]`.
pub(super) fn tensor_of_columns(
    columns: MatRef<'_, f64>,
    factors: &[f64],
    pick: impl Fn(usize) -> usize + Sync,
) -> Result<Tensor> {
    /// Rows written together: one read of a column fills a whole cache line of it.
    const ROWS: usize = 16;
    let (m, r) = (columns.nrows(), factors.len());
    let mut rows = vec![0.0; m * r];
    if r > 0 {
        rows.par_chunks_mut(ROWS * r).enumerate().for_each(|(block, rows)| {
            for (j, factor) in factors.iter().enumerate() {
                let column = columns.col(pick(j));
                for (i, row) in rows.chunks_exact_mut(r).enumerate() {
                    row[j] = factor * column[block * ROWS + i];
                }
            }
        });
    }
    Ok(Tensor::from_vec(rows, (m, r), &Device::Cpu)?)
}
