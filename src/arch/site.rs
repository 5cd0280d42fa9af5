//! Sites, their roles, and how each is stored: the words every pass, plan and reader shares.

use serde::{Deserialize, Serialize};
use std::fmt;

use super::part::Part;
use crate::checkpoint::TensorSpec;
use safetensors::Dtype;

/// What a linear does in its block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Role {
    /// Query projection.
    #[serde(rename = "attn.q")]
    AttnQ,
    /// Key projection.
    #[serde(rename = "attn.k")]
    AttnK,
    /// Value projection.
    #[serde(rename = "attn.v")]
    AttnV,
    /// Attention output projection.
    #[serde(rename = "attn.o")]
    AttnO,
    /// Gate projection of a dense MLP.
    #[serde(rename = "mlp.gate")]
    MlpGate,
    /// Up projection of a dense MLP; its first linear where there is no gate.
    #[serde(rename = "mlp.up")]
    MlpUp,
    /// Down projection of a dense MLP.
    #[serde(rename = "mlp.down")]
    MlpDown,
    /// Gate projection of one expert.
    #[serde(rename = "expert.gate")]
    ExpertGate,
    /// Up projection of one expert.
    #[serde(rename = "expert.up")]
    ExpertUp,
    /// Down projection of one expert.
    #[serde(rename = "expert.down")]
    ExpertDown,
}

impl Role {
    /// The name used in plans, recipes and tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AttnQ => "attn.q",
            Self::AttnK => "attn.k",
            Self::AttnV => "attn.v",
            Self::AttnO => "attn.o",
            Self::MlpGate => "mlp.gate",
            Self::MlpUp => "mlp.up",
            Self::MlpDown => "mlp.down",
            Self::ExpertGate => "expert.gate",
            Self::ExpertUp => "expert.up",
            Self::ExpertDown => "expert.down",
        }
    }

    /// Whether the linear belongs to one expert of a mixture, which sees only the tokens routed to it.
    pub fn is_expert(self) -> bool {
        matches!(self, Self::ExpertGate | Self::ExpertUp | Self::ExpertDown)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The activation a site reads. Sites with one port share their input, and so its second moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Port {
    /// The normed stream that q, k and v read.
    AttnIn,
    /// The concatenated heads that o reads.
    AttnOut,
    /// The normed stream that gate and up (or the router) read.
    MlpIn,
    /// The gated activation that down reads.
    MlpHidden,
    /// The tokens routed to one expert.
    ExpertIn(usize),
    /// One expert's gated activation.
    ExpertHidden(usize),
}

impl Port {
    /// The expert whose port it is.
    pub fn expert(self) -> Option<usize> {
        match self {
            Self::ExpertIn(expert) | Self::ExpertHidden(expert) => Some(expert),
            Self::AttnIn | Self::AttnOut | Self::MlpIn | Self::MlpHidden => None,
        }
    }
}

/// How a site's weight is stored on disk. This is what offers choose between, what `config.json`
/// declares under `"bantam"`, and what the decoder loads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Storage {
    /// `X.weight [out, in]`.
    Dense,
    /// `X.v.weight [rank, in]` and `X.u.weight [out, rank]`; `y = u (v x)`.
    LowRank {
        /// Rows of `v`, columns of `u`.
        rank: usize,
    },
    /// A sum of residual blocks over scaled columns, `W = (Σ_i S_i ∘ u_i v_i) diag(1 / scale)`: per level
    /// `X.<i>.sign` u8 `[out, ⌈in/8⌉]`, `X.<i>.u` `[out, rank]` and `X.<i>.v` `[rank, in]` f16, and once
    /// `X.scale` `[in]` f32.
    Stack {
        /// Rows of every `v`, columns of every `u`.
        rank: usize,
        /// Blocks.
        levels: usize,
    },
}

/// One linear's place in a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// Module name: the tensor's name without `.weight`.
    pub name: String,
    /// What it does.
    pub role: Role,
    /// Index of its block.
    pub layer: usize,
    /// Rows of the weight, `m`.
    pub out_features: usize,
    /// Columns of the weight, `n`.
    pub in_features: usize,
    /// Whether `X.bias [out]` goes with it.
    pub bias: bool,
    /// The weight's dtype on disk, which its factors keep.
    pub dtype: Dtype,
    /// The bias's dtype on disk, where there is one.
    pub bias_dtype: Option<Dtype>,
    /// The activation it reads.
    pub port: Port,
    /// How the checkpoint stores it now.
    pub storage: Storage,
    /// Its place in a fused tensor, where the family has one for it.
    pub part: Option<Part>,
}

