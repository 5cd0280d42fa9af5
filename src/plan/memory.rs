//! What compress will hold in memory at its peak, from shapes alone.
//!
//! Counted are allocations; mapped pages of the input are the system's to drop and are not. Nothing
//! here grows with the number of layers but the kept activations, and those only up to the limit the
//! user sets; what the passes make waits in the job folder.

use rayon::current_num_threads;
use serde::{Deserialize, Serialize};

use crate::arch::{Site, SourceModel, Storage};
use crate::measure::{Activations, LayerMoments, Place, ROWS_PER_HEAD};
use crate::ops::VOCABULARY_TILE;
use crate::passes::break_even;

const F32: usize = size_of::<f32>();
const F64: usize = size_of::<f64>();

/// The program itself, its tokenizer, and the headers.
const PROGRAM: u64 = 24 << 20;

/// What tokenising takes per byte of text. It is given back in pieces too small for the system to
/// take, and stays with the process.
const TOKENISED: usize = 100;

/// Bytes held at the peak, by what holds them, on this machine's number of threads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forecast {
    /// The tokenised text.
    pub text: u64,
    /// Inputs of all blocks, where a backward pass needs them; else of one.
    pub kept_activations: u64,
    /// Weights of the largest block, in f32.
    pub block_weights: u64,
    /// Activations inside a block on the way forward, of one chunk of tokens per thread.
    pub forward: u64,
    /// Activations and gradients inside a block on the way back, of one chunk.
    pub backward: u64,
    /// The head's weight in f32, and logits and their gradient for some rows per thread.
    pub head: u64,
    /// Second moments of one layer.
    pub moments: u64,
    /// Workspace of the largest decomposition.
    pub decomposition: u64,
    /// The most that is held at once.
    pub peak: u64,
}

/// How the model will be measured.
#[derive(Debug, Clone, Copy)]
pub struct Measuring {
    /// Windows of text.
    pub windows: usize,
    /// Tokens of each.
    pub window: usize,
    /// Bytes of the text that is tokenised for them; 0 where it is not known yet.
    pub text_bytes: usize,
    /// Whether there is a backward pass.
    pub gradients: bool,
    /// Bytes of activations that may stay in memory.
    pub activation_memory: u64,
}

/// The forecast; without `measuring` for a method that looks at weights alone.
pub fn forecast(model: &SourceModel, measuring: Option<Measuring>) -> Forecast {
    let spec = &model.spec;
    let bytes = |values: usize, width: usize| (values * width) as u64;
    let mut forecast =
        Forecast { decomposition: largest_decomposition(model), ..Forecast::default() };
    let Some(measuring) = measuring else {
        forecast.peak = PROGRAM + forecast.decomposition;
        return forecast;
    };
    let layers: Vec<Vec<&Site>> =
        (0..spec.layers.len()).map(|layer| model.layer_sites(layer).collect()).collect();
    let largest =
        |measure: &dyn Fn(&[&Site]) -> u64| layers.iter().map(|l| measure(l)).max().unwrap_or(0);
    let tokens = measuring.windows * measuring.window;
    let chunk = Place::cpu().chunk_tokens(measuring.window).min(tokens);
    let threads = current_num_threads().min(tokens.div_ceil(chunk.max(1))).max(1);
    forecast.block_weights = largest(&|sites| {
        bytes(sites.iter().map(|site| site.parameters(&Storage::Dense)).sum(), F32)
    });
    forecast.text = bytes(measuring.text_bytes, TOKENISED);
    forecast.moments = largest(&|sites| LayerMoments::bytes_for(sites));
    let widest = model.sites.iter().map(|site| site.out_features).max().unwrap_or(0);
    // gate, up, their product; the stream, its norm and what the block adds.
    forecast.forward = bytes(threads * chunk * (3 * widest + 3 * spec.hidden), F32);
    let rows = ROWS_PER_HEAD.min(chunk);
    let tile = spec.vocab.min(VOCABULARY_TILE);
    forecast.head = bytes(spec.vocab * spec.hidden, F32);
    if measuring.gradients {
        let places = spec.layers.len() + 1;
        let all = Activations::bytes_for(places, tokens, spec.hidden);
        forecast.kept_activations = all.min(measuring.activation_memory);
        // Outputs of all linears and what is made of them stay for the way back; gradients of the
        // widest come on top.
        let outputs = largest(&|sites| {
            let dense = sites.iter().filter(|site| !site.role.is_expert());
            bytes(chunk * dense.map(|site| site.out_features).sum::<usize>(), F32)
        });
        forecast.backward = 2 * outputs + bytes(chunk * (widest + 3 * spec.hidden), F32);
        forecast.head += bytes(threads * (2 * rows * tile + 2 * chunk * spec.hidden), F32);
    } else {
        forecast.kept_activations = Activations::bytes_for(1, tokens, spec.hidden);
        forecast.head = 0;
    }
    // What one phase gave back in small pieces stays with the process and serves the next, so the
    // activations of the way forward count in all of them.
    let there = forecast.block_weights + forecast.forward;
    let back = forecast.block_weights + forecast.moments + forecast.backward.max(forecast.forward);
    let beside = forecast.forward;
    let phases =
        [there, forecast.head + beside, back, forecast.moments + forecast.decomposition + beside];
    let always = PROGRAM + forecast.text + forecast.kept_activations;
    forecast.peak = always + phases.into_iter().max().unwrap_or(0);
    forecast
}

/// Bytes of workspace of the largest decomposition of a site of `model`.
pub fn largest_decomposition(model: &SourceModel) -> u64 {
    model.sites.iter().map(decomposition_bytes).max().unwrap_or(0)
}

/// In f64: the weight, the product with the root of the moment, what spans the directions, its
/// basis twice; the moment, its vectors and their workspace.
fn decomposition_bytes(site: &Site) -> u64 {
    let (m, n) = (site.out_features, site.in_features);
    let (k, kept) = (m.min(n), break_even(m, n));
    let multiplied = 3 * m * n + 2 * n.min(m) * n;
    let spanned = 4 * m * kept + 2 * k * k;
    (multiplied.max(spanned).max(6 * k * k) * F64) as u64
}
