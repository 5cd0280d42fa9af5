//! The statistics that are measured of the linears of one layer, one file per statistic.
//!
//! Each is an [`Observer`] of its own; [`LayerStats`] holds the wanted ones and shows them all that it
//! is shown. Gradients are taken apart from these, on the way back ([`GradientMoments`]).

mod gradients;
mod moments;
mod second_moment;
mod shares;
mod squares;

pub use gradients::{GradientMoment, GradientMoments};
pub(super) use gradients::{InOrder, Watched};
pub use moments::Side;
pub use second_moment::SecondMoment;

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Device, Tensor};

use crate::arch::{Port, Site};
use crate::error::{Error, Result};
use crate::model::{Half, Observer};
use moments::SecondMoments;
use shares::ResidualShares;
use squares::InputSquares;

/// The statistics of one linear.
#[derive(Debug, Clone)]
pub struct SiteStats {
    /// The side that the second moment is of.
    pub side: Side,
    /// The second moment, where it was asked for; shared by the linears of one port where it is of the
    /// input.
    pub second: Option<Arc<SecondMoment>>,
    /// `E[x_j²]` of every input channel, `[in]`.
    pub input_squares: Arc<[f64]>,
    /// The price of a change of the output.
    pub importance: Importance,
}

impl SiteStats {
    /// The second moment.
    ///
    /// # Errors
    /// Its absence is a bug: a pass that needs it says so before.
    pub fn moment(&self) -> Result<&SecondMoment> {
        let missing = || Error::Bug("no second moment was measured".into());
        self.second.as_deref().ok_or_else(missing)
    }
}

/// The price of a change of a linear's output: by gradients of the loss or, without any, by energy.
#[derive(Debug, Clone)]
pub enum Importance {
    /// Gradients of the loss summed over all tokens.
    Gradients {
        /// `E[g_o²]` for every output channel, `[out]`, `g` the gradient at the output, zero for tokens
        /// that do not reach it. In nats per token of text, a change `δy` that is as good as random costs
        /// `½ Σ_o E[g_o²] E[δy_o²]`.
        channels: Arc<[f64]>,
        /// [`GradientMoment::gain`] per token: making all of `W x` smaller by a share `α` costs `½ α²`
        /// times this, in nats per token.
        gain: f64,
    },
    /// The energy that the linear's half of the block adds to the residual stream over that of the stream
    /// after it, `E|a|² / E|h|²`; for an expert times its part of the routed tokens. Where no gradient was
    /// taken, a change `δy` is priced by this times `E|δy|² / E|y|²`: no unit, comparable between linears.
    Energy(f64),
}

/// The statistics to take of a layer, beside the energies of its inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted<'a> {
    /// The linears whose second moments are taken.
    pub moments: &'a [&'a Site],
    /// Shares of the residual stream, which are not needed where gradients price the outputs.
    pub shares: bool,
}

/// The statistics of some linears of one layer, while its block computes.
///
/// ```
/// use bantam::arch::{Port, Role, Site};
/// use bantam::measure::{LayerStats, Wanted};
/// use bantam::model::Observer;
/// use candle_core::{Device, Tensor};
///
/// let site = Site::linear("up", Role::MlpUp, [3, 2]);
/// let wanted = Wanted { moments: &[&site], shares: true };
/// let mut stats = LayerStats::new(&[&site], wanted, &Device::Cpu)?;
/// stats.input(Port::MlpIn, &Tensor::new(&[[1_f32, 2.0], [3.0, 0.0]], &Device::Cpu)?)?;
/// let found = stats.finish(&[&site], None)?;
/// assert_eq!(found["up"].input_squares[..], [5.0, 2.0]);
/// # Ok::<(), bantam::Error>(())
/// ```
#[derive(Debug)]
pub struct LayerStats {
    squares: InputSquares,
    moments: SecondMoments,
    shares: Option<ResidualShares>,
}

impl LayerStats {
    /// Nothing seen yet of `sites`, all of one layer.
    ///
    /// # Errors
    /// Only if the device is out of memory.
    pub fn new(sites: &[&Site], wanted: Wanted<'_>, device: &Device) -> Result<Self> {
        Ok(Self {
            squares: InputSquares::new(sites, device)?,
            moments: SecondMoments::new(wanted.moments, device)?,
            shares: wanted.shares.then(ResidualShares::default),
        })
    }

    /// Bytes that the second moments of `sites` take; all else is small.
    pub fn bytes(sites: &[&Site]) -> u64 {
        SecondMoments::bytes(sites)
    }

    /// The statistics by name of the linear. Linears whose port saw no token (of an expert that no token
    /// chose) are absent. With `gradients`, these price the outputs.
    ///
    /// # Errors
    /// Only the tensor engine's.
    pub fn finish(
        self,
        sites: &[&Site],
        gradients: Option<&GradientMoments>,
    ) -> Result<BTreeMap<String, SiteStats>> {
        let squares = self.squares.finish()?;
        let shares = self.shares.unwrap_or_default().finish()?;
        let of_site = |site: &&Site| {
            let energy = squares.get(&site.port)?;
            let importance = match gradients {
                Some(gradients) => {
                    let moment = gradients.get(&site.name)?;
                    let (channels, gain) = moment.per_token(gradients.tokens());
                    Importance::Gradients { channels, gain }
                }
                None => Importance::Energy(shares.of(site, energy.tokens)),
            };
            let moment = self.moments.of(site);
            let (side, second) = match moment {
                Some((side, moment)) => (side, Some(moment)),
                None => (Side::Input, None),
            };
            let input_squares = energy.per_token.clone();
            Some((site.name.clone(), SiteStats { side, second, input_squares, importance }))
        };
        Ok(sites.iter().filter_map(of_site).collect())
    }

    fn observers(&mut self) -> impl Iterator<Item = &mut dyn Observer> {
        let shares = self.shares.as_mut().map(|shares| shares as &mut dyn Observer);
        [Some(&mut self.squares as &mut dyn Observer), Some(&mut self.moments), shares]
            .into_iter()
            .flatten()
    }
}

#[deny(clippy::missing_trait_methods)]
impl Observer for LayerStats {
    fn input(&mut self, port: Port, x: &Tensor) -> Result<()> {
        self.observers().try_for_each(|observer| observer.input(port, x))
    }

    fn output(&mut self, site: &Site, y: &Tensor) -> Result<()> {
        self.observers().try_for_each(|observer| observer.output(site, y))
    }

    fn residual(&mut self, half: Half, added: &Tensor, stream: &Tensor) -> Result<()> {
        self.observers().try_for_each(|observer| observer.residual(half, added, stream))
    }

    fn routed(&mut self, expert: usize, tokens: &[u32]) -> Result<()> {
        self.observers().try_for_each(|observer| observer.routed(expert, tokens))
    }

    /// None of them looks at gradients.
    fn gradients(&mut self, _: &Site) -> Result<crate::model::GradientSinks> {
        Ok(crate::model::GradientSinks::default())
    }
}

/// The linears that read each port.
fn by_port<'a>(sites: &[&'a Site]) -> BTreeMap<Port, Vec<&'a Site>> {
    let mut readers: BTreeMap<Port, Vec<&Site>> = BTreeMap::new();
    for site in sites {
        readers.entry(site.port).or_default().push(site);
    }
    readers
}
