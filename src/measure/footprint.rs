//! What measuring and analysing hold in memory at their peak, from shapes alone.
//!
//! Counted are allocations; mapped pages of the input are the system's to drop and are not. Nothing
//! here grows with the number of layers but the kept activations, and those only up to the limit the
//! user sets; what the passes make waits in the job folder.
//!
//! On a CPU one block is in memory, and a chunk of tokens per thread. On a GPU two blocks are (one
//! computes while the next is copied), the statistics of one, and one chunk.

use candle_core::DType;
use rayon::current_num_threads;
use serde::{Deserialize, Serialize};

use super::activations::Activations;
use super::compute::{Compute, ROWS_PER_HEAD};
use super::stats::LayerStats;
use crate::arch::{MlpSpec, Model, Role, Site, Storage};
use crate::checkpoint::Dtype;
use crate::ops::VOCABULARY_TILE;

const F32: usize = size_of::<f32>();
const F64: usize = size_of::<f64>();

/// The program itself, its tokenizer, and the headers: 20 MiB resident after `inspect`, and some air.
const PROGRAM: u64 = 24 << 20;

/// Bytes that tokenising takes per byte of text, measured on source code. They are given back in pieces
/// too small for the system to take, and stay with the process.
const TOKENISED: usize = 100;

/// Device memory that the driver, its libraries and their workspaces take.
pub const OVERHEAD: u64 = 600 << 20;

/// Bytes held at the peak, by what holds them, on this machine's number of threads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Footprint {
    /// The tokenised text; on the host.
    pub text: u64,
    /// Inputs of all blocks, where a backward pass needs them; else of one.
    pub kept_activations: u64,
    /// Weights of the blocks that are held, as they are held.
    pub block_weights: u64,
    /// Activations inside a block on the way forward.
    pub forward: u64,
    /// Activations and gradients inside a block on the way back.
    pub backward: u64,
    /// The head's weight, and logits and their gradient for some rows.
    pub head: u64,
    /// Second moments of one layer.
    pub moments: u64,
    /// Workspace of the largest decomposition.
    pub decomposition: u64,
    /// The most that is held at once.
    pub peak: u64,
}

/// The text that will run through the model.
#[derive(Debug, Clone, Copy)]
pub struct Reading {
    /// Windows of text.
    pub windows: usize,
    /// Tokens of each.
    pub window: usize,
    /// Bytes of the text that is tokenised for them; 0 where it is not known yet.
    pub text_bytes: usize,
    /// Bytes of activations that may stay in memory.
    pub activation_memory: u64,
}

/// What a run over the text takes beside running the model.
#[derive(Debug, Clone, Default)]
pub struct Measured<'a> {
    /// Gradients of the loss.
    pub gradients: bool,
    /// Second moments of the activations of these linears.
    pub moments: Vec<&'a Site>,
    /// What is made of the weight of each of these linears, in turn.
    pub analysed: Vec<&'a Site>,
}

impl Measured<'_> {
    /// Bytes of the second moments of the layer that has most of them.
    fn moment_bytes(&self, model: &Model) -> u64 {
        let of_layer = |layer| -> Vec<&Site> {
            self.moments.iter().copied().filter(|site| site.layer == Some(layer)).collect()
        };
        let layers = 0..model.spec().layers.len();
        layers.map(|layer| LayerStats::bytes(&of_layer(layer))).max().unwrap_or(0)
    }

    /// Bytes of the weights, each element `width` of them, that one block hands on to be analysed.
    fn held_bytes(&self, model: &Model, width: impl Fn(&Site) -> u64) -> u64 {
        let dense = |site: &&&Site| site.storage == Storage::Dense;
        let of_layer = |layer| -> u64 {
            let sites = self.analysed.iter().filter(|site| site.layer == Some(layer));
            sites.filter(dense).map(|site| site.parameters(site.storage) as u64 * width(site)).sum()
        };
        (0..model.spec().layers.len()).map(of_layer).max().unwrap_or(0)
    }

    /// Bytes of workspace of the largest decomposition.
    pub fn decomposition_bytes(&self) -> u64 {
        self.analysed.iter().map(|site| decomposition_bytes(site)).max().unwrap_or(0)
    }
}

