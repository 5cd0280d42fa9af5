//! The fused operations: one file each, a definition on the CPU that a kernel is checked against.
//!
//! | op | computes | tensors |
//! |---|---|---|
//! | [`linear`] | `x wᵀ + bias` | `[t, n], [m, n], [m] -> [t, m]` |
//! | [`low_rank_matvec`] | `u (v x) + bias` of one row | `[1, n], [r, n], [m, r] -> [1, m]` |
//! | [`rms_norm`] | `x / rms(x) * weight` | `[.., d], [d] -> [.., d]` |
//! | [`layer_norm`] | `(x - mean) / deviation * weight + bias` | `[.., d], 2 x [d] -> [.., d]` |
//! | [`rope`] | rotary embedding and transposition | `[b, t, h, d] -> [b, h, t, d]` |
//! | [`norm_rope`] | `rope(rms_norm(x))` | `[b, t, h, d] -> [b, h, t, d]` |
//! | [`heads_first`] | transposition | `[b, t, h, d] -> [b, h, t, d]` |
//! | [`causal_attention`] | grouped-query attention | `[b, h, tq, d], 2 x [b, g, tk, d] -> [b tq, h d]` |
//! | [`add`] | `a + b` | any shape |
//! | [`silu_mul`] | `silu(gate) * up` | any shape |
//! | [`gelu`] | `gelu(x)` | any shape |
//! | [`gelu_mul`] | `gelu(gate) * up` | any shape |
//! | [`soft_cap`] | `cap tanh(x / cap)` | any shape |
//! | [`renormalise`] | `x / Σ x` by rows | `[t, k] -> [t, k]` |
//! | [`per_part`] | `f_e` of the rows of part e | `[n, d] -> [n, m]` |
//! | [`mix_rows`] | weighted sums of routed rows | `[n, d], [t, k] -> [t, d]` |
//! | [`CrossEntropy`] | next-token loss in nats, vocabulary in tiles | `[n, w].., [n] u32 -> [n]` |
//! | [`gram`], [`symmetrise`] | second moments, in f64 | `[t, n]` into `[n, n]` |
//! | [`column_sum`], [`column_squares`] | first moments, energies, in f64 | `[t, n]` into `[n]` |
//! | [`row_dots`] | `Σ_j a[t, j] b[t, j]` | `2 x [t, n] -> [t]` |
//! | [`sign_pack`] | signs and a sketch of magnitudes | `[m, n], [n, c] -> [1, m, n/8] u8, [m, c]` |
//! | [`take_level`] | `r - s ∘ (u v)`, then as `sign_pack` | `[m, n]`, a level, `[n, c]` |
//! | [`stack_matvec`] | `Σ S_l ∘ (u_l v_l) x` of one row | `[1, n]`, a stack `-> [1, m]` |
//! | [`stack_rebuild`] | rows of `Σ S_l ∘ (u_l v_l)` | a stack `-> [rows, n]` f32 or bf16 |
//! | [`upstream`] | where a backward begins | any shape `-> []` |
//!
//! Ops between activations are differentiable, in the activations only: weights, tables and targets
//! get no gradient.
//! Operands are contiguous f32 unless said; operands that do not fit are refused with a typed error
//! before anything runs. Rows are spread over rayon's threads and every sum has a fixed order: results
//! do not depend on the number of threads.
//!
//! ```
//! use bantam::ops;
//! use candle_core::{Device, Tensor};
//!
//! let x = Tensor::new(&[[3_f32, 4.0]], &Device::Cpu)?;
//! let weight = Tensor::new(&[1_f32, 1.0], &Device::Cpu)?;
//! let y = ops::rms_norm(&x, &weight, 0.0)?.to_vec2::<f32>()?;
//! assert!((y[0][0] - 3.0 / 12.5_f32.sqrt()).abs() < 1e-6); // the mean square is 12.5
//! # Ok::<(), bantam::Error>(())
//! ```
//!
//! `lanes` vectorises loops, `operand` checks operands.

#![allow(
    clippy::inline_always,
    reason = "kernels must be compiled inside the dispatching function"
)]

mod add;
mod causal_attention;
mod columns;
mod cross_entropy;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(not(feature = "cuda"))]
#[path = "cuda_absent.rs"]
mod cuda;
mod devices;
mod gelu;
mod gram;
mod heads_first;
mod lanes;
mod layer_norm;
mod linear;
mod low_rank_matvec;
mod mix_rows;
mod norm_rope;
mod operand;
mod per_part;
mod renormalise;
mod rms_norm;
mod rope;
mod row_dots;
mod row_norm;
mod sign_pack;
mod silu_mul;
mod soft_cap;
mod stack;
mod stack_matvec;
mod stack_rebuild;
mod take_level;
mod upload;
mod upstream;

pub use add::add;
pub use causal_attention::{Scores, causal_attention};
pub use columns::{column_squares, column_sum};
pub use cross_entropy::{CrossEntropy, VOCABULARY_TILE, tiles};
pub use devices::{CudaSystem, Gpu, Library, cache_kernels_in, cuda_system, free_memory, gpu};
pub use gelu::{Gelu, gelu, gelu_mul};
pub use gram::{gram, symmetrise};
pub use heads_first::heads_first;
pub use layer_norm::layer_norm;
pub use linear::{GradientSink, GradientSinks, linear, linear_gradient};
pub use low_rank_matvec::low_rank_matvec;
pub use mix_rows::mix_rows;
pub use norm_rope::norm_rope;
pub use per_part::per_part;
pub use renormalise::renormalise;
pub use rms_norm::rms_norm;
pub use rope::rope;
pub use row_dots::row_dots;
pub use sign_pack::sign_pack;
pub use silu_mul::silu_mul;
pub use soft_cap::{soft_cap, soft_cap_gradient};
pub use stack_matvec::stack_matvec;
pub use stack_rebuild::stack_rebuild;
pub use take_level::take_level;
pub use upload::upload;
pub use upstream::upstream;
