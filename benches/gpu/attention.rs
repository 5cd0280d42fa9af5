//! Causal attention with grouped queries, in f32 and on the tensor cores, and its gradient.

use bantam::error::Result;
use bantam::ops::{self, Scores};
use candle_core::Var;

use crate::bench::Bench;

/// Texts side by side.
const BATCH: usize = 2;

pub(crate) fn measure(bench: &mut Bench) -> Result<()> {
    let ([heads, kv_heads, d], t) = (bench.sizes.heads, bench.sizes.window);
    let random = |heads: usize| -> Result<Var> {
        Ok(Var::from_tensor(&bench.random((BATCH, heads, t, d))?)?)
    };
    let (q, k, v) = (random(heads)?, random(kv_heads)?, random(kv_heads)?);
    let f32s = Scores { scale: 1.0 / (d as f32).sqrt(), cap: None, in_bf16: false };
    let attend = |scores| ops::causal_attention(&q, &k, &v, scores, 0, None);
    // Of all products of a query and a key, those that the mask allows.
    let scores = (BATCH * heads * t * (t + 1) / 2) as f64;
    let note =
        format!("batch {BATCH}, {heads} heads, {kv_heads} of keys, {t} tokens, {d} channels");

    // Score and weighted sum: 2 d operations each.
    let operations = 4.0 * d as f64 * scores;
    let (name, peak) = ("causal_attention", Some("matmul_f32"));
    bench.operations(name, operations, peak, note.clone(), |_| attend(f32s))?;
    let (name, peak) = ("causal_attention_bf16", Some("matmul_bf16"));
    let bf16s = Scores { in_bf16: true, ..f32s };
    bench.operations(name, operations, peak, note.clone(), |_| attend(bf16s))?;

    // Scores once more, then gradients of weights, queries, keys and values: five products.
    let operations = 10.0 * d as f64 * scores;
    let y = attend(f32s)?;
    let end = ops::upstream(&y, &bench.random(y.dims())?)?;
    let (name, peak) = ("causal_attention_gradient", Some("matmul_f32"));
    bench.operations(name, operations, peak, note, |_| Ok(end.backward()?))
}
