//! The energy of the gradient at every output channel of every linear of one layer, and at its gain.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Tensor};

use crate::arch::{Port, Site};
use crate::error::{Error, Result};
use crate::lock::lock;
use crate::model::{GradientSink, GradientSinks, Half, Observer};
use crate::ops;

/// Energies of gradients at one site, `g` that of the summed loss at its output.
#[derive(Debug, Clone, PartialEq)]
pub struct GradientMoment {
    /// `Σ_t g[t]²` per output channel, `[out]`, in nats² per unit² of the channel.
    pub squares: Vec<f64>,
    /// `Σ_windows (Σ_t ⟨g[t], W x[t]⟩)²` in nats², the inner sums over the tokens of a window. If `W` were
    /// `(1 + ε) W`, the loss of a window would change by `ε Σ_t ⟨g[t], W x[t]⟩`: this sums that slope
    /// squared. Kept apart from `squares` because an error that shrinks all of `W` moves every token of a
    /// window the same way, and taking tokens for independent would underestimate it.
    pub gain: f64,
    /// Tokens that reached the site.
    pub tokens: u64,
}

impl GradientMoment {
    /// Returns `E[g²]` of every channel and the gain per token, over `tokens` tokens of text. Tokens
    /// that did not reach the site count as tokens without a gradient there.
    pub fn per_token(&self, tokens: u64) -> (Arc<[f64]>, f64) {
        let tokens = tokens.max(1) as f64;
        (self.squares.iter().map(|square| square / tokens).collect(), self.gain / tokens)
    }
}

/// Gradient moments by site name; sites that no token reached (an expert nobody chose) are absent.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GradientMoments {
    tokens: u64,
    sites: BTreeMap<String, GradientMoment>,
}

impl GradientMoments {
    /// Tokens of the text, whether or not they reached a site.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// The moment at the output of `site`.
    pub fn get(&self, site: &str) -> Option<&GradientMoment> {
        self.sites.get(site)
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &GradientMoment)> {
        self.sites.iter().map(|(name, moment)| (name.as_str(), moment))
    }

    fn add(&mut self, part: Self) -> Result<()> {
        self.tokens += part.tokens;
        for (name, part) in part.sites {
            if let Some(channel) = part.squares.iter().position(|square| !square.is_finite()) {
                let what = format!("the gradient at the output of `{name}`");
                return Err(Error::NonFinite { what, detail: format!("channel {channel}") });
            }
            if !part.gain.is_finite() {
                let what = format!("the gradient at the gain of `{name}`");
                return Err(Error::NonFinite { what, detail: format!("{}", part.gain) });
            }
            match self.sites.get_mut(&name) {
                None => drop(self.sites.insert(name, part)),
                Some(sum) => {
                    sum.tokens += part.tokens;
                    sum.gain += part.gain;
                    sum.squares.iter_mut().zip(part.squares).for_each(|(sum, part)| *sum += part);
                }
            }
        }
        Ok(())
    }
}

/// Adds up the moments of chunks in the order of the chunks, in whatever order they are done.
#[derive(Debug, Default)]
pub(in crate::measure) struct InOrder {
    sum: GradientMoments,
    next: usize,
    early: BTreeMap<usize, GradientMoments>,
}

impl InOrder {
    pub(in crate::measure) fn add(&mut self, chunk: usize, part: GradientMoments) -> Result<()> {
        self.early.insert(chunk, part);
        while let Some(part) = self.early.remove(&self.next) {
            self.sum.add(part)?;
            self.next += 1;
        }
        Ok(())
    }

    pub(in crate::measure) fn finish(self) -> GradientMoments {
        self.sum
    }
}

/// An observer of one chunk that takes the moments of its gradients, and lets another see all that
/// it would see alone.
pub(in crate::measure) struct Watched<'a> {
    observer: &'a mut dyn Observer,
    device: Device,
    /// Tokens of a window.
    length: usize,
    /// Tokens of the rows of every expert.
    routed: BTreeMap<usize, Arc<[u32]>>,
    sites: BTreeMap<String, Seen>,
}

/// The gradients that the sinks of one site gathered, and the tokens of the site's rows: a list for an
/// expert, `None` for a site that sees all tokens in order.
struct Seen {
    channels: Arc<ColumnSquares>,
    gain: Arc<Gain>,
    tokens: Option<Arc<[u32]>>,
}

