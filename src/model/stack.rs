//! A linear that is a sum of levels, computed with as it is stored.
//!
//! A single row never meets the dense matrix; for many a tile of its rows is rebuilt at a time.

use candle_core::{DType, Device, Tensor};

use super::GradientSinks;
use super::source::{self, Source};
use super::weights::Use;
use crate::arch::{Piece, Site};
use crate::error::{Error, Result};
use crate::ops;

/// Rows of the dense weight that exist at a time.
const TILE: usize = 1024;

/// Reads the scales `[in]` that divide the input channels of `site`, all of them above zero.
///
/// # Errors
/// [`Error::NonFiniteTensor`] for a scale that is not finite, or has no inverse that is.
pub fn stack_scale(source: &dyn Source, site: &Site) -> Result<Vec<f32>> {
    let scale = source::load(source, site, Piece::Scale, Use::Values, &Device::Cpu)?;
    let scale = scale.to_vec1::<f32>()?;
    match scale.iter().position(|scale| *scale <= 0.0 || !scale.recip().is_finite()) {
        Some(index) => {
            let (tensor, index) = (Piece::Scale.name_in(&site.name), index as u64);
            Err(Error::NonFiniteTensor { tensor, index })
        }
        None => Ok(scale),
    }
}

/// The levels of one linear.
#[derive(Debug, Clone)]
pub(super) struct Stack {
    /// `[levels, out, ⌈in/8⌉]` u8.
    signs: Tensor,
    /// `[levels, out, rank]` f16.
    u: Tensor,
    /// `[levels, rank, in]` f16.
    v: Tensor,
    /// The factors of the input channels, `[in]` f32: the inverse of their scales.
    inverse_scale: Tensor,
}

impl Stack {
    /// Reads the first `levels` of `site`.
    pub(super) fn load(
        source: &dyn Source,
        site: &Site,
        levels: usize,
        device: &Device,
    ) -> Result<Self> {
        let (m, n, rank) = (site.out_features, site.in_features, site.storage.rank());
        let mut parts: [Vec<u8>; 3] = Default::default();
        for level in 0..levels {
            for (part, piece) in parts.iter_mut().zip(Piece::of_level(level)) {
                let stored = source.stored(site, piece)?;
                stored.check_finite()?;
                part.extend_from_slice(&stored.bytes);
                source.release(site, piece);
            }
        }
        let [signs, u, v] = &parts;
        let scale = stack_scale(source, site)?;
        let inverse: Vec<u8> = scale.iter().flat_map(|scale| (1.0 / scale).to_le_bytes()).collect();
        let up = |bytes: &[u8], dtype, shape: &[usize]| ops::upload(bytes, dtype, shape, device);
        Ok(Self {
            signs: up(signs, DType::U8, &[levels, m, n.div_ceil(8)])?,
            u: up(u, DType::F16, &[levels, m, rank])?,
            v: up(v, DType::F16, &[levels, rank, n])?,
            inverse_scale: up(&inverse, DType::F32, &[n])?,
        })
    }

    /// The dense weight `[out, in]` f32.
    pub(super) fn dense(&self) -> Result<Tensor> {
        self.rows(0..self.u.dim(1)?, DType::F32)
    }

    fn rows(&self, rows: std::ops::Range<usize>, dtype: DType) -> Result<Tensor> {
        let scale = Some(&self.inverse_scale);
        ops::stack_rebuild(&self.signs, &self.u, &self.v, scale, rows, dtype)
    }

    /// The dtype in which rows are multiplied: f32 on the CPU, bf16 on a GPU, which is made for it.
    fn dtype(&self) -> DType {
        if self.u.device().is_cpu() { DType::F32 } else { DType::BF16 }
    }

    /// Whether products are of bf16 numbers.
    pub(super) fn is_bf16(&self) -> bool {
        self.dtype() == DType::BF16
    }

    /// Rows `x [tokens, in]` to rows `[tokens, out]`.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        bias: Option<&Tensor>,
        sinks: GradientSinks,
    ) -> Result<Tensor> {
        let m = self.u.dim(1)?;
        if x.track_op() {
            // One product instead of tiles, so that every sink sees its gradient once.
            return ops::linear(x, &self.rows(0..m, self.dtype())?, bias, sinks);
        }
        if x.dim(0)? == 1 {
            let scaled = x.broadcast_mul(&self.inverse_scale)?;
            let y = ops::stack_matvec(&scaled, &self.signs, &self.u, &self.v)?;
            return match bias {
                Some(bias) => ops::add(&y, &bias.unsqueeze(0)?),
                None => Ok(y),
            };
        }
        let tiles: Vec<Tensor> = (0..m)
            .step_by(TILE)
            .map(|first| {
                let rows = first..(first + TILE).min(m);
                let bias = bias.map(|bias| bias.narrow(0, first, rows.len())).transpose()?;
                let weight = self.rows(rows, self.dtype())?;
                ops::linear(x, &weight, bias.as_ref(), GradientSinks::default())
            })
            .collect::<Result<_>>()?;
        match tiles.as_slice() {
            [y] => Ok(y.clone()),
            tiles => Ok(Tensor::cat(tiles, 1)?),
        }
    }
}
