//! Keys and values of the positions seen so far, for decoding token by token.

use candle_core::Tensor;

use crate::error::Result;

/// One layer's keys and values, `[batch, kv_heads, positions, head_dim]` each.
#[derive(Debug, Default)]
pub struct KvCache {
    seen: Option<(Tensor, Tensor)>,
}

impl KvCache {
    /// Appends the keys and values of new positions and returns those of all positions.
    pub(super) fn extend(&mut self, k: Tensor, v: Tensor) -> Result<(Tensor, Tensor)> {
        let all = match self.seen.take() {
            Some((old_k, old_v)) => {
                (Tensor::cat(&[&old_k, &k], 2)?, Tensor::cat(&[&old_v, &v], 2)?)
            }
            None => (k, v),
        };
        self.seen = Some(all.clone());
        Ok(all)
    }
}
