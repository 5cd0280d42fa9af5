//! The table of families: how each names its tensors and which switches its block sets.
//!
//! A family is one row. What differs between checkpoints of one family (sizes, biases, rope) comes
//! from `config.json` and is resolved in [`ModelSpec`](super::ModelSpec). Rows that share most of
//! their fields with another are written as that row with changes; fields that a family has no use
//! for (the experts' names of a dense family) keep what they inherit and are never read.

use super::names::{ConfigKeys, GPT_KEYS, LLAMA_KEYS, Names};
use super::names::{GEMMA2_NAMES, GPT_BIGCODE_NAMES, GPT_NEOX_NAMES, LLAMA_NAMES, PHI3_NAMES};
use crate::ops::Gelu;

/// One family of models: a row of [`FAMILIES`].
#[derive(Debug, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "a row of switches")]
pub struct Family {
    /// `model_type` in `config.json`.
    pub model_type: &'static str,
    /// Tensor names.
    pub names: Names,
    /// Names of the sizes in `config.json`.
    pub keys: ConfigKeys,
    /// The norm of the stream, and of the heads where `qk_norm`.
    pub norm: NormKind,
    /// What is added to the mean square or variance where the config has no such key.
    pub default_norm_eps: f64,
    /// Where q, k, v and o have biases.
    pub attention_bias: BiasRule,
    /// Where the linears of a dense MLP have biases.
    pub mlp_bias: BiasRule,
    /// RMSNorm over each head of q and k.
    pub qk_norm: bool,
    /// How positions enter.
    pub positions: PositionRule,
    /// How the layers with a sliding window are chosen.
    pub sliding: SlidingRule,
    /// `sliding_window` where the config has no such key.
    pub default_window: Option<usize>,
    /// The key of the score's divisor squared (`head_dim` without one) and its default.
    pub score_scalar: Option<(&'static str, f64)>,
    /// The key of a switch that turns the scaling of scores off.
    pub score_switch: Option<&'static str>,
    /// The keys of the soft caps of scores and of logits, with their defaults.
    pub soft_caps: Option<[(&'static str, f64); 2]>,
    /// `head_dim` where the config has no such key: a constant, else `hidden / heads`.
    pub default_head_dim: Option<usize>,
    /// How many heads keys and values have.
    pub kv_heads: KvHeadsRule,
    /// The kind of a dense MLP.
    pub mlp: MlpKind,
    /// The activation where the config names none.
    pub default_activation: Activation,
    /// Positions the model was made for, where the config does not say.
    pub default_positions: usize,
    /// Whether head and embedding are one, where the config does not say.
    pub default_tied: bool,
    /// The embedding is multiplied by `√hidden`.
    pub scaled_embedding: bool,
    /// The key that makes attention and MLP read the same stream, on where it is absent.
    pub parallel_residual: Option<&'static str>,
    /// Switches that ask for something else than a causal decoder when they are on.
    pub refused_switches: &'static [&'static str],
    /// Buffers of a layer that older files hold beside the weights and nothing reads.
    pub unread: &'static [&'static str],
    /// Whether layers may be mixtures of experts.
    pub experts: bool,
}

/// How the stream is normalised before (and, with post-norms, after) each half of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// `RMSNorm`, scaled by `weight`.
    Rms,
    /// `RMSNorm`, scaled by `1 + weight`.
    RmsOffset,
    /// `LayerNorm` with weight and bias.
    Layer,
}

/// Which linears of a group carry a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BiasRule {
    /// None of them.
    Never,
    /// All of them.
    Always,
    /// All of them where this key of the config is true; where it is absent, as said.
    Key(&'static str, bool),
    /// q, k and v always, o never.
    QkvOnly,
}

/// How a family lets a token know its place.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum PositionRule {
    /// Rotary, with these names of what `rope_parameters` may hold too.
    Rotary {
        /// The base.
        theta: &'static str,
        /// The share of each head's channels that turn, and its default; all of them without one.
        partial: Option<(&'static str, f64)>,
        /// What `rope_type` calls `LongRoPE`.
        long: &'static [&'static str],
    },
    /// A table of embeddings, one per position, that is added to those of the tokens.
    Learned,
}

