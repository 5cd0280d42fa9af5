//! Dense linear algebra in f64, on candle tensors: faer does the work on the CPU.
//!
//! | function | computes |
//! |---|---|
//! | [`eigh`], [`eigvalsh`] | eigenvalues (and vectors) of a symmetric matrix, descending |
//! | [`svd`], [`singular_values`] | thin singular value decomposition, descending |
//! | [`orthonormalise`] | an orthonormal basis of the columns, nested |
//!
//! Every function takes the `subject` its errors name. What is not finite is refused before any
//! work. Signs are fixed, and work is cut into `dense::DEGREE` pieces whatever the number of
//! threads, so that the same input gives the same bits. `dense` is the bridge between candle's
//! row-major tensors and faer.

mod dense;
mod eigh;
mod qr;
mod svd;

pub use eigh::{Eigh, eigh, eigvalsh};
pub use qr::orthonormalise;
pub use svd::{Svd, singular_values, svd};
