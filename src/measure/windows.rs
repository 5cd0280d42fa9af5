//! Token windows of equal length: what calibration and perplexity read.

use std::path::Path;

use super::text::check_vocabulary;
use crate::checkpoint::{Dtype, TensorFile};
use crate::digest::Digest;
use crate::error::{Error, Remedy, Result};
use crate::random::split_mix;

/// Windows of equal length, disjoint unless drawn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Windows {
    ids: Vec<u32>,
    length: usize,
}

/// How windows are taken from a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Draw {
    /// Disjoint, from the first token on; the remainder is dropped.
    FromStart,
    /// At uniformly random offsets, the same for the same seed.
    Random {
        /// The seed.
        seed: u64,
    },
}

impl Windows {
    /// Cuts `tokens` into at most `limit` windows of `length` tokens.
    ///
    /// # Errors
    /// [`Error::Usage`] where the text is too short for one window.
    pub fn cut(tokens: &[u32], length: usize, limit: Option<usize>, draw: Draw) -> Result<Self> {
        if length < 2 {
            return Err(Error::usage(
                format!("a window of {length} tokens predicts nothing"),
                "a window takes 2 tokens or more",
            ));
        }
        let whole = tokens.len() / length;
        if whole == 0 {
            return Err(Error::usage(
                format!("the text has {} tokens, less than one window of {length}", tokens.len()),
                Remedy::GiveMoreText,
            ));
        }
        let ids = match draw {
            Draw::FromStart => tokens[..limit.map_or(whole, |n| n.min(whole)) * length].to_vec(),
            Draw::Random { seed } => {
                let mut state = seed;
                let offsets = (tokens.len() - length + 1) as u64;
                (0..limit.unwrap_or(whole))
                    .flat_map(|_| {
                        // The high half of a 128-bit product is uniform enough over any text.
                        let random = u128::from(split_mix(&mut state)) * u128::from(offsets);
                        let start = usize::try_from(random >> 64).unwrap_or(0);
                        &tokens[start..start + length]
                    })
                    .copied()
                    .collect()
            }
        };
        Ok(Self { ids, length })
    }

    /// Reads windows from the tensor `input_ids` i64 `[count, length]` of a safetensors file.
    ///
    /// # Errors
    /// A file that is malformed, lacks the tensor, or holds an id that is not below `vocab`.
    pub fn from_ids_file(file: &Path, vocab: usize) -> Result<Self> {
        let invalid = |problem: String| Error::InvalidFile {
            file: file.to_owned(),
            problem,
            hint: Some(Remedy::IdsFormat),
        };
        let tensors = TensorFile::open(file)?;
        let missing = || invalid("it has no tensor `input_ids`".into());
        let ids = tensors.get("input_ids").ok_or_else(missing)?;
        let (&[count, length], Dtype::I64) = (ids.shape.as_slice(), ids.dtype) else {
            return Err(invalid(format!("`input_ids` is {:?} {:?}", ids.dtype, ids.shape)));
        };
        if count == 0 || length < 2 {
            return Err(invalid(format!("`input_ids` is [{count}, {length}]: nothing to predict")));
        }
        let data = tensors.read(ids)?;
        let ids = data.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b));
        let ids = ids
            .map(|id| u32::try_from(id).map_err(|_| invalid(format!("{id} is not a token id"))))
            .collect::<Result<Vec<u32>>>()?;
        check_vocabulary(&ids, vocab, file)?;
        Ok(Self { ids, length })
    }

    /// Tokens of a window.
    pub fn length(&self) -> usize {
        self.length
    }

    /// How many windows.
    pub fn count(&self) -> usize {
        self.ids.len() / self.length
    }

    /// All tokens, window after window.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Identifies the tokens and their cut, in hex.
    pub fn sha256(&self) -> String {
        let mut hash = Digest::default();
        hash.update(&(self.length as u64).to_le_bytes());
        for id in &self.ids {
            hash.update(&id.to_le_bytes());
        }
        hash.hex()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_from_the_start_drop_the_remainder() -> Result<()> {
        let tokens: Vec<u32> = (0..17).collect();
        let all = Windows::cut(&tokens, 5, None, Draw::FromStart)?;
        assert_eq!((all.count(), all.ids()), (3, &tokens[..15]));
        assert_eq!(Windows::cut(&tokens, 5, Some(2), Draw::FromStart)?.ids(), &tokens[..10]);
        assert!(Windows::cut(&tokens, 18, None, Draw::FromStart).is_err());
        assert!(Windows::cut(&tokens, 1, None, Draw::FromStart).is_err());
        Ok(())
    }

    #[test]
    fn drawn_windows_are_runs_of_the_text_and_repeat_with_the_seed() -> Result<()> {
        let tokens: Vec<u32> = (0..100).collect();
        let draw = |seed| Windows::cut(&tokens, 7, Some(50), Draw::Random { seed });
        let drawn = draw(3)?;
        assert_eq!(drawn.count(), 50);
        for window in drawn.ids().chunks(7) {
            assert!(window.windows(2).all(|pair| pair[1] == pair[0] + 1), "{window:?}");
        }
        assert_eq!(drawn, draw(3)?);
        assert_ne!(drawn, draw(4)?);
        // The last possible offset is reachable.
        let tail = Windows::cut(&tokens[..8], 7, Some(64), Draw::Random { seed: 0 })?;
        assert!(tail.ids().chunks(7).any(|w| w[6] == 7) && tail.ids().chunks(7).any(|w| w[6] == 6));
        Ok(())
    }
}
