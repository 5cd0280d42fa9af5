//! The second moments of one layer, each taken on its smaller side.
//!
//! Sites that read one port share one input moment `[in, in]`. Where that is larger than the output
//! moments of all the port's sites together (a down projection), those are taken instead; either
//! gives a low-rank pass what it needs: `C = W G Wᵀ`.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::gradient_moments::GradientMoments;
use super::second_moment::SecondMoment;
use crate::arch::{Port, Site};
use crate::error::{Error, Result};
use crate::model::{Half, Observer};
use crate::ops;

/// Which activation of a linear was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// What it reads.
    Input,
    /// What it writes, bias included.
    Output,
}

/// What measure saw of one site.
#[derive(Debug, Clone)]
pub struct SiteStats {
    /// Which side the second moment is of.
    pub side: Side,
    /// The second moment, where it was asked for; shared by the sites of one port where it is of the
    /// input.
    pub second: Option<Arc<SecondMoment>>,
    /// `E[x_j²]` of every input channel, `[in]`.
    pub input_squares: Arc<[f64]>,
    /// What a change of the output is worth.
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

/// How much the loss minds a change of a linear's output.
#[derive(Debug, Clone)]
pub enum Importance {
    /// Gradients of the loss summed over all tokens.
    Gradients {
        /// `E[g_o²]` for every output channel, `g` the gradient at the output, zero for tokens that do not
        /// reach it: in nats per token of text, a change `δy` that is as good as random costs
        /// `½ Σ_o E[g_o²] E[δy_o²]`.
        channels: Arc<[f64]>,
        /// [`GradientMoment::gain`](super::GradientMoment::gain) per token: that all of `W x` becomes
        /// smaller by a share `α` costs `½ α²` times this, in nats per token.
        gain: f64,
    },
    /// No gradient was taken, so all channels count the same: relative to its size, a change costs
    /// this, `E|a|² / E|h|²`, what the site's half of the block adds to the residual stream against
    /// the stream it is added to.
    Share(f64),
}

/// Collects the moments of one layer while its block computes.
#[derive(Debug)]
pub struct LayerMoments {
    squares: BTreeMap<Port, Squares>,
    inputs: BTreeMap<Port, SecondMoment>,
    outputs: BTreeMap<String, SecondMoment>,
    /// `None` where gradients say what an output is worth, and nobody asks for shares.
    residuals: Option<BTreeMap<Half, Energies>>,
    /// Tokens that were sent to experts, to any of them: a token counts as often as it was sent.
    routed: u64,
}

/// `Σ x_j²` of one port's channels, `[in]` f64, and over how many tokens.
#[derive(Debug)]
struct Squares {
    sums: Tensor,
    tokens: u64,
}

/// Sums of squares of what a half added and of the stream after it, by channel: `[hidden]` f64 each,
/// where the activations are.
#[derive(Debug)]
struct Energies {
    added: Tensor,
    stream: Tensor,
}

impl Energies {
    fn of(x: &Tensor) -> Result<Self> {
        let zeros = || Tensor::zeros(x.dim(1)?, DType::F64, x.device());
        Ok(Self { added: zeros()?, stream: zeros()? })
    }

    /// The energy added as a share of the stream's.
    fn share(&self) -> Result<f64> {
        let total = |sums: &Tensor| sums.sum_all()?.to_scalar::<f64>();
        let (added, stream) = (total(&self.added)?, total(&self.stream)?);
        Ok(if stream > 0.0 { added / stream } else { 0.0 })
    }
}

impl LayerMoments {
    /// Moments for `sites`, all of one layer.
    ///
    /// # Errors
    /// Only if the device is out of memory.
    pub fn for_sites(sites: &[&Site], device: &Device) -> Result<Self> {
        let mut moments = Self::squares_only(sites, device)?;
        for (port, readers) in by_port(sites) {
            match smaller_side(&readers) {
                Side::Input => {
                    let moment = SecondMoment::new(readers[0].in_features, device)?;
                    moments.inputs.insert(port, moment);
                }
                Side::Output => {
                    for site in readers {
                        let moment = SecondMoment::new(site.out_features, device)?;
                        moments.outputs.insert(site.name.clone(), moment);
                    }
                }
            }
        }
        Ok(moments)
    }

    /// Only the energies of the inputs, for passes that do without second moments.
    ///
    /// # Errors
    /// As [`for_sites`](Self::for_sites).
    pub fn squares_only(sites: &[&Site], device: &Device) -> Result<Self> {
        let squares = |(port, readers): (Port, Vec<&Site>)| {
            let sums = Tensor::zeros(readers[0].in_features, DType::F64, device)?;
            Ok((port, Squares { sums, tokens: 0 }))
        };
        Ok(Self {
            squares: by_port(sites).into_iter().map(squares).collect::<Result<_>>()?,
            inputs: BTreeMap::new(),
            outputs: BTreeMap::new(),
            residuals: Some(BTreeMap::new()),
            routed: 0,
        })
    }

