//! Model families as data: from `config.json` and tensor names to a [`ModelSpec`] and its [`Site`]s.
//!
//! Nothing here reads a weight or does arithmetic on one. [`SourceModel::open`] reads headers and
//! `config.json` only, checks that every tensor the decoder will ask for is there with the right
//! shape, and hands out the linears as *sites*, the places a compressor may change.

mod family;
mod keys;
mod layout;
mod names;
mod part;
mod rope;
mod site;
mod spec;

pub(crate) use layout::LAYOUT_VERSION;

pub use family::{
    BiasRule, FAMILIES, Family, KvHeadsRule, MlpKind, NormKind, PositionRule, SlidingRule,
};
pub use names::{ConfigKeys, FusedQkv, Names, RowOrder};
pub use part::{Part, Rows};
pub use rope::{RopeScaling, RopeSpec};
pub use site::{Port, Role, Site, Storage, Unit};
pub use spec::{Activation, AttentionSpec, LayerSpec, MlpSpec, ModelSpec, NormSpec};

use crate::checkpoint::{Checkpoint, TensorInfo};
use crate::error::{Error, Result};
use std::path::Path;

/// A checkpoint whose family is known and whose tensors were checked against it.
#[derive(Debug)]
pub struct SourceModel {
    /// The files.
    pub checkpoint: Checkpoint,
    /// What the decoder needs to know.
    pub spec: ModelSpec,
    /// Every linear of every block, in layer order.
    pub sites: Vec<Site>,
}

impl SourceModel {
    /// Opens the checkpoint in `path`, reading headers and `config.json` only.
    ///
    /// # Errors
    /// Any malformed file, an unknown family or feature, a tensor that is missing or has another
    /// shape than `config.json` implies.
    pub fn open(path: &Path) -> Result<Self> {
        Self::from_checkpoint(Checkpoint::open(path)?)
    }

    /// Takes a checkpoint that is open.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_checkpoint(checkpoint: Checkpoint) -> Result<Self> {
        let spec = ModelSpec::from_config(&checkpoint)?;
        let sites = layout::sites(&checkpoint, &spec)?;
        layout::check_remaining(&checkpoint, &spec)?;
        Ok(Self { checkpoint, spec, sites })
    }

    /// The sites of one layer.
    pub fn layer_sites(&self, layer: usize) -> impl Iterator<Item = &Site> {
        self.sites.iter().filter(move |site| site.layer == layer)
    }

    /// The smallest sets of sites that are decided together. For dense families: each linear alone.
    pub fn units(&self) -> Vec<Unit> {
        self.sites.iter().map(|site| Unit { sites: vec![site.clone()] }).collect()
    }

    /// Tensors that no site owns: embeddings, norms, routers, whatever else the file holds.
    pub fn passthrough(&self) -> Vec<&TensorInfo> {
        let owned: std::collections::HashSet<String> =
            self.sites.iter().flat_map(Site::stored_in).collect();
        self.checkpoint.tensors().filter(|t| !owned.contains(&t.name)).collect()
    }

    /// Whether `tensor` is a buffer that nothing computes with, by its name: a mask holds infinities.
    pub fn is_unread(&self, tensor: &str) -> bool {
        let family = self.spec.family;
        let within = tensor.strip_prefix(family.names.layer).and_then(|rest| rest.split_once('.'));
        within.is_some_and(|(_, name)| family.unread.contains(&name))
    }

    /// The error for a tensor whose shape contradicts `config.json`.
    pub(crate) fn mismatch(
        checkpoint: &Checkpoint,
        info: &TensorInfo,
        expected: &[usize],
    ) -> Error {
        Error::TensorMismatch {
            tensor: info.name.clone(),
            file: checkpoint.file_of(info).to_owned(),
            expected: format!("shape {expected:?}"),
            found: format!("shape {:?}", info.shape),
        }
    }
}
