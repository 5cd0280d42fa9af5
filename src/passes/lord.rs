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
//! Where the gradient `g` of the loss at the output was measured, outputs count by what they do to the
//! loss. With `S = diag(s)`, `s_o² = E[g_o²]` relative to its mean `ḡ`, the directions are those of
//! `S y`:
//!
//! ```text
//! y ≈ S⁻¹ U Uᵀ S y      v = Uᵀ S W      u = S⁻¹ U      expected loss = ½ ḡ Σ_{i>r} λ_i   nats per token
//! ```
//!
//! which minimises the second-order estimate `½ Σ_o E[g_o²] E[δy_o²]` over all matrices of rank `r`.
//! As published (`paper`) the directions are those of `y`, and only the expected loss is in nats.

use candle_core::{DType, Tensor};

use super::low_rank::{assumed_losses, can_shrink, offers, ranks, tail_shares, tails};
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
    about: "Principal directions of each linear's outputs (needs --text)",
    make: |settings| Box::new(Lord::new(settings)),
};

/// The pass.
#[derive(Debug, Clone, Copy)]
pub struct Lord {
    rank_multiple: usize,
    paper: bool,
}

impl Lord {
    /// With what `settings` say of ranks and decompositions.
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
            _ => None,
        };
        // No offer takes more columns than this, whatever its multiple. Pricing directions that gradients
        // had no part in takes all of them.
        let kept = ranks(site, 1).last().unwrap_or(0);
        let priced = scale.is_none() && matches!(stats.importance, Importance::Gradients { .. });
        let wanted = if priced { usize::MAX } else { kept };
        let weight = || weights.weight(site);
        let found =
            principal_directions(site, &weight, bias.as_ref(), stats, scale.as_deref(), wanted)?;
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
        let losses = match analysis {
            Some(analysis) => analysis.numbers("losses")?,
            None => assumed_losses(site),
        };
        Ok(offers(site, &losses, self.rank_multiple))
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

/// The least a channel may count relative to the mean: one that the calibration text gave no gradient
/// is not free to be anything.
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

/// What keeping the first `r` directions costs, for every `r`.
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
pub(crate) struct Directions {
    /// Energy per token along each direction, largest first, none negative.
    pub(crate) energies: Vec<f64>,
    /// `[m, k]` f64, orthonormal columns in the same order, as many as were wanted or there are.
    pub(crate) vectors: Tensor,
    /// `E[y] [m]` f64 where the linear has a bias.
    pub(crate) mean: Option<Tensor>,
    /// Negative eigenvalues beyond rounding.
    pub(crate) repairs: Repairs,
}