impl Site {
    /// The tensors of its own that hold this site under `storage`, bias last.
    pub fn tensors(&self, storage: &Storage) -> Vec<TensorSpec> {
        let spec = |suffix: &str, shape: Vec<usize>| TensorSpec {
            name: format!("{}.{suffix}", self.name),
            dtype: self.dtype,
            shape,
        };
        let (m, n) = (self.out_features, self.in_features);
        let mut tensors = match *storage {
            Storage::Dense => vec![spec("weight", vec![m, n])],
            Storage::LowRank { rank } => {
                vec![spec("v.weight", vec![rank, n]), spec("u.weight", vec![m, rank])]
            }
            Storage::Stack { rank, levels } => {
                let scale = TensorSpec { dtype: Dtype::F32, ..spec("scale", vec![n]) };
                let blocks = (0..levels).flat_map(|level| self.level_tensors(rank, level));
                [scale].into_iter().chain(blocks).collect()
            }
        };
        if let Some(dtype) = self.bias_dtype {
            tensors.push(TensorSpec { dtype, ..spec("bias", vec![m]) });
        }
        tensors
    }

    /// The tensors of one level of a stack.
    pub fn level_tensors(&self, rank: usize, level: usize) -> Vec<TensorSpec> {
        let spec = |suffix: &str, dtype, shape: [usize; 2]| {
            TensorSpec::new(format!("{}.{level}.{suffix}", self.name), dtype, shape)
        };
        let (m, n) = (self.out_features, self.in_features);
        vec![
            spec("sign", Dtype::U8, [m, n.div_ceil(8)]),
            spec("u", Dtype::F16, [m, rank]),
            spec("v", Dtype::F16, [rank, n]),
        ]
    }

    /// Bytes of one of its blocks, where it is stored as a stack: `m ⌈n/8⌉ + 2 k (m + n)`.
    pub fn block_bytes(&self) -> u64 {
        match self.storage {
            Storage::Stack { rank, .. } => self.level_bytes(rank),
            Storage::Dense | Storage::LowRank { .. } => 0,
        }
    }

    /// The same, were it stored as a stack of this rank.
    pub fn level_bytes(&self, rank: usize) -> u64 {
        self.level_tensors(rank, 0).iter().map(TensorSpec::bytes).sum()
    }

    /// The fused module that holds this site in the checkpoint, where one does.
    pub fn fused(&self) -> Option<&Part> {
        self.part.as_ref().filter(|part| part.fused)
    }

    /// Names of the checkpoint's tensors that hold this site, alone or with others; bias last.
    pub fn stored_in(&self) -> Vec<String> {
        match self.fused() {
            Some(part) => {
                let suffixes = ["weight", "bias"].into_iter().take(1 + usize::from(self.bias));
                suffixes.map(|suffix| format!("{}.{suffix}", part.module)).collect()
            }
            None => self.tensors(&self.storage).into_iter().map(|tensor| tensor.name).collect(),
        }
    }

    /// Bytes of this site under `storage`, bias included; the same for rows of a fused tensor.
    pub fn bytes(&self, storage: &Storage) -> u64 {
        self.tensors(storage).iter().map(TensorSpec::bytes).sum()
    }

    /// Parameters of the weight under `storage`, bias not counted, as the literature counts.
    pub fn parameters(&self, storage: &Storage) -> usize {
        match *storage {
            Storage::Dense | Storage::Stack { .. } => self.out_features * self.in_features,
            Storage::LowRank { rank } => rank * (self.out_features + self.in_features),
        }
    }

    /// The rank the site's weight has at most as it is stored now.
    pub fn stored_rank(&self) -> usize {
        match self.storage {
            Storage::Dense | Storage::Stack { .. } => self.out_features.min(self.in_features),
            Storage::LowRank { rank } => rank,
        }
    }
}

/// The smallest set of sites that are decided together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unit {
    /// Its sites; one for a dense linear.
    pub sites: Vec<Site>,
}

impl Unit {
    /// A name that is unique in the model: the first site's.
    pub fn name(&self) -> &str {
        self.sites.first().map_or("", |site| site.name.as_str())
    }

    /// Bytes of the unit as the checkpoint stores it now.
    pub fn stored_bytes(&self) -> u64 {
        self.sites.iter().map(|site| site.bytes(&site.storage)).sum()
    }
}
