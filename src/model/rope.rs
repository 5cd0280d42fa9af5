//! Rotary frequencies and the cos/sin tables (arXiv 2104.09864), with the published stretchings.
//!
//! `d` channels of a head turn, all of them or (partial rotary) the first. Channel pair `i` of `d/2`
//! turns by `position · f_i` with `f_i = θ^(-2i/d)`; scalings change `f`.

use candle_core::{Device, Tensor};
use std::f64::consts::PI;

use crate::arch::{RopeScaling, RopeSpec};
use crate::error::Result;

/// Frequencies of the `channels / 2` channel pairs in radians per position, for a text that ends
/// before position `end`, and the factor that multiplies both cos and sin.
pub(super) fn frequencies(rope: &RopeSpec, end: usize) -> (Vec<f64>, f64) {
    let d = as_f64(rope.channels);
    let base = (0..rope.channels / 2).map(|i| rope.theta.powf(-as_f64(2 * i) / d));
    match &rope.scaling {
        RopeScaling::None => (base.collect(), 1.0),
        RopeScaling::Linear { factor } => (base.map(|f| f / factor).collect(), 1.0),
        &RopeScaling::Llama3 { factor, low, high, original } => {
            let stretched = base.map(|f| {
                let wavelength = 2.0 * PI / f;
                if wavelength < original / high {
                    f
                } else if wavelength > original / low {
                    f / factor
                } else {
                    let smooth = (original / wavelength - low) / (high - low);
                    (1.0 - smooth) * f / factor + smooth * f
                }
            });
            (stretched.collect(), 1.0)
        }
        &RopeScaling::Yarn { factor, original, beta_fast, beta_slow, attention, truncate } => {
            // The channel that makes `rotations` turns over the original context.
            let channel = |rotations: f64| {
                d * (original / (rotations * 2.0 * PI)).ln() / (2.0 * rope.theta.ln())
            };
            let (mut low, mut high) = (channel(beta_fast), channel(beta_slow));
            if truncate {
                (low, high) = (low.floor(), high.ceil());
            }
            let (low, mut high) = (low.max(0.0), high.min(d - 1.0));
            if (high - low).abs() < f64::EPSILON {
                high += 0.001;
            }
            let stretched = base.enumerate().map(|(i, f)| {
                let interpolated = ((as_f64(i) - low) / (high - low)).clamp(0.0, 1.0);
                f / factor * interpolated + f * (1.0 - interpolated)
            });
            (stretched.collect(), attention)
        }
        // As in transformers, all of a text turns by the divisors that its end asks for. Keys in a cache
        // were turned already and stay as they are when generation crosses the border.
        RopeScaling::Long { short, long, original, attention } => {
            let divisors = if as_f64(end) > *original { long } else { short };
            (base.zip(divisors).map(|(f, divisor)| f / divisor).collect(), *attention)
        }
    }
}

/// `cos` and `sin`, each `[length, channels / 2]` f32, for positions `first ..`.
pub(super) fn tables(
    rope: &RopeSpec,
    first: usize,
    length: usize,
    device: &Device,
) -> Result<(Tensor, Tensor)> {
    let (frequencies, scale) = frequencies(rope, first + length);
    let angles = (first..first + length)
        .flat_map(|position| frequencies.iter().map(move |f| as_f64(position) * f));
    #[expect(clippy::cast_possible_truncation, reason = "the tables are f32 by definition")]
    let (cos, sin): (Vec<f32>, Vec<f32>) =
        angles.map(|a| ((a.cos() * scale) as f32, (a.sin() * scale) as f32)).unzip();
    let shape = (length, rope.channels / 2);
    Ok((Tensor::from_vec(cos, shape, device)?, Tensor::from_vec(sin, shape, device)?))
}

#[expect(clippy::cast_precision_loss, reason = "positions and channels are far below 2^52")]
fn as_f64(n: usize) -> f64 {
    n as f64
}