impl Footprint {
    /// On the CPU, for a run over `reading` that takes `measured`; without a text only the weights are
    /// looked at.
    pub fn on_cpu(model: &Model, reading: Option<Reading>, measured: &Measured<'_>) -> Self {
        let spec = model.spec();
        let bytes = |values: usize, width: usize| (values * width) as u64;
        let mut found = Self { decomposition: measured.decomposition_bytes(), ..Self::default() };
        let Some(reading) = reading else {
            found.peak = PROGRAM + found.decomposition;
            return found;
        };
        let layers = layers(model);
        let largest = |measure: &dyn Fn(&[&Site]) -> u64| {
            layers.iter().map(|l| measure(l)).max().unwrap_or(0)
        };
        let tokens = reading.windows * reading.window;
        let chunk = Compute::cpu().chunk_tokens(reading.window).min(tokens);
        let threads = current_num_threads().min(tokens.div_ceil(chunk.max(1))).max(1);
        found.block_weights = largest(&|sites| {
            bytes(sites.iter().map(|site| site.parameters(Storage::Dense)).sum(), F32)
        });
        found.text = bytes(reading.text_bytes, TOKENISED);
        found.moments = measured.moment_bytes(model);
        let widest = layers.iter().flatten().map(|site| site.out_features).max().unwrap_or(0);
        // gate, up, their product; the stream, its norm and what the block adds.
        found.forward = bytes(threads * chunk * (3 * widest + 3 * spec.hidden), F32);
        let rows = ROWS_PER_HEAD.min(chunk);
        let tile = spec.vocab.min(VOCABULARY_TILE);
        if measured.gradients {
            let places = spec.layers.len() + 1;
            let all = Activations::bytes_for(places, tokens, spec.hidden);
            found.kept_activations = all.min(reading.activation_memory);
            // Outputs of all linears and what is made of them stay for the way back; gradients of the
            // widest come on top.
            let outputs = largest(&|sites| {
                let dense = sites.iter().filter(|site| !site.role.is_expert());
                bytes(chunk * dense.map(|site| site.out_features).sum::<usize>(), F32)
            });
            found.backward = 2 * outputs + bytes(chunk * (widest + 3 * spec.hidden), F32);
            found.head = bytes(spec.vocab * spec.hidden, F32)
                + bytes(threads * (2 * rows * tile + 2 * chunk * spec.hidden), F32);
        } else {
            found.kept_activations = Activations::bytes_for(1, tokens, spec.hidden);
        }
        // What one phase gave back in small pieces stays with the process and serves the next, so the
        // activations of the way forward count in all of them.
        let there = found.block_weights + found.forward;
        let back = found.block_weights + found.moments + found.backward.max(found.forward);
        let beside = found.forward;
        let held = measured.held_bytes(model, |_| F32 as u64);
        let analysing = held + found.moments + found.decomposition + beside;
        let phases = [there, found.head + beside, back, analysing];
        let always = PROGRAM + found.text + found.kept_activations;
        found.peak = always + phases.into_iter().max().unwrap_or(0);
        found
    }

