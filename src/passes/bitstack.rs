//! `BitStack`: every linear as a sum of levels, each a matrix of signs and factors of the absolute value
//! of what the levels before it left (arXiv 2410.23918).
//!
//! With input channels scaled by `s_j = √E[x_j²] + ε`, the [`Levels`] of `W diag(s)` are
//!
//! ```text
//! W ≈ (Σ_i S_i ∘ (u_i v_i)) diag(1/s)
//! ```
//!
//! After `j` levels the error is `D = R_j diag(1/s) = α W + N`. Every level is a least squares fit and so
//! a little too small, which leaves a multiple `α W`; the rest `N` has random signs. `N` is priced channel
//! by channel, cross terms of inputs and outputs left out. `α W` scales the whole output, so all tokens of
//! a window feel it alike, and costs what the gradient at the weight's gain `γ` says
//! ([`Importance::Gradients`]). In nats per token, with
//! `⟨A, B⟩ = ½ Σ_o E[g_o²] Σ_c E[x_c²] A[o, c] B[o, c]`,
//!
//! ```text
//! α = ⟨D, W⟩ / ⟨W, W⟩      loss_j = ⟨D - α W, D - α W⟩ + ½ α² E[g_γ²] = ⟨D, D⟩ + α² (½ E[g_γ²] - ⟨W, W⟩)
//! ```
//!
//! The scale is kept beside the levels and never folded into what comes before, so `o_proj` under
//! grouped-query attention is scaled as every other linear is.

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};

use super::levels::{Levels, TakenLevel};
use super::{Analysis, Entry, Needs, Pass, Pieces, Repairs, Weights, cannot_make};
use crate::arch::{Piece, Site, Storage};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::measure::{Importance, SiteStats};
use crate::plan::Offer;
use crate::settings::{Method, Settings, StackSettings};

/// The least a channel is scaled by, relative to the mean.
const LEAST_SCALE: f64 = 1e-4;

/// The method, as it is listed.
pub(super) const ENTRY: Entry = Entry {
    name: "bitstack",
    about: "Levels of signs and factors: a file of which any prefix is a model; no size is named",
    stacks: true,
    make: |settings| Box::new(Bitstack::new(settings)),
};

/// The pass.
#[derive(Debug, Clone, Copy)]
pub struct Bitstack {
    stack: StackSettings,
}

impl Bitstack {
    /// With what `settings` say of stacks.
    pub fn new(settings: &Settings) -> Self {
        Self { stack: settings.stack }
    }

    /// The rank for a site, which may be too small for the one asked for.
    fn rank(&self, site: &Site) -> usize {
        self.stack.rank.min(site.out_features).min(site.in_features)
    }
}

impl Pass for Bitstack {
    fn method(&self) -> Method {
        Method::BITSTACK
    }

    fn needs(&self) -> Needs {
        Needs { text: true, moments: false }
    }

    fn takes(&self, site: &Site) -> bool {
        site.storage == Storage::Dense && !site.role.is_vocabulary()
    }

    fn options(&self) -> Value {
        let StackSettings { levels, rank, exact, order: _ } = self.stack;
        json!({ "levels": levels, "rank": rank, "exact": exact })
    }

