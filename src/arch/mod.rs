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
mod stack;

pub(crate) use layout::LAYOUT_VERSION;
pub(crate) use stack::ORDER_KEY;

pub use family::{
    BiasRule, FAMILIES, Family, KvHeadsRule, MlpKind, NormKind, PositionRule, SlidingRule,
};
pub use names::{ConfigKeys, FusedQkv, Names, RowOrder};
pub use part::{Part, Rows};
pub use rope::{RopeScaling, RopeSpec};
pub use site::{Port, Role, Site, Storage, Unit};
pub use spec::{Activation, AttentionSpec, LayerSpec, MlpSpec, ModelSpec, NormSpec};
pub use stack::{StackBlock, StackOrder};

use crate::checkpoint::{Checkpoint, TensorInfo, TensorSpec};
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
    /// The blocks that are read, where it is a stack.
    pub stack: Option<StackOrder>,
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
        let stack = StackOrder::read(&checkpoint, &sites)?;
        Ok(Self { checkpoint, spec, sites, stack })
    }

    /// The blocks of the stack.
    ///
    /// # Errors
    /// [`Error::Usage`] where it is no stack.
    pub fn require_stack(&self) -> Result<&StackOrder> {
        self.stack.as_ref().ok_or_else(|| {
            Error::usage(
                format!("`{}` is not a stack", self.checkpoint.root().display()),
                "`bantam compress --method bitstack` makes one, of which any budget can be read",
            )
        })
    }

    /// The stack cut to `budget` bytes of weights: what is beyond is never read.
    ///
    /// # Errors
    /// [`Error::Usage`] where it is no stack; [`Error::BudgetTooSmall`].
    pub fn within(mut self, budget: u64) -> Result<Self> {
        let fixed = self.bytes_outside_blocks();
        let order = self.require_stack()?.within(budget, fixed, &self.sites)?;
        let found = order.levels(self.sites.len());
        for (site, found) in self.sites.iter_mut().zip(found) {
            if let Storage::Stack { levels, .. } = &mut site.storage {
                *levels = found;
            }
        }
        self.stack = Some(order);
        Ok(self)
    }

    /// Bytes of all tensors that are read: of a stack that was cut, those of its prefix.
    pub fn weight_bytes(&self) -> u64 {
        let blocks = self.stack.as_ref().map_or(0, |order| order.bytes(&self.sites));
        self.bytes_outside_blocks() + blocks
    }

    /// Bytes of the tensors that are in every prefix of a stack; of another model, of all.
    pub fn bytes_outside_blocks(&self) -> u64 {
        self.outside_blocks().iter().map(|tensor| tensor.bytes()).sum()
    }

    /// The tensors that are in every prefix of a stack, in the order of the files.
    pub fn outside_blocks(&self) -> Vec<&TensorInfo> {
        let mut blocks = std::collections::HashSet::new();
        for site in &self.sites {
            let Storage::Stack { rank, .. } = site.storage else { continue };
            // All that the file has, whether they are read or beyond the budget.
            let levels = (0..).map(|level| site.level_tensors(rank, level));
            let in_file = |tensors: &Vec<TensorSpec>| {
                tensors.iter().any(|tensor| self.checkpoint.get(&tensor.name).is_some())
            };
            blocks.extend(levels.take_while(in_file).flatten().map(|tensor| tensor.name));
        }
        self.checkpoint.tensors().filter(|tensor| !blocks.contains(&tensor.name)).collect()
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
        // What a budget cut off belongs to its site all the same.
        self.outside_blocks().into_iter().filter(|t| !owned.contains(&t.name)).collect()
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
