//! Where a pass over text computes, in what pieces, and how much of it stays there.
//!
//! On a GPU two blocks' weights are held (one computes while the next is copied), the statistics of
//! one, and the activations of one chunk of tokens; what is left of the memory keeps the residual
//! stream between blocks, and what does not fit goes to the host. A model larger than the GPU streams
//! through it like any other.

use candle_core::{DType, Device};

use super::layer_moments::LayerMoments;
use super::sweep::ROWS_PER_HEAD;
use crate::arch::{Site, SourceModel};
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
const OVERHEAD: u64 = 600 << 20;

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
    let dense = |sites: &[&Site]| -> usize {
        let dense = sites.iter().filter(|site| !site.role.is_expert());
        dense.map(|site| site.out_features).sum()
    };
    let widest = model.sites.iter().map(|site| site.out_features.max(site.in_features)).max();
    let widest = widest.unwrap_or(0);
    // gate, up and their product, what is rounded to bf16 of it; the stream, its norm, what is added.
    let forward = f32s(chunk * (3 * widest + 4 * spec.hidden)) + (chunk * widest * 2) as u64;
    let backward = match pass.gradients {
        // Outputs of all linears and what is made of them stay for the way back.
        true => {
            let outputs = layers.iter().map(|sites| dense(sites)).max().unwrap_or(0);
            f32s(chunk * (2 * outputs + widest + 3 * spec.hidden))
        }
        false => 0,
    };
    let tile = VOCABULARY_TILE.min(spec.vocab);
    let rows = ROWS_PER_HEAD.min(chunk);
    let head_weight = (spec.vocab * spec.hidden) as u64 * head_width(model);
    let logits = f32s(rows * (2 * tile + 3 * spec.hidden) + 2 * chunk * spec.hidden);
    let head = head_weight + logits + if pass.gradients { f32s(rows * tile) } else { 0 };
    let activations = forward.max(backward);
    let peak = OVERHEAD + (blocks + statistics + activations).max(head);
    DeviceNeeds { blocks, statistics, activations, head, peak }
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