    fn analyse(
        &self,
        site: &Site,
        weights: &Weights<'_>,
        stats: Option<&SiteStats>,
    ) -> Result<Analysis> {
        let weight = weights.dense(site)?;
        let (m, n) = weight.dims2()?;
        let squares = stats.map(|stats| stats.input_squares.to_vec());
        // An expert that no token chose has no input to be scaled by.
        let squares = squares.unwrap_or_else(|| vec![1.0; n]);
        let scale = scale(&squares);
        let device = &weight.device().clone();
        let scale_row = Tensor::from_slice(&scale, (1, n), device)?;
        let residual = weight.broadcast_mul(&scale_row)?.contiguous()?;
        drop(weight);
        let prices = Prices::new(stats, &squares, &scale, &residual)?;
        let sizes = Metric::plain(&scale, m, device)?;

        let mut analysis = Analysis::default();
        let mut repairs = Repairs::default();
        let (mut losses, mut errors) = (vec![prices.loss(&residual)?], Vec::new());
        let whole = sizes.square(&residual)?;
        let settings = StackSettings { rank: self.rank(site), ..self.stack };
        let mut levels = Levels::new(residual, settings, seed_of(&site.name))?;
        for level in 0.. {
            let subject = format!("{}, level {level}", site.name);
            let Some(TakenLevel { sign, u, v, fell_back }) = levels.take(&subject)? else { break };
            let loss = prices.loss(levels.residual())?;
            if !loss.is_finite() {
                let what = format!("`{}.{level}`", site.name);
                return Err(Error::NonFinite { what, detail: "its factors in f16".into() });
            }
            losses.push(loss);
            let left = sizes.square(levels.residual())?;
            errors.push((left / whole.max(f64::MIN_POSITIVE)).sqrt());
            repairs.exact_decompositions += u64::from(fell_back);
            for (piece, tensor) in Piece::of_level(level).into_iter().zip([sign, u, v]) {
                analysis = analysis.with(piece.suffix(), tensor);
            }
        }
        analysis.repairs = repairs;
        Ok(analysis
            .with("losses", Tensor::new(losses, &Device::Cpu)?)
            .with("errors", Tensor::new(errors, &Device::Cpu)?)
            .with("scale", Tensor::new(scale, &Device::Cpu)?))
    }

    fn offers(&self, site: &Site, analysis: Option<&Analysis>) -> Result<Vec<Offer>> {
        let losses = match analysis {
            Some(analysis) => analysis.numbers("losses")?,
            None => assumed_losses(site, self.stack.levels),
        };
        let rank = self.rank(site);
        let stack = |levels| Offer::of(site, Storage::Stack { rank, levels }, losses[levels]);
        Ok((1..losses.len()).map(stack).collect())
    }

    /// One level, since those of all linears are written in the order of their priority; or all that is
    /// no level.
    fn make(
        &self,
        site: &Site,
        weights: &Weights<'_>,
        analysis: &Analysis,
        chosen: Storage,
        piece: Piece,
    ) -> Result<Pieces> {
        let Storage::Stack { levels, .. } = chosen else { return Err(cannot_make(self, chosen)) };
        if let Piece::Level(level, _) = piece
            && level < levels
        {
            let part = |piece: Piece| Ok((piece, analysis.tensor(&piece.suffix())?));
            return Piece::of_level(level).into_iter().map(part).collect();
        }
        let mut pieces = Pieces::from([(Piece::Scale, analysis.tensor("scale")?)]);
        if let Some(bias) = weights.bias(site)? {
            pieces.insert(Piece::Bias, bias.to_dtype(DType::F32)?);
        }
        Ok(pieces)
    }

    fn relative_error(&self, analysis: &Analysis, chosen: Storage) -> Result<Option<f64>> {
        let errors = analysis.numbers("errors")?;
        Ok(chosen.levels().checked_sub(1).and_then(|last| errors.get(last).copied()))
    }
}

/// `s_j = √E[x_j²]`, held above a small share of their mean.
fn scale(squares: &[f64]) -> Vec<f32> {
    let roots: Vec<f64> = squares.iter().map(|square| square.sqrt()).collect();
    let mean = roots.iter().sum::<f64>() / roots.len().max(1) as f64;
    let least = if mean > 0.0 { LEAST_SCALE * mean } else { 1.0 };
    roots.iter().map(|root| (root + least) as f32).collect()
}

/// What it costs to be left with some of a weight.
struct Prices {
    /// `⟨A, B⟩` of scaled weights.
    metric: Metric,
    /// What the share costs that is left of the whole, where gradients were taken.
    shared: Option<Shared>,
}

struct Shared {
    /// All of the weight, `R_0 [out, in]`.
    origin: Tensor,
    /// `⟨W, W⟩`.
    whole: f64,
    /// `½ E[g_γ²]`.
    gain: f64,
}

