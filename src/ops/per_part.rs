//! A function of its own for every part of the rows, the results joined.
//!
//! ```text
//! y = concat_e f_e(x[rows of part e])
//! x [n, d] f32    parts of n rows in all    ->    y [n, m] f32
//! gradient:  dx = concat_e (∂f_e)ᵀ dy[rows of part e]
//! ```
//!
//! Experts run on the rows routed to them this way. Autograd would pad the gradient of every part to
//! all rows before adding them up; here every part is a graph of its own, entered from its part of `dy`.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, DType, Layout, Shape, Storage, Tensor, Var};

use super::{operand, upstream};
use crate::error::{Error, Result};

const OP: &str = "per_part";

/// Calls `function(part, rows)` on consecutive parts of the rows of `x [n, d]`, `sizes[part]` rows
/// each, and joins the results. Parts without rows are left out.
///
/// # Errors
/// The errors of `function`; [`Error::Bug`](crate::error::Error::Bug) for sizes that do not add up to
/// the rows of x, and for an x or a result that does not fit.
pub fn per_part(
    x: &Tensor,
    sizes: &[usize],
    mut function: impl FnMut(usize, &Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    operand::expect(OP, "x", x, DType::F32)?;
    let rows = x.dims().first().copied().unwrap_or(0);
    if sizes.iter().sum::<usize>() != rows || x.rank() != 2 || rows == 0 {
        let why = format_args!("parts of {sizes:?} rows, x has shape {:?}", x.dims());
        return Err(operand::refuse(OP, why));
    }
    let (mut parts, mut outputs, mut first) = (Vec::new(), Vec::new(), 0);
    for (index, &size) in sizes.iter().enumerate().filter(|(_, size)| **size > 0) {
        let rows = x.narrow(0, first, size)?;
        first += size;
        let output = if x.track_op() {
            let leaf = Var::from_tensor(&rows.detach())?;
            let output = function(index, leaf.as_tensor())?;
            parts.push((leaf, output.clone()));
            output.detach()
        } else {
            function(index, &rows)?
        };
        operand::expect(OP, "the result", &output, DType::F32)?;
        outputs.push(output);
    }
    let joined = Tensor::cat(&outputs, 0)?;
    match parts.is_empty() {
        true => Ok(joined),
        false => Ok(x.apply_op1(PerPart { parts, joined })?),
    }
}

struct PerPart {
    /// Every part of x as a graph begins with it, and the end of its graph.
    parts: Vec<(Var, Tensor)>,
    /// The value.
    joined: Tensor,
}

impl CustomOp1 for PerPart {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (joined, layout) = self.joined.storage_and_layout();
        let Storage::Cpu(joined) = &*joined else {
            return Err(candle_core::Error::Msg("a part is on another device".into()));
        };
        let joined = operand::elements::<f32>(joined, layout)?.to_vec();
        Ok((CpuStorage::F32(joined), layout.shape().clone()))
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> candle_core::Result<(CudaStorage, Shape)> {
        let (joined, layout) = self.joined.storage_and_layout();
        let Storage::Cuda(joined) = &*joined else {
            return Err(candle_core::Error::Msg("a part is on another device".into()));
        };
        Ok((joined.try_clone(layout)?, layout.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, dy: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let dy = dy.contiguous()?;
        let (mut gradients, mut first) = (Vec::with_capacity(self.parts.len()), 0);
        for (leaf, output) in &self.parts {
            let rows = output.dim(0)?;
            let dy = dy.narrow(0, first, rows)?;
            first += rows;
            let start = upstream(output, &dy).map_err(Error::through_candle)?;
            let gradient = start.backward()?.remove(leaf);
            gradients.push(match gradient {
                Some(gradient) => gradient,
                None => leaf.zeros_like()?,
            });
        }
        Ok(Some(Tensor::cat(&gradients, 0)?))
    }
}
