//! The decompositions in f64, in seconds, with the GFLOP/s by the counts of Golub and Van Loan.

use bantam::error::Result;
use bantam::linalg;
use candle_core::{DType, Tensor};

use crate::bench::Bench;

pub(crate) fn measure(bench: &mut Bench) -> Result<()> {
    let (n, r) = (bench.sizes.hidden, bench.sizes.narrow);
    let (order, small) = (n as f64, r as f64);
    let moment = positive(bench, n)?;
    let narrow = positive(bench, r)?;
    let tall = bench.random_as(DType::F64, (n, r))?;
    let wide = tall.t()?.contiguous()?;

    bench
        .time("eigh", 9.0 * order.powi(3), &format!("order {n}"), |_| linalg::eigh(&moment, "a"))?;
    bench.time("eigh_narrow", 9.0 * small.powi(3), &format!("order {r}"), |_| {
        linalg::eigh(&narrow, "a")
    })?;
    let operations = 6.0 * order * small.powi(2) + 20.0 * small.powi(3);
    bench.time("svd", operations, &format!("[{r}, {n}]"), |_| linalg::svd(&wide, "a"))?;
    let operations = 4.0 * (order * small.powi(2) - small.powi(3) / 3.0);
    bench.time("qr", operations, &format!("[{n}, {r}]"), |_| linalg::orthonormalise(&tall, "a"))?;
    bench.time("cholesky", order.powi(3) / 3.0, &format!("order {n}"), |_| {
        linalg::cholesky(&moment, "a")
    })
}

/// A positive definite matrix: the second moment of twice as many random rows.
fn positive(bench: &Bench, n: usize) -> Result<Tensor> {
    let x = bench.random_as(DType::F64, (2 * n, n))?;
    Ok((x.t()?.matmul(&x)? * (0.5 / n as f64))?)
}
