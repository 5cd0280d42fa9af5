//! `LoRD`: every linear's output projected on its own principal directions (atomic feature
//! mimicking, Yu & Wu, AAAI 2023; low-rank decomposition of code models, arXiv 2309.14021).
//!
//! With `C = E[y yᵀ]` of the output `y = W x` and its leading eigenvectors `U [m, r]`,
//!
//! ```text
//! y ≈ U Uᵀ y      v = Uᵀ W [r, n]      u = U [m, r]      lost share = Σ_{i>r} λ_i / Σ λ_i
//! ```
//!
//! which no other matrix of rank `r` does better on these outputs. A linear with a bias is centred:
//! `C = E[(y-μ)(y-μ)ᵀ]` and `b' = μ - U Uᵀ (μ - b)`. Nothing is damped and nothing inverted; one
//! decomposition serves every rank, because leading eigenvectors are nested.
//!
//! `C` comes from whichever second moment was taken: of the output, or of the input through
//! `C = W G Wᵀ`. Where `W` is taller than wide the eigenproblem is solved on the small side: with
//! `G = L Lᵀ` and `P = W L [m, n]`, `PᵀP = V Λ Vᵀ` has the same eigenvalues and `U` spans `P V`.
//!
//! Where the gradient `g` of the loss at the output was measured, outputs count by their effect on the
//! loss. With `S = diag(s)`, `s_o² = E[g_o²]` relative to its mean `ḡ`, the directions are the principal
//! directions of `S y`:
//!
//! ```text
//! y ≈ S⁻¹ U Uᵀ S y      v = Uᵀ S W      u = S⁻¹ U      expected loss = ½ ḡ Σ_{i>r} λ_i   nats per token
//! ```
//!
//! which minimises the second-order estimate `½ Σ_o E[g_o²] E[δy_o²]` over all matrices of rank `r`.
//! As published (`paper`) the directions are those of `y`, and only the expected loss is in nats.

use candle_core::{DType, Tensor};

use super::low_rank::{can_shrink, offers, ranks, tail_shares, tails};
use super::{Analysis, Entry, Needs, Pass, Pieces, Repairs, Weights, cannot_make};
use crate::arch::{Piece, Site, Storage};
use crate::error::{Error, Result};
use crate::linalg;
use crate::measure::{Importance, Side, SiteStats};
use crate::plan::Offer;
use crate::settings::{Method, Settings};

/// Eigenvalues below this share of the largest are rounding, whatever their sign: second moments
/// are f32 products.
const ROUNDING: f64 = 1e-6;

/// The method, as it is listed.
pub(super) const ENTRY: Entry = Entry {
    name: "lord",
    about: "Principal directions of each linear's outputs, measured on text",
    stacks: false,
    make: |settings| Box::new(Lord::new(settings)),
};

/// The pass.
#[derive(Debug, Clone, Copy)]
pub struct Lord {
    rank_multiple: usize,
    paper: bool,
}

impl Lord {
    /// The pass with the `rank_multiple` and `paper` of `settings`.
    pub fn new(settings: &Settings) -> Self {
        Self { rank_multiple: settings.rank_multiple, paper: settings.paper }
    }
}

impl Pass for Lord {
    fn method(&self) -> Method {
        Method::LORD
    }

    fn needs(&self) -> Needs {
        Needs { text: true, moments: true }
    }

    fn takes(&self, site: &Site) -> bool {
        can_shrink(site, self.rank_multiple)
    }