/// How a family says which layers attend through a sliding window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlidingRule {
    /// No layer.
    Never,
    /// Every layer, where `sliding_window` is a number.
    All,
    /// Every layer, where `use_sliding_window` too.
    AllIfUsed,
    /// Where `use_sliding_window`: the layers that `layer_types` marks, or, without that list,
    /// those from `max_window_layers` on.
    Marked,
    /// The layers that `layer_types` marks, or, without that list, every other from the first on.
    Alternate,
}

/// How many heads keys and values have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvHeadsRule {
    /// `num_key_value_heads`; where the config has no such key this many, or as many as queries.
    Key(Option<usize>),
    /// As many as queries.
    AsQueries,
    /// One, unless this key says false; then as many as queries.
    OneIf(&'static str),
}

/// The kind of a dense MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MlpKind {
    /// `down(act(gate x) · up x)`.
    Gated,
    /// `down(act(up x))`.
    Plain,
}

/// The nonlinearity of an MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x · sigmoid(x)`.
    Silu,
    /// `x · Φ(x)`, in one of its forms.
    Gelu(Gelu),
}

impl Activation {
    /// The activation of this name in transformers.
    pub(super) fn named(name: &str) -> Option<Self> {
        match name {
            "silu" | "swish" => Some(Self::Silu),
            "gelu" => Some(Self::Gelu(Gelu::Erf)),
            "gelu_new" | "gelu_pytorch_tanh" => Some(Self::Gelu(Gelu::Tanh)),
            _ => None,
        }
    }
}

const LLAMA: Family = Family {
    model_type: "llama",
    names: LLAMA_NAMES,
    keys: LLAMA_KEYS,
    norm: NormKind::Rms,
    default_norm_eps: 1e-6,
    attention_bias: BiasRule::Key("attention_bias", false),
    mlp_bias: BiasRule::Key("mlp_bias", false),
    qk_norm: false,
    positions: PositionRule::Rotary { theta: "rope_theta", partial: None, long: &["longrope"] },
    sliding: SlidingRule::Never,
    default_window: Some(4096),
    score_scalar: None,
    score_switch: None,
    soft_caps: None,
    default_head_dim: None,
    kv_heads: KvHeadsRule::Key(None),
    mlp: MlpKind::Gated,
    default_activation: Activation::Silu,
    default_positions: 2048,
    default_tied: false,
    scaled_embedding: false,
    parallel_residual: None,
    refused_switches: &[],
    unread: &[],
    experts: false,
};

const QWEN3: Family = Family {
    model_type: "qwen3",
    mlp_bias: BiasRule::Never,
    qk_norm: true,
    sliding: SlidingRule::Marked,
    default_head_dim: Some(128),
    kv_heads: KvHeadsRule::Key(Some(32)),
    ..LLAMA
};

const STARCODER2: Family = Family {
    model_type: "starcoder2",
    names: Names { up: "mlp.c_fc", down: "mlp.c_proj", ..LLAMA_NAMES },
    keys: ConfigKeys { norm_eps: "norm_epsilon", ..LLAMA_KEYS },
    norm: NormKind::Layer,
    default_norm_eps: 1e-5,
    attention_bias: BiasRule::Key("use_bias", true),
    mlp_bias: BiasRule::Key("use_bias", true),
    sliding: SlidingRule::All,
    default_window: None,
    kv_heads: KvHeadsRule::Key(Some(2)),
    mlp: MlpKind::Plain,
    default_activation: Activation::Gelu(Gelu::Tanh),
    default_positions: 4096,
    default_tied: true,
    ..LLAMA
};

const GPT_BIGCODE: Family = Family {
    model_type: "gpt_bigcode",
    names: GPT_BIGCODE_NAMES,
    keys: GPT_KEYS,
    attention_bias: BiasRule::Always,
    mlp_bias: BiasRule::Always,
    positions: PositionRule::Learned,
    sliding: SlidingRule::Never,
    score_switch: Some("scale_attn_weights"),
    kv_heads: KvHeadsRule::OneIf("multi_query"),
    default_positions: 1024,
    refused_switches: &["add_cross_attention"],
    ..STARCODER2
};

