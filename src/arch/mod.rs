//! Model families as data: from `config.json` and tensor names to a [`ModelSpec`] and its [`Site`]s.
//!
//! Nothing here reads a weight or does arithmetic on one. [`Model::open`] reads headers and
//! `config.json` only, checks that every tensor the decoder will ask for is there with the right
//! shape, and hands out the linears as *sites*, the places a compressor may change.
//!
//! ```
//! use bantam::arch::{Model, Role};
//!
//! let model = Model::open("tests/fixtures/pycode-llama".as_ref())?;
//! assert_eq!(model.spec().layers.len(), 6);
//! let down = model.layer_sites(0).find(|site| site.role == Role::MlpDown);
//! assert_eq!(down.map(|site| [site.out_features, site.in_features]), Some([256, 688]));
//! # Ok::<(), bantam::Error>(())
//! ```

mod declaration;
mod family;
mod find;
mod keys;
mod names;
mod part;
mod piece;
mod rope;
mod site;
mod spec;
mod stack;

pub(crate) use declaration::Declaration;
pub use family::{
    Activation, BiasRule, FAMILIES, Family, KvHeadsRule, MlpKind, NormKind, PositionRule,
    SlidingRule,
};
pub use names::{ConfigKeys, FusedQkv, Names, RowOrder};
pub use part::{Part, Rows};
pub use piece::{LevelPart, Piece, Storage};
pub use rope::{RopeScaling, RopeSpec};
pub use site::{Port, Role, Site};
pub use spec::{AttentionSpec, LayerSpec, MlpSpec, ModelSpec, NormSpec};
pub use stack::{Level, StackOrder};

use std::collections::HashSet;
use std::path::Path;

use crate::checkpoint::{Checkpoint, Dtype, TensorInfo};
use crate::error::{Error, Remedy, Result};

/// A checkpoint whose family is known and whose tensors were checked against it.
#[derive(Debug)]
pub struct Model {
    checkpoint: Checkpoint,
    spec: ModelSpec,
    sites: Vec<Site>,
    stack: Option<StackOrder>,
}

impl Model {
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
        let declaration = Declaration::read(&checkpoint)?;
        let sites = find::sites(&checkpoint, &spec, &declaration)?;
        find::check_remaining(&checkpoint, &spec)?;
        let stack = StackOrder::declared(declaration.order.as_ref(), &checkpoint, &sites)?;
        Ok(Self { checkpoint, spec, sites, stack })
    }

    /// The files.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// What the decoder needs to know.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Every linear: those of the blocks in layer order, then embedding and head. A head that is the
    /// embedding is no site of its own.
    pub fn sites(&self) -> &[Site] {
        &self.sites
    }

    /// The linears of one block.
    pub fn layer_sites(&self, layer: usize) -> impl Iterator<Item = &Site> {
        self.sites.iter().filter(move |site| site.layer == Some(layer))
    }

    /// The order of the levels that are read, where it is a stack.
    pub fn stack(&self) -> Option<&StackOrder> {
        self.stack.as_ref()
    }

    /// The same, of what has to be a stack.
    ///
    /// # Errors
    /// [`Error::Usage`] where it is none.
    pub fn require_stack(&self) -> Result<&StackOrder> {
        self.stack.as_ref().ok_or_else(|| {
            Error::usage(
                format!("`{}` is not a stack", self.checkpoint.root().display()),
                Remedy::MakeStack,
            )
        })
    }

    /// The prefix of a stack that fits `budget` bytes of weights: what is beyond is never read.
    ///
    /// # Errors
    /// [`Error::Usage`] where it is no stack; [`Error::BudgetTooSmall`].
    pub fn prefix(mut self, budget: u64) -> Result<Self> {
        let fixed = self.bytes_outside_levels();
        let order = self.require_stack()?.prefix_of_bytes(budget, fixed, &self.sites)?;
        let found = order.counts(self.sites.len());
        for (site, found) in self.sites.iter_mut().zip(found) {
            if let Storage::Stack { levels, .. } = &mut site.storage {
                *levels = found;
            }
        }
        self.stack = Some(order);
        Ok(self)
    }

    /// The same model where stacks, multiplied out, have the dtype of the embedding: they have none of
    /// their own, and what is fused again has one.
    ///
    /// # Errors
    /// Only for a model without an embedding, which is a bug.
    pub(crate) fn with_dense_dtype(mut self) -> Result<Self> {
        let dtype = self.embedding_dtype()?;
        let module = |site: &Site| site.part.as_ref().map(|part| part.module.clone());
        let stacks = self.sites.iter().filter(|site| site.storage.is_stack());
        let modules: HashSet<String> = stacks.filter_map(module).collect();
        for site in &mut self.sites {
            let beside_stack = module(site).is_some_and(|module| modules.contains(&module));
            if site.storage.is_stack() || beside_stack {
                site.dtype = dtype;
            }
        }
        Ok(self)
    }

    fn embedding_dtype(&self) -> Result<Dtype> {
        let embedding = self.sites.iter().find(|site| site.role == Role::Embed);
        let missing = || Error::Bug("a model without an embedding".into());
        embedding.map(|site| site.dtype).ok_or_else(missing)
    }

    /// Bytes of all tensors that are read: of a stack that was cut, those of its prefix.
    pub fn weight_bytes(&self) -> u64 {
        let levels = self.stack.as_ref().map_or(0, |order| order.bytes(&self.sites));
        self.bytes_outside_levels() + levels
    }

    /// Bytes of the tensors that are in every prefix of a stack; of another model, of all.
    pub fn bytes_outside_levels(&self) -> u64 {
        self.outside_levels().iter().map(|tensor| tensor.bytes()).sum()
    }

    /// The tensors that are in every prefix of a stack, in the order of the files.
    pub fn outside_levels(&self) -> Vec<&TensorInfo> {
        let mut levels = HashSet::new();
        for site in self.sites.iter().filter(|site| site.storage.is_stack()) {
            // All that the file has, whether they are read or beyond the budget.
            let names = |level| Piece::of_level(level).map(|piece| piece.name_in(&site.name));
            let in_file =
                |names: &[String; 3]| names.iter().any(|name| self.checkpoint.get(name).is_some());
            levels.extend((0..).map(names).take_while(in_file).flatten());
        }
        self.checkpoint.tensors().filter(|tensor| !levels.contains(&tensor.name)).collect()
    }

    /// Tensors that no site owns: norms, routers, whatever else the file holds.
    pub fn passthrough(&self) -> Vec<&TensorInfo> {
        let stored = self.sites.iter().flat_map(Site::stored_in);
        let owned: HashSet<String> = stored.map(|(_, name)| name).collect();
        // What a budget cut off belongs to its site all the same.
        self.outside_levels().into_iter().filter(|t| !owned.contains(&t.name)).collect()
    }

    /// Whether `tensor` is a buffer that nothing computes with, by its name: a mask holds infinities.
    pub fn is_unread(&self, tensor: &str) -> bool {
        let family = self.spec.family;
        let within = tensor.strip_prefix(family.names.layer).and_then(|rest| rest.split_once('.'));
        within.is_some_and(|(_, name)| family.unread.contains(&name))
    }
}
