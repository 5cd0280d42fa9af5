//! `config.json` resolved into the numbers and switches the decoder needs.

use super::family::{BiasRule, FAMILIES, Family, SlidingRule};
use super::keys::Keys;
use super::rope::RopeSpec;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};

/// Everything the decoder must know about a model, and nothing about where it is stored.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSpec {
    /// The row of the family table.
    pub family: &'static Family,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Positions the model was made for.
    pub max_positions: usize,
    /// Added to the mean square inside every `RMSNorm`.
    pub norm_eps: f64,
    /// The head is the embedding.
    pub tied: bool,
    /// What all layers' attention has in common.
    pub attention: AttentionSpec,
    /// What differs between layers, in order.
    pub layers: Vec<LayerSpec>,
    /// Token ids that end a text.
    pub eos: Vec<u32>,
}

/// Attention, as far as it is the same in every layer.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionSpec {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; each serves `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// q, k and v have biases.
    pub qkv_bias: bool,
    /// o has a bias.
    pub o_bias: bool,
    /// `RMSNorm` over each head of q and k.
    pub qk_norm: bool,
    /// Rotary embedding.
    pub rope: RopeSpec,
}

/// One layer.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerSpec {
    /// A position attends to itself and `window - 1` before it; `None` is all before it.
    pub window: Option<usize>,
    /// What follows the attention.
    pub mlp: MlpSpec,
}

/// The feed-forward half of a layer.
#[derive(Debug, Clone, PartialEq)]
pub enum MlpSpec {
    /// `down(silu(gate x) * up x)`.
    Gated {
        /// Width of gate and up.
        intermediate: usize,
        /// The three linears have biases.
        bias: bool,
    },
    /// A router and experts, each a gated MLP.
    Experts {
        /// How many.
        count: usize,
        /// Width of an expert.
        intermediate: usize,
        /// Experts each token goes to.
        top_k: usize,
        /// Chosen probabilities are divided by their sum.
        renormalise: bool,
    },
}

impl ModelSpec {
    /// Resolves `config.json`.
    ///
    /// # Errors
    /// Unknown family, a feature that is not built, or a value that is missing or of the wrong kind.
    pub fn from_config(checkpoint: &Checkpoint) -> Result<Self> {
        let keys = Keys::of(checkpoint.config());
        let model_type =
            keys.text("model_type")?.ok_or_else(|| keys.missing("model_type", "a string"))?;
        let family = FAMILIES.iter().find(|f| f.model_type == model_type).ok_or_else(|| {
            let list: Vec<&str> = FAMILIES.iter().map(|f| f.model_type).collect();
            Error::UnsupportedFamily { found: model_type.to_owned(), supported: list.join(", ") }
        })?;
        if keys.value("quantization_config").is_some() {
            return Err(keys.unsupported("a quantised checkpoint (`quantization_config`)"));
        }
        if let Some(act) = keys.text("hidden_act")?
            && act != "silu"
            && act != "swish"
        {
            return Err(keys.unsupported(&format!("`hidden_act` \"{act}\"")));
        }
        let hidden = keys.count("hidden_size")?;
        let max_positions = keys.count_or("max_position_embeddings", 2048)?;
        let attention = attention(&keys, family, hidden, max_positions)?;
        Ok(Self {
            family,
            hidden,
            vocab: keys.count("vocab_size")?,
            max_positions,
            norm_eps: match keys.number("rms_norm_eps")? {
                Some(eps) if eps < 0.0 => {
                    return Err(keys.wrong("rms_norm_eps", "not negative", &eps.to_string()));
                }
                found => found.unwrap_or(1e-6),
            },
            // A head on disk is used even where the config ties it, as transformers does.
            tied: keys.boolean("tie_word_embeddings")? == Some(true)
                && checkpoint.get(family.names.head).is_none(),
            layers: layers(&keys, family)?,
            eos: keys.ids("eos_token_id")?,
            attention,
        })
    }

    /// Window length for measuring where the user names none.
    pub fn default_window(&self) -> usize {
        self.max_positions.min(2048)
    }
}

