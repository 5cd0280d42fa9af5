//! What compress will hold in memory at its peak, from shapes alone.
//!
//! Counted are allocations; mapped pages of the input are the system's to drop and are not.

use serde::{Deserialize, Serialize};

use crate::arch::{Site, SourceModel, Storage};
use crate::measure::{LayerMoments, TOKENS_PER_CHUNK};
use crate::passes::break_even;

/// Bytes held at the peak, by what holds them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forecast {
    /// Weights of the largest block, in f32.
    pub block_weights: u64,
    /// The residual stream of all calibration windows.
    pub residual_stream: u64,
    /// Activations of one chunk of tokens inside a block.
    pub activations: u64,
    /// Second moments of one layer.
    pub moments: u64,
    /// Spectra and directions of all units, kept until their ranks are known.
    pub analyses: u64,
    /// Workspace of the largest decomposition.
    pub decomposition: u64,
}

impl Forecast {
    /// The peak: measuring and decomposing take turns, the analyses pile up beside both.
    pub fn peak(&self) -> u64 {
        let measuring = self.block_weights + self.activations;
        self.residual_stream + self.moments + self.analyses + measuring.max(self.decomposition)
    }
}

/// The forecast for calibrating on `windows` windows of `window` tokens; none for a data-free method.
pub fn forecast(model: &SourceModel, calibration: Option<(usize, usize)>) -> Forecast {
    let spec = &model.spec;
    let layers: Vec<Vec<&Site>> =
        (0..spec.layers.len()).map(|layer| model.layer_sites(layer).collect()).collect();
    let largest =
        |measure: &dyn Fn(&[&Site]) -> u64| layers.iter().map(|l| measure(l)).max().unwrap_or(0);
    let dense = |site: &&Site| site.parameters(&Storage::Dense) as u64;
    let mut forecast = Forecast {
        analyses: model.sites.iter().map(basis_bytes).sum(),
        decomposition: model.sites.iter().map(decomposition_bytes).max().unwrap_or(0),
        ..Forecast::default()
    };
    if let Some((windows, window)) = calibration {
        let stream = |tokens: usize| (tokens * spec.hidden * 4) as u64;
        let chunk = (TOKENS_PER_CHUNK / window.max(1)).max(1) * window;
        let width = |site: &&Site| site.out_features + site.in_features;
        forecast.block_weights = largest(&|sites| sites.iter().map(dense).sum::<u64>() * 4);
        forecast.residual_stream = stream(windows * window);
        forecast.moments = largest(&|sites| LayerMoments::bytes_for(sites));
        let widest = model.sites.iter().map(|s| width(&s)).max().unwrap_or(0);
        // gate, up, their product and the chunk itself; scores are made in tiles.
        forecast.activations = (chunk * (3 * widest + 4 * spec.hidden) * 4) as u64;
    }
    forecast
}

/// One f32 basis of as many columns as the largest rank worth offering.
fn basis_bytes(site: &Site) -> u64 {
    (site.out_features * break_even(site.out_features, site.in_features) * 4) as u64
}

/// The weight, the matrix, its vectors and workspace of the same size, in f64.
fn decomposition_bytes(site: &Site) -> u64 {
    let (m, n) = (site.out_features, site.in_features);
    let k = m.min(n);
    ((2 * m * n + 4 * k * k) * 8) as u64
}
