//! The fused operations: one file each, a definition on the CPU that a kernel is checked against.
//!
//! | op | computes | tensors |
//! |---|---|---|
//! | [`rms_norm`] | `x / rms(x) * weight` | `[.., d], [d] -> [.., d]` |
//! | [`rope`] | rotary embedding and transposition | `[b, t, h, d] -> [b, h, t, d]` |
//! | [`causal_attention`] | grouped-query attention | `[b, h, tq, d], 2 x [b, g, tk, d] -> [b tq, h d]` |
//! | [`add`] | `a + b` | any shape |
//! | [`silu_mul`] | `silu(gate) * up` | any shape |
//! | [`cross_entropy`] | next-token loss in nats | `[n, v], [n] u32 -> [n]` |
//! | [`gram`], [`symmetrise`] | second moments, in f64 | `[t, n]` into `[n, n]` |
//! | [`column_sum`] | first moments, in f64 | `[t, n]` into `[n]` |
//!
//! Operands are contiguous f32 unless said; what does not fit is refused with a typed error before
//! anything runs. Rows are spread over rayon's threads and every sum has a fixed order: results do
//! not depend on the number of threads. `lanes` is how loops are vectorised, `operand` how operands
//! are checked.

#![allow(
    clippy::inline_always,
    reason = "kernels must be compiled inside the dispatching function"
)]

mod add;
mod causal_attention;
mod cross_entropy;
mod gram;
mod lanes;
mod operand;
mod rms_norm;
mod rope;
mod silu_mul;

pub use add::add;
pub use causal_attention::causal_attention;
pub use cross_entropy::cross_entropy;
pub use gram::{column_sum, gram, symmetrise};
pub use rms_norm::rms_norm;
pub use rope::rope;
pub use silu_mul::silu_mul;
