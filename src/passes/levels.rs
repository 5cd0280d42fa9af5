//! Iterative absolute value decomposition: a matrix as a sum of levels, each the signs of the residual
//! before it times a matrix of low rank (arXiv 2410.23918, section 3.2).
//!
//! ```text
//! S_i = sign(R_i)    |R_i| ≈ u_i v_i, rank k    R_(i+1) = R_i - S_i ∘ (u_i v_i)
//! ```
//!
//! The factors are the leading singular vectors of `|R_i|`, each times the root of its singular value,
//! rounded to f16 before their product is subtracted: later levels make up for the rounding.

use candle_core::{DType, Tensor};

use crate::error::Result;
use crate::linalg::{self, Truncation};
use crate::ops;
use crate::settings::StackSettings;

/// A level that was taken off.
#[derive(Debug, Clone)]
pub struct TakenLevel {
    /// The signs `[m, ⌈n/8⌉]` u8, packed as [`ops::sign_pack`] has them.
    pub sign: Tensor,
    /// `[m, rank]` f16.
    pub u: Tensor,
    /// `[rank, n]` f16.
    pub v: Tensor,
    /// The randomised decomposition had not settled, and an exact one was made.
    pub fell_back: bool,
}

/// A matrix that is taken apart level by level.
#[derive(Debug)]
pub struct Levels {
    /// `R_i [m, n]` f32.
    residual: Tensor,
    /// Signs of the residual, and its sketch but for exact decompositions; nothing past the last level.
    next: Option<(Tensor, Option<Tensor>)>,
    settings: StackSettings,
    seed: u64,
    taken: usize,
}

impl Levels {
    /// Begins with `residual [m, n]` f32, which is changed in place. `seed` is that of the sketches;
    /// a rank that leaves them no room is decomposed exactly.
    ///
    /// # Errors
    /// [`Error::Bug`](crate::error::Error::Bug) for a residual that is no f32 matrix; a device without
    /// memory.
    pub fn new(residual: Tensor, settings: StackSettings, seed: u64) -> Result<Self> {
        let mut levels = Self { residual, next: None, settings, seed, taken: 0 };
        if settings.levels > 0 {
            levels.next = Some(ops::sign_pack(&levels.residual, levels.omega()?.as_ref())?);
        }
        Ok(levels)
    }

    /// The residual `R_i [m, n]` f32.
    pub fn residual(&self) -> &Tensor {
        &self.residual
    }

    /// Takes the next level off; `None` past the last. Errors name `subject`.
    ///
    /// # Errors
    /// As [`linalg::truncated_svd`]; there is no next level after one.
    pub fn take(&mut self, subject: &str) -> Result<Option<TakenLevel>> {
        let Some((signs, sketch)) = self.next.take() else { return Ok(None) };
        let truncation = Truncation { exact: sketch.is_none(), ..self.truncation() };
        let magnitudes = self.residual.abs()?;
        let found = linalg::truncated_svd(&magnitudes, sketch.as_ref(), truncation, subject)?;
        drop(magnitudes);
        let roots: Vec<f32> = found.s.iter().map(|s| s.sqrt() as f32).collect();
        let roots = Tensor::from_vec(roots, (1, truncation.rank), self.residual.device())?;
        let half = |factor: Tensor| factor.to_dtype(DType::F16)?.contiguous()?.unsqueeze(0);
        let u = half(found.u.broadcast_mul(&roots)?)?;
        let v = half(found.vt.broadcast_mul(&roots.t()?)?)?;
        self.taken += 1;
        let omega = self.omega()?;
        let next = ops::take_level(&self.residual, &signs, &u, &v, omega.as_ref())?;
        self.next = (self.taken < self.settings.levels).then_some(next);
        let [sign, u, v] = [signs.squeeze(0)?, u.squeeze(0)?, v.squeeze(0)?];
        Ok(Some(TakenLevel { sign, u, v, fell_back: found.fell_back }))
    }

    /// The options of the next level's decomposition, with a seed of its own.
    fn truncation(&self) -> Truncation {
        Truncation { seed: self.seed ^ self.taken as u64, ..Truncation::to(self.settings.rank) }
    }

    /// The random matrix that the next level is sketched with; `None` where it is decomposed exactly, and
    /// past the last.
    fn omega(&self) -> Result<Option<Tensor>> {
        let ((m, n), truncation) = (self.residual.dims2()?, self.truncation());
        let columns = truncation.width();
        if self.settings.exact || columns >= m.min(n) || self.taken >= self.settings.levels {
            return Ok(None);
        }
        linalg::gaussian(n, columns, truncation.seed, self.residual.device()).map(Some)
    }
}
