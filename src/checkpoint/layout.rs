//! The place of every tensor of a model, worked out before the first byte is written.
//!
//! Tensors fill shards greedily in the order given. All headers, and so all offsets, follow from
//! names, dtypes and shapes; the data can then come one at a time.

use std::collections::HashSet;
use std::ops::Range;

use super::header;
use super::names::SINGLE_FILE;
use super::tensor::TensorSpec;
use crate::error::{Error, Result};

/// The order of a shard's data in its file. They are written in the order given either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DataOrder {
    /// As given, unless a tensor would begin at an odd place for its dtype (an F32 after three bytes
    /// of U8); then larger dtypes come first in that shard. The format allows no padding, and
    /// `PyTorch` refuses to view data that are not aligned.
    #[default]
    Aligned,
    /// As given, whatever the alignment, because the data of a stack stand in order of priority.
    AsGiven,
}

/// The files of a model and the place of every tensor in them.
#[derive(Debug)]
pub(super) struct Layout {
    /// The tensors in the order given, which is the order of writing.
    pub(super) tensors: Vec<TensorSpec>,
    /// The place of each of them.
    pub(super) places: Vec<Slot>,
    /// The files, in the order of their names.
    pub(super) shards: Vec<ShardFile>,
}

/// The place of a tensor: a shard, and a range of its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) shard: usize,
    /// In bytes from the file's start.
    pub(super) range: Range<u64>,
}

/// A file of weights.
#[derive(Debug)]
pub(super) struct ShardFile {
    pub(super) name: String,
    /// Length prefix and header.
    pub(super) header: Vec<u8>,
    /// Its tensors, by their place in [`Layout::tensors`].
    pub(super) tensors: Range<usize>,
}

impl Layout {
    /// Lays `tensors` out in shards of at most `max_shard_size` bytes of data; a larger tensor gets a
    /// shard of its own.
    ///
    /// A list that cannot be written is the caller's bug: shapes come from a validated plan.
    pub(super) fn new(
        tensors: Vec<TensorSpec>,
        max_shard_size: u64,
        order: DataOrder,
    ) -> Result<Self> {
        let mut names = HashSet::new();
        if let Some(twice) = tensors.iter().find(|tensor| !names.insert(&tensor.name)) {
            return Err(bug(format_args!("tensor `{}` is planned twice", twice.name)));
        }
        if tensors.is_empty() {
            return Err(bug(format_args!("a model without tensors")));
        }
        let groups = group(&tensors, max_shard_size);
        let mut places = vec![Slot { shard: 0, range: 0..0 }; tensors.len()];
        let mut shards = Vec::with_capacity(groups.len());
        for (shard, group) in groups.iter().enumerate() {
            let order = data_order(&tensors, group.clone(), order);
            let header = header::encode(order.iter().map(|&at| &tensors[at]))
                .map_err(|problem| bug(format_args!("{problem}")))?;
            let mut start = header.len() as u64;
            for at in order {
                let end = start + tensors[at].bytes();
                places[at] = Slot { shard, range: start..end };
                start = end;
            }
            let name = match groups.len() {
                1 => SINGLE_FILE.to_owned(),
                count => format!("model-{:05}-of-{count:05}.safetensors", shard + 1),
            };
            shards.push(ShardFile { name, header, tensors: group.clone() });
        }
        Ok(Self { tensors, places, shards })
    }

    /// The bytes of all tensors.
    pub(super) fn weight_bytes(&self) -> u64 {
        self.tensors.iter().map(TensorSpec::bytes).sum()
    }
}

/// Cuts the list into runs of at most `limit` bytes, or of one tensor.
fn group(tensors: &[TensorSpec], limit: u64) -> Vec<Range<usize>> {
    let mut groups = Vec::new();
    let (mut start, mut filled) = (0, 0_u64);
    for (at, tensor) in tensors.iter().enumerate() {
        // Saturating: a size that overflows is refused by the header, with the tensor's name.
        let with = filled.saturating_add(tensor.bytes());
        if with > limit && at > start {
            groups.push(start..at);
            (start, filled) = (at, tensor.bytes());
        } else {
            filled = with;
        }
    }
    groups.push(start..tensors.len());
    groups
}

/// The order of one shard's data.
fn data_order(tensors: &[TensorSpec], group: Range<usize>, order: DataOrder) -> Vec<usize> {
    // Headers are padded to 8 bytes, the largest alignment: offsets within the data are enough.
    let alignment = |at: usize| (tensors[at].dtype.bitsize() as u64 / 8).max(1);
    let mut start = 0_u64;
    let aligned = group.clone().all(|at| {
        let fits = start.is_multiple_of(alignment(at));
        start = start.saturating_add(tensors[at].bytes());
        fits
    });
    let mut list: Vec<usize> = group.collect();
    if order == DataOrder::Aligned && !aligned {
        // Stable, so the order given holds within a dtype's size.
        list.sort_by_key(|&at| std::cmp::Reverse(alignment(at)));
    }
    list
}

fn bug(what: std::fmt::Arguments<'_>) -> Error {
    Error::Bug(format!("the planned model cannot be written: {what}"))
}

#[cfg(test)]
mod tests {
    use safetensors::Dtype;

    use super::*;

    fn bytes(name: &str, count: usize) -> TensorSpec {
        TensorSpec::new(name, Dtype::U8, [count])
    }

    #[test]
    fn shards_are_filled_greedily() {
        let sizes = [4, 4, 3, 20, 0, 1, 10];
        let tensors: Vec<_> =
            sizes.iter().enumerate().map(|(i, &n)| bytes(&format!("t{i}"), n)).collect();
        assert_eq!(group(&tensors, 10), [0..2, 2..3, 3..4, 4..6, 6..7]);
        assert_eq!(group(&tensors, u64::MAX).len(), 1);
        let layout = Layout::new(tensors, 10, DataOrder::Aligned).unwrap();
        assert_eq!(layout.shards[2].name, "model-00003-of-00005.safetensors");
        assert_eq!(layout.weight_bytes(), 42);
    }

    #[test]
    fn data_are_reordered_only_to_align_them() {
        let specs = |odd| {
            vec![
                TensorSpec::new("half", Dtype::F16, [2]),
                bytes("bytes", odd),
                TensorSpec::new("float", Dtype::F32, [1]),
            ]
        };
        let starts = |odd, order| {
            let layout = Layout::new(specs(odd), u64::MAX, order).unwrap();
            let base = layout.shards[0].header.len() as u64;
            layout.places.iter().map(|place| place.range.start - base).collect::<Vec<_>>()
        };
        assert_eq!(starts(4, DataOrder::Aligned), [0, 4, 8]);
        assert_eq!(starts(3, DataOrder::Aligned), [4, 8, 0]);
        assert_eq!(starts(3, DataOrder::AsGiven), [0, 4, 7]);
    }

    #[test]
    fn lists_that_cannot_be_written_are_bugs() {
        let overflow = TensorSpec::new("big", Dtype::F32, [usize::MAX, 2]);
        let half_byte = TensorSpec::new("nibble", Dtype::F4, [3]);
        let lists = [vec![], vec![bytes("a", 1), bytes("a", 1)], vec![overflow], vec![half_byte]];
        for list in lists {
            let error = Layout::new(list, 10, DataOrder::Aligned).unwrap_err();
            assert!(matches!(error, Error::Bug(_)), "{error}");
        }
    }
}
