//! Rotary position embedding as `config.json` describes it, in either spelling.
//!
//! transformers 4 writes a top-level `rope_theta` and `rope_scaling`; transformers 5 writes one
//! `rope_parameters` object that holds both. The arithmetic lives in
//! [`model`](crate::model), not here.

use super::keys::Keys;
use crate::error::Result;

/// Base frequency and scaling rule.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeSpec {
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
}

/// The base where no config names one, as in transformers.
const DEFAULT_THETA: f64 = 10_000.0;

impl RopeSpec {
    /// Reads the rope description.
    ///
    /// # Errors
    /// [`Error::Unsupported`](crate::Error::Unsupported) for a rule that is not built,
    /// [`Error::Config`](crate::Error::Config) for a value of the wrong kind.
    pub(super) fn from_config(keys: &Keys<'_>, max_positions: usize) -> Result<Self> {
        // Where both are there transformers takes `rope_scaling` whole.
        let parameters = match keys.object("rope_scaling")? {
            Some(found) => Some(found),
            None => keys.object("rope_parameters")?,
        };
        let top_theta = keys.number("rope_theta")?;
        let Some(rope) = parameters else {
            return Ok(Self {
                theta: top_theta.unwrap_or(DEFAULT_THETA),
                scaling: RopeScaling::None,
            });
        };
        let theta = match rope.number("rope_theta")? {
            Some(theta) => theta,
            None => top_theta.unwrap_or(DEFAULT_THETA),
        };
        if let Some(partial) = rope.number("partial_rotary_factor")?
            && (partial - 1.0).abs() > f64::EPSILON
        {
            return Err(keys.unsupported(&format!("`partial_rotary_factor` {partial}")));
        }
        let rule = match rope.text("rope_type")? {
            Some(rule) => Some(rule),
            None => rope.text("type")?,
        };
        let original = match keys.number("original_max_position_embeddings")? {
            Some(top) => Some(top),
            None => rope.number("original_max_position_embeddings")?,
        };
        #[expect(clippy::cast_precision_loss, reason = "a context length is far below 2^52")]
        let max_positions = max_positions as f64;
        let original = original.unwrap_or(max_positions);
        let scaling = match rule {
            None | Some("default") => RopeScaling::None,
            Some("linear") => RopeScaling::Linear { factor: rope.positive("factor")? },
            Some("llama3") => RopeScaling::Llama3 {
                factor: rope.positive("factor")?,
                low: rope.positive("low_freq_factor")?,
                high: rope.positive("high_freq_factor")?,
                original,
            },
            Some("yarn") => yarn(&rope, original, max_positions)?,
            Some(other) => return Err(keys.unsupported(&format!("rope type `{other}`"))),
        };
        Ok(Self { theta, scaling })
    }
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
