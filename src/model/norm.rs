//! The norms of a block, read from the checkpoint in the form their op takes.

use candle_core::{Device, Tensor};

use super::weights::load_tensor;
use crate::arch::{NormKind, NormSpec};
use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::ops;

/// A norm over the last dimension, with its weights in f32.
#[derive(Debug)]
pub(super) enum Norm {
    Rms { weight: Tensor, eps: f64 },
    Layer { weight: Tensor, bias: Tensor, eps: f64 },
}

impl Norm {
    /// Reads `module.weight` and, where the kind has one, `module.bias`.
    pub(super) fn load(
        checkpoint: &Checkpoint,
        spec: NormSpec,
        module: &str,
        device: &Device,
    ) -> Result<Self> {
        let eps = spec.eps;
        let name = format!("{module}.weight");
        if spec.kind == NormKind::RmsOffset {
            // On the host: a block that is read ahead asks nothing of a device that computes.
            let weight = load_tensor(checkpoint, &name, &Device::Cpu)?.affine(1.0, 1.0)?;
            return Ok(Self::Rms { weight: weight.to_device(device)?, eps });
        }
        let weight = load_tensor(checkpoint, &name, device)?;
        match spec.kind {
            NormKind::Rms | NormKind::RmsOffset => Ok(Self::Rms { weight, eps }),
            NormKind::Layer => {
                let bias = load_tensor(checkpoint, &format!("{module}.bias"), device)?;
                Ok(Self::Layer { weight, bias, eps })
            }
        }
    }

    /// Every row of `x [.., d]`, normed.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Rms { weight, eps } => ops::rms_norm(x, weight, *eps),
            Self::Layer { weight, bias, eps } => ops::layer_norm(x, weight, bias, *eps),
        }
    }

    /// Heads `x [b, t, h, d]`, each normed and turned by its position: `[b, h, t, d]`.
    pub(super) fn forward_rotated(&self, x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
        match self {
            Self::Rms { weight, eps } => ops::norm_rope(x, weight, *eps, cos, sin),
            Self::Layer { .. } => ops::rope(&self.forward(x)?, cos, sin),
        }
    }
}