impl Prices {
    /// Of the weight of which all, `residual [out, in]`, is left.
    fn new(
        stats: Option<&SiteStats>,
        squares: &[f64],
        scale: &[f32],
        residual: &Tensor,
    ) -> Result<Self> {
        let ((m, _), device) = (residual.dims2()?, residual.device());
        let per_scale = squares.iter().zip(scale).map(|(x, &s)| x / f64::from(s).powi(2));
        let columns: Vec<f64> = per_scale.collect();
        let rows = match stats.map(|stats| &stats.importance) {
            Some(Importance::Gradients { channels, gain }) => {
                let rows = channels.iter().map(|g| 0.5 * g).collect();
                let metric = Metric::new(rows, columns, device)?;
                let (origin, whole) = (residual.copy()?, metric.square(residual)?);
                let shared = Some(Shared { origin, whole, gain: 0.5 * gain });
                return Ok(Self { metric, shared });
            }
            Some(Importance::Energy(share)) => {
                // A share of all that is written, which has first to be known.
                let all = Metric::new(vec![1.0; m], columns.clone(), device)?.square(residual)?;
                vec![share / all.max(f64::MIN_POSITIVE); m]
            }
            // What no token reached costs next to nothing, and not nothing.
            None => vec![f64::from(f32::MIN_POSITIVE); m],
        };
        Ok(Self { metric: Metric::new(rows, columns, device)?, shared: None })
    }

    /// The expected loss with `residual` left.
    fn loss(&self, residual: &Tensor) -> Result<f64> {
        let square = self.metric.square(residual)?;
        match &self.shared {
            Some(Shared { origin, whole, gain }) if *whole > 0.0 => {
                let share = self.metric.product(residual, origin)? / whole;
                Ok(square + share.powi(2) * (gain - whole))
            }
            _ => Ok(square),
        }
    }
}

/// A scalar product of matrices `[out, in]` that counts rows and columns differently.
struct Metric {
    /// `[1, out]` f64.
    rows: Tensor,
    /// `[in, 1]` f64.
    columns: Tensor,
}

impl Metric {
    fn new(rows: Vec<f64>, columns: Vec<f64>, device: &Device) -> Result<Self> {
        let (m, n) = (rows.len(), columns.len());
        Ok(Self {
            rows: Tensor::from_vec(rows, (1, m), device)?,
            columns: Tensor::from_vec(columns, (n, 1), device)?,
        })
    }

    /// Every element of the weight itself counts the same.
    fn plain(scale: &[f32], m: usize, device: &Device) -> Result<Self> {
        let columns = scale.iter().map(|&s| 1.0 / f64::from(s).powi(2)).collect();
        Self::new(vec![1.0; m], columns, device)
    }

    /// `⟨a, a⟩`.
    fn square(&self, a: &Tensor) -> Result<f64> {
        self.product(a, a)
    }

    /// `Σ_o rows_o Σ_c columns_c a[o, c] b[o, c]`.
    fn product(&self, a: &Tensor, b: &Tensor) -> Result<f64> {
        /// Rows that are widened to f64 at a time.
        const ROWS: usize = 256;
        let m = a.dim(0)?;
        let mut sum = 0.0;
        for first in (0..m).step_by(ROWS) {
            let count = ROWS.min(m - first);
            let wide = |t: &Tensor| t.narrow(0, first, count)?.to_dtype(DType::F64);
            let by_row = (wide(a)? * wide(b)?)?.matmul(&self.columns)?;
            let rows = self.rows.narrow(1, first, count)?;
            sum += rows.matmul(&by_row)?.flatten_all()?.to_vec1::<f64>()?[0];
        }
        Ok(sum)
    }
}

/// Where nothing was measured: every level leaves a third of the energy.
fn assumed_losses(site: &Site, levels: usize) -> Vec<f64> {
    let whole = site.parameters(Storage::Dense) as f64;
    (0..=levels).map(|level| whole / 3.0_f64.powi(level as i32)).collect()
}

/// A seed of its own for every linear.
fn seed_of(name: &str) -> u64 {
    let mut digest = Digest::default();
    digest.update(name.as_bytes());
    // Sixteen of its digits are what an u64 holds.
    u64::from_str_radix(&digest.hex()[..16], 16).unwrap_or(0)
}
