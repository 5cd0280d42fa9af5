//! What the families call their tensors and the sizes in `config.json`.

/// Tensor names of a family. Norms and linears are modules, whose tensors are `X.weight` and
/// `X.bias`; those of a layer are relative to `layer` + index + `.`.
#[derive(Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each field is the name of the tensor or module it is named after")]
pub struct Names {
    pub embedding: &'static str,
    /// Embeddings of positions, where those are learned.
    pub positions: &'static str,
    pub final_norm: &'static str,
    pub head: &'static str,
    pub layer: &'static str,
    pub attention_norm: &'static str,
    /// The norm of what attention adds, where there is one.
    pub attention_post_norm: Option<&'static str>,
    /// The module that holds q, k and v together, where one does.
    pub qkv: Option<FusedQkv>,
    pub q: &'static str,
    pub k: &'static str,
    pub v: &'static str,
    pub o: &'static str,
    pub q_norm: &'static str,
    pub k_norm: &'static str,
    pub mlp_norm: &'static str,
    /// The norm of what the MLP adds, where there is one.
    pub mlp_post_norm: Option<&'static str>,
    /// The module that holds gate above up, where one does.
    pub gate_up: Option<&'static str>,
    pub gate: &'static str,
    pub up: &'static str,
    pub down: &'static str,
    pub router: &'static str,
    pub experts: &'static str,
    pub expert_gate: &'static str,
    pub expert_up: &'static str,
    pub expert_down: &'static str,
}

/// A module whose tensors hold q, k and v. Its parts are named `module` + `.` + `q`, `k`, `v`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FusedQkv {
    /// Its name in a layer.
    pub module: &'static str,
    /// The order of its rows.
    pub order: RowOrder,
}

/// The order of rows in a fused q, k, v.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowOrder {
    /// All of q, all of k, all of v.
    Stacked,
    /// q, k and v of the first head, then of the second, …; stacked where heads share one k and v.
    PerHead,
}

/// What `config.json` calls the sizes of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each field is the key of the size it is named after")]
pub struct ConfigKeys {
    pub hidden: &'static str,
    pub layers: &'static str,
    pub heads: &'static str,
    /// Without one, `hidden / heads`.
    pub head_dim: Option<&'static str>,
    /// Its value may be absent only where `default_intermediate` is given.
    pub intermediate: &'static str,
    /// The width of the MLP in multiples of `hidden`, where the config does not say.
    pub default_intermediate: Option<usize>,
    pub positions: &'static str,
    pub norm_eps: &'static str,
    pub activation: &'static str,
}

/// The keys of llama and its descendants.
pub(super) const LLAMA_KEYS: ConfigKeys = ConfigKeys {
    hidden: "hidden_size",
    layers: "num_hidden_layers",
    heads: "num_attention_heads",
    head_dim: Some("head_dim"),
    intermediate: "intermediate_size",
    default_intermediate: None,
    positions: "max_position_embeddings",
    norm_eps: "rms_norm_eps",
    activation: "hidden_act",
};

/// The keys of GPT-2 and its descendants.
pub(super) const GPT_KEYS: ConfigKeys = ConfigKeys {
    hidden: "n_embd",
    layers: "n_layer",
    heads: "n_head",
    head_dim: None,
    intermediate: "n_inner",
    default_intermediate: Some(4),
    positions: "n_positions",
    norm_eps: "layer_norm_epsilon",
    activation: "activation_function",
};

/// Names shared by llama and its descendants.
pub(super) const LLAMA_NAMES: Names = Names {
    embedding: "model.embed_tokens.weight",
    positions: "",
    final_norm: "model.norm",
    head: "lm_head.weight",
    layer: "model.layers.",
    attention_norm: "input_layernorm",
    attention_post_norm: None,
    qkv: None,
    q: "self_attn.q_proj",
    k: "self_attn.k_proj",
    v: "self_attn.v_proj",
    o: "self_attn.o_proj",
    q_norm: "self_attn.q_norm",
    k_norm: "self_attn.k_norm",
    mlp_norm: "post_attention_layernorm",
    mlp_post_norm: None,
    gate_up: None,
    gate: "mlp.gate_proj",
    up: "mlp.up_proj",
    down: "mlp.down_proj",
    router: "mlp.gate.weight",
    experts: "mlp.experts.",
    expert_gate: "gate_proj",
    expert_up: "up_proj",
    expert_down: "down_proj",
};

pub(super) const PHI3_NAMES: Names = Names {
    qkv: Some(FusedQkv { module: "self_attn.qkv_proj", order: RowOrder::Stacked }),
    q: "self_attn.qkv_proj.q",
    k: "self_attn.qkv_proj.k",
    v: "self_attn.qkv_proj.v",
    gate_up: Some("mlp.gate_up_proj"),
    gate: "mlp.gate_up_proj.gate",
    up: "mlp.gate_up_proj.up",
    ..LLAMA_NAMES
};

pub(super) const GEMMA2_NAMES: Names = Names {
    attention_post_norm: Some("post_attention_layernorm"),
    mlp_norm: "pre_feedforward_layernorm",
    mlp_post_norm: Some("post_feedforward_layernorm"),
    ..LLAMA_NAMES
};

pub(super) const GPT_NEOX_NAMES: Names = Names {
    embedding: "gpt_neox.embed_in.weight",
    final_norm: "gpt_neox.final_layer_norm",
    head: "embed_out.weight",
    layer: "gpt_neox.layers.",
    qkv: Some(FusedQkv { module: "attention.query_key_value", order: RowOrder::PerHead }),
    q: "attention.query_key_value.q",
    k: "attention.query_key_value.k",
    v: "attention.query_key_value.v",
    o: "attention.dense",
    up: "mlp.dense_h_to_4h",
    down: "mlp.dense_4h_to_h",
    ..LLAMA_NAMES
};

pub(super) const GPT_BIGCODE_NAMES: Names = Names {
    embedding: "transformer.wte.weight",
    positions: "transformer.wpe.weight",
    final_norm: "transformer.ln_f",
    layer: "transformer.h.",
    attention_norm: "ln_1",
    qkv: Some(FusedQkv { module: "attn.c_attn", order: RowOrder::PerHead }),
    q: "attn.c_attn.q",
    k: "attn.c_attn.k",
    v: "attn.c_attn.v",
    o: "attn.c_proj",
    mlp_norm: "ln_2",
    up: "mlp.c_fc",
    down: "mlp.c_proj",
    ..LLAMA_NAMES
};
