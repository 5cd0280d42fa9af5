//! Sites, the places of linears in a model, and their roles.

use std::fmt;

use safetensors::Dtype;
use serde::{Deserialize, Serialize};

use super::part::Part;
use super::piece::{Piece, Storage};

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
    /// The table of token embeddings, and the head where the two are one.
    #[serde(rename = "embed")]
    Embed,
    /// The projection to the vocabulary.
    #[serde(rename = "head")]
    Head,
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
            Self::Embed => "embed",
            Self::Head => "head",
        }
    }

    /// Whether the linear belongs to one expert of a mixture, which sees only the tokens routed to it.
    pub fn is_expert(self) -> bool {
        matches!(self, Self::ExpertGate | Self::ExpertUp | Self::ExpertDown)
    }

    /// Whether a row of the weight belongs to a token, and the linear to no block.
    pub fn is_vocabulary(self) -> bool {
        matches!(self, Self::Embed | Self::Head)
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
    /// The ids of tokens, each a row of the embedding.
    Ids,
    /// The normed stream that the head reads.
    HeadIn,
}

impl Port {
    /// The port that a linear of this role reads; of the first expert, for an expert's.
    pub fn of(role: Role) -> Self {
        match role {
            Role::AttnQ | Role::AttnK | Role::AttnV => Self::AttnIn,
            Role::AttnO => Self::AttnOut,
            Role::MlpGate | Role::MlpUp => Self::MlpIn,
            Role::MlpDown => Self::MlpHidden,
            Role::ExpertGate | Role::ExpertUp => Self::ExpertIn(0),
            Role::ExpertDown => Self::ExpertHidden(0),
            Role::Embed => Self::Ids,
            Role::Head => Self::HeadIn,
        }
    }

    /// The expert whose port it is.
    pub fn expert(self) -> Option<usize> {
        match self {
            Self::ExpertIn(expert) | Self::ExpertHidden(expert) => Some(expert),
            Self::AttnIn
            | Self::AttnOut
            | Self::MlpIn
            | Self::MlpHidden
            | Self::Ids
            | Self::HeadIn => None,
        }
    }
}

/// One linear's place in a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Site {
    /// Module name: the tensor's name without `.weight`.
    pub name: String,
    /// What it does.
    pub role: Role,
    /// Index of its block; `None` for embedding and head, which are in none.
    pub layer: Option<usize>,
    /// Rows of the weight, `m`.
    pub out_features: usize,
    /// Columns of the weight, `n`.
    pub in_features: usize,
    /// The weight's dtype on disk, which its factors keep.
    pub dtype: Dtype,
    /// The dtype of `X.bias [out]` on disk, where there is one.
    pub bias: Option<Dtype>,
    /// The activation it reads.
    pub port: Port,
    /// How the checkpoint stores it now.
    pub storage: Storage,
    /// Its place in a fused tensor, where the family has one for it.
    pub part: Option<Part>,
}

impl Site {
    /// A dense f32 linear `[out, in]` of the first block, without bias, that reads the port of its role.
    ///
    /// ```
    /// use bantam::arch::{Role, Site, Storage};
    ///
    /// let site = Site::linear("model.layers.0.mlp.up_proj", Role::MlpUp, [688, 256]);
    /// assert_eq!(site.bytes(Storage::LowRank { rank: 64 }), 4 * 64 * (688 + 256));
    /// assert_eq!(site.break_even(), 186);
    /// ```
    pub fn linear(name: impl Into<String>, role: Role, shape: [usize; 2]) -> Self {
        Self {
            name: name.into(),
            role,
            layer: (!role.is_vocabulary()).then_some(0),
            out_features: shape[0],
            in_features: shape[1],
            dtype: Dtype::F32,
            bias: None,
            port: Port::of(role),
            storage: Storage::Dense,
            part: None,
        }
    }

    /// The same with a bias.
    #[must_use]
    pub fn with_bias(self, dtype: Dtype) -> Self {
        Self { bias: Some(dtype), ..self }
    }

    /// The fused module that holds this site in the checkpoint, where one does.
    pub fn fused(&self) -> Option<&Part> {
        self.part.as_ref().filter(|part| part.fused)
    }

    /// The checkpoint's tensors that hold this site, alone or with others: what each is, and its name.
    pub fn stored_in(&self) -> Vec<(Piece, String)> {
        let named = |piece: Piece| (piece, self.name_of(piece));
        self.pieces(self.storage).into_iter().map(named).collect()
    }

    /// The name of the tensor that holds a piece of this site, alone or with those of others.
    pub fn name_of(&self, piece: Piece) -> String {
        piece.name_in(self.fused().map_or(&self.name, |part| &part.module))
    }

    /// Bytes of this site as the checkpoint stores it, bias included.
    pub fn stored_bytes(&self) -> u64 {
        self.bytes(self.storage)
    }

    /// Bytes of one level of it, where it is stored as a stack; else 0.
    pub fn stored_level_bytes(&self) -> u64 {
        if self.storage.is_stack() { self.level_bytes(self.storage.rank()) } else { 0 }
    }

    /// Parameters of the weight under `storage`, bias not counted, as the literature counts.
    pub fn parameters(&self, storage: Storage) -> usize {
        match storage {
            Storage::Dense | Storage::Stack { .. } => self.out_features * self.in_features,
            Storage::LowRank { rank } => rank * (self.out_features + self.in_features),
        }
    }

    /// The rank the weight has at most as it is stored now.
    pub fn stored_rank(&self) -> usize {
        match self.storage {
            Storage::Dense | Storage::Stack { .. } => self.out_features.min(self.in_features),
            Storage::LowRank { rank } => rank,
        }
    }

    /// The largest rank whose factors hold fewer parameters than the weight: `r (m + n) < m n`.
    pub fn break_even(&self) -> usize {
        Self::break_even_of([self.out_features, self.in_features])
    }

    /// The same of a matrix `[m, n]`.
    pub fn break_even_of([m, n]: [usize; 2]) -> usize {
        (m * n).saturating_sub(1) / (m + n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn break_even_is_the_last_rank_that_saves() {
        for (m, n) in [(1, 1), (1, 7), (2, 2), (8, 8), (256, 688), (128, 256), (97, 101)] {
            let r = Site::break_even_of([m, n]);
            assert!(r * (m + n) < m * n || r == 0, "{m}x{n}: {r}");
            assert!((r + 1) * (m + n) >= m * n, "{m}x{n}: {r}");
        }
    }
}
