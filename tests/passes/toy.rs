//! A method that is nowhere but here: it keeps the first outputs of a linear and drops the others. All
//! there is to adding a method is this file and a line that names it.

use bantam::arch::{Piece, Site, Storage};
use bantam::error::{Error, Result};
use bantam::measure::{Importance, SiteStats};
use bantam::passes::{Analysis, Needs, Pass, Pieces, Weights};
use bantam::plan::Offer;
use bantam::settings::Method;
use candle_core::{DType, Tensor};

/// The method's name.
pub(crate) const TOY: Method = Method::named("first-outputs");

/// The pass: `v` the first rows of the weight, `u` those of the identity.
pub(crate) struct Toy {
    name: &'static str,
    vocabulary: bool,
}

impl Toy {
    pub(crate) fn new() -> Self {
        Self::named("first-outputs")
    }

    /// The same under another name.
    pub(crate) fn named(name: &'static str) -> Self {
        Self { name, vocabulary: false }
    }

    /// The same for embedding and head too.
    pub(crate) fn everywhere() -> Self {
        Self { vocabulary: true, ..Self::new() }
    }
}

impl Pass for Toy {
    fn method(&self) -> Method {
        Method::named(self.name)
    }

    fn needs(&self) -> Needs {
        Needs { text: true, moments: false }
    }

    fn takes(&self, site: &Site) -> bool {
        let reached = !site.role.is_expert() && (self.vocabulary || !site.role.is_vocabulary());
        reached && site.storage == Storage::Dense && site.break_even() > 0
    }

    fn analyse(
        &self,
        site: &Site,
        weights: &Weights<'_>,
        stats: Option<&SiteStats>,
    ) -> Result<Analysis> {
        let stats = stats.ok_or_else(|| Error::Bug(format!("`{}` was not measured", site.name)))?;
        let squares = Tensor::new(&stats.input_squares[..], &candle_core::Device::Cpu)?;
        let energies = weights.weight(site)?.sqr()?.broadcast_mul(&squares)?.sum(1)?;
        let energies = energies.to_vec1::<f64>()?;
        let total: f64 = energies.iter().sum();
        let price = |output: usize| match &stats.importance {
            Importance::Gradients { channels, .. } => 0.5 * channels[output],
            Importance::Energy(share) => share / total,
        };
        // Dropping all outputs from r on.
        let mut losses = vec![0.0; energies.len() + 1];
        for output in (0..energies.len()).rev() {
            losses[output] = losses[output + 1] + energies[output] * price(output);
        }
        Ok(Analysis::default().with("losses", Tensor::new(losses, &candle_core::Device::Cpu)?))
    }

    fn offers(&self, site: &Site, analysis: Option<&Analysis>) -> Result<Vec<Offer>> {
        let losses = match analysis {
            Some(analysis) => analysis.numbers("losses")?,
            None => (0..=site.out_features).rev().map(|left| left as f64).collect(),
        };
        let offer = |rank: usize| Offer::of(site, Storage::LowRank { rank }, losses[rank]);
        Ok((1..=site.break_even()).map(offer).collect())
    }

    fn make(
        &self,
        site: &Site,
        weights: &Weights<'_>,
        _: &Analysis,
        chosen: Storage,
        _: Piece,
    ) -> Result<Pieces> {
        let Storage::LowRank { rank } = chosen else {
            return Err(Error::Bug(format!("{TOY} cannot make {chosen:?}")));
        };
        let weight = weights.dense(site)?;
        let identity = |i: usize| if i / rank == i % rank { 1.0_f32 } else { 0.0 };
        let u: Vec<f32> = (0..site.out_features * rank).map(identity).collect();
        let u = Tensor::from_vec(u, (site.out_features, rank), weight.device())?;
        let v = weight.narrow(0, 0, rank)?.contiguous()?;
        let mut pieces = Pieces::from([(Piece::U, u), (Piece::V, v)]);
        if let Some(bias) = weights.bias(site)? {
            pieces.insert(Piece::Bias, bias.to_dtype(DType::F32)?);
        }
        Ok(pieces)
    }
}
