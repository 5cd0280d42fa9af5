//! Residual stacks: a large linear taken apart level by level, and one token through what that makes.

use bantam::error::Result;
use bantam::linalg::{self, Truncation};
use bantam::ops;
use bantam::passes::Levels;
use bantam::settings::StackSettings;
use candle_core::{DType, Tensor};

use crate::bench::Bench;
use crate::report::Figure;

const RANK: usize = 16;

/// Levels that a token goes through, and that a linear is taken apart into.
const READ: usize = 4;
const MADE: usize = 8;

/// Stacks that take turns, so that none is found in the cache: together some hundred megabytes.
const STACKS: usize = 8;

pub(crate) fn measure(bench: &mut Bench) -> Result<()> {
    let (m, n) = (bench.sizes.hidden, bench.sizes.wide);
    steps(bench, m, n)?;
    token(bench, m, n)?;
    let w = bench.random((m, n))?;
    let options = StackSettings { levels: MADE, rank: RANK, ..StackSettings::default() };
    let operations = (MADE * 10 * 2 * m * n * Truncation::to(RANK).width()) as f64;
    let note = format!("[{m}, {n}], {MADE} levels of rank {RANK}");
    bench.time("stack_decomposition", operations, &note, |_| {
        let mut levels = Levels::new(w.copy()?, options, 1)?;
        while levels.take("a level")?.is_some() {}
        Ok(())
    })
}

/// What a level does to the whole matrix beside its decomposition.
fn steps(bench: &mut Bench, m: usize, n: usize) -> Result<()> {
    let (r, truncation) = (bench.random((m, n))?, Truncation::to(RANK));
    let omega = linalg::gaussian(n, truncation.width(), 1, &bench.device)?;
    let (values, signs) = ((m * n) as f64, (m * n.div_ceil(8)) as f64);
    let note = format!("[{m}, {n}], rank {RANK}, sketch of {}", truncation.width());
    bench.bytes("sign_pack", 4.0 * values + signs, note.clone(), |_| {
        ops::sign_pack(&r, Some(&omega))
    })?;
    let (sign, _) = ops::sign_pack(&r, Some(&omega))?;
    // Small, so that what is taken off again and again stays in range.
    let factor = |shape: (usize, usize, usize)| -> Result<Tensor> {
        Ok((bench.random(shape)? * 1e-3)?.to_dtype(DType::F16)?)
    };
    let (u, v) = (factor((1, m, RANK))?, factor((1, RANK, n))?);
    bench.bytes("take_level", 8.0 * values + 2.0 * signs, note, |_| {
        ops::take_level(&r, &sign, &u, &v, Some(&omega))
    })
}

/// One token through a stack, and through the dense weight it stands for; tiles of that weight.
fn token(bench: &mut Bench, m: usize, n: usize) -> Result<()> {
    let x = bench.random((1, n))?;
    let mut stacks = Vec::with_capacity(STACKS);
    for _ in 0..STACKS {
        let mut signs = Vec::with_capacity(READ);
        for _ in 0..READ {
            signs.push(ops::sign_pack(&bench.random((m, n))?, None)?.0);
        }
        let u = bench.random_as(DType::F16, (READ, m, RANK))?;
        let v = bench.random_as(DType::F16, (READ, RANK, n))?;
        stacks.push((Tensor::cat(&signs, 0)?, u, v));
    }
    let operations = (2 * m * n * RANK * READ) as f64;
    let bytes = (READ * (m * n.div_ceil(8) + 2 * RANK * (m + n))) as f64;
    let note = format!("[{m}, {n}], {READ} levels of rank {RANK}, {STACKS} stacks in turn");
    let seconds = bench.seconds(|call| {
        let (signs, u, v) = &stacks[call % STACKS];
        ops::stack_matvec(&x, signs, u, v)
    })?;
    // Bound by the tensor cores or by memory, whichever takes longer; f16 is as fast as bf16.
    let limit = |name: &str, amount: f64, per: f64| {
        bench.report.value(name).map(|rate| amount / (rate * per))
    };
    let products = limit("matmul_bf16", operations, 1e12);
    let memory = limit("copy", bytes, 1e9);
    let (limit, bound) = match (products, memory) {
        (Some(products), Some(memory)) if products < memory => (Some(memory), "memory"),
        (products, _) => (products, "products"),
    };
    let rate = |seconds: f64| operations / seconds / 1e12;
    let figure = Figure {
        value: rate(seconds),
        unit: "TFLOP/s",
        limit: limit.map(rate),
        note: format!("{note}; bound by {bound}"),
    };
    bench.report.add("stack_matvec", figure);
    let figure = Figure { value: seconds, unit: "s", limit: None, note };
    bench.report.add("stack_matvec_seconds", figure);

    let rebuilt = (2 * m * n) as f64 + bytes;
    let note = format!("[{m}, {n}], {READ} levels of rank {RANK}, to bf16");
    bench.bytes("stack_rebuild", rebuilt, note, |call| {
        let (signs, u, v) = &stacks[call % STACKS];
        ops::stack_rebuild(signs, u, v, None, 0..m, DType::BF16)
    })?;
    drop(stacks);
    let x = x.to_dtype(DType::BF16)?;
    let mut dense = Vec::with_capacity(READ);
    for _ in 0..READ {
        dense.push(bench.random_as(DType::BF16, (m, n))?);
    }
    let note = format!("[{m}, {n}] bf16, by cuBLAS, {READ} weights in turn");
    bench.time("dense_matvec_seconds", (2 * m * n) as f64, &note, |call| {
        Ok(x.matmul(&dense[call % READ].t()?)?)
    })
}
