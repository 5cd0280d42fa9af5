//! Dense linear algebra in f64, on candle tensors, where they are: faer does the work on the CPU,
//! cuSOLVER and cuBLAS on an NVIDIA GPU.
//!
//! | function | computes |
//! |---|---|
//! | [`eigh`], [`eigvalsh`] | eigenvalues (and vectors) of a symmetric matrix, descending |
//! | [`svd`], [`singular_values`] | thin singular value decomposition, descending |
//! | [`truncated_svd`] | its leading part, in f32, by subspace iteration |
//! | [`orthonormalise`] | an orthonormal basis of the columns, nested |
//! | [`cholesky`] | the lower triangular factor of a positive definite matrix |
//! | [`solve_triangular`] | solutions of triangular systems |
//!
//! Every function takes the `subject` its errors name. Matrices come out f64 on the device of the
//! argument, values in host memory. f32 is computed in f64 on both devices, so that they agree to
//! rounding in f64. Entries that are not finite are refused before any work. Signs are fixed, and on
//! the CPU work is cut into `dense::DEGREE` pieces whatever the number of threads, so that the same
//! input gives the same bits. `dense` is the bridge between candle's row-major tensors and faer,
//! `cuda` the bridge to the libraries on the GPU.
//!
//! ```
//! use bantam::linalg::eigh;
//! use candle_core::{Device, Tensor};
//!
//! let a = Tensor::new(&[[2_f64, 1.0], [1.0, 2.0]], &Device::Cpu)?;
//! let found = eigh(&a, "a")?;
//! assert!((found.values[0] - 3.0).abs() < 1e-12 && (found.values[1] - 1.0).abs() < 1e-12);
//! # Ok::<(), bantam::Error>(())
//! ```

mod cholesky;
#[cfg(feature = "cuda")]
mod cuda;
#[cfg(not(feature = "cuda"))]
#[path = "no_cuda.rs"]
mod cuda;
mod dense;
mod eigh;
mod qr;
mod svd;
mod triangular;
mod truncated_svd;

pub use cholesky::cholesky;
pub use eigh::{Eigh, eigh, eigvalsh};
pub use qr::orthonormalise;
pub use svd::{Svd, singular_values, svd};
pub use triangular::{Triangle, solve_triangular};
pub use truncated_svd::{Truncated, Truncation, gaussian, truncated_svd};
