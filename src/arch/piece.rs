//! How a linear is stored, and the tensors that hold it: their names, shapes and dtypes are said here,
//! once.

use std::fmt;

use safetensors::Dtype;
use serde::{Deserialize, Serialize};

use super::site::Site;
use crate::checkpoint::TensorSpec;

/// How the weight `[out, in]` of a linear is stored. Offers choose between these, `config.json` declares
/// them, and the decoder loads them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Storage {
    /// `X.weight [out, in]`.
    Dense,
    /// `X.v.weight [rank, in]` and `X.u.weight [out, rank]`; `y = u (v x)`.
    LowRank {
        /// Rows of `v`, columns of `u`.
        rank: usize,
    },
    /// A sum of levels over scaled columns, `W = (Σ_i S_i ∘ u_i v_i) diag(1 / scale)`: per level
    /// `X.<i>.sign` u8 `[out, ⌈in/8⌉]`, `X.<i>.u` `[out, rank]` and `X.<i>.v` `[rank, in]` f16, and once
    /// `X.scale` `[in]` f32.
    Stack {
        /// Rows of every `v`, columns of every `u`.
        rank: usize,
        /// Levels.
        levels: usize,
    },
}

impl Storage {
    /// The tensors that hold a weight stored so, in the order of the file.
    pub fn pieces(self) -> Vec<Piece> {
        match self {
            Self::Dense => vec![Piece::Weight],
            Self::LowRank { .. } => vec![Piece::V, Piece::U],
            Self::Stack { levels, .. } => {
                let levels = (0..levels).flat_map(Piece::of_level);
                [Piece::Scale].into_iter().chain(levels).collect()
            }
        }
    }

    /// The rank of its factors; 0 where there are none.
    pub fn rank(self) -> usize {
        match self {
            Self::Dense => 0,
            Self::LowRank { rank } | Self::Stack { rank, .. } => rank,
        }
    }

    /// Levels of a stack; 0 of any other form.
    pub fn levels(self) -> usize {
        match self {
            Self::Dense | Self::LowRank { .. } => 0,
            Self::Stack { levels, .. } => levels,
        }
    }

    /// Whether it is a stack, of which fewer levels are a smaller model.
    pub fn is_stack(self) -> bool {
        match self {
            Self::Dense | Self::LowRank { .. } => false,
            Self::Stack { .. } => true,
        }
    }
}

impl fmt::Display for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dense => f.pad("dense"),
            Self::LowRank { rank } => write!(f, "rank {rank}"),
            Self::Stack { rank, levels } => write!(f, "{levels} levels of rank {rank}"),
        }
    }
}

/// One of the tensors that hold a linear.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Piece {
    /// The weight itself.
    Weight,
    /// The factor that reads, of a low-rank pair.
    V,
    /// The factor that writes.
    U,
    /// What the input channels of a stack are scaled by.
    Scale,
    /// A part of one level of a stack, counted from 0.
    Level(usize, LevelPart),
    /// The bias.
    Bias,
}

/// The tensors of one level of a stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LevelPart {
    /// Packed signs.
    Sign,
    /// The factor that writes.
    U,
    /// The factor that reads.
    V,
}

impl LevelPart {
    /// All of them, in the order of the file.
    pub const ALL: [Self; 3] = [Self::Sign, Self::U, Self::V];
}

impl Piece {
    /// The pieces of one level of a stack.
    pub fn of_level(level: usize) -> [Self; 3] {
        LevelPart::ALL.map(|part| Self::Level(level, part))
    }

    /// What follows the module and a dot in the tensor's name.
    pub fn suffix(self) -> String {
        match self {
            Self::Weight => "weight".into(),
            Self::V => "v.weight".into(),
            Self::U => "u.weight".into(),
            Self::Scale => "scale".into(),
            Self::Level(level, LevelPart::Sign) => format!("{level}.sign"),
            Self::Level(level, LevelPart::U) => format!("{level}.u"),
            Self::Level(level, LevelPart::V) => format!("{level}.v"),
            Self::Bias => "bias".into(),
        }
    }

    /// The tensor's name in `module`.
    pub fn name_in(self, module: &str) -> String {
        format!("{module}.{}", self.suffix())
    }

