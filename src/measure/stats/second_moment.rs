//! The second moment of one activation over the calibration tokens.

use std::sync::OnceLock;

use candle_core::{DType, Device, Tensor};

use crate::error::{Error, Result};
use crate::{linalg, ops};

/// `Σ x xᵀ`, `Σ x` and the token count of an activation of `dim` channels; products in f32 within a
/// chunk of tokens, sums across chunks in f64.
#[derive(Debug)]
pub struct SecondMoment {
    /// `[dim, dim]` f64, the lower triangle.
    second: Tensor,
    /// `[dim]` f64.
    sum: Tensor,
    tokens: u64,
    root: OnceLock<Tensor>,
}

impl SecondMoment {
    /// Nothing seen yet.
    ///
    /// # Errors
    /// Only if the device is out of memory.
    pub fn new(dim: usize, device: &Device) -> Result<Self> {
        Ok(Self {
            second: Tensor::zeros((dim, dim), DType::F64, device)?,
            sum: Tensor::zeros(dim, DType::F64, device)?,
            tokens: 0,
            root: OnceLock::new(),
        })
    }

    /// Adds the rows of `x [tokens, dim]` f32.
    ///
    /// # Errors
    /// Shapes that do not agree.
    pub fn add(&mut self, x: &Tensor) -> Result<()> {
        ops::gram(&self.second, x)?;
        ops::column_sum(&self.sum, x)?;
        self.tokens += x.dim(0)? as u64;
        self.root = OnceLock::new();
        Ok(())
    }

    /// Tokens seen.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// `E[x xᵀ]`, `[dim, dim]` f64; less `E[x] E[x]ᵀ` where `centred`.
    ///
    /// # Errors
    /// [`Error::NonFinite`] naming `subject`; no tokens is a bug of the caller.
    pub fn second(&self, centred: bool, subject: &str) -> Result<Tensor> {
        let mean = self.mean(subject)?;
        let second = (&self.second * self.per_token()?)?;
        ops::symmetrise(&second)?;
        if !centred {
            return Ok(second);
        }
        let column = mean.unsqueeze(1)?;
        Ok((second - column.matmul(&column.t()?)?)?)
    }

    /// `E[x]`, `[dim]` f64.
    ///
    /// # Errors
    /// As [`second`](Self::second).
    pub fn mean(&self, subject: &str) -> Result<Tensor> {
        let trace = self.energy()?;
        if !trace.is_finite() {
            return Err(Error::NonFinite {
                what: subject.into(),
                detail: "its second moment".into(),
            });
        }
        Ok((&self.sum * self.per_token()?)?)
    }

    /// `E[|x|²]`, the trace of the second moment.
    ///
    /// # Errors
    /// No tokens is a bug of the caller.
    pub fn energy(&self) -> Result<f64> {
        let dim = self.second.dim(0)?;
        let flat = self.second.flatten_all()?;
        let diagonal = flat.index_select(&diagonal_of(dim, flat.device())?, 0)?;
        Ok(diagonal.sum_all()?.to_scalar::<f64>()? * self.per_token()?)
    }

    /// `L [dim, dim]` with `L Lᵀ = E[x xᵀ]` (centred: the covariance): eigenvectors times the roots
    /// of the eigenvalues, negative rounding residues taken as zero. Decomposed once, for all sites
    /// that read this activation.
    ///
    /// # Errors
    /// As [`second`](Self::second); [`Error::NoConvergence`].
    pub fn root(&self, centred: bool, subject: &str) -> Result<Tensor> {
        if let (Some(root), false) = (self.root.get(), centred) {
            return Ok(root.clone());
        }
        let eigen = linalg::eigh(&self.second(centred, subject)?, subject)?;
        let roots: Vec<f64> = eigen.values.iter().map(|v| v.max(0.0).sqrt()).collect();
        let roots = Tensor::from_vec(roots, (1, eigen.values.len()), eigen.vectors.device())?;
        let root = eigen.vectors.broadcast_mul(&roots)?;
        if !centred {
            // A lost race stores the same value twice.
            let _ = self.root.set(root.clone());
        }
        Ok(root)
    }

    fn per_token(&self) -> Result<f64> {
        match self.tokens {
            0 => Err(Error::Bug("a second moment of no tokens was asked for".into())),
            #[expect(clippy::cast_precision_loss, reason = "token counts are far below 2^52")]
            tokens => Ok(1.0 / tokens as f64),
        }
    }
}

fn diagonal_of(dim: usize, device: &Device) -> Result<Tensor> {
    let positions: Vec<i64> = (0..dim).map(|i| (i * (dim + 1)) as i64).collect();
    Ok(Tensor::from_vec(positions, dim, device)?)
}
