//! The ops of a block and of the head, and those of measuring, at the shapes of a large model.

use bantam::error::Result;
use bantam::ops::{self, CrossEntropy, GradientSinks};
use candle_core::{DType, Tensor};

use crate::bench::Bench;

/// Pairs of factors that take turns, so that none is found in the cache: together some hundred
/// megabytes.
const PAIRS: usize = 8;

const EPS: f64 = 1e-5;

pub(crate) fn measure(bench: &mut Bench) -> Result<()> {
    moments(bench)?;
    elementwise(bench)?;
    product(bench)?;
    loss(bench)?;
    let (hidden, wide) = (bench.sizes.hidden, bench.sizes.wide);
    low_rank(bench, "up", wide, hidden)?;
    low_rank(bench, "down", hidden, wide)
}

/// Second and first moments of activations.
fn moments(bench: &mut Bench) -> Result<()> {
    let t = bench.sizes.tokens;
    for (name, n) in [("gram", bench.sizes.hidden), ("gram_wide", bench.sizes.wide)] {
        let x = bench.random((t, n))?;
        let master = Tensor::zeros((n, n), DType::F64, &bench.device)?;
        let operations = (t * n * (n + 1)) as f64;
        let note = format!("[{t}, {n}], lower triangle");
        bench.operations(name, operations, Some("matmul_f32"), note, |_| ops::gram(&master, &x))?;
    }
    let n = bench.sizes.hidden;
    let x = bench.random((t, n))?;
    let master = Tensor::zeros(n, DType::F64, &bench.device)?;
    let bytes = (4 * t * n) as f64;
    let note = format!("[{t}, {n}]");
    bench.bytes("column_sum", bytes, note.clone(), |_| ops::column_sum(&master, &x))?;
    bench.bytes("column_squares", bytes, note, |_| ops::column_squares(&master, &x))
}

/// What reads its operands once and writes its result once.
fn elementwise(bench: &mut Bench) -> Result<()> {
    let (t, n, m) = (bench.sizes.tokens, bench.sizes.hidden, bench.sizes.wide);
    let (x, y, weight) = (bench.random((t, n))?, bench.random((t, n))?, bench.random(n)?);
    let note = format!("[{t}, {n}]");
    let values = (t * n) as f64;
    bench.bytes("add", 12.0 * values, note.clone(), |_| ops::add(&x, &y))?;
    bench.bytes("rms_norm", 8.0 * values, note, |_| ops::rms_norm(&x, &weight, EPS))?;
    let (gate, up) = (bench.random((t, m))?, bench.random((t, m))?);
    let note = format!("[{t}, {m}]");
    bench.bytes("silu_mul", (12 * t * m) as f64, note, |_| ops::silu_mul(&gate, &up))?;
    let ([heads, _, d], window) = (bench.sizes.heads, bench.sizes.window);
    let shape = (t / window, window, heads, d);
    let (x, weight) = (bench.random(shape)?, bench.random(d)?);
    let (cos, sin) = (bench.random((window, d / 2))?, bench.random((window, d / 2))?);
    let (bytes, note) = ((8 * t * heads * d) as f64, format!("{shape:?}"));
    bench.bytes("rope", bytes, note.clone(), |_| ops::rope(&x, &cos, &sin))?;
    bench.bytes("norm_rope", bytes, note, |_| ops::norm_rope(&x, &weight, EPS, &cos, &sin))
}

/// The product with a weight in bf16, rounding the activations included.
fn product(bench: &mut Bench) -> Result<()> {
    let (t, n, m) = (bench.sizes.tokens / 2, bench.sizes.hidden, bench.sizes.wide);
    let (x, w) = (bench.random((t, n))?, bench.random_as(DType::BF16, (m, n))?);
    let (operations, note) = (2.0 * (t * n * m) as f64, format!("[{t}, {n}] by [{m}, {n}]"));
    bench.operations("linear_bf16", operations, Some("matmul_bf16"), note, |_| {
        ops::linear(&x, &w, None, GradientSinks::default())
    })
}

/// The loss, tile after tile of the vocabulary, and its gradient at one tile.
fn loss(bench: &mut Bench) -> Result<()> {
    let (rows, vocabulary) = (bench.sizes.loss_rows, bench.sizes.vocabulary);
    let width = vocabulary.min(ops::VOCABULARY_TILE);
    let logits = bench.random((rows, width))?;
    let targets: Vec<u32> = (0..rows).map(|row| (row * 7 % vocabulary) as u32).collect();
    let targets = Tensor::new(targets, &bench.device)?;
    let losses = || {
        CrossEntropy::of(&targets, vocabulary, |columns| {
            Ok(logits.narrow(1, 0, columns.len())?.contiguous()?)
        })
    };
    let note = format!("[{rows}, {vocabulary}] in tiles of {width}");
    let bytes = (4 * rows * vocabulary) as f64;
    bench.bytes("cross_entropy", bytes, note, |_| losses())?;
    let losses = losses()?;
    let (bytes, note) = ((8 * rows * width) as f64, format!("[{rows}, {width}]"));
    bench.bytes("cross_entropy_gradient", bytes, note, |_| losses.gradient(&logits, 0))
}

/// One token through a pair of factors `u [m, r]`, `v [r, n]`: in one launch, and as two products.
fn low_rank(bench: &mut Bench, which: &str, m: usize, n: usize) -> Result<()> {
    let r = bench.sizes.rank;
    let mut pairs = Vec::with_capacity(PAIRS);
    for _ in 0..PAIRS {
        let u = bench.random_as(DType::BF16, (m, r))?;
        pairs.push((u, bench.random_as(DType::BF16, (r, n))?));
    }
    let x = bench.random((1, n))?;
    let bytes = (2 * r * (m + n)) as f64;
    let note = format!("u [{m}, {r}], v [{r}, {n}] bf16, {PAIRS} pairs in turn");
    bench.bytes(&format!("low_rank_matvec_{which}"), bytes, note.clone(), |call| {
        let (u, v) = &pairs[call % PAIRS];
        ops::low_rank_matvec(&x, v, u, None)
    })?;
    let x = x.to_dtype(DType::BF16)?;
    let name = format!("two_products_{which}");
    bench.bytes(&name, bytes, format!("{note}, by cuBLAS"), |call| {
        let (u, v) = &pairs[call % PAIRS];
        Ok(x.matmul(&v.t()?)?.matmul(&u.t()?)?)
    })
}
