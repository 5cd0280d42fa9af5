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

use candle_core::{DType, Tensor};

use super::low_rank::{assumed_energies, can_shrink, offers, ranks};
use super::{
    Analysis, Method, Needs, Pass, PassOptions, Repairs, UnitOutput, UnitStats, Weights, single,
};
use crate::arch::{Site, Storage, Unit};
use crate::error::{Error, Result};
use crate::linalg;
use crate::measure::{Side, SiteStats};
use crate::plan::Offer;

/// Eigenvalues below this share of the largest are rounding, whatever their sign.
const ROUNDING: f64 = 1e-12;

/// The pass.
#[derive(Debug, Clone, Copy)]
pub struct Lord {
    options: PassOptions,
}

impl Lord {
    /// With the given options.
    pub fn new(options: PassOptions) -> Self {
        Self { options }
    }
}

impl Pass for Lord {
    fn method(&self) -> Method {
        Method::Lord
    }

    fn needs(&self) -> Needs {
        Needs::Moments
    }

    fn takes(&self, unit: &Unit) -> bool {
        single(unit).is_ok_and(|site| can_shrink(site, self.options.rank_multiple))
    }

    fn analyse(&self, unit: &Unit, weights: &Weights<'_>, stats: &UnitStats) -> Result<Analysis> {
        let site = single(unit)?;
        let stats = stats
            .get(&site.name)
            .ok_or_else(|| Error::Bug(format!("`{}` was not measured", site.name)))?;
        let weight = weights.weight(site)?;
        let bias = weights.bias(site)?;
        let directions = principal_directions(site, &weight, bias.as_ref(), stats)?;
        // No offer takes more columns than this.
        let kept = ranks(site, self.options.rank_multiple).last().unwrap_or(0);
        let basis = directions.vectors.narrow(1, 0, kept)?.to_dtype(DType::F32)?;
        let device = weight.device();
        let energies =
            Tensor::from_vec(directions.energies.clone(), directions.energies.len(), device)?;
        let mut analysis = Analysis::repaired(directions.repairs)
            .with("energies", energies)
            .with("weight", Tensor::new(&[stats.share], device)?)
            .with("basis", basis);
        if let Some(mean) = directions.mean {
            analysis = analysis.with("mean", mean);
        }
        Ok(analysis)
    }

    fn offers(&self, unit: &Unit, analysis: Option<&Analysis>) -> Result<Vec<Offer>> {
        let site = single(unit)?;
        let (energies, weight) = match analysis {
            Some(analysis) => (analysis.numbers("energies")?, analysis.numbers("weight")?[0]),
            None => (assumed_energies(site), site.parameters(&Storage::Dense) as f64),
        };
        Ok(offers(site, &energies, weight, self.options.rank_multiple))
    }

    fn apply(
        &self,
        unit: &Unit,
        weights: &Weights<'_>,
        analysis: &Analysis,
        chosen: &Offer,
    ) -> Result<UnitOutput> {
        let site = single(unit)?;
        let [Storage::LowRank { rank }] = chosen.storages.as_slice() else {
            return Err(Error::Bug(format!("lord cannot carry out {:?}", chosen.storages)));
        };
        let u =
            analysis.tensor("basis")?.narrow(1, 0, *rank)?.contiguous()?.to_dtype(DType::F64)?;
        let weight = weights.weight(site)?;
        let v = u.t()?.matmul(&weight)?;
        let mut output = UnitOutput::new();
        if let Some(bias) = weights.bias(site)? {
            // b' = μ - U Uᵀ (μ - b)
            let mean = analysis.tensor("mean")?;
            let off = (mean - &bias)?.unsqueeze(1)?;
            let kept = u.matmul(&u.t()?.matmul(&off)?)?.squeeze(1)?;
            let centred = (mean - kept)?.to_dtype(DType::F32)?;
            output.insert(format!("{}.bias", site.name), centred);
        }
        output.insert(format!("{}.v.weight", site.name), v.to_dtype(DType::F32)?);
        output.insert(format!("{}.u.weight", site.name), u.to_dtype(DType::F32)?);
        Ok(output)
    }
}

/// The spectrum of a linear's output and the directions that belong to it.
#[derive(Debug)]
pub(crate) struct Directions {
    /// Energy per token along each direction, largest first, none negative.
    pub(crate) energies: Vec<f64>,
    /// `[m, min(m, n)]` or `[m, m]` f64, orthonormal columns in the same order.
    pub(crate) vectors: Tensor,
    /// `E[y] [m]` f64 where the linear has a bias.
    pub(crate) mean: Option<Tensor>,
    /// Negative eigenvalues beyond rounding.
    pub(crate) repairs: Repairs,
}

/// Principal directions of `y = W x + b` over the calibration tokens, about the mean where there is
/// a bias and about zero where there is none.
pub(crate) fn principal_directions(
    site: &Site,
    weight: &Tensor,
    bias: Option<&Tensor>,
    stats: &SiteStats,
) -> Result<Directions> {
    let (m, n) = weight.dims2()?;
    let (moment, name) = (&stats.moment, site.name.as_str());
    let centred = bias.is_some();
    let mean = match (bias, stats.side) {
        (None, _) => None,
        (Some(_), Side::Output) => Some(moment.mean(name)?),
        (Some(b), Side::Input) => {
            let x = moment.mean(name)?.unsqueeze(1)?;
            Some((weight.matmul(&x)?.squeeze(1)? + b)?)
        }
    };
    let (mut energies, vectors) = match stats.side {
        Side::Output => {
            let eigen = linalg::eigh(&moment.second(centred, name)?, name)?;
            (eigen.values, eigen.vectors)
        }
        Side::Input if m <= n => {
            let second = moment.second(centred, name)?;
            let c = weight.matmul(&second)?.matmul(&weight.t()?)?;
            let eigen = linalg::eigh(&c, name)?;
            (eigen.values, eigen.vectors)
        }
        Side::Input => {
            let p = weight.matmul(&moment.root(centred, name)?)?;
            let eigen = linalg::eigh(&p.t()?.matmul(&p)?, name)?;
            (eigen.values, linalg::orthonormalise(&p.matmul(&eigen.vectors)?, name)?)
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