    /// Whether another dtype or other values than planned can only be damage: what a stack is made of
    /// has one dtype, whatever that of the model.
    pub(super) fn has_fixed_dtype(self) -> bool {
        match self {
            Self::Weight | Self::V | Self::U | Self::Bias => false,
            Self::Scale | Self::Level(..) => true,
        }
    }
}

impl Site {
    /// The tensors that hold this site under `storage`, were they its own; the bias last.
    pub fn pieces(&self, storage: Storage) -> Vec<Piece> {
        let bias = self.bias.map(|_| Piece::Bias);
        storage.pieces().into_iter().chain(bias).collect()
    }

    /// Name, dtype and shape of one of the site's own tensors under `storage`.
    pub fn spec(&self, storage: Storage, piece: Piece) -> TensorSpec {
        let (m, n, rank) = (self.out_features, self.in_features, storage.rank());
        let (dtype, shape) = match piece {
            Piece::Weight => (self.dtype, vec![m, n]),
            Piece::V => (self.dtype, vec![rank, n]),
            Piece::U => (self.dtype, vec![m, rank]),
            Piece::Scale => (Dtype::F32, vec![n]),
            Piece::Level(_, LevelPart::Sign) => (Dtype::U8, vec![m, n.div_ceil(8)]),
            Piece::Level(_, LevelPart::U) => (Dtype::F16, vec![m, rank]),
            Piece::Level(_, LevelPart::V) => (Dtype::F16, vec![rank, n]),
            Piece::Bias => (self.bias.unwrap_or(self.dtype), vec![m]),
        };
        TensorSpec::new(piece.name_in(&self.name), dtype, shape)
    }

    /// All of them.
    pub fn specs(&self, storage: Storage) -> Vec<TensorSpec> {
        self.pieces(storage).into_iter().map(|piece| self.spec(storage, piece)).collect()
    }

    /// Bytes of this site under `storage`, bias included; the same for rows of a fused tensor.
    pub fn bytes(&self, storage: Storage) -> u64 {
        self.specs(storage).iter().map(TensorSpec::bytes).sum()
    }

    /// Bytes of one level, were it stored as a stack of this rank: `m ⌈n/8⌉ + 2 k (m + n)`.
    pub fn level_bytes(&self, rank: usize) -> u64 {
        let storage = Storage::Stack { rank, levels: 1 };
        Piece::of_level(0).iter().map(|&piece| self.spec(storage, piece).bytes()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::Role;

    #[test]
    fn every_storage_names_its_tensors_once_and_counts_their_bytes() {
        let site = Site::linear("x", Role::AttnQ, [12, 20]).with_bias(Dtype::F32);
        let names = |storage| site.specs(storage).into_iter().map(|s| s.name).collect::<Vec<_>>();
        assert_eq!(names(Storage::Dense), ["x.weight", "x.bias"]);
        assert_eq!(names(Storage::LowRank { rank: 3 }), ["x.v.weight", "x.u.weight", "x.bias"]);
        let stack = Storage::Stack { rank: 2, levels: 2 };
        let levels = ["x.0.sign", "x.0.u", "x.0.v", "x.1.sign", "x.1.u", "x.1.v"];
        assert_eq!(names(stack), [&["x.scale"][..], &levels, &["x.bias"]].concat());
        assert_eq!(site.bytes(Storage::LowRank { rank: 3 }), 4 * 3 * 32 + 4 * 12);
        assert_eq!(site.level_bytes(2), 12 * 3 + 2 * 2 * 32);
        assert_eq!(site.bytes(stack), 4 * 20 + 2 * site.level_bytes(2) + 4 * 12);
    }

    #[test]
    fn a_storage_is_declared_as_config_json_has_it() {
        let cases = [
            (Storage::Dense, r#"{"kind":"dense"}"#, "dense"),
            (Storage::LowRank { rank: 5 }, r#"{"kind":"low_rank","rank":5}"#, "rank 5"),
            (
                Storage::Stack { rank: 4, levels: 3 },
                r#"{"kind":"stack","rank":4,"levels":3}"#,
                "3 levels of rank 4",
            ),
        ];
        for (storage, json, text) in cases {
            assert_eq!(serde_json::to_string(&storage).unwrap(), json);
            assert_eq!(serde_json::from_str::<Storage>(json).unwrap(), storage);
            assert_eq!(storage.to_string(), text);
        }
        assert!(serde_json::from_str::<Storage>(r#"{"kind":"low_rank","rank":5,"x":1}"#).is_err());
    }
}
