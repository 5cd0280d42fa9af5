//! Rotary position embedding as `config.json` describes it, in either spelling.
//!
//! transformers 4 writes a top-level `rope_theta` and `rope_scaling`; transformers 5 writes one
//! `rope_parameters` object that holds both. The arithmetic lives in
//! [`model`](crate::model), not here.

use super::family::PositionRule;
use super::keys::Keys;
use crate::error::Result;

/// Base frequency and scaling rule.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeSpec {
    /// Channels of each head that turn, the first ones; even, and at most all of them.
    pub channels: usize,
    /// Base of the geometric series of wavelengths.
    pub theta: f64,
    /// What is done to the frequencies for contexts longer than the model was trained on.
    pub scaling: RopeScaling,
}

/// The published ways to stretch rotary frequencies.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// As trained.
    None,
    /// Positions divided by `factor`.
    Linear {
        /// Ratio of the new context to the old.
        factor: f64,
    },
    /// Long wavelengths divided by `factor`, short ones kept, a linear blend between.
    Llama3 {
        /// Ratio by which long wavelengths grow.
        factor: f64,
        /// Wavelengths above `original / low` are scaled.
        low: f64,
        /// Wavelengths below `original / high` are kept.
        high: f64,
        /// The context the model was trained on.
        original: f64,
    },
    /// `YaRN` (arXiv 2309.00071).
    Yarn {
        /// Ratio of the new context to the old.
        factor: f64,
        /// The context the model was trained on.
        original: f64,
        /// Rotations in the original context above which a channel is kept.
        beta_fast: f64,
        /// Rotations below which it is interpolated in full.
        beta_slow: f64,
        /// What cos and sin are multiplied by.
        attention: f64,
        /// Whether the ends of the ramp are rounded to whole channels.
        truncate: bool,
    },
    /// `LongRoPE` (arXiv 2402.13753): every channel pair has a divisor of its own.
    Long {
        /// Divisors for texts that end within the original context.
        short: Vec<f64>,
        /// Divisors for longer texts.
        long: Vec<f64>,
        /// The context the model was trained on.
        original: f64,
        /// What cos and sin are multiplied by.
        attention: f64,
    },
}

/// The base where no config names one, as in transformers.
const DEFAULT_THETA: f64 = 10_000.0;

impl RopeSpec {
    /// Reads the rope description; `None` where the family has none.
    ///
    /// # Errors
    /// [`Error::Unsupported`](crate::Error::Unsupported) for a rule that is not built,
    /// [`Error::Config`](crate::Error::Config) for a value of the wrong kind.
    pub(super) fn from_config(
        keys: &Keys<'_>,
        rule: PositionRule,
        head_dim: usize,
        max_positions: usize,
    ) -> Result<Option<Self>> {
        let PositionRule::Rotary { theta: theta_key, partial, long } = rule else {
            return Ok(None);
        };
        // Where both are there transformers takes `rope_scaling` whole.
        let parameters = match keys.object("rope_scaling")? {
            Some(found) => Some(found),
            None => keys.object("rope_parameters")?,
        };
        let inside = |key: &str| parameters.as_ref().map_or(Ok(None), |rope| rope.number(key));
        let theta = match inside("rope_theta")? {
            Some(theta) => theta,
            None => keys.number(theta_key)?.unwrap_or(DEFAULT_THETA),
        };
        let share = match (inside("partial_rotary_factor")?, partial) {
            (Some(given), Some(_)) => given,
            (Some(given), None) if (given - 1.0).abs() > f64::EPSILON => {
                return Err(keys.unsupported(&format!("`partial_rotary_factor` {given}")));
            }
            (None, Some((key, default))) => keys.number(key)?.unwrap_or(default),
            (_, None) => 1.0,
        };
        let channels = rotary_channels(keys, share, head_dim)?;
        let scaling = match parameters {
            Some(rope) => scaling(keys, &rope, long, channels / 2, max_positions)?,
            None => RopeScaling::None,
        };
        Ok(Some(Self { channels, theta, scaling }))
    }
}

/// The channels that turn: `⌊share · head_dim⌋`, which has to be even.
fn rotary_channels(keys: &Keys<'_>, share: f64, head_dim: usize) -> Result<usize> {
    let channels = (share * head_dim as f64).floor();
    if !(channels >= 2.0 && channels <= head_dim as f64 && channels % 2.0 == 0.0) {
        let found = format!("{head_dim}, of which {channels} turn");
        return Err(keys.wrong("head_dim", "channels of which an even number turns", &found));
    }
    #[expect(clippy::cast_sign_loss, reason = "between 2 and head_dim")]
    Ok(channels as usize)
}

fn scaling(
    keys: &Keys<'_>,
    rope: &Keys<'_>,
    long_names: &[&str],
    pairs: usize,
    max_positions: usize,
) -> Result<RopeScaling> {
    let rule = match rope.text("rope_type")? {
        Some(rule) => Some(rule),
        None => rope.text("type")?,
    };
    let original = match keys.number("original_max_position_embeddings")? {
        Some(top) => Some(top),
        None => rope.number("original_max_position_embeddings")?,
    };
    let max_positions = max_positions as f64;
    let original = original.unwrap_or(max_positions);
    match rule {
        Some(name) if long_names.contains(&name) => long(rope, pairs, original, max_positions),
        None | Some("default") => Ok(RopeScaling::None),
        Some("linear") => Ok(RopeScaling::Linear { factor: rope.positive("factor")? }),
        Some("llama3") => Ok(RopeScaling::Llama3 {
            factor: rope.positive("factor")?,
            low: rope.positive("low_freq_factor")?,
            high: rope.positive("high_freq_factor")?,
            original,
        }),
        Some("yarn") => yarn(rope, original, max_positions),
        Some(other) => Err(keys.unsupported(&format!("rope type `{other}`"))),
    }
}

fn long(rope: &Keys<'_>, pairs: usize, original: f64, max_positions: f64) -> Result<RopeScaling> {
    let factor = match rope.value("factor").is_none() {
        true => max_positions / original,
        false => rope.positive("factor")?,
    };
    let attention = match rope.number("attention_factor")? {
        Some(given) => given,
        None if factor <= 1.0 => 1.0,
        None => (1.0 + factor.ln() / original.ln()).sqrt(),
    };
    Ok(RopeScaling::Long {
        short: rope.positives("short_factor", pairs)?,
        long: rope.positives("long_factor", pairs)?,
        original,
        attention,
    })
}

fn yarn(rope: &Keys<'_>, original: f64, max_positions: f64) -> Result<RopeScaling> {
    let factor = match rope.is_null("factor") {
        true => max_positions / original,
        false => rope.positive("factor")?,
    };
    // 0.1 m ln(factor) + 1, equation 22 of the paper.
    let mscale = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
    let attention = match rope.number("attention_factor")? {
        Some(given) => given,
        None => match (rope.number("mscale")?, rope.number("mscale_all_dim")?) {
            (Some(m), Some(all)) if m != 0.0 && all != 0.0 => mscale(m) / mscale(all),
            _ => mscale(1.0),
        },
    };
    // Zero means the default, as null does.
    let beta = |key, default| -> Result<f64> {
        Ok(rope.number(key)?.filter(|b| *b != 0.0).unwrap_or(default))
    };
    Ok(RopeScaling::Yarn {
        factor,
        original,
        beta_fast: beta("beta_fast", 32.0)?,
        beta_slow: beta("beta_slow", 1.0)?,
        attention,
        truncate: rope.boolean("truncate")?.unwrap_or(true),
    })
}
