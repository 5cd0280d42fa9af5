//! The energy of every channel that linears read.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::by_port;
use crate::arch::{Port, Site};
use crate::error::Result;
use crate::model::{Half, Observer};
use crate::ops;

/// `Σ x_j²` of every channel of every port of some linears, and over how many tokens.
#[derive(Debug)]
pub(super) struct InputSquares(BTreeMap<Port, Squares>);

#[derive(Debug)]
struct Squares {
    /// `[in]` f64.
    sums: Tensor,
    tokens: u64,
}

/// The energies of one port.
#[derive(Debug, Clone)]
pub(super) struct PortEnergy {
    /// `E[x_j²]`, `[in]`.
    pub(super) per_token: Arc<[f64]>,
    /// Tokens seen.
    pub(super) tokens: u64,
}

impl InputSquares {
    pub(super) fn new(sites: &[&Site], device: &Device) -> Result<Self> {
        let squares = |(port, readers): (Port, Vec<&Site>)| {
            let sums = Tensor::zeros(readers[0].in_features, DType::F64, device)?;
            Ok((port, Squares { sums, tokens: 0 }))
        };
        Ok(Self(by_port(sites).into_iter().map(squares).collect::<Result<_>>()?))
    }

    /// The ports that saw any token.
    pub(super) fn finish(self) -> Result<BTreeMap<Port, PortEnergy>> {
        let seen = self.0.into_iter().filter(|(_, squares)| squares.tokens > 0);
        let energy = |(port, Squares { sums, tokens })| {
            let per_token = sums.affine(1.0 / tokens as f64, 0.0)?.to_vec1::<f64>()?;
            Ok((port, PortEnergy { per_token: Arc::from(per_token), tokens }))
        };
        seen.map(energy).collect()
    }
}

impl Observer for InputSquares {
    fn input(&mut self, port: Port, x: &Tensor) -> Result<()> {
        let Some(squares) = self.0.get_mut(&port) else { return Ok(()) };
        ops::column_squares(&squares.sums, x)?;
        squares.tokens += x.dim(0)? as u64;
        Ok(())
    }

    fn output(&mut self, _: &Site, _: &Tensor) -> Result<()> {
        Ok(())
    }

    fn residual(&mut self, _: Half, _: &Tensor, _: &Tensor) -> Result<()> {
        Ok(())
    }
}
