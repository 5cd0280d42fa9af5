//! Weights of linears as f32 and f64 matrices, for whoever computes with the weights themselves.

use std::cell::RefCell;
use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};

use super::source::{Source, bias, dense_weight};
use crate::arch::Site;
use crate::error::Result;

/// Access to the weights of linears; nothing is read before it is asked for.
#[derive(Debug)]
pub struct Weights<'a> {
    source: &'a dyn Source,
    device: &'a Device,
    /// Weights that are at hand already, by name.
    held: HashMap<String, Tensor>,
    /// The weight that was read last, where it is kept until another is.
    last: Option<RefCell<Option<(String, Tensor)>>>,
}

impl<'a> Weights<'a> {
    /// Reads from `source` onto `device`.
    pub fn new(source: &'a dyn Source, device: &'a Device) -> Self {
        Self { source, device, held: HashMap::new(), last: None }
    }

    /// The same, for somebody who looks at one weight more than once and has room for it.
    #[must_use]
    pub fn keeping_last(self) -> Self {
        Self { last: Some(RefCell::default()), ..self }
    }

    /// The same, but that these weights `[out, in]`, by name, are not read again.
    #[must_use]
    pub fn holding(self, held: HashMap<String, Tensor>) -> Self {
        Self { held, ..self }
    }

    /// Whether the weight of `site` is at hand, and is not read when it is asked for.
    pub fn holds(&self, site: &Site) -> bool {
        self.at_hand(site).is_some()
    }

    /// Lets go of a weight that was at hand.
    pub fn forget(&mut self, site: &Site) {
        self.held.remove(&site.name);
    }

    /// The weight `[out, in]` f32 of `site`, multiplied out.
    ///
    /// # Errors
    /// A tensor that cannot be read or is not finite.
    pub fn dense(&self, site: &Site) -> Result<Tensor> {
        if let Some(weight) = self.at_hand(site) {
            return Ok(weight.to_dtype(DType::F32)?);
        }
        let read = || dense_weight(self.source, site, self.device);
        let Some(last) = &self.last else { return read() };
        // The old one goes before the new one comes.
        last.replace(None);
        let weight = read()?;
        last.replace(Some((site.name.clone(), weight.clone())));
        Ok(weight)
    }

    fn at_hand(&self, site: &Site) -> Option<Tensor> {
        let last = self.last.as_ref().and_then(|last| last.borrow().clone());
        let last = last.filter(|(name, _)| *name == site.name).map(|(_, weight)| weight);
        self.held.get(&site.name).cloned().or(last)
    }

    /// The same in f64.
    ///
    /// # Errors
    /// As [`dense`](Self::dense).
    pub fn weight(&self, site: &Site) -> Result<Tensor> {
        Ok(self.dense(site)?.to_dtype(DType::F64)?)
    }

    /// The bias `[out]` f64, where the site has one.
    ///
    /// # Errors
    /// As [`weight`](Self::weight).
    pub fn bias(&self, site: &Site) -> Result<Option<Tensor>> {
        let bias = bias(self.source, site, self.device)?;
        Ok(bias.map(|bias| bias.to_dtype(DType::F64)).transpose()?)
    }
}
