//! Reads one site's share of a tensor, whether it is all of it or some rows of a fused one.

use candle_core::{Device, Tensor};

use super::weights::{Use, load_for, tensor_of};
use crate::arch::{Part, Site};
use crate::checkpoint::{Checkpoint, CheckpointError, Dtype, check_finite};
use crate::error::{Error, Result};

/// Tensor `suffix` of `site` for some use: `X.suffix` itself, or the site's rows of the fused
/// module's.
///
/// # Errors
/// As [`load_tensor`](super::load_tensor).
pub(super) fn load_site_tensor(
    purpose: Use,
    checkpoint: &Checkpoint,
    site: &Site,
    suffix: &str,
    device: &Device,
) -> Result<Tensor> {
    let Some(part) = site.fused() else {
        return load_for(purpose, checkpoint, &format!("{}.{suffix}", site.name), device);
    };
    let rows = Gathered::read(checkpoint, part, suffix)?;
    let shape = match suffix {
        "bias" => vec![site.out_features],
        _ => vec![site.out_features, site.in_features],
    };
    tensor_of(purpose, rows.dtype, &rows.bytes, &rows.tensor, &shape, device).map_err(|e| match e {
        Error::Checkpoint(error) => rows.placed(error, part).into(),
        other => other,
    })
}

/// The data of the rows that `part` has of its module's tensor `suffix`, checked to be finite.
///
/// # Errors
/// A tensor that is missing or not finite.
pub fn part_bytes(checkpoint: &Checkpoint, part: &Part, suffix: &str) -> Result<Vec<u8>> {
    let rows = Gathered::read(checkpoint, part, suffix)?;
    check_finite(rows.dtype, &rows.bytes, &rows.tensor).map_err(|e| rows.placed(e, part))?;
    Ok(rows.bytes)
}

/// Rows of one tensor, one after the other.
struct Gathered {
    tensor: String,
    dtype: Dtype,
    /// Elements of a row.
    width: usize,
    bytes: Vec<u8>,
}

impl Gathered {
    fn read(checkpoint: &Checkpoint, part: &Part, suffix: &str) -> Result<Self> {
        let tensor = format!("{}.{suffix}", part.module);
        let info = checkpoint.require(&tensor)?;
        let whole = checkpoint.bytes(info)?;
        let row = whole.len() / part.total;
        let blocks: Vec<&[u8]> = part.rows.blocks(row).map(|block| &whole[block]).collect();
        let bytes = blocks.concat();
        checkpoint.release(info);
        let width = info.elements() / part.total;
        Ok(Self { tensor, dtype: info.dtype, width, bytes })
    }

    /// An error that counts in the rows gathered, counting in the tensor the user can look at.
    fn placed(&self, error: CheckpointError, part: &Part) -> CheckpointError {
        match error {
            CheckpointError::NonFinite { tensor, index } => {
                let (row, column) = (index as usize / self.width, index as usize % self.width);
                let index = (part.rows.locate(row) * self.width + column) as u64;
                CheckpointError::NonFinite { tensor, index }
            }
            other => other,
        }
    }
}
