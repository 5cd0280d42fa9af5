//! One safetensors file that is no checkpoint: token ids, or tensors that a job keeps.

use std::path::Path;

use super::header::HeaderTensor;
use super::shard::Shard;
use crate::error::Result;

/// An open safetensors file, its header checked.
#[derive(Debug)]
pub struct TensorFile {
    shard: Shard,
    tensors: Vec<HeaderTensor>,
}

impl TensorFile {
    /// Opens `path` and reads its header.
    ///
    /// # Errors
    /// A file that is missing, or whose header is not valid or does not describe it.
    pub fn open(path: &Path) -> Result<Self> {
        let (shard, tensors) = Shard::open(path.to_owned())?;
        Ok(Self { shard, tensors })
    }

    /// The tensor of this name.
    pub fn get(&self, name: &str) -> Option<&HeaderTensor> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }

    /// Reads the data of a tensor of this file.
    ///
    /// # Errors
    /// A file that changed its length or cannot be read.
    pub fn read(&self, tensor: &HeaderTensor) -> Result<Vec<u8>> {
        let mut data = Vec::with_capacity((tensor.range.end - tensor.range.start) as usize);
        self.shard.each_chunk(&tensor.range, |_, bytes| {
            data.extend_from_slice(bytes);
            Ok(())
        })?;
        Ok(data)
    }
}
