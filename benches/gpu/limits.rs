//! What the device can do: the bandwidth of a copy and the rates of products of large matrices.

use bantam::error::Result;
use candle_core::DType;

use crate::bench::Bench;
use crate::report::Figure;

pub(crate) fn measure(bench: &mut Bench) -> Result<()> {
    let source = bench.random(bench.sizes.copied / size_of::<f32>())?;
    let bytes = 2.0 * bench.sizes.copied as f64;
    let seconds = bench.seconds(|_| Ok(source.copy()?))?;
    let note = format!("{} bytes, each read and written", bench.sizes.copied);
    let value = bytes / seconds / 1e9;
    bench.report.add("copy", Figure { value, unit: "GB/s", limit: None, note });
    drop(source);
    let n = bench.sizes.square;
    let operations = 2.0 * (n as f64).powi(3);
    for (name, dtype) in [("matmul_bf16", DType::BF16), ("matmul_f32", DType::F32)] {
        let (a, b) = (bench.random_as(dtype, (n, n))?, bench.random_as(dtype, (n, n))?);
        let note = format!("order {n}");
        bench.operations(name, operations, None, note, |_| Ok(a.matmul(&b)?))?;
    }
    Ok(())
}
