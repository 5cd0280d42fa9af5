//! The feed-forward half of a block: an MLP, gated or plain, or a router and experts.

use candle_core::{D, Device, Tensor};

use super::linear::Linear;
use super::source::View;
use super::weights::load_tensor;
use super::{GradientSinks, Observer};
use crate::arch::{Activation, MlpSpec, Port, Role};
use crate::error::Result;
use crate::ops::{self, Gelu};

/// The feed-forward half of a block, which follows the attention.
#[derive(Debug)]
pub(super) enum Mlp {
    Gated(Gated),
    /// `down(gelu(up x))`.
    Plain {
        up: Linear,
        down: Linear,
        gelu: Gelu,
    },
    Experts {
        router: Tensor,
        experts: Vec<Gated>,
        top_k: usize,
        renormalise: bool,
    },
}

/// `down(act(gate x) · up x)`.
#[derive(Debug)]
pub(super) struct Gated {
    gate: Linear,
    up: Linear,
    down: Linear,
    activation: Activation,
}

impl Gated {
    /// Reads the gated MLP of `layer`, or one of its experts.
    fn load(
        view: View<'_>,
        layer: usize,
        expert: Option<usize>,
        activation: Activation,
        device: &Device,
    ) -> Result<Self> {
        let [gate, up, down] = match expert {
            None => [Role::MlpGate, Role::MlpUp, Role::MlpDown],
            Some(_) => [Role::ExpertGate, Role::ExpertUp, Role::ExpertDown],
        };
        let linear = |role| Linear::load(view.source, view.site(layer, role, expert)?, device);
        Ok(Self { gate: linear(gate)?, up: linear(up)?, down: linear(down)?, activation })
    }

    fn forward(&self, x: &Tensor, hidden: Port, observer: &mut dyn Observer) -> Result<Tensor> {
        let gate = self.gate.forward(x, observer)?;
        let up = self.up.forward(x, observer)?;
        let h = match self.activation {
            Activation::Silu => ops::silu_mul(&gate, &up)?,
            Activation::Gelu(form) => ops::gelu_mul(&gate, &up, form)?,
        };
        drop((gate, up));
        observer.input(hidden, &h)?;
        self.down.forward(&h, observer)
    }
}

impl Mlp {
    /// Reads the MLP of `layer`.
    pub(super) fn load(view: View<'_>, layer: usize, device: &Device) -> Result<Self> {
        let (checkpoint, spec) = (view.model.checkpoint(), view.model.spec());
        match spec.layers[layer].mlp {
            MlpSpec::Gated { activation, .. } => {
                Ok(Self::Gated(Gated::load(view, layer, None, activation, device)?))
            }
            MlpSpec::Plain { gelu, .. } => {
                let linear =
                    |role| Linear::load(view.source, view.site(layer, role, None)?, device);
                Ok(Self::Plain { up: linear(Role::MlpUp)?, down: linear(Role::MlpDown)?, gelu })
            }
            MlpSpec::Experts { count, top_k, renormalise, .. } => {
                let names = &spec.family.names;
                let router = format!("{}{layer}.{}", names.layer, names.router);
                let expert = |e| Gated::load(view, layer, Some(e), Activation::Silu, device);
                Ok(Self::Experts {
                    router: load_tensor(checkpoint, &router, device)?,
                    experts: (0..count).map(expert).collect::<Result<_>>()?,
                    top_k,
                    renormalise,
                })
            }
        }
    }

    /// The linears.
    pub(super) fn into_linears(self) -> Vec<Linear> {
        let of = |Gated { gate, up, down, .. }: Gated| [gate, up, down];
        match self {
            Self::Gated(mlp) => of(mlp).into(),
            Self::Plain { up, down, .. } => vec![up, down],
            Self::Experts { experts, .. } => experts.into_iter().flat_map(of).collect(),
        }
    }

    /// Normed rows `x [tokens, hidden]` to rows of the same shape.
    pub(super) fn forward(&self, x: &Tensor, observer: &mut dyn Observer) -> Result<Tensor> {
        observer.input(Port::MlpIn, x)?;
        match self {
            Self::Gated(mlp) => mlp.forward(x, Port::MlpHidden, observer),
            Self::Plain { up, down, gelu } => {
                let h = ops::gelu(&up.forward(x, observer)?, *gelu)?;
                observer.input(Port::MlpHidden, &h)?;
                down.forward(&h, observer)
            }
            Self::Experts { router, experts, top_k, renormalise } => {
                let routes = route(x, router, *top_k, *renormalise)?;
                let mut tokens = routes.tokens.as_slice();
                for (expert, count) in routes.counts.iter().enumerate() {
                    let (own, rest) = tokens.split_at(*count);
                    observer.routed(expert, own)?;
                    tokens = rest;
                }
                let rows = Tensor::new(routes.tokens.as_slice(), x.device())?;
                let routed = x.index_select(&rows, 0)?;
                let answers = ops::per_part(&routed, &routes.counts, |expert, rows| {
                    observer.input(Port::ExpertIn(expert), rows)?;
                    experts[expert].forward(rows, Port::ExpertHidden(expert), observer)
                })?;
                ops::mix_rows(&answers, &routes.weights, &routes.places)
            }
        }
    }
}

/// The tokens that each expert gets, and the weights of the experts' answers.
struct Routes {
    /// Token numbers, expert by expert and ascending within each: `tokens · top_k` of them.
    tokens: Vec<u32>,
    /// The number of tokens of each expert, `[experts]`.
    counts: Vec<usize>,
    /// Weights of every token's experts, likeliest first: `[tokens, top_k]`, the only part of a choice
    /// that has a gradient.
    weights: Tensor,
    /// The index in `tokens` that belongs to each of these weights.
    places: Vec<usize>,
}

/// Softmax over all experts, the `top_k` largest kept; equal probabilities go to the lower index.
fn route(x: &Tensor, router: &Tensor, top_k: usize, renormalise: bool) -> Result<Routes> {
    let logits = ops::linear(x, router, None, GradientSinks::default())?;
    // The softmax does not depend on the shift, so that has no gradient to follow.
    let largest = logits.detach().max_keepdim(D::Minus1)?;
    let shifted = logits.broadcast_sub(&largest)?.exp()?;
    let probabilities = shifted.broadcast_div(&shifted.sum_keepdim(D::Minus1)?)?;
    let chosen: Vec<u32> = probabilities
        .to_vec2::<f32>()?
        .iter()
        .flat_map(|p| {
            let mut order: Vec<u32> = (0..p.len() as u32).collect();
            order.sort_by(|&a, &b| p[b as usize].total_cmp(&p[a as usize]));
            order.truncate(top_k);
            order
        })
        .collect();
    let mut by_expert: Vec<usize> = (0..chosen.len()).collect();
    by_expert.sort_by_key(|&index| chosen[index]);
    let mut places = vec![0; chosen.len()];
    let mut counts = vec![0; router.dim(0)?];
    for (place, &index) in by_expert.iter().enumerate() {
        places[index] = place;
        counts[chosen[index] as usize] += 1;
    }
    let tokens: Vec<u32> = by_expert.iter().map(|index| (index / top_k) as u32).collect();
    let chosen = Tensor::from_vec(chosen, (x.dim(0)?, top_k), x.device())?;
    let weights = probabilities.gather(&chosen, 1)?;
    let weights = if renormalise { ops::renormalise(&weights)? } else { weights };
    Ok(Routes { tokens, counts, weights, places })
}
