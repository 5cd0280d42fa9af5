//! `BitStack`: every linear as a sum of residual blocks, each a matrix of signs and factors of the
//! absolute value (arXiv 2410.23918).
//!
//! With input channels scaled by `s_j = √E[x_j²] + ε`, the [`Levels`] of `W diag(s)` are
//!
//! ```text
//! W ≈ (Σ_i S_i ∘ (u_i v_i)) diag(1/s)
//! ```
//!
//! What is left after `j` blocks, `D = R_j diag(1/s)`, is a share `α` of the weight itself, since a least
//! squares fit is always too small, and beyond it has the signs of noise. Of noise, cross terms of
//! inputs and outputs are left out. A share moves all tokens of a window alike, and costs what the
//! gradient at the weight's gain `γ` says ([`Importance::Gradients`]). In nats per token, with
//! `⟨A, B⟩ = ½ Σ_o E[g_o²] Σ_c E[x_c²] A[o, c] B[o, c]`,
//!
//! ```text
//! α = ⟨D, W⟩ / ⟨W, W⟩      loss_j = ⟨D - α W, D - α W⟩ + ½ α² E[g_γ²] = ⟨D, D⟩ + α² (½ E[g_γ²] - ⟨W, W⟩)
//! ```
//!
//! The scale is kept beside the blocks and never folded into what comes before, so `o_proj` under
//! grouped-query attention is scaled as every other linear is.

use candle_core::{DType, Device, Tensor};

use super::absolute_value::{Level, Levels};
use super::{Analysis, Method, Needs, Pass, Repairs, UnitOutput, UnitStats, Weights, single};
use crate::arch::{Site, Storage, Unit};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::measure::{Importance, SiteStats};
use crate::plan::Offer;

/// The least a channel is scaled by, relative to the mean.
const LEAST_SCALE: f64 = 1e-4;

/// How a stack is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StackOptions {
    /// Blocks of every linear.
    pub levels: usize,
    /// Rank of the factors.
    pub rank: usize,
    /// Decompose exactly, level by level.
    pub exact: bool,
}

impl Default for StackOptions {
    fn default() -> Self {
        Self { levels: 8, rank: 16, exact: false }
    }
}

/// The pass.
#[derive(Debug, Clone, Copy)]
pub struct Bitstack {
    options: StackOptions,
}

impl Bitstack {
    /// With the given options.
    pub fn new(options: StackOptions) -> Self {
        Self { options }
    }

    /// The rank for a site, which may be too small for the one asked for.
    fn rank(&self, site: &Site) -> usize {
        self.options.rank.min(site.out_features).min(site.in_features)
    }

    /// Rank, levels, and whether exactly: what an analysis holds for.
    fn made_with(&self, site: &Site) -> [f64; 3] {
        let StackOptions { levels, exact, .. } = self.options;
        [self.rank(site) as f64, levels as f64, f64::from(u8::from(exact))]
    }

    /// A job that was made with other options is of no use.
    fn expect_made_alike(&self, site: &Site, analysis: &Analysis) -> Result<()> {
        let found = analysis.numbers("made_with")?;
        if found == self.made_with(site) {
            return Ok(());
        }
        let [rank, levels] = [0, 1].map(|at| found.get(at).copied().unwrap_or(0.0));
        Err(Error::usage(
            format!("the job holds {levels} levels of blocks of rank {rank} of each linear"),
            "give the same --rank, --levels and --exact-svd, or another --job folder",
        ))
    }
}

impl Pass for Bitstack {
    fn method(&self) -> Method {
        Method::Bitstack
    }

    fn needs(&self) -> Needs {
        Needs::Squares
    }

    fn takes(&self, unit: &Unit) -> bool {
        single(unit).is_ok_and(|site| site.storage == Storage::Dense)
    }