impl<'a> Watched<'a> {
    pub(in crate::measure) fn new(
        observer: &'a mut dyn Observer,
        device: &Device,
        length: usize,
    ) -> Self {
        let (device, routed, sites) = (device.clone(), BTreeMap::new(), BTreeMap::new());
        Self { observer, device, length, routed, sites }
    }

    /// The moments, once the backward pass of so many tokens is done.
    pub(in crate::measure) fn moments(&self, tokens: usize) -> Result<GradientMoments> {
        let mut sites = BTreeMap::new();
        for (name, seen) in &self.sites {
            // Without a row there was no gradient.
            let Some(gains) = seen.gain.take() else { continue };
            let gains = gains.to_vec1::<f32>()?;
            let moment = GradientMoment {
                squares: seen.channels.sums.to_vec1::<f64>()?,
                gain: self.window_squares(&gains, seen.tokens.as_deref()),
                tokens: gains.len() as u64,
            };
            sites.insert(name.clone(), moment);
        }
        Ok(GradientMoments { tokens: tokens as u64, sites })
    }

    /// Sums `rows` over the tokens of each window, and returns the sum of the squares of these sums.
    fn window_squares(&self, rows: &[f32], tokens: Option<&[u32]>) -> f64 {
        let mut windows = BTreeMap::<usize, f64>::new();
        for (row, &value) in rows.iter().enumerate() {
            let token = tokens.map_or(row, |tokens| tokens[row] as usize);
            *windows.entry(token / self.length).or_default() += f64::from(value);
        }
        windows.values().map(|sum| sum * sum).sum()
    }
}

#[deny(clippy::missing_trait_methods)]
impl Observer for Watched<'_> {
    fn input(&mut self, port: Port, x: &Tensor) -> Result<()> {
        self.observer.input(port, &x.detach())
    }

    fn output(&mut self, site: &Site, y: &Tensor) -> Result<()> {
        self.observer.output(site, &y.detach())
    }

    fn residual(&mut self, half: Half, added: &Tensor, stream: &Tensor) -> Result<()> {
        self.observer.residual(half, &added.detach(), &stream.detach())
    }

    fn routed(&mut self, expert: usize, tokens: &[u32]) -> Result<()> {
        self.routed.insert(expert, tokens.into());
        self.observer.routed(expert, tokens)
    }

    fn gradients(&mut self, site: &Site) -> Result<GradientSinks> {
        let sums = Tensor::zeros(site.out_features, DType::F64, &self.device)?;
        let channels = Arc::new(ColumnSquares { sums });
        let gain = Arc::new(Gain::default());
        let tokens = site.port.expert().and_then(|expert| self.routed.get(&expert).cloned());
        let seen = Seen { channels: Arc::clone(&channels), gain: Arc::clone(&gain), tokens };
        self.sites.insert(site.name.clone(), seen);
        let asked = self.observer.gradients(site)?;
        Ok(GradientSinks {
            input: asked.input,
            output: Some(beside(channels, asked.output)),
            gain: Some(beside(gain, asked.gain)),
        })
    }
}

/// Sums the squares of a gradient by channel.
struct ColumnSquares {
    /// `[out]` f64.
    sums: Tensor,
}

impl GradientSink for ColumnSquares {
    fn gradient(&self, gradient: &Tensor) -> Result<()> {
        ops::column_squares(&self.sums, gradient)
    }
}

/// Keeps the gradient at the gain, `[tokens]`, on its device, because nothing should wait for a device
/// on the way back.
#[derive(Default)]
struct Gain(Mutex<Option<Tensor>>);

impl Gain {
    fn take(&self) -> Option<Tensor> {
        lock(&self.0).take()
    }
}

impl GradientSink for Gain {
    fn gradient(&self, gradient: &Tensor) -> Result<()> {
        *lock(&self.0) = Some(gradient.clone());
        Ok(())
    }
}

/// Joins a sink of ours with `other`, if there is one, into one that shows its gradient to both.
fn beside(
    own: Arc<dyn GradientSink>,
    other: Option<Arc<dyn GradientSink>>,
) -> Arc<dyn GradientSink> {
    match other {
        Some(other) => Arc::new(Both(own, other)),
        None => own,
    }
}

/// Two sinks of one gradient.
struct Both(Arc<dyn GradientSink>, Arc<dyn GradientSink>);

impl GradientSink for Both {
    fn gradient(&self, gradient: &Tensor) -> Result<()> {
        self.0.gradient(gradient)?;
        self.1.gradient(gradient)
    }
}
