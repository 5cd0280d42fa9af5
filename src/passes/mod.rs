//! Compressor passes: what each method can offer for a linear, and how an offer is carried out.
//!
//! A pass knows tensors and statistics; it knows no files, no progress bars and no command line.
//! It is asked three things, in this order:
//!
//! 1. [`analyse`](Pass::analyse): everything that is expensive and does not depend on the budget,
//!    once per linear, as named tensors ([`Analysis`]);
//! 2. [`offers`](Pass::offers): the choices `(bytes, expected loss)`, cheap, any number of times;
//! 3. [`make`](Pass::make): the tensors of the offer that the allocator took.
//!
//! A method is one file here and one line of [`ALL`]. One that is not there can be given to a
//! [`Run`](crate::pipeline::Run) by whoever has it.
//!
//! ```
//! use bantam::arch::{Role, Site};
//! use bantam::passes::passes;
//! use bantam::settings::{Rule, Settings};
//!
//! // Without an analysis a pass offers what shapes alone tell.
//! let site = Site::linear("x", Role::MlpUp, [688, 256]);
//! let lord = &passes(&Settings::new(Rule::keep(0.5)), vec![])?[0];
//! let offers = lord.offers(&site, None)?;
//! assert_eq!(offers.len(), site.break_even() / 8); // ranks are multiples of 8
//! assert!(offers.is_sorted_by(|a, b| a.price.expected_loss > b.price.expected_loss));
//! # Ok::<(), bantam::Error>(())
//! ```

mod analysis;
mod bitstack;
mod levels;
mod lord;
mod low_rank;
mod welore;

pub use analysis::{Analysis, Repairs, TensorSource};
pub use bitstack::Bitstack;
pub use levels::{Levels, TakenLevel};
pub use lord::Lord;
pub use low_rank::uniform_rank;
pub use welore::Welore;

pub use crate::model::Weights;

use std::collections::BTreeMap;

use candle_core::Tensor;
use serde_json::Value;

use crate::arch::{Piece, Site, Storage};
use crate::error::{Error, Result};
use crate::measure::SiteStats;
use crate::plan::Offer;
use crate::settings::{Method, Settings};

/// What a pass must be given before it can analyse, and what it uses beside that where there is text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Needs {
    /// It measures activations: there is no analysis without text.
    pub text: bool,
    /// The second moment of each linear's input or output, whichever is smaller, where there is text.
    pub moments: bool,
}

/// A compression method.
pub trait Pass: Sync {
    /// Its name on the command line and in plans.
    fn method(&self) -> Method;

    /// What it must know before [`analyse`](Self::analyse).
    fn needs(&self) -> Needs;

    /// Whether it has anything to offer for a linear, by role, shape and storage alone.
    fn takes(&self, site: &Site) -> bool;

    /// Those of its own options that an analysis depends on, beside gradients and `paper`: one that a job
    /// holds and that was made with others is of no use.
    fn options(&self) -> Value {
        Value::Null
    }

    /// The expensive part, independent of the budget. A linear without statistics saw no token, or there
    /// is no text.
    ///
    /// # Errors
    /// Values that are not finite, a decomposition that does not converge; named after the linear.
    fn analyse(
        &self,
        site: &Site,
        weights: &Weights<'_>,
        stats: Option<&SiteStats>,
    ) -> Result<Analysis>;

    /// The choices for `site`; that it stays as it is goes without saying. Without an analysis, from the
    /// shape alone and an assumed spectrum: enough to plan from headers.
    ///
    /// # Errors
    /// An analysis of another pass or linear is a bug.
    fn offers(&self, site: &Site, analysis: Option<&Analysis>) -> Result<Vec<Offer>>;

    /// Makes `piece` of `site` stored as `chosen`, and whatever is computed with it: both factors of a
    /// pair, one level of a stack. In f32, or in the dtype they are stored in.
    ///
    /// # Errors
    /// As [`analyse`](Self::analyse); a storage that the pass does not offer is a bug.
    fn make(
        &self,
        site: &Site,
        weights: &Weights<'_>,
        analysis: &Analysis,
        chosen: Storage,
        piece: Piece,
    ) -> Result<Pieces>;

    /// The relative error `|W - Ŵ| / |W|` of `chosen`, where the analysis knows it; else whoever writes the
    /// pieces measures that of factors that are made together.
    ///
    /// # Errors
    /// An analysis that cannot be read.
    fn relative_error(&self, _analysis: &Analysis, _chosen: Storage) -> Result<Option<f64>> {
        Ok(None)
    }

    /// The ranks that the method's own published rule gives to these linears for
    /// [`Rule::Reduce`](crate::settings::Rule::Reduce) of this fraction; `None` of a linear that stays as it is, and altogether where the method has no such rule.
    ///
    /// # Errors
    /// An analysis that cannot be read.
    fn reduced_ranks(
        &self,
        _linears: &[(&Site, Analysis)],
        _fraction: f64,
    ) -> Result<Option<Vec<Option<usize>>>> {
        Ok(None)
    }
}

/// A method that comes with bantam.
#[derive(Debug)]
pub struct Entry {
    /// Its name.
    pub name: &'static str,
    /// What it does, in a line.
    pub about: &'static str,
    /// Whether it makes stacks, whose size is chosen when they are read.
    pub stacks: bool,
    /// Makes its pass.
    pub make: fn(&Settings) -> Box<dyn Pass>,
}

/// Every method that comes with bantam.
pub const ALL: [Entry; 3] = [lord::ENTRY, welore::ENTRY, bitstack::ENTRY];

/// The passes for the methods of `settings`, in the order of [`ALL`] and then of `own`, which are methods
/// of the caller's.
///
/// # Errors
/// [`Error::Usage`] for a name that is none of a method, and for a method of an odd name or that of another.
pub fn passes(settings: &Settings, own: Vec<Box<dyn Pass>>) -> Result<Vec<Box<dyn Pass>>> {
    let made = ALL.iter().map(|entry| (entry.make)(settings));
    let all: Vec<Box<dyn Pass>> = made.chain(own).collect();
    let known: Vec<Method> = all.iter().map(|pass| pass.method()).collect();
    // A name is a part of file names, and of nobody else's.
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    for (at, method) in known.iter().enumerate() {
        if known[..at].contains(method) || !method.as_str().chars().all(plain) {
            let message = format!("a method cannot be named `{method}`");
            return Err(Error::usage(
                message,
                "choose lower-case letters, digits and `-`, not a name that is taken",
            ));
        }
    }
    if let Some(unknown) = settings.methods.iter().find(|method| !known.contains(method)) {
        let known: Vec<&str> = known.iter().map(Method::as_str).collect();
        let message = format!("`{unknown}` is not a method");
        return Err(Error::usage(message, format!("the methods are {}", known.join(", "))));
    }
    Ok(all.into_iter().filter(|pass| settings.methods.contains(&pass.method())).collect())
}

/// Some of the tensors that hold a linear.
pub type Pieces = BTreeMap<Piece, Tensor>;

/// The error of a pass that is asked for a storage it does not offer.
fn cannot_make(pass: &dyn Pass, chosen: Storage) -> Error {
    Error::Bug(format!("{} cannot make {chosen:?}", pass.method()))
}
