//! The description of a tensor in a checkpoint: its name, dtype, shape and place, never its values.

use std::ops::Range;

use safetensors::Dtype;
use serde::{Deserialize, Serialize};

/// A tensor of an open checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// The tensor's name, unique in the checkpoint.
    pub name: String,
    /// The type of its elements.
    pub dtype: Dtype,
    /// Its extents, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
    /// The shard that holds it, counted from 0 in the order of the shards' names.
    pub shard: usize,
    /// Range of its data in the shard's file, in bytes from the file's start.
    pub range: Range<u64>,
}

impl TensorInfo {
    /// The bytes of its data.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// The number of its elements.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The same tensor as one to be written.
    #[must_use]
    pub fn spec(&self) -> TensorSpec {
        TensorSpec { name: self.name.clone(), dtype: self.dtype, shape: self.shape.clone() }
    }
}

/// A tensor that is to be written.
///
/// In JSON the dtype has its safetensors name, such as `"BF16"`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorSpec {
    /// The tensor's name, unique in the checkpoint.
    pub name: String,
    /// The type of its elements.
    pub dtype: Dtype,
    /// Its extents, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// A tensor of this name, dtype and shape.
    pub fn new(name: impl Into<String>, dtype: Dtype, shape: impl Into<Vec<usize>>) -> Self {
        Self { name: name.into(), dtype, shape: shape.into() }
    }

    /// The bytes of its data; `u64::MAX` for a shape that overflows, which no budget admits and
    /// [`ModelWriter::create`](super::ModelWriter::create) refuses.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let shape = self.shape.iter().map(|&extent| extent as u64);
        bit_size(self.dtype, shape).map_or(u64::MAX, |bits| bits.div_ceil(8))
    }
}

/// The bits that a tensor's data take, or `None` where that overflows.
///
/// The products are taken in the order of the shape, as the reference implementation takes them, so
/// that a shape such as `[2^40, 2^40, 0]` overflows in both.
pub(super) fn bit_size(dtype: Dtype, shape: impl IntoIterator<Item = u64>) -> Option<u64> {
    let elements = shape.into_iter().try_fold(1_u64, u64::checked_mul)?;
    elements.checked_mul(dtype.bitsize() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_exact() {
        assert_eq!(TensorSpec::new("a", Dtype::BF16, [3, 5]).bytes(), 30);
        assert_eq!(TensorSpec::new("a", Dtype::F64, []).bytes(), 8);
        assert_eq!(TensorSpec::new("a", Dtype::F32, [7, 0]).bytes(), 0);
        assert_eq!(TensorSpec::new("a", Dtype::F4, [6]).bytes(), 3);
        assert_eq!(TensorSpec::new("a", Dtype::F32, [usize::MAX, 2]).bytes(), u64::MAX);
    }

    #[test]
    fn a_spec_is_readable_json() {
        let spec = TensorSpec::new("w", Dtype::F8_E4M3, [2, 3]);
        let json = serde_json::to_string(&spec).unwrap();
        assert_eq!(json, r#"{"name":"w","dtype":"F8_E4M3","shape":[2,3]}"#);
        assert_eq!(serde_json::from_str::<TensorSpec>(&json).unwrap(), spec);
    }
}
