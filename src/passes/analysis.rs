//! What a pass keeps of a unit between analysis and apply: named tensors and a count of repairs.

use std::collections::BTreeMap;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The result of [`Pass::analyse`](super::Pass::analyse), storable as it is.
#[derive(Debug, Clone, Default)]
pub struct Analysis {
    tensors: BTreeMap<&'static str, Tensor>,
    /// Numbers that had to be mended on the way.
    pub repairs: Repairs,
}

/// Numeric fixes, counted so that they can be reported.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repairs {
    /// Eigenvalues of a positive semidefinite matrix that came out negative beyond rounding,
    /// taken as zero.
    pub clipped_eigenvalues: u64,
}

impl Repairs {
    /// Adds another count.
    pub fn add(&mut self, other: Self) {
        self.clipped_eigenvalues += other.clipped_eigenvalues;
    }
}

impl Analysis {
    /// An analysis that had to mend these numbers, with no tensor yet.
    pub fn repaired(repairs: Repairs) -> Self {
        Self { repairs, ..Self::default() }
    }

    /// Adds a tensor.
    #[must_use]
    pub fn with(mut self, name: &'static str, tensor: Tensor) -> Self {
        self.tensors.insert(name, tensor);
        self
    }

    /// The tensor of that name.
    ///
    /// # Errors
    /// [`Error::Bug`] where the pass did not store it.
    pub fn tensor(&self, name: &str) -> Result<&Tensor> {
        self.tensors.get(name).ok_or_else(|| Error::Bug(format!("the analysis holds no `{name}`")))
    }

    /// A stored vector of numbers.
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor).
    pub fn numbers(&self, name: &str) -> Result<Vec<f64>> {
        Ok(self.tensor(name)?.to_vec1::<f64>()?)
    }

    /// Bytes held in memory.
    pub fn bytes(&self) -> u64 {
        let size = |t: &Tensor| (t.elem_count() * t.dtype().size_in_bytes()) as u64;
        self.tensors.values().map(size).sum()
    }
}
