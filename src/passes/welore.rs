//! `WeLore`: the truncated singular value decomposition of the weight, without data
//! (arXiv 2407.11239).
//!
//! ```text
//! W = U diag(s) Vᵀ      u = U_r √s_r [m, r]      v = √s_r V_rᵀ [r, n]      lost share = Σ_{i>r} s_i² / Σ s_i²
//! ```
//!
//! The factors do not depend on data. Where text was measured, the expected loss does: with
//! `c = Uᵀ W x`, keeping `r` leaves out `Σ_{i>r} u_i c_i`, priced by [`truncation_losses`]. So its
//! offers are in one currency with the offers of other methods.
//!
//! [`Rule::Reduce`](crate::settings::Rule::Reduce) is the paper's rule ([`Pass::reduced_ranks`]): one threshold over the min-max normalised
//! singular values of all linears together, as the exact quantile.

use candle_core::{DType, Tensor};

use super::low_rank::{can_shrink, offers, ranks, tail_shares, truncation_losses};
use super::{Analysis, Entry, Needs, Pass, Pieces, Weights, cannot_make};
use crate::arch::{Piece, Site, Storage};
use crate::error::Result;
use crate::linalg::{self, Svd};
use crate::measure::{Importance, Side, SiteStats};
use crate::plan::Offer;
use crate::settings::{Method, Settings};

/// The method, as it is listed.
pub(super) const ENTRY: Entry = Entry {
    name: "welore",
    about: "Singular values of the weights alone",
    stacks: false,
    make: |settings| Box::new(Welore::new(settings)),
};

/// The pass.
#[derive(Debug, Clone, Copy)]
pub struct Welore {
    rank_multiple: usize,
}

impl Welore {
    /// The pass with the `rank_multiple` of `settings`.
    pub fn new(settings: &Settings) -> Self {
        Self { rank_multiple: settings.rank_multiple }
    }
}

impl Pass for Welore {
    fn method(&self) -> Method {
        Method::WELORE
    }

    /// Text prices the offers, where there is any.
    fn needs(&self) -> Needs {
        Needs { text: false, moments: true }
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
        let weight = weights.weight(site)?;
        let svd = linalg::svd(&weight, &site.name)?;
        let losses = if let Some(stats) = stats {
            let second = coefficients(site, &svd, weights.bias(site)?.as_ref(), stats)?;
            measured_losses(&svd.u, &second, &stats.importance)?
        } else {
            // With no data every parameter counts the same.
            let energies: Vec<f64> = svd.s.iter().map(|s| s * s).collect();
            tail_shares(&energies, site.parameters(Storage::Dense) as f64)
        };
        let kept = ranks(site, 1).last().unwrap_or(0).min(svd.s.len());
        let device = svd.u.device();
        let roots: Vec<f64> = svd.s[..kept].iter().map(|s| s.sqrt()).collect();
        let roots = Tensor::from_vec(roots, kept, device)?;
        let u = svd.u.narrow(1, 0, kept)?.broadcast_mul(&roots.unsqueeze(0)?)?;
        let v = svd.vt.narrow(0, 0, kept)?.broadcast_mul(&roots.unsqueeze(1)?)?;
        Ok(Analysis::default()
            .with("singular_values", Tensor::from_vec(svd.s.clone(), svd.s.len(), device)?)
            .with("losses", Tensor::new(losses, device)?)
            .with("u", u.to_dtype(DType::F32)?)
            .with("v", v.to_dtype(DType::F32)?))
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
        let u = analysis.tensor("u")?.narrow(1, 0, rank)?.contiguous()?;
        let v = analysis.tensor("v")?.narrow(0, 0, rank)?.contiguous()?;
        let mut pieces = Pieces::from([(Piece::U, u), (Piece::V, v)]);
        if let Some(bias) = weights.bias(site)? {
            pieces.insert(Piece::Bias, bias.to_dtype(DType::F32)?);
        }
        Ok(pieces)
    }

    /// The paper's ranks for an effective rank reduction of `fraction` in `[0, 1)`: singular values of each
    /// linear are scaled to `z = (s - s_min) / (s_max - s_min)`, the `fraction` quantile of all of them is
    /// the threshold, and a linear keeps as many as lie above it. Where that is at least half of its rank
    /// it stays dense (`None`), since square factors would not be smaller.
    fn reduced_ranks(
        &self,
        linears: &[(&Site, Analysis)],
        fraction: f64,
    ) -> Result<Option<Vec<Option<usize>>>> {
        let multiple = self.rank_multiple;
        let mut scaled = Vec::with_capacity(linears.len());
        for (_, analysis) in linears {
            let s = analysis.numbers("singular_values")?;
            let (max, min) = (s.first().copied().unwrap_or(0.0), s.last().copied().unwrap_or(0.0));
            let span = if max > min { max - min } else { 1.0 };
            scaled.push(s.iter().map(|v| (v - min) / span).collect::<Vec<f64>>());
        }
        let mut pooled: Vec<f64> = scaled.iter().flatten().copied().collect();
        pooled.sort_by(f64::total_cmp);
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a position in a list"
        )]
        let position = (fraction * pooled.len() as f64).round() as usize;
        let threshold = pooled.get(position).copied().unwrap_or(f64::INFINITY);
        let rank = |(site, z): (&Site, &Vec<f64>)| {
            let above = z.partition_point(|&z| z >= threshold);
            let rank = (above / multiple * multiple).max(multiple);
            let shrinks = site.bytes(Storage::LowRank { rank }) < site.stored_bytes();
            (2 * above < z.len() && shrinks).then_some(rank)
        };
        Ok(Some(linears.iter().map(|(site, _)| *site).zip(&scaled).map(rank).collect()))
    }
}

/// `E[c cᵀ] [k, k]` f64 of the coefficients `c = Uᵀ W x` of the output, bias left out.
fn coefficients(
    site: &Site,
    svd: &Svd,
    bias: Option<&Tensor>,
    stats: &SiteStats,
) -> Result<Tensor> {
    let (moment, name) = (stats.moment()?, site.name.as_str());
    match stats.side {
        Side::Input => {
            // U is orthonormal: Uᵀ W = diag(s) Vᵀ.
            let s = Tensor::from_slice(&svd.s, (svd.s.len(), 1), svd.u.device())?;
            let a = svd.vt.broadcast_mul(&s)?;
            Ok(a.matmul(&moment.second(false, name)?)?.matmul(&a.t()?)?)
        }
        Side::Output => {
            let mut second = moment.second(false, name)?;
            if let Some(bias) = bias {
                // y - b: E[y yᵀ] - μ bᵀ - b μᵀ + b bᵀ
                let (mean, bias) = (moment.mean(name)?.unsqueeze(1)?, bias.unsqueeze(1)?);
                let cross = mean.matmul(&bias.t()?)?;
                second = ((second - &cross)? - cross.t()?)?.add(&bias.matmul(&bias.t()?)?)?;
            }
            Ok(svd.u.t()?.matmul(&second)?.matmul(&svd.u)?)
        }
    }
}

/// The loss of keeping only the first `r` singular values, for every `r`.
fn measured_losses(u: &Tensor, second: &Tensor, importance: &Importance) -> Result<Vec<f64>> {
    match importance {
        Importance::Gradients { channels, .. } => truncation_losses(u, second, channels),
        Importance::Energy(share) => {
            let diagonal = second.to_vec2::<f64>()?;
            let energies: Vec<f64> = (0..diagonal.len()).map(|i| diagonal[i][i]).collect();
            Ok(tail_shares(&energies, *share))
        }
    }
}
