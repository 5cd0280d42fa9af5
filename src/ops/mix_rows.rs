//! The answers of experts, brought back to their tokens and added up.
//!
//! ```text
//! y[t] = Σ_s weights[t, s] x[places[t, s]]        s by ascending place
//! x [n, d] f32    weights [t, k] f32    places [t, k], each of 0..n once    ->    y [t, d] f32
//! gradients:  dx[places[t, s]] = weights[t, s] dy[t]        dweights[t, s] = dy[t] · x[places[t, s]]
//! ```
//!
//! `2 n d` flops and one pass over x and y: bound by memory. Rows of x lie expert by expert, so a
//! token's answers are added in the order of the experts.

use std::sync::Arc;

use candle_core::{CpuStorage, CudaStorage, CustomOp2, CustomOp3, DType, Layout, Shape, Tensor};
use rayon::prelude::*;

use super::cuda::{Grid, Launch, joined};
use super::lanes::{self, Kernel};
use super::operand;
use crate::error::Result;

const OP: &str = "mix_rows";

/// Adds up, for every row `t` of `weights [t, k]`, the rows `places[t, ..]` of `x [n, d]`, weighted.
/// Every row of x has one place: `n = t k`.
///
/// # Errors
/// Operands that do not fit are [`Error::Bug`](crate::error::Error::Bug).
pub fn mix_rows(x: &Tensor, weights: &Tensor, places: &[usize]) -> Result<Tensor> {
    operand::expect(OP, "x", x, DType::F32)?;
    operand::expect(OP, "weights", weights, DType::F32)?;
    let (&[n, _], &[t, k]) = (x.dims(), weights.dims()) else {
        let (x, weights) = (x.dims(), weights.dims());
        let why = format_args!("x {x:?} and weights {weights:?} are not both matrices");
        return Err(operand::refuse(OP, why));
    };
    let mut source = vec![None; n];
    for (index, &place) in places.iter().enumerate() {
        match source.get_mut(place) {
            Some(free @ None) => *free = Some(index),
            _ => return Err(operand::refuse(OP, format_args!("place {place} of {n} rows"))),
        }
    }
    // Each place is taken once, so as many places as rows leave none free.
    if places.len() != n || t * k != n {
        let why = format_args!("{} places for {n} rows and {t} tokens of {k}", places.len());
        return Err(operand::refuse(OP, why));
    }
    let source = source.into_iter().flatten().collect();
    let mut order: Vec<usize> = (0..n).collect();
    for row in order.chunks_mut(k.max(1)) {
        row.sort_by_key(|&index| places[index]);
    }
    let routes = Arc::new(Routes { places: places.to_vec(), source, order });
    Ok(x.apply_op2(weights, MixRows { routes })?)
}

/// The pairing of the rows of x with the weights, in both directions.
struct Routes {
    /// The row of x for every weight, `[t k]`.
    places: Vec<usize>,
    /// The weight for every row of x, `[n]`: the inverse.
    source: Vec<usize>,
    /// For every token its weights by ascending place, `[t k]`.
    order: Vec<usize>,
}

struct MixRows {
    routes: Arc<Routes>,
}