fn attention(
    keys: &Keys<'_>,
    family: &Family,
    hidden: usize,
    max_positions: usize,
) -> Result<AttentionSpec> {
    let heads = keys.count("num_attention_heads")?;
    let kv_heads = match (keys.count_option("num_key_value_heads")?, family.default_kv_heads) {
        (Some(given), _) => given,
        (None, Some(constant)) if !keys.is_null("num_key_value_heads") => constant,
        (None, _) => heads,
    };
    if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
        return Err(keys.wrong(
            "num_key_value_heads",
            &format!("a divisor of the {heads} heads"),
            &kv_heads.to_string(),
        ));
    }
    let head_dim = match (keys.count_option("head_dim")?, family.default_head_dim) {
        (Some(given), _) => given,
        (None, Some(constant)) => constant,
        (None, None) => hidden / heads,
    };
    if head_dim == 0 || !head_dim.is_multiple_of(2) {
        return Err(keys.wrong("head_dim", "an even positive number", &head_dim.to_string()));
    }
    let (qkv_bias, o_bias) = match family.attention_bias {
        BiasRule::Never => (false, false),
        BiasRule::QkvOnly => (true, false),
        BiasRule::Key(key) => {
            let on = keys.boolean(key)?.unwrap_or(false);
            (on, on)
        }
    };
    let rope = RopeSpec::from_config(keys, max_positions)?;
    Ok(AttentionSpec { heads, kv_heads, head_dim, qkv_bias, o_bias, qk_norm: family.qk_norm, rope })
}

fn layers(keys: &Keys<'_>, family: &Family) -> Result<Vec<LayerSpec>> {
    let count = keys.count("num_hidden_layers")?;
    // More layers than any model has: refused before a list of them is made.
    if count > 100_000 {
        return Err(keys.wrong("num_hidden_layers", "at most 100000", &count.to_string()));
    }
    let windows = windows(keys, family, count)?;
    let mlps = (0..count).map(|layer| mlp(keys, family, layer)).collect::<Result<Vec<_>>>()?;
    Ok(windows.into_iter().zip(mlps).map(|(window, mlp)| LayerSpec { window, mlp }).collect())
}

fn windows(keys: &Keys<'_>, family: &Family, count: usize) -> Result<Vec<Option<usize>>> {
    let window = match keys.count_option("sliding_window")? {
        Some(window) => Some(window),
        None if keys.is_null("sliding_window") => None,
        None => Some(4096),
    };
    let used = keys.boolean("use_sliding_window")? == Some(true);
    match family.sliding {
        SlidingRule::Never => Ok(vec![None; count]),
        SlidingRule::All => Ok(vec![window; count]),
        SlidingRule::AllIfUsed => Ok(vec![window.filter(|_| used); count]),
        SlidingRule::Marked => {
            let window = window.filter(|_| used);
            if let Some(types) = keys.texts("layer_types")? {
                if types.len() != count {
                    let found = format!("{} entries", types.len());
                    return Err(keys.wrong("layer_types", &format!("{count} entries"), &found));
                }
                return types
                    .iter()
                    .map(|t| match *t {
                        "full_attention" => Ok(None),
                        "sliding_attention" => Ok(window),
                        other => Err(keys.unsupported(&format!("layer type `{other}`"))),
                    })
                    .collect();
            }
            let first = keys.count_option("max_window_layers")?.unwrap_or(28);
            Ok((0..count).map(|layer| window.filter(|_| layer >= first)).collect())
        }
    }
}

fn mlp(keys: &Keys<'_>, family: &Family, layer: usize) -> Result<MlpSpec> {
    let dense = |keys: &Keys<'_>| -> Result<MlpSpec> {
        let bias = match family.mlp_bias {
            BiasRule::Key(key) => keys.boolean(key)?.unwrap_or(false),
            BiasRule::Never | BiasRule::QkvOnly => false,
        };
        Ok(MlpSpec::Gated { intermediate: keys.count("intermediate_size")?, bias })
    };
    if !family.experts {
        return dense(keys);
    }
    let count = match keys.count_option("num_local_experts")? {
        Some(count) => count,
        None => keys.count_option("num_experts")?.unwrap_or(128),
    };
    let step = keys.count_or("decoder_sparse_step", 1)?;
    let only_dense = keys.ids("mlp_only_layers")?;
    let listed = only_dense.iter().any(|&l| usize::try_from(l) == Ok(layer));
    if count == 0 || listed || !(layer + 1).is_multiple_of(step) {
        return dense(keys);
    }
    let top_k = keys.count("num_experts_per_tok")?;
    if top_k > count {
        return Err(keys.wrong(
            "num_experts_per_tok",
            &format!("at most {count}"),
            &top_k.to_string(),
        ));
    }
    Ok(MlpSpec::Experts {
        count,
        intermediate: keys.count("moe_intermediate_size")?,
        top_k,
        renormalise: keys.boolean("norm_topk_prob")?.unwrap_or(false),
    })
}