    /// On a GPU, for a run over chunks of `chunk` tokens that takes `measured`. Kept activations are not
    /// counted: they stay as far as there is room.
    pub fn on_gpu(model: &Model, chunk: usize, measured: &Measured<'_>) -> Self {
        let spec = model.spec();
        let f32s = |values: usize| (values * F32) as u64;
        let layers = layers(model);
        let weights: Vec<u64> =
            layers.iter().map(|sites| sites.iter().map(|site| device_bytes(site)).sum()).collect();
        let pairs = weights.windows(2).map(|pair| pair[0] + pair[1]);
        let block_weights = pairs.max().or_else(|| weights.first().copied()).unwrap_or(0);
        let moments = measured.moment_bytes(model);
        let mlps: Vec<Mlp> =
            spec.layers.iter().map(|layer| Mlp::of(&layer.mlp, spec.hidden)).collect();
        let largest = |values: fn(&Mlp) -> usize| mlps.iter().map(values).max().unwrap_or(0);
        let a = &spec.attention;
        let heads = (a.heads + 2 * a.kv_heads) * a.head_dim;
        // The stream, and either its norm, the heads before and after they are turned and mixed, or the
        // stream between the halves, its norm, and what the MLP makes of that.
        let in_attention = 2 * spec.hidden + heads + 2 * a.heads * a.head_dim;
        let in_mlp = 3 * spec.hidden + largest(|mlp| mlp.forward);
        let forward = f32s(chunk * in_attention.max(in_mlp));
        // Outputs of all linears and what is made of them stay for the way back.
        let kept = 2 * (heads + 2 * spec.hidden) + 3 * spec.hidden;
        let backward = match measured.gradients {
            true => f32s(chunk * (kept + largest(|mlp| mlp.backward))),
            false => 0,
        };
        let tile = VOCABULARY_TILE.min(spec.vocab);
        let rows = ROWS_PER_HEAD.min(chunk);
        // Logits; their gradient and what is rounded of it.
        let tiles = if measured.gradients { 5 * tile / 2 } else { tile };
        let logits = f32s(rows * (tiles + 3 * spec.hidden) + 2 * chunk * spec.hidden);
        let head = (spec.vocab * spec.hidden) as u64 * head_width(model) + logits;
        let activations = if measured.gradients { backward } else { forward };
        // While a block is analysed, from the weights it holds, the next one is there already.
        let decomposition = measured.decomposition_bytes();
        let held = measured.held_bytes(model, |site| width(site.dtype));
        let analysed = block_weights / 2 + held + moments + decomposition;
        let peak = OVERHEAD + (block_weights + moments + activations).max(head).max(analysed);
        Self {
            block_weights,
            forward,
            backward,
            head,
            moments,
            decomposition,
            peak,
            ..Self::default()
        }
    }
}

/// The linears of every block.
fn layers(model: &Model) -> Vec<Vec<&Site>> {
    (0..model.spec().layers.len()).map(|layer| model.layer_sites(layer).collect()).collect()
}

/// Bytes of workspace of a decomposition. In f64: the weight, the product with the root of the moment,
/// what spans the directions, its basis twice; the moment, its vectors and their workspace.
fn decomposition_bytes(site: &Site) -> u64 {
    let (m, n) = (site.out_features, site.in_features);
    let (k, kept) = (m.min(n), site.break_even());
    let multiplied = 3 * m * n + 2 * n.min(m) * n;
    let spanned = 4 * m * kept + 2 * k * k;
    (multiplied.max(spanned).max(6 * k * k) * F64) as u64
}

/// Values per token inside an MLP at the peaks of the way forward and of the way back.
struct Mlp {
    forward: usize,
    backward: usize,
}

impl Mlp {
    fn of(mlp: &MlpSpec, hidden: usize) -> Self {
        match *mlp {
            // gate, up, their product; on the way back two of each kept, and around the product the
            // gradients of what it read and made, and what autograd adds them up from.
            MlpSpec::Gated { intermediate, .. } => {
                Self { forward: 3 * intermediate, backward: 10 * intermediate }
            }
            MlpSpec::Plain { intermediate, .. } => {
                Self { forward: 2 * intermediate, backward: 7 * intermediate }
            }
            // Rows of every chosen expert: routed, answered, joined; kept and gone back through alike.
            MlpSpec::Experts { intermediate, top_k, .. } => Self {
                forward: (3 * top_k * hidden).max(2 * top_k * hidden + 3 * intermediate),
                backward: top_k * (3 * intermediate + 10 * hidden),
            },
        }
    }
}

/// Bytes of a linear's tensors on a GPU: those of a stack as they are stored, others in bf16 or f32.
fn device_bytes(site: &Site) -> u64 {
    match site.storage {
        Storage::Dense | Storage::LowRank { .. } => {
            site.parameters(site.storage) as u64 * width(site.dtype)
        }
        Storage::Stack { .. } => site.stored_bytes(),
    }
}

/// Bytes of an element of the head's weight on a GPU.
fn head_width(model: &Model) -> u64 {
    let vocabulary = model.sites().iter().rev().take_while(|site| site.role.is_vocabulary());
    let head = vocabulary.min_by_key(|site| site.role != Role::Head);
    head.map_or(4, |site| width(site.dtype))
}

fn width(dtype: Dtype) -> u64 {
    let held = if dtype == Dtype::BF16 { DType::BF16 } else { DType::F32 };
    held.size_in_bytes() as u64
}
