//! The energy of the gradient at every output channel of every linear of one layer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::{DType, Device, Tensor};

use crate::arch::{Port, Site};
use crate::error::{Error, Result};
use crate::model::{GradientSink, GradientSinks, Half, Observer};
use crate::ops;

/// `Σ_t g[t]²` of one site, `g` the gradient of the summed loss at its output.
#[derive(Debug, Clone, PartialEq)]
pub struct GradientMoment {
    /// Per output channel, `[out]`, in nats² per unit² of the channel.
    pub squares: Vec<f64>,
    /// Tokens that reached the site.
    pub tokens: u64,
}

impl GradientMoment {
    /// `E[g²]` per channel; zero where no token reached the site.
    pub fn per_token(&self) -> Arc<[f64]> {
        let tokens = self.tokens.max(1) as f64;
        self.squares.iter().map(|square| square / tokens).collect()
    }
}

/// Gradient moments by site name; sites that no token reached (an expert nobody chose) are absent.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GradientMoments {
    sites: BTreeMap<String, GradientMoment>,
}

impl GradientMoments {
    /// The moment at the output of `site`.
    pub fn get(&self, site: &str) -> Option<&GradientMoment> {
        self.sites.get(site)
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &GradientMoment)> {
        self.sites.iter().map(|(name, moment)| (name.as_str(), moment))
    }

    fn add(&mut self, part: Self) -> Result<()> {
        for (name, part) in part.sites {
            if part.squares.iter().any(|square| !square.is_finite()) {
                let what = format!("the gradient at the output of `{name}`");
                let channel = part.squares.iter().position(|square| !square.is_finite());
                let detail = format!("channel {}", channel.unwrap_or(0));
                return Err(Error::NonFinite { what, detail });
            }
            match self.sites.get_mut(&name) {
                None => drop(self.sites.insert(name, part)),
                Some(sum) => {
                    sum.tokens += part.tokens;
                    sum.squares.iter_mut().zip(part.squares).for_each(|(sum, part)| *sum += part);
                }
            }
        }
        Ok(())
    }
}

/// Adds up the moments of chunks in the order of the chunks, in whatever order they are done.
#[derive(Debug, Default)]
pub(super) struct InOrder {
    sum: GradientMoments,
    next: usize,
    early: BTreeMap<usize, GradientMoments>,
}

impl InOrder {
    pub(super) fn add(&mut self, chunk: usize, part: GradientMoments) -> Result<()> {
        self.early.insert(chunk, part);
        while let Some(part) = self.early.remove(&self.next) {
            self.sum.add(part)?;
            self.next += 1;
        }
        Ok(())
    }

    pub(super) fn finish(self) -> GradientMoments {
        self.sum
    }
}

/// An observer of one chunk that takes the moments of its gradients, and lets another see all that
/// it would see alone.
pub(super) struct Watched<'a> {
    observer: &'a mut dyn Observer,
    device: Device,
    sites: BTreeMap<String, Arc<ColumnSquares>>,
}

impl<'a> Watched<'a> {
    pub(super) fn new(observer: &'a mut dyn Observer, device: &Device) -> Self {
        Self { observer, device: device.clone(), sites: BTreeMap::new() }
    }

    /// The moments, once the backward pass is done.
    pub(super) fn moments(&self) -> Result<GradientMoments> {
        let moment = |(name, seen): (&String, &Arc<ColumnSquares>)| {
            let squares = seen.sums.to_vec1::<f64>()?;
            let moment = GradientMoment { squares, tokens: seen.tokens.load(Ordering::Relaxed) };
            Ok((name.clone(), moment))
        };
        let reached = |(_, moment): &(_, GradientMoment)| moment.tokens > 0;
        let sites: Vec<_> = self.sites.iter().map(moment).collect::<Result<_>>()?;
        Ok(GradientMoments { sites: sites.into_iter().filter(reached).collect() })
    }
}

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

    fn gradients(&mut self, site: &Site) -> Result<GradientSinks> {
        let sums = Tensor::zeros(site.out_features, DType::F64, &self.device)?;
        let own = Arc::new(ColumnSquares { sums, tokens: AtomicU64::new(0) });
        self.sites.insert(site.name.clone(), Arc::clone(&own));
        let asked = self.observer.gradients(site)?;
        let output: Arc<dyn GradientSink> = match asked.output {
            Some(other) => Arc::new(Both(own, other)),
            None => own,
        };
        Ok(GradientSinks { input: asked.input, output: Some(output) })
    }
}

/// Sums the squares of a gradient by channel.
struct ColumnSquares {
    /// `[out]` f64.
    sums: Tensor,
    tokens: AtomicU64,
}

impl GradientSink for ColumnSquares {
    fn gradient(&self, gradient: &Tensor) -> Result<()> {
        ops::column_squares(&self.sums, gradient)?;
        self.tokens.fetch_add(gradient.dim(0)? as u64, Ordering::Relaxed);
        Ok(())
    }
}

/// Two that look at one gradient.
struct Both(Arc<ColumnSquares>, Arc<dyn GradientSink>);

impl GradientSink for Both {
    fn gradient(&self, gradient: &Tensor) -> Result<()> {
        self.0.gradient(gradient)?;
        self.1.gradient(gradient)
    }
}