    /// Bytes that moments for `sites` take.
    pub fn bytes_for(sites: &[&Site]) -> u64 {
        let entries = |readers: &Vec<&Site>| match smaller_side(readers) {
            Side::Input => square(readers[0].in_features),
            Side::Output => readers.iter().map(|s| square(s.out_features)).sum(),
        };
        by_port(sites).values().map(entries).sum::<u64>() * 8
    }

    /// The same, to be joined by gradients: the residual stream need not be looked at.
    #[must_use]
    pub fn beside_gradients(self) -> Self {
        Self { residuals: None, ..self }
    }

    /// The moments per site name; sites whose port saw no token (an expert nobody chose) are absent.
    /// With `gradients`, outputs count by them.
    ///
    /// # Errors
    /// Only the tensor engine's.
    pub fn into_stats(
        self,
        sites: &[&Site],
        gradients: Option<&GradientMoments>,
    ) -> Result<BTreeMap<String, SiteStats>> {
        let share = |(key, moment)| (key, Arc::new(moment));
        let inputs: BTreeMap<Port, _> = self.inputs.into_iter().map(share).collect();
        let mut outputs = self.outputs;
        let residuals = self.residuals.unwrap_or_default();
        let shares: BTreeMap<Half, f64> = residuals
            .into_iter()
            .map(|(half, energies)| Ok((half, energies.share()?)))
            .collect::<Result<_>>()?;
        let routed = self.routed.max(1) as f64;
        let (mut squares, mut parts) = (BTreeMap::new(), BTreeMap::new());
        for (port, Squares { sums, tokens }) in self.squares.into_iter().filter(|s| s.1.tokens > 0)
        {
            let per_token = sums.affine(1.0 / tokens as f64, 0.0)?.to_vec1::<f64>()?;
            squares.insert(port, Arc::<[f64]>::from(per_token));
            if port.expert().is_some() {
                parts.insert(port, tokens as f64 / routed);
            }
        }
        let stats = sites.iter().filter_map(|site| {
            let importance = match gradients {
                Some(gradients) => {
                    let moment = gradients.get(&site.name)?;
                    let (channels, gain) = moment.per_token(gradients.tokens());
                    Importance::Gradients { channels, gain }
                }
                None => {
                    // Of what the experts add together, each has the part of the tokens it was sent.
                    let part = parts.get(&site.port).copied().unwrap_or(1.0);
                    let share = shares.get(&Half::of(site.role)).copied();
                    Importance::Share(part * share.unwrap_or(0.0))
                }
            };
            let (side, second) = match outputs.remove(&site.name) {
                Some(moment) => (Side::Output, Some(Arc::new(moment))),
                None => (Side::Input, inputs.get(&site.port).cloned()),
            };
            let input_squares = squares.get(&site.port)?.clone();
            Some((site.name.clone(), SiteStats { side, second, input_squares, importance }))
        });
        Ok(stats.collect())
    }
}

impl Observer for LayerMoments {
    fn input(&mut self, port: Port, x: &Tensor) -> Result<()> {
        if let Some(squares) = self.squares.get_mut(&port) {
            ops::column_squares(&squares.sums, x)?;
            squares.tokens += x.dim(0)? as u64;
        }
        self.inputs.get_mut(&port).map_or(Ok(()), |moment| moment.add(x))
    }

    fn output(&mut self, site: &Site, y: &Tensor) -> Result<()> {
        self.outputs.get_mut(&site.name).map_or(Ok(()), |moment| moment.add(y))
    }

    fn routed(&mut self, _: usize, tokens: &[u32]) -> Result<()> {
        self.routed += tokens.len() as u64;
        Ok(())
    }

    fn residual(&mut self, half: Half, added: &Tensor, stream: &Tensor) -> Result<()> {
        let Some(residuals) = &mut self.residuals else { return Ok(()) };
        let energies = match residuals.entry(half) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(Energies::of(added)?),
        };
        ops::column_squares(&energies.added, added)?;
        ops::column_squares(&energies.stream, stream)
    }
}

/// The sites that read each port.
fn by_port<'a>(sites: &[&'a Site]) -> BTreeMap<Port, Vec<&'a Site>> {
    let mut readers: BTreeMap<Port, Vec<&Site>> = BTreeMap::new();
    for site in sites {
        readers.entry(site.port).or_default().push(site);
    }
    readers
}

fn smaller_side(readers: &[&Site]) -> Side {
    let input = readers.first().map_or(0, |site| square(site.in_features));
    let outputs: u64 = readers.iter().map(|site| square(site.out_features)).sum();
    if outputs < input { Side::Output } else { Side::Input }
}

fn square(n: usize) -> u64 {
    (n as u64) * (n as u64)
}