    fn analyse(&self, unit: &Unit, weights: &Weights<'_>, stats: &UnitStats) -> Result<Analysis> {
        let site = single(unit)?;
        let weight = weights.dense(site)?;
        let (m, n) = weight.dims2()?;
        let stats = stats.get(&site.name);
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
        let options = StackOptions { rank: self.rank(site), ..self.options };
        let mut levels = Levels::new(residual, options, seed_of(&site.name))?;
        for level in 0.. {
            let subject = format!("{}, level {level}", site.name);
            let Some(Level { sign, u, v, fell_back }) = levels.take(&subject)? else { break };
            let loss = prices.loss(levels.residual())?;
            if !loss.is_finite() {
                let what = format!("`{}.{level}`", site.name);
                return Err(Error::NonFinite { what, detail: "its factors in f16".into() });
            }
            losses.push(loss);
            let left = sizes.square(levels.residual())?;
            errors.push((left / whole.max(f64::MIN_POSITIVE)).sqrt());
            repairs.exact_decompositions += u64::from(fell_back);
            analysis = analysis
                .with(format!("{level}.sign"), sign)
                .with(format!("{level}.u"), u)
                .with(format!("{level}.v"), v);
        }
        analysis.repairs = repairs;
        Ok(analysis
            .with("losses", Tensor::new(losses, &Device::Cpu)?)
            .with("errors", Tensor::new(errors, &Device::Cpu)?)
            .with("made_with", Tensor::new(&self.made_with(site), &Device::Cpu)?)
            .with("scale", Tensor::new(scale, &Device::Cpu)?))
    }

    fn offers(&self, unit: &Unit, analysis: Option<&Analysis>) -> Result<Vec<Offer>> {
        let site = single(unit)?;
        let losses = match analysis {
            Some(analysis) => {
                self.expect_made_alike(site, analysis)?;
                analysis.numbers("losses")?
            }
            None => assumed_losses(site, self.options.levels),
        };
        let rank = self.rank(site);
        let stacks = (1..losses.len()).map(|levels| {
            let storage = Storage::Stack { rank, levels };
            let bytes = site.bytes(&storage);
            Offer { bytes, expected_loss: losses[levels], storages: vec![storage] }
        });
        let stored = Offer {
            bytes: site.bytes(&site.storage),
            expected_loss: 0.0,
            storages: vec![site.storage.clone()],
        };
        Ok(stacks.chain([stored]).collect())
    }

    fn apply(
        &self,
        unit: &Unit,
        weights: &Weights<'_>,
        analysis: &Analysis,
        chosen: &Offer,
    ) -> Result<UnitOutput> {
        let site = single(unit)?;
        let [Storage::Stack { rank, levels }] = *chosen.storages.as_slice() else {
            return Err(Error::Bug(format!("bitstack cannot carry out {:?}", chosen.storages)));
        };
        let mut output = beside_blocks(site, weights, analysis)?;
        for level in 0..levels {
            output.extend(block(site, rank, level, analysis)?);
        }
        Ok(output)
    }

    /// Blocks of all linears are written in the order of their priority.
    fn apply_part(
        &self,
        unit: &Unit,
        weights: &Weights<'_>,
        analysis: &Analysis,
        chosen: &Offer,
        tensor: &str,
    ) -> Result<Option<UnitOutput>> {
        let site = single(unit)?;
        let [Storage::Stack { rank, levels }] = *chosen.storages.as_slice() else {
            return Ok(None);
        };
        let of = |level: &usize| site.level_tensors(rank, *level).iter().any(|t| t.name == tensor);
        Ok(Some(match (0..levels).find(of) {
            Some(level) => block(site, rank, level, analysis)?,
            None => beside_blocks(site, weights, analysis)?,
        }))
    }
}

/// The tensors of a linear that are not blocks.
fn beside_blocks(site: &Site, weights: &Weights<'_>, analysis: &Analysis) -> Result<UnitOutput> {
    let mut output = UnitOutput::new();
    output.insert(format!("{}.scale", site.name), analysis.tensor("scale")?);
    if let Some(bias) = weights.bias(site)? {
        output.insert(format!("{}.bias", site.name), bias.to_dtype(DType::F32)?);
    }
    Ok(output)
}

/// The tensors of one block.
fn block(site: &Site, rank: usize, level: usize, analysis: &Analysis) -> Result<UnitOutput> {
    let parts = ["sign", "u", "v"].into_iter().zip(site.level_tensors(rank, level));
    parts
        .map(|(part, spec)| Ok((spec.name, analysis.tensor(&format!("{level}.{part}"))?)))
        .collect()
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
            Some(Importance::Share(share)) => {
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
    let whole = site.parameters(&Storage::Dense) as f64;
    (0..=levels).map(|level| whole / 3.0_f64.powi(level as i32)).collect()
}

/// A seed of its own for every linear.
fn seed_of(name: &str) -> u64 {
    let mut digest = Digest::default();
    digest.update(name.as_bytes());
    // Sixteen of its digits are what an u64 holds.
    u64::from_str_radix(&digest.hex()[..16], 16).unwrap_or(0)
}