const GPT_NEOX: Family = Family {
    model_type: "gpt_neox",
    names: GPT_NEOX_NAMES,
    keys: ConfigKeys { norm_eps: "layer_norm_eps", head_dim: None, ..LLAMA_KEYS },
    attention_bias: BiasRule::Key("attention_bias", true),
    mlp_bias: BiasRule::Always,
    positions: PositionRule::Rotary {
        theta: "rotary_emb_base",
        partial: Some(("rotary_pct", 0.25)),
        long: &["longrope"],
    },
    sliding: SlidingRule::Never,
    kv_heads: KvHeadsRule::AsQueries,
    default_activation: Activation::Gelu(Gelu::Erf),
    default_positions: 2048,
    default_tied: false,
    parallel_residual: Some("use_parallel_residual"),
    unread: &["attention.bias", "attention.masked_bias", "attention.rotary_emb.inv_freq"],
    ..STARCODER2
};

const PHI3: Family = Family {
    model_type: "phi3",
    names: PHI3_NAMES,
    default_norm_eps: 1e-5,
    attention_bias: BiasRule::Never,
    mlp_bias: BiasRule::Never,
    positions: PositionRule::Rotary {
        theta: "rope_theta",
        partial: Some(("partial_rotary_factor", 1.0)),
        long: &["longrope", "su", "yarn"],
    },
    sliding: SlidingRule::All,
    default_window: None,
    default_positions: 4096,
    ..LLAMA
};

const GEMMA2: Family = Family {
    model_type: "gemma2",
    names: GEMMA2_NAMES,
    keys: ConfigKeys { activation: "hidden_activation", ..LLAMA_KEYS },
    norm: NormKind::RmsOffset,
    attention_bias: BiasRule::Key("attention_bias", false),
    mlp_bias: BiasRule::Never,
    sliding: SlidingRule::Alternate,
    score_scalar: Some(("query_pre_attn_scalar", 256.0)),
    soft_caps: Some([("attn_logit_softcapping", 50.0), ("final_logit_softcapping", 30.0)]),
    default_head_dim: Some(256),
    kv_heads: KvHeadsRule::Key(Some(4)),
    default_activation: Activation::Gelu(Gelu::Tanh),
    default_positions: 8192,
    default_tied: true,
    scaled_embedding: true,
    refused_switches: &["use_bidirectional_attention"],
    ..LLAMA
};

/// Every family that bantam reads. Defaults for absent keys are those of transformers.
pub const FAMILIES: &[Family] = &[
    LLAMA,
    Family {
        model_type: "mistral",
        attention_bias: BiasRule::Never,
        mlp_bias: BiasRule::Never,
        sliding: SlidingRule::All,
        kv_heads: KvHeadsRule::Key(Some(8)),
        ..LLAMA
    },
    Family {
        model_type: "qwen2",
        attention_bias: BiasRule::QkvOnly,
        mlp_bias: BiasRule::Never,
        sliding: SlidingRule::Marked,
        kv_heads: KvHeadsRule::Key(Some(32)),
        ..LLAMA
    },
    QWEN3,
    STARCODER2,
    GPT_BIGCODE,
    GPT_NEOX,
    PHI3,
    GEMMA2,
    Family {
        model_type: "qwen3_moe",
        sliding: SlidingRule::AllIfUsed,
        default_head_dim: None,
        kv_heads: KvHeadsRule::Key(Some(4)),
        experts: true,
        ..QWEN3
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    /// The two forms differ by less than the tolerance of the golden logits: names decide.
    #[test]
    fn activations_have_the_names_of_transformers() {
        for (name, form) in
            [("gelu", Gelu::Erf), ("gelu_new", Gelu::Tanh), ("gelu_pytorch_tanh", Gelu::Tanh)]
        {
            assert_eq!(Activation::named(name), Some(Activation::Gelu(form)));
        }
        assert_eq!(Activation::named("swish"), Activation::named("silu"));
        assert_eq!(Activation::named("gelu_fast"), None);
        let default = |family: &str| {
            FAMILIES.iter().find(|f| f.model_type == family).map(|f| f.default_activation)
        };
        assert_eq!(default("gpt_neox"), Activation::named("gelu"));
        assert_eq!(default("gpt_bigcode"), Activation::named("gelu_pytorch_tanh"));
    }
}
