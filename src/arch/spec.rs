//! `config.json` resolved into the numbers and switches the decoder needs.

use super::family::{
    Activation, BiasRule, FAMILIES, Family, KvHeadsRule, MlpKind, NormKind, SlidingRule,
};
use super::keys::Keys;
use super::rope::RopeSpec;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::ops::Gelu;

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
    /// The norm of the stream.
    pub norm: NormSpec,
    /// The head is the embedding.
    pub tied: bool,
    /// What all layers' attention has in common.
    pub attention: AttentionSpec,
    /// Attention and MLP read the same stream, each through its own norm; both are added to it.
    pub parallel_residual: bool,
    /// What differs between layers, in order.
    pub layers: Vec<LayerSpec>,
    /// `c`, where logits `z` become `c tanh(z / c)`.
    pub logit_cap: Option<f64>,
    /// Token ids that end a text.
    pub eos: Vec<u32>,
}

/// A norm over the last dimension.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormSpec {
    /// Which one.
    pub kind: NormKind,
    /// Added to the mean square or variance.
    pub eps: f64,
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
    /// What scores `q · k` are multiplied by.
    pub scale: f64,
    /// `c`, where scaled scores `s` become `c tanh(s / c)`.
    pub score_cap: Option<f64>,
    /// Rotary embedding; `None` where positions are learned.
    pub rope: Option<RopeSpec>,
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
    /// `down(act(gate x) * up x)`.
    Gated {
        /// Width of gate and up.
        intermediate: usize,
        /// The three linears have biases.
        bias: bool,
        /// What the gate goes through.
        activation: Activation,
    },
    /// `down(gelu(up x))`.
    Plain {
        /// Width of up.
        intermediate: usize,
        /// Both linears have biases.
        bias: bool,
        /// The form of the activation.
        gelu: Gelu,
    },
    /// A router and experts, each a gated MLP with `silu`.
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
        for &switch in family.refused_switches {
            if keys.boolean(switch)? == Some(true) {
                return Err(keys.unsupported(&format!("`{switch}` true")));
            }
        }
        let hidden = keys.count(family.keys.hidden)?;
        let max_positions = keys.count_or(family.keys.positions, family.default_positions)?;
        let tied = keys.boolean("tie_word_embeddings")?.unwrap_or(family.default_tied);
        Ok(Self {
            family,
            hidden,
            vocab: keys.count("vocab_size")?,
            max_positions,
            norm: norm(&keys, family)?,
            // A head on disk is used even where the config ties it, as transformers does.
            tied: tied && checkpoint.get(family.names.head).is_none(),
            attention: attention(&keys, family, hidden, max_positions)?,
            parallel_residual: match family.parallel_residual {
                Some(key) => keys.boolean(key)?.unwrap_or(true),
                None => false,
            },
            layers: layers(&keys, family, hidden)?,
            logit_cap: soft_cap(&keys, family.soft_caps.map(|[_, logits]| logits))?,
            eos: keys.ids("eos_token_id")?,
        })
    }

    /// Window length for measuring where the user names none.
    pub fn default_window(&self) -> usize {
        self.max_positions.min(2048)
    }
}

fn norm(keys: &Keys<'_>, family: &Family) -> Result<NormSpec> {
    let key = family.keys.norm_eps;
    match keys.number(key)? {
        Some(eps) if eps < 0.0 => Err(keys.wrong(key, "not negative", &eps.to_string())),
        found => Ok(NormSpec { kind: family.norm, eps: found.unwrap_or(family.default_norm_eps) }),
    }
}

/// The cap under a key; null turns it off, absence means the default.
fn soft_cap(keys: &Keys<'_>, rule: Option<(&str, f64)>) -> Result<Option<f64>> {
    match rule {
        Some((key, _)) if keys.is_null(key) => Ok(None),
        Some((key, default)) => keys.positive_or(key, default).map(Some),
        None => Ok(None),
    }
}

fn attention(
    keys: &Keys<'_>,
    family: &Family,
    hidden: usize,
    max_positions: usize,
) -> Result<AttentionSpec> {
    let heads = keys.count(family.keys.heads)?;
    let kv_heads = kv_heads(keys, family.kv_heads, heads)?;
    let given = family.keys.head_dim.map(|key| keys.count_option(key)).transpose()?.flatten();
    let head_dim = given.or(family.default_head_dim).unwrap_or(hidden / heads);
    if head_dim == 0 {
        let key = family.keys.head_dim.filter(|_| given.is_some()).unwrap_or(family.keys.heads);
        return Err(keys.wrong(key, "heads of at least one channel", "none"));
    }
    let rope = RopeSpec::from_config(keys, family.positions, head_dim, max_positions)?;
    let (qkv_bias, o_bias) = match family.attention_bias {
        BiasRule::QkvOnly => (true, false),
        other @ (BiasRule::Key(..) | BiasRule::Never | BiasRule::Always) => {
            let on = bias(keys, other)?;
            (on, on)
        }
    };
    let scaled = match family.score_switch {
        Some(key) => keys.boolean(key)?.unwrap_or(true),
        None => true,
    };
    let divisor = match family.score_scalar {
        Some((key, default)) => keys.positive_or(key, default)?,
        None => head_dim as f64,
    };
    Ok(AttentionSpec {
        heads,
        kv_heads,
        head_dim,
        qkv_bias,
        o_bias,
        qk_norm: family.qk_norm,
        scale: if scaled { 1.0 / divisor.sqrt() } else { 1.0 },
        score_cap: soft_cap(keys, family.soft_caps.map(|[scores, _]| scores))?,
        rope,
    })
}

