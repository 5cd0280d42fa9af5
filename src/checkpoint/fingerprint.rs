//! A cheap identity of a checkpoint, to tell whether measurements belong to it.

use super::reader::Checkpoint;
use crate::digest::Digest;
use crate::error::Result;

/// The most tensors that are sampled.
///
/// Every sample is a page from another place of the disk: with more, planning from headers on a cold
/// cache would take seconds.
const SAMPLES: usize = 64;

/// Bytes taken from the middle of each sampled tensor.
const SAMPLE_BYTES: usize = 64;

impl Checkpoint {
    /// SHA-256, in hex, over the config's text, every weight file's name, length and header, and a
    /// few bytes from the middle of its tensors.
    ///
    /// The samples tell apart two finetunes of one model, whose headers are the same. They are a
    /// cheap identity and no checksum: a change elsewhere in a tensor goes unnoticed. Up to 64
    /// tensors are sampled, evenly spread; the folder's own name does not count.
    ///
    /// # Errors
    /// A file that changed its length, or cannot be mapped.
    pub fn fingerprint(&self) -> Result<String> {
        let mut hash = Digest::default();
        // Every part is preceded by its length, so that no two lists of parts look alike.
        let mut part = |bytes: &[u8]| {
            hash.update(&(bytes.len() as u64).to_le_bytes());
            hash.update(bytes);
        };
        part(self.config().text().as_bytes());
        for shard in self.shards() {
            part(shard.name().as_bytes());
            part(&shard.length.to_le_bytes());
            part(&shard.header_digest);
        }
        let count = self.tensors().len();
        let samples = count.min(SAMPLES);
        let mut picked = (0..samples).map(|i| i * count / samples).peekable();
        for (_, tensor) in
            self.tensors().enumerate().filter(|(at, _)| picked.next_if_eq(at).is_some())
        {
            let bytes = self.bytes(tensor)?;
            let start = bytes.len().saturating_sub(SAMPLE_BYTES) / 2;
            part(&bytes[start..bytes.len().min(start + SAMPLE_BYTES)]);
            self.release(tensor);
        }
        Ok(hash.hex())
    }
}