/// Principal directions of `S y`, `y = W x + b`, over the calibration tokens, about the mean where
/// there is a bias and about zero where there is none; the energies of all of them, the vectors of
/// the first `wanted`. `scale [m]` is the diagonal of `S`. The weight is read only where the moment
/// of the outputs is not at hand.
pub(crate) fn principal_directions(
    site: &Site,
    weight: &dyn Fn() -> Result<Tensor>,
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
            let weight = weight()?;
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use candle_core::{Device, safetensors::save};

    use super::*;
    use crate::arch::Role;
    use crate::checkpoint::Dtype;
    use crate::measure::SecondMoment;
    use crate::random::split_mix;
    use crate::settings::Rule;

    const TOKENS: usize = 300;

    /// Numbers in (-1, 1).
    fn random(shape: (usize, usize), seed: u64) -> Tensor {
        let mut state = seed;
        let count = shape.0 * shape.1;
        let values: Vec<f32> =
            (0..count).map(|_| (split_mix(&mut state) >> 40) as f32 / 8_388_608.0 - 1.0).collect();
        Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    fn site(m: usize, n: usize, bias: bool) -> Site {
        let site = Site::linear("linear", Role::AttnQ, [m, n]);
        if bias { site.with_bias(Dtype::F32) } else { site }
    }

    /// Correlated inputs with a mean, one channel much larger than the rest and one always zero.
    fn inputs(n: usize, seed: u64) -> Tensor {
        let mixed = random((TOKENS, n), seed).matmul(&random((n, n), seed + 1)).unwrap();
        let scale: Vec<f32> =
            (0..n).map(|i| [1.0, 0.0, 30.0][if i < 3 && n > 4 { i } else { 0 }]).collect();
        let scale = Tensor::from_vec(scale, (1, n), &Device::Cpu).unwrap();
        mixed.broadcast_add(&random((1, n), seed + 2)).unwrap().broadcast_mul(&scale).unwrap()
    }

    fn stats(side: Side, rows: &Tensor) -> SiteStats {
        let mut moment = SecondMoment::new(rows.dim(1).unwrap(), &Device::Cpu).unwrap();
        for chunk in rows.chunk(3, 0).unwrap() {
            moment.add(&chunk.contiguous().unwrap()).unwrap();
        }
        SiteStats {
            side,
            second: Some(Arc::new(moment)),
            input_squares: Arc::from([]),
            importance: Importance::Energy(1.0),
        }
    }

    fn wide(t: &Tensor) -> Tensor {
        t.to_dtype(DType::F64).unwrap()
    }

    fn squared(t: &Tensor) -> f64 {
        t.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap() / TOKENS as f64
    }

    /// Energy per token that `y` loses when projected on the first `r` columns of `u`.
    fn lost(y: &Tensor, u: &Tensor, r: usize) -> f64 {
        let u = u.narrow(1, 0, r).unwrap().contiguous().unwrap();
        let kept = y.matmul(&u).unwrap().matmul(&u.t().unwrap()).unwrap();
        squared(&(y - kept).unwrap())
    }

    #[test]
    fn the_error_of_every_rank_is_the_tail_of_the_spectrum_on_every_route() {
        for (m, n) in [(7, 13), (13, 7), (16, 16), (1, 5), (5, 1), (33, 31), (12, 40), (40, 12)] {
            let (w, x) = (wide(&random((m, n), 11)), inputs(n, 5));
            let y = wide(&x).matmul(&w.t().unwrap()).unwrap();
            let outputs = y.to_dtype(DType::F32).unwrap();
            for stats in [stats(Side::Input, &x), stats(Side::Output, &outputs)] {
                let found = principal_directions(
                    &site(m, n, false),
                    &|| Ok(w.clone()),
                    None,
                    &stats,
                    None,
                    m,
                )
                .unwrap();
                let total: f64 = found.energies.iter().sum();
                for r in [1, m / 8, m / 2, m.min(n), m] {
                    let r = r.clamp(1, found.vectors.dim(1).unwrap());
                    let tail: f64 = found.energies[r..].iter().sum();
                    let gap = (lost(&y, &found.vectors, r) - tail).abs();
                    assert!(
                        gap < 1e-6 * total,
                        "{m}x{n} {:?} rank {r}: {gap:e} of {total}",
                        stats.side
                    );
                }
                assert_eq!(found.repairs, Repairs::default());
            }
        }
    }

    #[test]
    fn no_worse_than_whitening_and_better_than_the_weight_alone() {
        let (m, n, r) = (24, 17, 6);
        let (w, x) = (wide(&random((m, n), 3)), inputs(n, 8));
        let y = wide(&x).matmul(&w.t().unwrap()).unwrap();
        let stats = stats(Side::Input, &x);
        let found =
            principal_directions(&site(m, n, false), &|| Ok(w.clone()), None, &stats, None, m)
                .unwrap();
        // Whitening: the truncated SVD of W L, with L Lᵀ the second moment, spans the same space.
        let white = w.matmul(&stats.moment().unwrap().root(false, "x").unwrap()).unwrap();
        let whitened = linalg::svd(&white, "white").unwrap().u;
        let plain = linalg::svd(&w, "plain").unwrap().u;
        let total = squared(&y);
        let [ours, whitened, plain] =
            [&found.vectors, &whitened, &plain].map(|u| lost(&y, u, r) / total);
        assert!((ours - whitened).abs() < 1e-6, "{ours} {whitened}");
        assert!(ours < 0.9 * plain, "{ours} {plain}");
    }

    /// Runs the pass on a weight and bias on disk and returns `(v, u, bias)` for `rank`.
    fn applied(
        w: &Tensor,
        b: Option<&Tensor>,
        stats: &SiteStats,
        rank: usize,
    ) -> [Option<Tensor>; 3] {
        let folder = tempfile::tempdir().unwrap();
        let tensors = [("linear.weight", Some(w)), ("linear.bias", b)];
        let tensors: std::collections::HashMap<_, _> = tensors
            .into_iter()
            .filter_map(|(name, t)| Some((name, t?.to_dtype(DType::F32).unwrap())))
            .collect();
        save(&tensors, folder.path().join("model.safetensors")).unwrap();
        std::fs::write(folder.path().join("config.json"), "{}").unwrap();
        let checkpoint = crate::checkpoint::Checkpoint::open(folder.path()).unwrap();
        let weights = Weights::new(&checkpoint, &Device::Cpu);
        let (m, n) = w.dims2().unwrap();
        let site = site(m, n, b.is_some());
        let pass = Lord::new(&Settings { rank_multiple: 1, ..Settings::new(Rule::keep(0.5)) });
        let analysis = pass.analyse(&site, &weights, Some(stats)).unwrap();
        let chosen = Storage::LowRank { rank };
        let mut pieces = pass.make(&site, &weights, &analysis, chosen, Piece::V).unwrap();
        [Piece::V, Piece::U, Piece::Bias].map(|piece| pieces.remove(&piece))
    }

    #[test]
    fn factors_of_a_smaller_rank_are_a_slice_of_those_of_a_larger() {
        for (m, n) in [(20, 30), (30, 20)] {
            let (w, x) = (random((m, n), 21), inputs(n, 22));
            let [v, u, _] = applied(&w, None, &stats(Side::Input, &x), 9);
            let [small_v, small_u, _] = applied(&w, None, &stats(Side::Input, &x), 4);
            let rows = |t: &Tensor| t.to_vec2::<f32>().unwrap();
            assert_eq!(rows(&small_u.unwrap()), rows(&u.unwrap().narrow(1, 0, 4).unwrap()));
            for (a, b) in
                rows(&small_v.unwrap()).iter().flatten().zip(rows(&v.unwrap()).iter().flatten())
            {
                assert!((a - b).abs() < 1e-5, "{a} {b}");
            }
        }
    }

    #[test]
    fn a_linear_with_a_bias_keeps_its_mean_output_and_gains_by_centring() {
        for (m, n, side) in [(18, 25, Side::Input), (25, 18, Side::Input), (10, 40, Side::Output)] {
            let rank = 3;
            let (w, x) = (wide(&random((m, n), 31)), inputs(n, 32));
            let b = (wide(&random((1, m), 33)) * 5.0).unwrap();
            let plain = wide(&x).matmul(&w.t().unwrap()).unwrap();
            let y = plain.broadcast_add(&b).unwrap();
            let seen = match side {
                Side::Input => stats(side, &x),
                Side::Output => stats(side, &y.to_dtype(DType::F32).unwrap()),
            };
            let [v, u, bias] =
                applied(&w, Some(&b.squeeze(0).unwrap()), &seen, rank).map(|t| wide(&t.unwrap()));
            let factors = |v: &Tensor, u: &Tensor| {
                wide(&x).matmul(&v.t().unwrap()).unwrap().matmul(&u.t().unwrap()).unwrap()
            };
            let ours = factors(&v, &u).broadcast_add(&bias).unwrap();
            let off = (&y - &ours).unwrap();
            let mean =
                off.mean(0).unwrap().abs().unwrap().max(0).unwrap().to_scalar::<f64>().unwrap();
            let size = squared(&y).sqrt();
            assert!(mean < 1e-5 * size, "{m}x{n}: the mean output moved by {mean} of {size}");
            // Against the same rank about zero, which keeps the bias as it was.
            let [v, u, _] =
                applied(&w, None, &stats(Side::Input, &x), rank).map(|t| t.map(|t| wide(&t)));
            let uncentred = (plain - factors(&v.unwrap(), &u.unwrap())).unwrap();
            assert!(squared(&off) < squared(&uncentred), "{m}x{n}");
        }
    }
}
