//! The table of families: how each names its tensors and which switches its block sets.
//!
//! A family is one row. What differs between checkpoints of one family (sizes, biases, rope) comes
//! from `config.json` and is resolved in [`ModelSpec`](super::ModelSpec).

/// One family of models: a row of [`FAMILIES`].
#[derive(Debug, PartialEq, Eq)]
pub struct Family {
    /// `model_type` in `config.json`.
    pub model_type: &'static str,
    /// Tensor names.
    pub names: Names,
    /// Where q, k, v and o have biases.
    pub attention_bias: BiasRule,
    /// Where gate, up and down have biases.
    pub mlp_bias: BiasRule,
    /// RMSNorm over each head of q and k.
    pub qk_norm: bool,
    /// How the layers with a sliding window are chosen.
    pub sliding: SlidingRule,
    /// `head_dim` where the config has no such key: a constant, else `hidden / heads`.
    pub default_head_dim: Option<usize>,
    /// `num_key_value_heads` where the config has no such key: a constant, else the query heads.
    pub default_kv_heads: Option<usize>,
    /// Whether layers may be mixtures of experts.
    pub experts: bool,
}

/// Tensor names of a family. Those of a layer are relative to `layer` + index + `.`.
#[derive(Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each field is the name of the tensor or module it is named after")]
pub struct Names {
    pub embedding: &'static str,
    pub final_norm: &'static str,
    pub head: &'static str,
    pub layer: &'static str,
    pub attention_norm: &'static str,
    pub q: &'static str,
    pub k: &'static str,
    pub v: &'static str,
    pub o: &'static str,
    pub q_norm: &'static str,
    pub k_norm: &'static str,
    pub mlp_norm: &'static str,
    pub gate: &'static str,
    pub up: &'static str,
    pub down: &'static str,
    pub router: &'static str,
    pub experts: &'static str,
    pub expert_gate: &'static str,
    pub expert_up: &'static str,
    pub expert_down: &'static str,
}

/// Which linears of a group carry a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BiasRule {
    /// None of them.
    Never,
    /// All of them where this key of the config is true.
    Key(&'static str),
    /// q, k and v always, o never.
    QkvOnly,
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
}

/// Names shared by llama and its descendants.
const LLAMA_NAMES: Names = Names {
    embedding: "model.embed_tokens.weight",
    final_norm: "model.norm.weight",
    head: "lm_head.weight",
    layer: "model.layers.",
    attention_norm: "input_layernorm.weight",
    q: "self_attn.q_proj",
    k: "self_attn.k_proj",
    v: "self_attn.v_proj",
    o: "self_attn.o_proj",
    q_norm: "self_attn.q_norm.weight",
    k_norm: "self_attn.k_norm.weight",
    mlp_norm: "post_attention_layernorm.weight",
    gate: "mlp.gate_proj",
    up: "mlp.up_proj",
    down: "mlp.down_proj",
    router: "mlp.gate.weight",
    experts: "mlp.experts.",
    expert_gate: "gate_proj",
    expert_up: "up_proj",
    expert_down: "down_proj",
};

const LLAMA: Family = Family {
    model_type: "llama",
    names: LLAMA_NAMES,
    attention_bias: BiasRule::Key("attention_bias"),
    mlp_bias: BiasRule::Key("mlp_bias"),
    qk_norm: false,
    sliding: SlidingRule::Never,
    default_head_dim: None,
    default_kv_heads: None,
    experts: false,
};

const QWEN3: Family = Family {
    model_type: "qwen3",
    mlp_bias: BiasRule::Never,
    qk_norm: true,
    sliding: SlidingRule::Marked,
    default_head_dim: Some(128),
    default_kv_heads: Some(32),
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
        default_kv_heads: Some(8),
        ..LLAMA
    },
    Family {
        model_type: "qwen2",
        attention_bias: BiasRule::QkvOnly,
        mlp_bias: BiasRule::Never,
        sliding: SlidingRule::Marked,
        default_kv_heads: Some(32),
        ..LLAMA
    },
    QWEN3,
    Family {
        model_type: "qwen3_moe",
        sliding: SlidingRule::AllIfUsed,
        default_head_dim: None,
        default_kv_heads: Some(4),
        experts: true,
        ..QWEN3
    },
];
