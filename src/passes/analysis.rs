//! The results that a pass keeps of a linear between analysing and making: named tensors and a count of
//! repairs.

use std::collections::BTreeMap;
use std::fmt;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The result of [`Pass::analyse`](super::Pass::analyse): tensors at hand, or in a store that reads
/// them when they are asked for.
#[derive(Debug, Default)]
pub struct Analysis {
    tensors: BTreeMap<String, Tensor>,
    stored: Option<Box<dyn TensorSource>>,
    /// Numbers that had to be mended on the way.
    pub repairs: Repairs,
}

/// A store of the tensors of an analysis that is not in memory.
pub trait TensorSource: fmt::Debug {
    /// Whether there is a tensor `name`.
    fn has(&self, name: &str) -> bool;

    /// Reads tensor `name`; `None` where there is none of that name.
    ///
    /// # Errors
    /// A store that cannot be read or was changed.
    fn tensor(&self, name: &str) -> Result<Option<Tensor>>;
}

/// Numeric fixes, counted so that they can be reported.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repairs {
    /// Eigenvalues of a positive semidefinite matrix that came out negative beyond rounding,
    /// taken as zero.
    pub clipped_eigenvalues: u64,
    /// Output channels with next to no gradient, taken to count as much as the least allowed.
    pub raised_channels: u64,
    /// Randomised decompositions that did not converge and were made exactly.
    #[serde(default)]
    pub exact_decompositions: u64,
}

impl Repairs {
    /// Adds another count.
    pub fn add(&mut self, other: Self) {
        self.clipped_eigenvalues += other.clipped_eigenvalues;
        self.raised_channels += other.raised_channels;
        self.exact_decompositions += other.exact_decompositions;
    }
}

impl Analysis {
    /// An analysis that had to mend these numbers, with no tensor yet.
    pub fn repaired(repairs: Repairs) -> Self {
        Self { repairs, ..Self::default() }
    }

    /// Adds a tensor.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, tensor: Tensor) -> Self {
        self.tensors.insert(name.into(), tensor);
        self
    }

    /// An analysis whose tensors are read from `source`.
    pub fn stored(repairs: Repairs, source: impl TensorSource + 'static) -> Self {
        Self { tensors: BTreeMap::new(), stored: Some(Box::new(source)), repairs }
    }

    /// The tensors at hand, by name.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// Whether there is a tensor of that name.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name) || self.stored.as_ref().is_some_and(|s| s.has(name))
    }

    /// The tensor of that name.
    ///
    /// # Errors
    /// As [`TensorSource::tensor`]; [`Error::Bug`] where the pass did not store it.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let found = match (self.tensors.get(name), &self.stored) {
            (Some(tensor), _) => Some(tensor.clone()),
            (None, Some(stored)) => stored.tensor(name)?,
            (None, None) => None,
        };
        found.ok_or_else(|| Error::Bug(format!("the analysis holds no `{name}`")))
    }

    /// A stored vector of numbers.
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor).
    pub fn numbers(&self, name: &str) -> Result<Vec<f64>> {
        Ok(self.tensor(name)?.to_vec1::<f64>()?)
    }
}
