//! Cut: a stack to another budget, as a stack or as the dense model of that budget. Nothing is
//! measured and nothing beyond the budget is read.

use std::path::Path;

use super::manifest::{Fit, Manifest, StackRecord, WholeStack};
use super::produce::Producer;
use super::write::{Destination, write};
use crate::arch::{Model, Storage};
use crate::checkpoint::{TensorSpec, WriteOptions, WrittenModel};
use crate::error::Result;
use crate::model::stack_scale;
use crate::plan::Output;
use crate::progress::Progress;

/// A stack that was cut.
#[derive(Debug, Clone)]
pub struct Fitted {
    /// What was written.
    pub written: WrittenModel,
    /// Bytes of the prefix: those written, unless it was folded.
    pub prefix_bytes: u64,
    /// Levels of the prefix.
    pub levels: usize,
    /// Linears that the levels belong to.
    pub linears: usize,
    /// Bytes of the input.
    pub bytes_in: u64,
    /// Levels of the input.
    pub levels_in: usize,
    /// Expected loss of the prefix, where the input's manifest has it.
    pub expected_loss: Option<f64>,
}

/// Cuts the stack `model` to `budget` bytes and writes it to `out`, which appears whole and
/// verified or not at all; with `fold`, as the dense model that the prefix stands for.
///
/// # Errors
/// As [`Model::prefix`]; a manifest that cannot be read; whatever reader and writer refuse;
/// [`Error::Interrupted`](crate::Error::Interrupted).
pub fn cut(
    model: Model,
    budget: u64,
    fold: bool,
    out: &Path,
    options: &WriteOptions,
    progress: &dyn Progress,
) -> Result<Fitted> {
    let levels_in = model.require_stack()?.levels().len();
    let bytes_in = model.weight_bytes();
    let manifest = Manifest::read(&model)?;
    let record = StackRecord::of(manifest.as_ref(), &model)?;
    let whole = whole(&model, manifest, record.is_some())?;
    let model = model.prefix(budget)?;
    for site in model.sites().iter().filter(|site| site.storage.is_stack()) {
        stack_scale(model.checkpoint(), site)?;
    }
    let order = model.require_stack()?.clone();
    let levels = order.levels().len();
    let linears = order.counts(model.sites().len()).into_iter().filter(|&n| n > 0).count();
    let prefix_bytes = model.weight_bytes();
    let expected_loss = record.as_ref().and_then(|record| record.expected_loss(levels));

    let model = if fold { model.with_dense_dtype()? } else { model };
    let stored: Vec<Storage> = model.sites().iter().map(|site| site.storage).collect();
    let output = Output::new(&model, &stored, fold, Some(&order.sites()));
    let stack = record.filter(|_| !fold).map(|record| record.prefix(levels));
    let fit = Fit { budget, folded: fold, prefix_bytes, levels, expected_loss, whole, stack };
    let weight_bytes = output.specs().iter().map(TensorSpec::bytes).sum();
    let mut manifest = Manifest::new(weight_bytes);
    manifest.fit = Some(fit);
    let destination = Destination { out, options, progress };
    let written = write(&output, &mut Producer::of_model(&model), |_| manifest, &destination)?;
    Ok(Fitted { written, prefix_bytes, levels, linears, bytes_in, levels_in, expected_loss })
}

/// The stack that `model` is a prefix of: a prefix of a prefix is one of the first, and the same one. The
/// `manifest` beside it says so, unless it is of something else; `recorded`: whether it knows its losses.
fn whole(model: &Model, manifest: Option<Manifest>, recorded: bool) -> Result<WholeStack> {
    let (weight_bytes, levels) = (model.weight_bytes(), model.require_stack()?.levels().len());
    let own = |fit: &Fit| {
        let same = fit.prefix_bytes == weight_bytes && fit.levels == levels;
        same && fit.stack.is_some() == recorded
    };
    match manifest.and_then(|manifest| manifest.fit).filter(own) {
        Some(fit) => Ok(fit.whole),
        None => {
            let fingerprint = model.checkpoint().fingerprint()?;
            Ok(WholeStack { fingerprint, weight_bytes, levels })
        }
    }
}
