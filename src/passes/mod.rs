//! Compressor passes: what each method can offer for a unit, and how an offer is carried out.
//!
//! A pass knows tensors and statistics; it knows no files, no progress bars and no command line.
//! It is asked three things, in this order:
//!
//! 1. [`analyse`](Pass::analyse): everything that is expensive and does not depend on the budget,
//!    once per unit, as named tensors ([`Analysis`]);
//! 2. [`offers`](Pass::offers): the choices `(bytes, expected loss)`, cheap, any number of times;
//! 3. [`apply`](Pass::apply): the tensors of the offer that the allocator took.
//!
//! A method is one file here and one arm of [`Method::pass`].

mod absolute_value;
mod analysis;
mod bitstack;
mod lord;
mod low_rank;
mod welore;

pub use absolute_value::{Level, Levels};
pub use analysis::{Analysis, Repairs, TensorSource};
pub use bitstack::{Bitstack, StackOptions};
pub use lord::Lord;
pub use low_rank::{break_even, uniform_rank};
pub use welore::{Welore, reduction_ranks};

use std::collections::BTreeMap;
use std::fmt;

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use crate::arch::{Site, Unit};
use crate::checkpoint::{Checkpoint, TensorSpec};
use crate::error::{Error, Result};
use crate::measure::SiteStats;
use crate::model::{bias, dense_weight};
use crate::plan::Offer;

/// What a pass must be given before it can analyse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Needs {
    /// Weights alone; statistics, where there are any, only price its offers.
    Weights,
    /// The energy of every input channel.
    Squares,
    /// The second moment of each site's input or output.
    Moments,
}

/// A compression method.
pub trait Pass: Sync {
    /// Its name on the command line and in plans.
    fn method(&self) -> Method;

    /// What it must know before [`analyse`](Self::analyse).
    fn needs(&self) -> Needs;

    /// Whether it has anything to offer for a unit, by role and shape alone.
    fn takes(&self, unit: &Unit) -> bool;

    /// The expensive part, independent of the budget.
    ///
    /// # Errors
    /// Values that are not finite, a decomposition that does not converge; named after the unit.
    fn analyse(&self, unit: &Unit, weights: &Weights<'_>, stats: &UnitStats) -> Result<Analysis>;

    /// The choices for `unit`, the stored form (no loss) among them. Without an analysis, from the
    /// shape alone and an assumed spectrum: enough to plan from headers.
    ///
    /// # Errors
    /// An analysis of another pass or unit is a bug.
    fn offers(&self, unit: &Unit, analysis: Option<&Analysis>) -> Result<Vec<Offer>>;

    /// The tensors of `chosen`, in f32 or in the dtype they are stored in, named as [`Site::tensors`]
    /// names them.
    ///
    /// # Errors
    /// As [`analyse`](Self::analyse).
    fn apply(
        &self,
        unit: &Unit,
        weights: &Weights<'_>,
        analysis: &Analysis,
        chosen: &Offer,
    ) -> Result<UnitOutput>;

    /// Of what [`apply`](Self::apply) makes, `tensor` and those that are written right beside it, where
    /// a unit's tensors are not written together; `None` where they are.
    ///
    /// # Errors
    /// As [`apply`](Self::apply).
    fn apply_part(
        &self,
        _unit: &Unit,
        _weights: &Weights<'_>,
        _analysis: &Analysis,
        _chosen: &Offer,
        _tensor: &str,
    ) -> Result<Option<UnitOutput>> {
        Ok(None)
    }
}

/// Statistics of a unit, per site name. A site without an entry saw no token.
pub type UnitStats = BTreeMap<String, SiteStats>;

/// Tensors by name.
pub type UnitOutput = BTreeMap<String, Tensor>;

/// Access to a unit's weights; nothing is read before it is asked for.
#[derive(Debug)]
pub struct Weights<'a> {
    checkpoint: &'a Checkpoint,
    device: &'a Device,
}

impl<'a> Weights<'a> {
    /// Reads from `checkpoint` onto `device`.
    pub fn new(checkpoint: &'a Checkpoint, device: &'a Device) -> Self {
        Self { checkpoint, device }
    }

    /// The weight `[out, in]` f32 of `site`, factors multiplied out.
    ///
    /// # Errors
    /// A tensor that cannot be read or is not finite.
    pub fn dense(&self, site: &Site) -> Result<Tensor> {
        dense_weight(self.checkpoint, site, self.device)
    }

    /// The same in f64.
    ///
    /// # Errors
    /// As [`dense`](Self::dense).
    pub fn weight(&self, site: &Site) -> Result<Tensor> {
        Ok(self.dense(site)?.to_dtype(candle_core::DType::F64)?)
    }

    /// The bias `[out]` f64, where the site has one.
    ///
    /// # Errors
    /// As [`weight`](Self::weight).
    pub fn bias(&self, site: &Site) -> Result<Option<Tensor>> {
        let bias = bias(self.checkpoint, site, self.device)?;
        Ok(bias.map(|bias| bias.to_dtype(candle_core::DType::F64)).transpose()?)
    }
}

/// The methods, by the name a user types.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// Atomic feature mimicking: principal directions of each linear's output (`LoRD`).
    Lord,
    /// Singular values of the weight alone (`WeLore`).
    Welore,
    /// Residual blocks of signs and factors (`BitStack`).
    Bitstack,
}

/// What the passes can be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PassOptions {
    /// Ranks are multiples of this.
    pub rank_multiple: usize,
    /// Decompose as the papers do, with no gradients in it.
    pub paper: bool,
    /// How stacks are made.
    pub stack: StackOptions,
}

impl Default for PassOptions {
    fn default() -> Self {
        Self { rank_multiple: 8, paper: false, stack: StackOptions::default() }
    }
}

impl Method {
    /// Every method.
    pub const ALL: [Self; 3] = [Self::Lord, Self::Welore, Self::Bitstack];

    /// The pass that implements it.
    pub fn pass(self, options: PassOptions) -> Box<dyn Pass> {
        match self {
            Self::Lord => Box::new(Lord::new(options)),
            Self::Welore => Box::new(Welore::new(options)),
            Self::Bitstack => Box::new(Bitstack::new(options.stack)),
        }
    }

    /// The name a user types.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lord => "lord",
            Self::Welore => "welore",
            Self::Bitstack => "bitstack",
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The only site of a unit; the low-rank passes decide each linear alone.
fn single(unit: &Unit) -> Result<&Site> {
    match unit.sites.as_slice() {
        [site] => Ok(site),
        sites => {
            Err(Error::Bug(format!("unit `{}` has {} sites, expected 1", unit.name(), sites.len())))
        }
    }
}

/// Checks that `output` holds exactly `tensors`, by name and shape.
///
/// # Errors
/// [`Error::Bug`] naming the first that differs.
pub fn check_output(output: &UnitOutput, tensors: &[TensorSpec]) -> Result<()> {
    for spec in tensors {
        match output.get(&spec.name) {
            Some(tensor) if tensor.dims() == spec.shape => {}
            Some(tensor) => {
                let (found, expected) = (tensor.dims(), &spec.shape);
                return Err(Error::Bug(format!(
                    "`{}` was made {found:?}, planned {expected:?}",
                    spec.name
                )));
            }
            None => return Err(Error::Bug(format!("`{}` was planned but not made", spec.name))),
        }
    }
    match output.len() == tensors.len() {
        true => Ok(()),
        false => {
            Err(Error::Bug(format!("{} tensors made, {} planned", output.len(), tensors.len())))
        }
    }
}