impl CustomOp2 for MixRows {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weights: &CpuStorage,
        weights_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let d = x_layout.shape().dims2()?.1;
        let (t, k) = weights_layout.shape().dims2()?;
        let x = operand::elements::<f32>(x, x_layout)?;
        let weights = operand::elements::<f32>(weights, weights_layout)?;
        let mut y = vec![0.0; t * d];
        lanes::for_row_blocks(&mut y, d, |first, y| {
            for (token, y) in (first..).zip(y.chunks_exact_mut(d)) {
                for &index in &self.routes.order[token * k..][..k] {
                    let x = &x[self.routes.places[index] * d..][..d];
                    lanes::run(AddScaled { scale: weights[index], x, y });
                }
            }
        });
        Ok((CpuStorage::F32(y), Shape::from((t, d))))
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        weights: &CudaStorage,
        weights_layout: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        let d = x_layout.shape().dims2()?.1;
        let (t, k) = weights_layout.shape().dims2()?;
        let y = Launch::new(OP, x)
            .read(x, x_layout)?
            .read(weights, weights_layout)?
            .list(&self.routes.places)?
            .list(&self.routes.order)?
            .output(DType::F32, t * d)?
            .int(t)
            .int(k)
            .int(d)
            .run(Grid::elements(t * d))?
            .one()?;
        Ok((y, Shape::from((t, d))))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weights: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let gradient = MixRowsGradient { routes: Arc::clone(&self.routes) };
        // One storage for both.
        let both = x.apply_op3_no_bwd(weights, &dy.contiguous()?, &gradient)?;
        let (rows, shares) = (x.elem_count(), weights.elem_count());
        let dx = both.narrow(0, 0, rows)?.reshape(x.shape())?;
        Ok((Some(dx), Some(both.narrow(0, rows, shares)?.reshape(weights.shape())?)))
    }
}

/// dx and dweights one after the other.
struct MixRowsGradient {
    routes: Arc<Routes>,
}

impl CustomOp3 for MixRowsGradient {
    fn name(&self) -> &'static str {
        "mix_rows_gradient"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weights: &CpuStorage,
        weights_layout: &Layout,
        dy: &CpuStorage,
        dy_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let d = x_layout.shape().dims2()?.1;
        let k = weights_layout.shape().dims2()?.1;
        let x = operand::elements::<f32>(x, x_layout)?;
        let weights = operand::elements::<f32>(weights, weights_layout)?;
        let dy = operand::elements::<f32>(dy, dy_layout)?;
        let mut both = vec![0.0; x.len() + weights.len()];
        let (dx, dweights) = both.split_at_mut(x.len());
        lanes::for_row_blocks(dx, d, |first, dx| {
            for (place, dx) in (first..).zip(dx.chunks_exact_mut(d)) {
                let index = self.routes.source[place];
                let dy = &dy[index / k * d..][..d];
                lanes::run(AddScaled { scale: weights[index], x: dy, y: dx });
            }
        });
        dweights.par_iter_mut().enumerate().with_min_len(16).for_each(|(index, dweight)| {
            let (dy, x) = (&dy[index / k * d..][..d], &x[self.routes.places[index] * d..][..d]);
            *dweight = lanes::run(lanes::Dot { a: dy, b: x }) as f32;
        });
        let shape = Shape::from(both.len());
        Ok((CpuStorage::F32(both), shape))
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        x_layout: &Layout,
        weights: &CudaStorage,
        weights_layout: &Layout,
        dy: &CudaStorage,
        dy_layout: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        let (n, d) = x_layout.shape().dims2()?;
        let k = weights_layout.shape().dims2()?.1;
        let dx = Launch::of(OP, "mix_rows_gradient_rows", x)
            .read(weights, weights_layout)?
            .read(dy, dy_layout)?
            .list(&self.routes.source)?
            .output(DType::F32, n * d)?
            .int(n)
            .int(k)
            .int(d)
            .run(Grid::elements(n * d))?
            .one()?;
        let dweights = Launch::of(OP, "mix_rows_gradient_weights", x)
            .read(x, x_layout)?
            .read(dy, dy_layout)?
            .list(&self.routes.places)?
            .output(DType::F32, n)?
            .int(n)
            .int(k)
            .int(d)
            .run(Grid::warps_for(n))?
            .one()?;
        joined(&[(&dx, n * d), (&dweights, n)])
    }
}

/// `y += scale x`, the product rounded first.
struct AddScaled<'a> {
    scale: f32,
    x: &'a [f32],
    y: &'a mut [f32],
}

impl Kernel for AddScaled<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for (y, x) in self.y.iter_mut().zip(self.x) {
            *y += self.scale * x;
        }
    }
}
