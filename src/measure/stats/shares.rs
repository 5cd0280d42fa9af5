//! The energy that each half of a block, and each expert, adds, as a share of the residual stream's.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use candle_core::{DType, Tensor};

use crate::arch::{Port, Site};
use crate::error::Result;
use crate::model::{Half, Observer};
use crate::ops;

/// Sums of squares of each half's output and of the stream after it, and the number of rows that were
/// sent to experts.
#[derive(Debug, Default)]
pub(super) struct ResidualShares {
    halves: BTreeMap<Half, Energies>,
    /// Rows sent to any expert: a token counts as often as it was sent.
    routed: u64,
}

/// By channel, `[hidden]` f64 each, where the activations are.
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

    /// `Σ|a|² / Σ|h|²`.
    fn share(&self) -> Result<f64> {
        let total = |sums: &Tensor| sums.sum_all()?.to_scalar::<f64>();
        let (added, stream) = (total(&self.added)?, total(&self.stream)?);
        Ok(if stream > 0.0 { added / stream } else { 0.0 })
    }
}

/// The shares, taken.
#[derive(Debug)]
pub(super) struct Shares {
    halves: BTreeMap<Half, f64>,
    routed: u64,
}

impl ResidualShares {
    pub(super) fn finish(self) -> Result<Shares> {
        let share = |(half, energies): (Half, Energies)| Ok((half, energies.share()?));
        let halves = self.halves.into_iter().map(share).collect::<Result<_>>()?;
        Ok(Shares { halves, routed: self.routed })
    }
}

impl Shares {
    /// The energy that the half of `site` adds, as a share of the stream's. An expert gets a part of it:
    /// its `tokens` over all routed rows.
    pub(super) fn of(&self, site: &Site, tokens: u64) -> f64 {
        let part = match site.port.expert() {
            Some(_) => tokens as f64 / self.routed.max(1) as f64,
            None => 1.0,
        };
        let half = Half::of(site.role).and_then(|half| self.halves.get(&half));
        part * half.copied().unwrap_or(0.0)
    }
}

impl Observer for ResidualShares {
    fn input(&mut self, _: Port, _: &Tensor) -> Result<()> {
        Ok(())
    }

    fn output(&mut self, _: &Site, _: &Tensor) -> Result<()> {
        Ok(())
    }

    fn residual(&mut self, half: Half, added: &Tensor, stream: &Tensor) -> Result<()> {
        let energies = match self.halves.entry(half) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(Energies::of(added)?),
        };
        ops::column_squares(&energies.added, added)?;
        ops::column_squares(&energies.stream, stream)
    }

    fn routed(&mut self, _: usize, tokens: &[u32]) -> Result<()> {
        self.routed += tokens.len() as u64;
        Ok(())
    }
}