    fn analyse(
        &self,
        site: &Site,
        weights: &Weights<'_>,
        stats: Option<&SiteStats>,
    ) -> Result<Analysis> {
        let stats = stats.ok_or_else(|| Error::Bug(format!("`{}` was not measured", site.name)))?;
        let bias = weights.bias(site)?;
        let mut repairs = Repairs::default();
        let scale = match &stats.importance {
            Importance::Gradients { channels, .. } if !self.paper => {
                channel_scale(channels, &mut repairs)
            }
            Importance::Gradients { .. } | Importance::Energy(_) => None,
        };
        // No offer takes more columns than this, whatever its multiple. Pricing directions that gradients
        // had no part in takes all of them.
        let kept = ranks(site, 1).last().unwrap_or(0);
        let priced = scale.is_none() && matches!(stats.importance, Importance::Gradients { .. });
        let wanted = if priced { usize::MAX } else { kept };
        let bias = bias.as_ref();
        let found = principal_directions(site, weights, bias, stats, scale.as_deref(), wanted)?;
        let losses = losses(&found, &stats.importance, scale.is_some())?;
        let basis = found.vectors.narrow(1, 0, kept)?.to_dtype(DType::F32)?;
        let device = found.vectors.device();
        repairs.add(found.repairs);
        let mut analysis = Analysis::repaired(repairs)
            .with("losses", Tensor::new(losses, device)?)
            .with("basis", basis);
        if let Some(scale) = scale {
            analysis = analysis.with("scale", Tensor::new(scale, device)?);
        }
        if let Some(mean) = found.mean {
            analysis = analysis.with("mean", mean);
        }
        Ok(analysis)
    }

    fn offers(&self, site: &Site, analysis: Option<&Analysis>) -> Result<Vec<Offer>> {
        offers(site, analysis, self.rank_multiple)
    }

    fn make(
        &self,
        site: &Site,
        weights: &Weights<'_>,
        analysis: &Analysis,
        chosen: Storage,
        _: Piece,
    ) -> Result<Pieces> {
        let Storage::LowRank { rank } = chosen else { return Err(cannot_make(self, chosen)) };
        let basis = analysis.tensor("basis")?.narrow(1, 0, rank)?.to_dtype(DType::F64)?;
        // y ≈ u p y, with p = Uᵀ S and u = S⁻¹ U.
        let (u, p) = match analysis.has("scale") {
            true => {
                let scale = analysis.tensor("scale")?.unsqueeze(1)?;
                (basis.broadcast_div(&scale)?, basis.broadcast_mul(&scale)?.t()?)
            }
            false => (basis.contiguous()?, basis.t()?),
        };
        let p = p.contiguous()?;
        // The product is rounded to the checkpoint's dtype; f32 is enough for it, and twice as fast.
        let weight = weights.dense(site)?;
        let v = p.to_dtype(DType::F32)?.matmul(&weight)?;
        let mut pieces = Pieces::from([(Piece::V, v)]);
        if let Some(bias) = weights.bias(site)? {
            // b' = μ - u p (μ - b)
            let mean = analysis.tensor("mean")?;
            let off = (&mean - &bias)?.unsqueeze(1)?;
            let kept = u.matmul(&p.matmul(&off)?)?.squeeze(1)?;
            let centred = (&mean - kept)?.to_dtype(DType::F32)?;
            pieces.insert(Piece::Bias, centred);
        }
        pieces.insert(Piece::U, u.to_dtype(DType::F32)?);
        Ok(pieces)
    }
}

/// The least importance of a channel, relative to the mean. Without it, a channel that the calibration
/// text gave no gradient would be free to take any value.
const LEAST_IMPORTANCE: f64 = 1e-4;

/// `s_o = √(E[g_o²] / mean)`, held above the least; `None` where no channel has any gradient.
fn channel_scale(squares: &[f64], repairs: &mut Repairs) -> Option<Vec<f64>> {
    let mean = squares.iter().sum::<f64>() / squares.len() as f64;
    if mean <= 0.0 {
        return None;
    }
    let relative = squares.iter().map(|square| square / mean);
    repairs.raised_channels += relative.clone().filter(|&r| r < LEAST_IMPORTANCE).count() as u64;
    Some(relative.map(|r| r.max(LEAST_IMPORTANCE).sqrt()).collect())
}

