//! Perplexity over disjoint windows.
//!
//! Every position but a window's first is scored. Losses are `logsumexp(logits) - logit[target]`
//! in f32, summed in f64; `perplexity = exp(Σ loss / count)`.

use candle_core::Tensor;
use rayon::prelude::*;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::measure::{Compute, Scored, Stream, Windows};
use crate::model::{Head, View};
use crate::progress::Progress;

/// A measured perplexity and how it was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Perplexity {
    /// Mean loss in nats per token.
    pub nll: f64,
    /// Standard error of the mean, windows taken as independent (tokens inside one are not);
    /// unknown for a single window.
    pub nll_stderr: Option<f64>,
    /// The same with all tokens taken as independent, as other tools print it.
    pub nll_stderr_iid: Option<f64>,
    /// `exp(nll)`.
    pub perplexity: f64,
    /// `perplexity · nll_stderr`.
    pub perplexity_stderr: Option<f64>,
    /// Positions scored.
    pub tokens: u64,
    /// Windows scored.
    pub windows: usize,
    /// Tokens of a window.
    pub window: usize,
    /// The name of the protocol.
    pub protocol: &'static str,
}

/// Measures a model that is open, or one that is planned ([`Preview`](crate::pipeline::Preview)), on
/// `windows`, one block in memory at a time.
///
/// # Errors
/// Tensors that cannot be read; [`Error::NonFinite`] where the model's logits are not finite;
/// [`Error::Interrupted`].
pub fn perplexity<'a>(
    view: impl Into<View<'a>>,
    windows: &Windows,
    compute: &Compute,
    progress: &dyn Progress,
) -> Result<Perplexity> {
    let view = view.into();
    let mut stream = Stream::new(view, windows, compute)?;
    let passes = view.model.spec().layers.len() as u64 + 1;
    progress.begin("evaluating", Stream::steps(windows, compute) * passes);
    while stream.next_layer().is_some() {
        stream.advance_unobserved(progress)?;
    }
    let head = stream.head()?;
    let length = windows.length();
    let chunks: Vec<(&Tensor, &[u32])> = with_ids(stream.chunks(), windows.ids())?;
    let losses = |(chunk, ids): (&Tensor, &[u32])| {
        progress.check()?;
        let losses = chunk_losses(&head, &chunk.to_device(compute.device())?, ids, length)?;
        progress.advance(1);
        Ok(losses)
    };
    // A chunk per thread where that is faster, summed up in their order.
    let losses: Vec<Vec<f32>> = match compute.side_by_side() {
        true => chunks.into_par_iter().map(losses).collect::<Result<_>>()?,
        false => chunks.into_iter().map(losses).collect::<Result<_>>()?,
    };
    let mut sums = Sums::default();
    for window in losses.iter().flat_map(|losses| losses.chunks(length - 1)) {
        sums.add(window);
    }
    progress.end();
    sums.finish(length)
}

/// The chunks of the stream, each with its token ids.
fn with_ids<'a>(chunks: &'a [Tensor], mut ids: &'a [u32]) -> Result<Vec<(&'a Tensor, &'a [u32])>> {
    let mut pairs = Vec::with_capacity(chunks.len());
    for chunk in chunks {
        let (here, rest) = ids.split_at(chunk.dim(0)?);
        pairs.push((chunk, here));
        ids = rest;
    }
    Ok(pairs)
}

/// The losses of the scored positions of one chunk of windows, in order.
fn chunk_losses(head: &Head, chunk: &Tensor, ids: &[u32], length: usize) -> Result<Vec<f32>> {
    let mut losses = Vec::with_capacity(ids.len());
    for Scored { rows, targets } in Scored::groups(ids, length, chunk.device())? {
        let x = chunk.index_select(&rows, 0)?;
        losses.extend(head.losses(&x, &targets)?.to_vec1::<f32>()?);
    }
    Ok(losses)
}

/// Running sums over windows.
#[derive(Debug, Default)]
struct Sums {
    windows: usize,
    tokens: u64,
    loss: f64,
    squares: f64,
    window_squares: f64,
}

impl Sums {
    fn add(&mut self, losses: &[f32]) {
        let sum: f64 = losses.iter().map(|&l| f64::from(l)).sum();
        self.windows += 1;
        self.tokens += losses.len() as u64;
        self.loss += sum;
        self.squares += losses.iter().map(|&l| f64::from(l).powi(2)).sum::<f64>();
        self.window_squares += (sum / losses.len() as f64).powi(2);
    }

    fn finish(&self, window: usize) -> Result<Perplexity> {
        let nll = self.loss / self.tokens as f64;
        if !nll.is_finite() {
            let detail = format!("mean of {} losses", self.tokens);
            return Err(Error::NonFinite { what: "the loss".into(), detail });
        }
        // Windows have equal length, so the mean of their means is the mean.
        let nll_stderr = standard_error(nll, self.window_squares, self.windows as f64);
        let perplexity = nll.exp();
        Ok(Perplexity {
            nll,
            nll_stderr,
            nll_stderr_iid: standard_error(nll, self.squares, self.tokens as f64),
            perplexity,
            perplexity_stderr: nll_stderr.map(|error| perplexity * error),
            tokens: self.tokens,
            windows: self.windows,
            window,
            protocol: "windows",
        })
    }
}

/// `sqrt((Σx²/n - mean²) / (n - 1))`; a single value has none.
fn standard_error(mean: f64, squares: f64, n: f64) -> Option<f64> {
    (n >= 2.0).then(|| ((squares / n - mean * mean).max(0.0) / (n - 1.0)).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_give_mean_and_both_standard_errors() -> Result<()> {
        let mut sums = Sums::default();
        for window in [[1.0_f32, 2.0, 3.0], [4.0, 4.0, 7.0]] {
            sums.add(&window);
        }
        let found = sums.finish(4)?;
        assert!((found.nll - 3.5).abs() < 1e-15);
        // Window means 2 and 5: variance of the mean 4.5 / 2.
        assert!(found.nll_stderr.is_some_and(|e| (e - 1.5).abs() < 1e-15));
        // Six values with sum of squared deviations 21.5.
        let iid = (21.5_f64 / 6.0 / 5.0).sqrt();
        assert!(found.nll_stderr_iid.is_some_and(|e| (e - iid).abs() < 1e-12));
        assert_eq!((found.tokens, found.windows, found.window), (6, 2, 4));
        Ok(())
    }

    #[test]
    fn one_window_has_no_standard_error_and_nan_is_refused() -> Result<()> {
        let mut sums = Sums::default();
        sums.add(&[2.0, 4.0]);
        assert_eq!(sums.finish(3)?.nll_stderr, None);
        sums.add(&[f32::NAN, 4.0]);
        assert!(matches!(sums.finish(3), Err(Error::NonFinite { .. })));
        Ok(())
    }
}
