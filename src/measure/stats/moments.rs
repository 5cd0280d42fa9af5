//! The second moments of one layer, each taken on its smaller side.
//!
//! Linears that read one port share one input moment `G [in, in]`. Where that is larger than the output
//! moments `C [out, out]` of all of them together (a down projection), the output moments are taken
//! instead. Either will do for a low-rank pass, because `C = W G Wᵀ`.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::by_port;
use super::second_moment::SecondMoment;
use crate::arch::{Port, Site};
use crate::error::Result;
use crate::model::{Half, Observer};

/// The activation of a linear that was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Its input.
    Input,
    /// Its output, bias included.
    Output,
}

/// Second moments of linears of one layer, while they are taken.
#[derive(Debug)]
pub(super) struct SecondMoments {
    inputs: BTreeMap<Port, Arc<SecondMoment>>,
    outputs: BTreeMap<String, Arc<SecondMoment>>,
}

impl SecondMoments {
    pub(super) fn new(sites: &[&Site], device: &Device) -> Result<Self> {
        let mut moments = Self { inputs: BTreeMap::new(), outputs: BTreeMap::new() };
        for (port, readers) in by_port(sites) {
            match smaller_side(&readers) {
                Side::Input => {
                    let moment = SecondMoment::new(readers[0].in_features, device)?;
                    moments.inputs.insert(port, Arc::new(moment));
                }
                Side::Output => {
                    for site in readers {
                        let moment = SecondMoment::new(site.out_features, device)?;
                        moments.outputs.insert(site.name.clone(), Arc::new(moment));
                    }
                }
            }
        }
        Ok(moments)
    }

    /// Bytes that moments for `sites` take.
    pub(super) fn bytes(sites: &[&Site]) -> u64 {
        let entries = |readers: &Vec<&Site>| match smaller_side(readers) {
            Side::Input => square(readers[0].in_features),
            Side::Output => readers.iter().map(|s| square(s.out_features)).sum(),
        };
        by_port(sites).values().map(entries).sum::<u64>() * 8
    }

    /// Returns the moment of `site`, and the side it was taken on.
    pub(super) fn of(&self, site: &Site) -> Option<(Side, Arc<SecondMoment>)> {
        let output = self.outputs.get(&site.name).map(|moment| (Side::Output, moment.clone()));
        output.or_else(|| Some((Side::Input, self.inputs.get(&site.port)?.clone())))
    }
}

/// Adds `x` to a moment that nobody else holds yet.
fn add(moment: Option<&mut Arc<SecondMoment>>, x: &Tensor) -> Result<()> {
    moment.and_then(Arc::get_mut).map_or(Ok(()), |moment| moment.add(x))
}

impl Observer for SecondMoments {
    fn input(&mut self, port: Port, x: &Tensor) -> Result<()> {
        add(self.inputs.get_mut(&port), x)
    }

    fn output(&mut self, site: &Site, y: &Tensor) -> Result<()> {
        add(self.outputs.get_mut(&site.name), y)
    }

    fn residual(&mut self, _: Half, _: &Tensor, _: &Tensor) -> Result<()> {
        Ok(())
    }
}

fn smaller_side(readers: &[&Site]) -> Side {
    let input = readers.first().map_or(0, |site| square(site.in_features));
    let outputs: u64 = readers.iter().map(|site| square(site.out_features)).sum();
    if outputs < input { Side::Output } else { Side::Input }
}

fn square(n: usize) -> u64 {
    (n as u64) * (n as u64)
}
