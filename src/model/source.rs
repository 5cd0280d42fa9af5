//! Sources of the tensors of linears: a checkpoint, or a model that is yet to be written.

use std::borrow::Cow;
use std::fmt;

use candle_core::{DType, Device, Tensor};

use super::stack::Stack;
use super::weights::{Use, tensor_of};
use crate::arch::{Model, Part, Piece, Role, Site, Storage};
use crate::checkpoint::{Checkpoint, Dtype, check_finite};
use crate::error::{Error, Result};

/// A source of the tensors of linears.
pub trait Source: Sync + fmt::Debug {
    /// The data of `piece` of `site`, as they are or will be stored.
    ///
    /// # Errors
    /// A tensor that is missing, cannot be read or cannot be made.
    fn stored(&self, site: &Site, piece: Piece) -> Result<Stored<'_>>;

    /// Takes data back that will not be looked at again soon.
    fn release(&self, _site: &Site, _piece: Piece) {}
}

/// The data of one tensor of a site.
#[derive(Debug)]
pub struct Stored<'a> {
    /// The tensor that holds them.
    pub tensor: String,
    /// The type of their elements.
    pub dtype: Dtype,
    /// Their extents.
    pub shape: Vec<usize>,
    /// The elements, little-endian.
    pub bytes: Cow<'a, [u8]>,
    /// The rows of the tensor that they are, where it holds other rows too.
    pub part: Option<Part>,
}

impl<'a> Stored<'a> {
    /// What belongs to `site` of a `tensor` with these data: all of it, or rows where the family fuses.
    pub(crate) fn of_site(
        site: &Site,
        tensor: String,
        dtype: Dtype,
        mut shape: Vec<usize>,
        mut bytes: Cow<'a, [u8]>,
    ) -> Self {
        let part = site.fused().cloned();
        if let Some(part) = &part {
            let row = bytes.len() / part.total;
            let rows: Vec<&[u8]> = part.rows.blocks(row).map(|rows| &bytes[rows]).collect();
            bytes = Cow::Owned(rows.concat());
            shape[0] = site.out_features;
        }
        Self { tensor, dtype, shape, bytes, part }
    }

    /// Checks that every value is finite.
    ///
    /// # Errors
    /// [`Error::NonFiniteTensor`] with the place in the tensor that the user can look at.
    pub fn check_finite(&self) -> Result<()> {
        check_finite(self.dtype, &self.bytes, &self.tensor).map_err(|error| self.placed(error))
    }

    /// The values on `device`, in the form that some use asks for.
    pub(super) fn load(&self, purpose: Use, device: &Device) -> Result<Tensor> {
        let Self { tensor, dtype, shape, bytes, .. } = self;
        tensor_of(purpose, *dtype, bytes, tensor, shape, device).map_err(|error| self.placed(error))
    }

    /// Moves the place in an error from the rows at hand to the tensor they are from.
    fn placed(&self, error: Error) -> Error {
        match (error, &self.part) {
            (Error::NonFiniteTensor { tensor, index }, Some(part)) => {
                let width: usize = self.shape[1..].iter().product();
                let (row, column) = (index as usize / width, index as usize % width);
                let index = (part.rows.locate(row) * width + column) as u64;
                Error::NonFiniteTensor { tensor, index }
            }
            (other, _) => other,
        }
    }
}

impl Source for Checkpoint {
    fn stored(&self, site: &Site, piece: Piece) -> Result<Stored<'_>> {
        let tensor = site.name_of(piece);
        let info = self.require(&tensor)?;
        let (shape, bytes) = (info.shape.clone(), Cow::Borrowed(self.bytes(info)?));
        Ok(Stored::of_site(site, tensor, info.dtype, shape, bytes))
    }

    fn release(&self, site: &Site, piece: Piece) {
        if let Some(info) = self.get(&site.name_of(piece)) {
            // The values are elsewhere by now; mapped pages would only add to what the process seems
            // to hold.
            Checkpoint::release(self, info);
        }
    }
}

/// Reads `piece` of `site` for some use.
pub(super) fn load(
    source: &dyn Source,
    site: &Site,
    piece: Piece,
    purpose: Use,
    device: &Device,
) -> Result<Tensor> {
    let tensor = source.stored(site, piece)?.load(purpose, device);
    source.release(site, piece);
    tensor
}

/// The weight `[out, in]` of `site` in f32, multiplied out where it is stored as factors or levels.
///
/// # Errors
/// A tensor that is missing, of a dtype that is not a float, or not finite.
pub fn dense_weight(source: &dyn Source, site: &Site, device: &Device) -> Result<Tensor> {
    // Widened on the device, so that only the stored bytes cross the bus.
    let load = |piece| -> Result<Tensor> {
        Ok(load(source, site, piece, Use::Product, device)?.to_dtype(DType::F32)?)
    };
    match site.storage {
        Storage::Dense => load(Piece::Weight),
        Storage::LowRank { .. } => Ok(load(Piece::U)?.matmul(&load(Piece::V)?)?),
        Storage::Stack { levels, .. } => Stack::load(source, site, levels, device)?.dense(),
    }
}

/// The bias `[out]` of `site` in f32, where it has one.
///
/// # Errors
/// As [`dense_weight`].
pub fn bias(source: &dyn Source, site: &Site, device: &Device) -> Result<Option<Tensor>> {
    let load = |_| load(source, site, Piece::Bias, Use::Values, device);
    site.bias.map(load).transpose()
}

/// A model as it is run: its description, its linears, and where their tensors are.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// The model whose embeddings, norms and routers are read.
    pub model: &'a Model,
    /// Its linears, in its order, as `source` stores them.
    pub sites: &'a [Site],
    /// The source of the tensors of the linears.
    pub source: &'a dyn Source,
}

impl<'a> View<'a> {
    /// The linear of this role in block `layer`, of one expert where it is an expert's.
    pub(super) fn site(&self, layer: usize, role: Role, expert: Option<usize>) -> Result<&'a Site> {
        // Sites stand in layer order, embedding and head last.
        let first = self.sites.partition_point(|site| site.layer.is_some_and(|l| l < layer));
        let of_layer = self.sites[first..].iter().take_while(|site| site.layer == Some(layer));
        let mut found = of_layer.filter(|site| site.role == role && site.port.expert() == expert);
        found.next().ok_or_else(|| Error::Bug(format!("block {layer} has no {role}")))
    }

    /// The linear that makes logits: the head, or the embedding where the two are one.
    pub(super) fn head(&self) -> Result<&'a Site> {
        let of = |role| self.sites.iter().rev().find(|site| site.role == role);
        let missing = || Error::Bug("a model without an embedding".into());
        of(Role::Head).or_else(|| of(Role::Embed)).ok_or_else(missing)
    }

    /// The table of token embeddings.
    pub(super) fn embedding(&self) -> Result<&'a Site> {
        let found = self.sites.iter().rev().find(|site| site.role == Role::Embed);
        found.ok_or_else(|| Error::Bug("a model without an embedding".into()))
    }
}

impl<'a> From<&'a Model> for View<'a> {
    fn from(model: &'a Model) -> Self {
        Self { model, sites: model.sites(), source: model.checkpoint() }
    }
}