fn kv_heads(keys: &Keys<'_>, rule: KvHeadsRule, heads: usize) -> Result<usize> {
    const KEY: &str = "num_key_value_heads";
    let default = match rule {
        KvHeadsRule::AsQueries => return Ok(heads),
        KvHeadsRule::OneIf(key) => {
            return Ok(if keys.boolean(key)?.unwrap_or(true) { 1 } else { heads });
        }
        KvHeadsRule::Key(default) => default.filter(|_| !keys.is_null(KEY)).unwrap_or(heads),
    };
    let kv_heads = keys.count_option(KEY)?.unwrap_or(default);
    if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
        let expected = format!("a divisor of the {heads} heads");
        return Err(keys.wrong(KEY, &expected, &kv_heads.to_string()));
    }
    Ok(kv_heads)
}

/// Whether a group of linears has biases; a rule for a part of the group counts as none.
fn bias(keys: &Keys<'_>, rule: BiasRule) -> Result<bool> {
    match rule {
        BiasRule::Never | BiasRule::QkvOnly => Ok(false),
        BiasRule::Always => Ok(true),
        BiasRule::Key(key, default) => Ok(keys.boolean(key)?.unwrap_or(default)),
    }
}

fn layers(keys: &Keys<'_>, family: &Family, hidden: usize) -> Result<Vec<LayerSpec>> {
    let count = keys.count(family.keys.layers)?;
    // More layers than any model has: refused before a list of them is made.
    if count > 100_000 {
        return Err(keys.wrong(family.keys.layers, "at most 100000", &count.to_string()));
    }
    let windows = windows(keys, family, count)?;
    let mlps =
        (0..count).map(|layer| mlp(keys, family, hidden, layer)).collect::<Result<Vec<_>>>()?;
    Ok(windows.into_iter().zip(mlps).map(|(window, mlp)| LayerSpec { window, mlp }).collect())
}

fn windows(keys: &Keys<'_>, family: &Family, count: usize) -> Result<Vec<Option<usize>>> {
    let window = match keys.count_option("sliding_window")? {
        None if !keys.is_null("sliding_window") => family.default_window,
        found => found,
    };
    let used = keys.boolean("use_sliding_window")? == Some(true);
    match family.sliding {
        SlidingRule::Never => Ok(vec![None; count]),
        SlidingRule::All => Ok(vec![window; count]),
        SlidingRule::AllIfUsed => Ok(vec![window.filter(|_| used); count]),
        SlidingRule::Marked => {
            let window = window.filter(|_| used);
            if let Some(marked) = marked_windows(keys, window, count)? {
                return Ok(marked);
            }
            let first = keys.count_option("max_window_layers")?.unwrap_or(28);
            Ok((0..count).map(|layer| window.filter(|_| layer >= first)).collect())
        }
        SlidingRule::Alternate => match marked_windows(keys, window, count)? {
            Some(marked) => Ok(marked),
            None => Ok((0..count).map(|layer| window.filter(|_| layer % 2 == 0)).collect()),
        },
    }
}

/// The window of every layer that `layer_types` marks, where the config has that list.
fn marked_windows(
    keys: &Keys<'_>,
    window: Option<usize>,
    count: usize,
) -> Result<Option<Vec<Option<usize>>>> {
    let Some(types) = keys.texts("layer_types")? else { return Ok(None) };
    if types.len() != count {
        let found = format!("{} entries", types.len());
        return Err(keys.wrong("layer_types", &format!("{count} entries"), &found));
    }
    let windows = types.iter().map(|t| match *t {
        "full_attention" => Ok(None),
        "sliding_attention" => Ok(window),
        other => Err(keys.unsupported(&format!("layer type `{other}`"))),
    });
    windows.collect::<Result<_>>().map(Some)
}

fn mlp(keys: &Keys<'_>, family: &Family, hidden: usize, layer: usize) -> Result<MlpSpec> {
    let key = family.keys.activation;
    let activation = match keys.text(key)? {
        Some(name) => Activation::named(name)
            .ok_or_else(|| keys.unsupported(&format!("`{key}` \"{name}\"")))?,
        None => family.default_activation,
    };
    let refused = || keys.unsupported(&format!("`{key}` {activation:?} in {}", family.model_type));
    let dense = |keys: &Keys<'_>| -> Result<MlpSpec> {
        let bias = bias(keys, family.mlp_bias)?;
        let key = family.keys.intermediate;
        let intermediate = match family.keys.default_intermediate {
            Some(multiple) => keys.count_or(key, multiple * hidden)?,
            None => keys.count(key)?,
        };
        match (family.mlp, activation) {
            (MlpKind::Gated, activation) => Ok(MlpSpec::Gated { intermediate, bias, activation }),
            (MlpKind::Plain, Activation::Gelu(gelu)) => {
                Ok(MlpSpec::Plain { intermediate, bias, gelu })
            }
            (MlpKind::Plain, Activation::Silu) => Err(refused()),
        }
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
    if activation != Activation::Silu {
        return Err(refused());
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