/// The loss of keeping only the first `r` directions, for every `r`.
fn losses(found: &Directions, importance: &Importance, scaled: bool) -> Result<Vec<f64>> {
    let energies = &found.energies;
    match importance {
        Importance::Energy(share) => Ok(tail_shares(energies, *share)),
        Importance::Gradients { channels, .. } if scaled => {
            let mean = channels.iter().sum::<f64>() / channels.len() as f64;
            Ok(tails(energies, 0.5 * mean))
        }
        Importance::Gradients { channels, .. } => {
            // Directions of y itself: direction i costs ½ λ_i Σ_o E[g_o²] U_oi².
            let channels =
                Tensor::from_slice(channels, (1, channels.len()), found.vectors.device())?;
            let price = channels.matmul(&found.vectors.sqr()?)?.squeeze(0)?.to_vec1::<f64>()?;
            let priced: Vec<f64> = energies.iter().zip(price).map(|(e, p)| e * p).collect();
            Ok(tails(&priced, 0.5))
        }
    }
}

/// The spectrum of a linear's output and the directions that belong to it.
#[derive(Debug)]
struct Directions {
    /// Energy per token along each direction, largest first, none negative.
    energies: Vec<f64>,
    /// `[m, k]` f64, orthonormal columns in the same order, as many as were wanted or there are.
    vectors: Tensor,
    /// `E[y] [m]` f64 where the linear has a bias.
    mean: Option<Tensor>,
    /// Negative eigenvalues beyond rounding.
    repairs: Repairs,
}

/// Principal directions of `S y`, `y = W x + b`, over the calibration tokens, about the mean where
/// there is a bias and about zero where there is none; the energies of all of them, the vectors of
/// the first `wanted`. `scale [m]` is the diagonal of `S`. The weight is read only where the moment
/// of the outputs is not at hand.
fn principal_directions(
    site: &Site,
    weights: &Weights<'_>,
    bias: Option<&Tensor>,
    stats: &SiteStats,
    scale: Option<&[f64]>,
    wanted: usize,
) -> Result<Directions> {
    let (m, n) = (site.out_features, site.in_features);
    let (moment, name) = (stats.moment()?, site.name.as_str());
    let centred = bias.is_some();
    let mut mean = None;
    if let (Some(_), Side::Output) = (bias, stats.side) {
        mean = Some(moment.mean(name)?);
    }
    let scaled_rows = |t: Tensor| match scale {
        Some(scale) => {
            let scale = Tensor::from_slice(scale, (m, 1), t.device())?;
            Ok::<_, Error>(t.broadcast_mul(&scale)?)
        }
        None => Ok(t),
    };
    let (mut energies, vectors) = match stats.side {
        Side::Output => {
            let half = scaled_rows(moment.second(centred, name)?)?;
            let eigen = linalg::eigh(&scaled_rows(half.t()?.contiguous()?)?, name)?;
            (eigen.values, eigen.vectors)
        }
        Side::Input => {
            let weight = weights.weight(site)?;
            if let Some(b) = bias {
                let x = moment.mean(name)?.unsqueeze(1)?;
                mean = Some((weight.matmul(&x)?.squeeze(1)? + b)?);
            }
            let weight = scaled_rows(weight)?;
            if m <= n {
                let second = moment.second(centred, name)?;
                let c = weight.matmul(&second)?.matmul(&weight.t()?)?;
                let eigen = linalg::eigh(&c, name)?;
                (eigen.values, eigen.vectors)
            } else {
                let p = weight.matmul(&moment.root(centred, name)?)?;
                // Each of these is as large as the weight: none is held longer than it is needed.
                drop(weight);
                let eigen = linalg::eigh(&p.t()?.matmul(&p)?, name)?;
                // Columns of P V are orthogonal but for rounding, and nested: the first are enough.
                let leading = eigen.vectors.narrow(1, 0, wanted.min(n))?.contiguous()?;
                let spanning = p.matmul(&leading)?;
                drop(p);
                (eigen.values, linalg::orthonormalise(&spanning, name)?)
            }
        }
    };
    let threshold = -ROUNDING * energies.first().copied().unwrap_or(0.0);
    let mut repairs = Repairs::default();
    for energy in &mut energies {
        if *energy < threshold {
            repairs.clipped_eigenvalues += 1;
        }
        *energy = energy.max(0.0);
    }
    Ok(Directions { energies, vectors, mean, repairs })
}
