//! The feed-forward half of a block: one gated MLP, or a router and experts.

use candle_core::{D, Device, Tensor};

use super::Observer;
use super::linear::{Linear, load_tensor};
use crate::arch::{MlpSpec, ModelSpec, Port, Site};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::ops;

/// What follows the attention.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one per block, and nearly all are dense")]
pub(super) enum Mlp {
    Gated(Gated),
    Experts { router: Tensor, experts: Vec<Gated>, top_k: usize, renormalise: bool },
}

/// `down(silu(gate x) · up x)`.
#[derive(Debug)]
pub(super) struct Gated {
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl Gated {
    fn load(checkpoint: &Checkpoint, sites: &[&Site], device: &Device) -> Result<Self> {
        let [gate, up, down] = sites else {
            return Err(Error::Bug(format!("a gated MLP of {} sites", sites.len())));
        };
        Ok(Self {
            gate: Linear::load(checkpoint, gate, device)?,
            up: Linear::load(checkpoint, up, device)?,
            down: Linear::load(checkpoint, down, device)?,
        })
    }

    fn forward(&self, x: &Tensor, hidden: Port, observer: &mut dyn Observer) -> Result<Tensor> {
        let gate = self.gate.forward(x, observer)?;
        let up = self.up.forward(x, observer)?;
        let h = ops::silu_mul(&gate, &up)?;
        observer.input(hidden, &h)?;
        self.down.forward(&h, observer)
    }
}

impl Mlp {
    /// Reads the MLP of `layer`; `sites` are gate, up, down, of each expert in turn where there are any.
    pub(super) fn load(
        checkpoint: &Checkpoint,
        spec: &ModelSpec,
        layer: usize,
        sites: &[&Site],
        device: &Device,
    ) -> Result<Self> {
        match spec.layers[layer].mlp {
            MlpSpec::Gated { .. } => Ok(Self::Gated(Gated::load(checkpoint, sites, device)?)),
            MlpSpec::Experts { top_k, renormalise, .. } => {
                let names = &spec.family.names;
                let router = format!("{}{layer}.{}", names.layer, names.router);
                Ok(Self::Experts {
                    router: load_tensor(checkpoint, &router, device)?,
                    experts: sites
                        .chunks(3)
                        .map(|s| Gated::load(checkpoint, s, device))
                        .collect::<Result<_>>()?,
                    top_k,
                    renormalise,
                })
            }
        }
    }

    /// Normed rows `x [tokens, hidden]` to rows of the same shape.
    pub(super) fn forward(&self, x: &Tensor, observer: &mut dyn Observer) -> Result<Tensor> {
        observer.input(Port::MlpIn, x)?;
        match self {
            Self::Gated(mlp) => mlp.forward(x, Port::MlpHidden, observer),
            Self::Experts { router, experts, top_k, renormalise } => {
                let routes = route(x, router, *top_k, *renormalise)?;
                let mut y = x.zeros_like()?;
                for (index, (expert, route)) in experts.iter().zip(&routes).enumerate() {
                    if route.rows.is_empty() {
                        continue;
                    }
                    let count = route.rows.len();
                    let rows = Tensor::from_slice(&route.rows, count, x.device())?;
                    let weights = Tensor::from_slice(&route.weights, (count, 1), x.device())?;
                    let routed = x.index_select(&rows, 0)?;
                    observer.input(Port::ExpertIn(index), &routed)?;
                    let out = expert.forward(&routed, Port::ExpertHidden(index), observer)?;
                    y = y.index_add(&rows, &out.broadcast_mul(&weights)?, 0)?;
                }
                Ok(y)
            }
        }
    }
}

/// The tokens one expert gets, and the weight of its answer for each.
#[derive(Debug, Clone, Default)]
struct Route {
    rows: Vec<u32>,
    weights: Vec<f32>,
}

/// Softmax over all experts, the `top_k` largest kept; equal probabilities go to the lower index.
fn route(x: &Tensor, router: &Tensor, top_k: usize, renormalise: bool) -> Result<Vec<Route>> {
    let logits = x.matmul(&router.t()?)?;
    let shifted = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?)?.exp()?;
    let probabilities =
        shifted.broadcast_div(&shifted.sum_keepdim(D::Minus1)?)?.to_vec2::<f32>()?;
    let mut routes = vec![Route::default(); router.dim(0)?];
    for (row, p) in (0u32..).zip(&probabilities) {
        let mut order: Vec<usize> = (0..p.len()).collect();
        order.sort_by(|&a, &b| p[b].total_cmp(&p[a]));
        order.truncate(top_k);
        let total: f32 = if renormalise { order.iter().map(|&e| p[e]).sum() } else { 1.0 };
        for expert in order {
            routes[expert].rows.push(row);
            routes[expert].weights.push(p[expert] / total);
        }
    }
    Ok(routes)
}
