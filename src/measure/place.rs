//! Where a pass over text computes, in what pieces, and how much of it stays there.
//!
//! On a GPU two blocks' weights are held (one computes while the next is copied), the statistics of
//! one, and the activations of one chunk of tokens; what is left of the memory keeps the residual
//! stream between blocks, and what does not fit goes to the host. A model larger than the GPU streams
//! through it like any other.

use candle_core::{DType, Device};

use super::layer_moments::LayerMoments;
use super::sweep::ROWS_PER_HEAD;
use crate::arch::{MlpSpec, Site, SourceModel};
use crate::checkpoint::Dtype;
use crate::error::{Error, Result};
use crate::ops::VOCABULARY_TILE;

/// Tokens that go through a block together on the CPU: enough to keep a matrix product busy, few
/// enough for activations to stay in cache.
pub const CPU_CHUNK: usize = 1024;

/// The same on a GPU, where products want more. A multiple of the rows that a Gram matrix sums in f32,
/// so that a smaller chunk changes none of its bits.
const GPU_CHUNK: usize = 4096;

/// Device memory that the driver, its libraries and their workspaces take.
pub const OVERHEAD: u64 = 600 << 20;

/// What one pass needs of a device, bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeviceNeeds {
    /// Weights of the two largest neighbours among the blocks.
    pub blocks: u64,
    /// Second moments of one block.
    pub statistics: u64,
    /// Activations of one chunk, and their gradients where there are any.
    pub activations: u64,
    /// Weight, logits and gradients of the head, which comes when no block is held.
    pub head: u64,
    /// The most that is held at once.
    pub peak: u64,
}

/// A device, and how a pass goes about it.
#[derive(Debug, Clone)]
pub struct Place {
    device: Device,
    chunk: usize,
    resident: u64,
}

impl Place {
    /// The CPU.
    pub fn cpu() -> Self {
        Self { device: Device::Cpu, chunk: CPU_CHUNK, resident: u64::MAX }
    }

    /// `device`, of which at most `memory` bytes are to be taken, for windows of `length` tokens of
    /// `model`; `gradients` and `moments` say what the pass will take.
    ///
    /// # Errors
    /// [`Error::DeviceMemory`] where not even one window fits.
    pub fn on(
        device: &Device,
        memory: u64,
        model: &SourceModel,
        length: usize,
        pass: PassKind,
    ) -> Result<Self> {
        if device.is_cpu() {
            return Ok(Self::cpu());
        }
        let mut chunk = GPU_CHUNK;
        loop {
            let needs = device_needs(model, whole_windows(chunk, length), pass);
            if needs.peak <= memory {
                let resident = memory - needs.peak;
                return Ok(Self { device: device.clone(), chunk, resident });
            }
            if chunk <= length {
                let what = format!("one window of {length} tokens");
                return Err(Error::DeviceMemory { what, needed: needs.peak, available: memory });
            }
            chunk /= 2;
        }
    }

    /// Where tensors live while they are computed with.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Tokens of a chunk of windows of `length`: as many whole windows as fit, one at least.
    pub fn chunk_tokens(&self, length: usize) -> usize {
        whole_windows(self.chunk, length)
    }

    /// Bytes of the residual stream that stay on the device between blocks.
    pub(super) fn resident(&self) -> u64 {
        self.resident
    }

    /// Whether chunks side by side are faster than one after the other: a GPU is busy with one.
    pub fn side_by_side(&self) -> bool {
        self.device.is_cpu()
    }
}

/// What a pass takes besides running the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PassKind {
    /// Gradients of the loss.
    pub gradients: bool,
    /// Second moments of activations.
    pub moments: bool,
    /// Bytes that the largest decomposition of what was measured takes.
    pub decomposition: u64,
}

fn whole_windows(chunk: usize, length: usize) -> usize {
    (chunk / length.max(1)).max(1) * length
}

/// What a pass over chunks of `chunk` tokens holds on a GPU at its peak.
pub fn device_needs(model: &SourceModel, chunk: usize, pass: PassKind) -> DeviceNeeds {
    let spec = &model.spec;
    let f32s = |values: usize| (values * size_of::<f32>()) as u64;
    let layers: Vec<Vec<&Site>> =
        (0..spec.layers.len()).map(|layer| model.layer_sites(layer).collect()).collect();
    let weights: Vec<u64> =
        layers.iter().map(|sites| sites.iter().map(|site| held_bytes(site)).sum()).collect();
    let pairs = weights.windows(2).map(|pair| pair[0] + pair[1]);
    let blocks = pairs.max().or_else(|| weights.first().copied()).unwrap_or(0);
    let statistics = match pass.moments {
        true => layers.iter().map(|sites| LayerMoments::bytes_for(sites)).max().unwrap_or(0),
        false => 0,
    };
    let mlps: Vec<Mlp> = spec.layers.iter().map(|layer| Mlp::of(&layer.mlp, spec.hidden)).collect();
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
    let backward = f32s(chunk * (kept + largest(|mlp| mlp.backward)));
    let tile = VOCABULARY_TILE.min(spec.vocab);
    let rows = ROWS_PER_HEAD.min(chunk);
    // Logits; their gradient and what is rounded of it.
    let tiles = if pass.gradients { 5 * tile / 2 } else { tile };
    let logits = f32s(rows * (tiles + 3 * spec.hidden) + 2 * chunk * spec.hidden);
    let head = (spec.vocab * spec.hidden) as u64 * head_width(model) + logits;
    let activations = if pass.gradients { backward } else { forward };
    // While a block is analysed the next one is there already.
    let analysed = blocks / 2 + statistics + pass.decomposition;
    let peak = OVERHEAD + (blocks + statistics + activations).max(head).max(analysed);
    DeviceNeeds { blocks, statistics, activations, head, peak }
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
                backward: top_k * (3 * intermediate + 8 * hidden),
            },
        }
    }
}

/// Bytes of a site's weight on a GPU.
fn held_bytes(site: &Site) -> u64 {
    site.parameters(&site.storage) as u64 * width(site.dtype)
}

/// Bytes of an element of the head's weight on a GPU.
fn head_width(model: &SourceModel) -> u64 {
    let names = &model.spec.family.names;
    let name = if model.spec.tied { names.embedding } else { names.head };
    model.checkpoint.get(name).map_or(4, |info| width(info.dtype))
}

fn width(dtype: Dtype) -> u64 {
    let held = if dtype == Dtype::BF16 { DType::BF16 } else { DType::F32 };
    held.size_in_bytes() as u64
}
