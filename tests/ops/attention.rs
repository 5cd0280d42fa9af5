//! Causal attention against its definition in f64: windows, caps, shared heads, operands in bf16.

use bantam::ops::{self, Scores};
use candle_core::{DType, Tensor};

use super::numbers::*;
use super::slopes::{assert_slopes, assert_slopes_of_first, assert_value};

#[test]
fn causal_attention_is_its_definition() {
    let mut random = Random(14);
    for (b, heads, kv_heads, tq, tk, d, window, cap) in [
        (1, 1, 1, 1, 1, 1, None, None),
        (2, 4, 2, 33, 33, 7, None, None),
        (1, 6, 2, 129, 129, 16, Some(31), None),
        (1, 2, 2, 65, 100, 32, Some(1), None),
        (1, 3, 1, 5, 200, 8, Some(64), None),
        (2, 2, 1, 64, 64, 5, Some(1000), None),
        (1, 4, 2, 67, 70, 13, Some(33), Some(1.5)),
        (2, 1, 1, 65, 65, 32, None, Some(20.0)),
    ] {
        let first: usize = tk - tq;
        let what = format!("{:?}", (b, heads, kv_heads, tq, tk, d, window, cap));
        let q = random.vec(b * heads * tq * d, 2.0);
        let k = random.vec(b * kv_heads * tk * d, 2.0);
        let v = random.vec(b * kv_heads * tk * d, 2.0);
        let scale = 0.8;
        let mut exact = vec![0.0; b * tq * heads * d];
        let mut plain = vec![0.0; b * tq * heads * d];
        for at in 0..b * heads * tq {
            let (text, head, row) = (at / tq / heads, at / tq % heads, at % tq);
            let group = (text * kv_heads + head / (heads / kv_heads)) * tk;
            let sees = |j: usize| j <= first + row && window.is_none_or(|w| first + row - j < w);
            let keys: Vec<usize> = (0..tk).filter(|&j| sees(j)).collect();
            let pairs = |j: usize| (0..d).map(move |c| (at * d + c, (group + j) * d + c));
            let capped = |s: f64| cap.map_or(s, |c: f32| f64::from(c) * (s / f64::from(c)).tanh());
            let capped_f32 = |s: f32| cap.map_or(s, |c| c * (s / c).tanh());
            let dot = |j: usize| -> f64 {
                pairs(j).map(|(a, b)| f64::from(q[a]) * f64::from(k[b])).sum()
            };
            let score = |j: usize| capped(f64::from(scale) * dot(j));
            let scores: Vec<f64> = keys.iter().map(|&j| score(j)).collect();
            let dot = |j: usize| -> f32 { pairs(j).map(|(a, b)| q[a] * k[b]).sum() };
            let score = |j: usize| capped_f32(scale * dot(j));
            let scores_f32: Vec<f32> = keys.iter().map(|&j| score(j)).collect();
            let max = scores_f32.iter().copied().fold(f32::MIN, f32::max);
            let e = |s: f64| (s - f64::from(max)).exp();
            let e_f32 = |s: f32| (s - max).exp();
            let sum: f64 = scores.iter().map(|&s| e(s)).sum();
            let sum_f32: f32 = scores_f32.iter().map(|&s| e_f32(s)).sum();
            for c in 0..d {
                let out = ((text * tq + row) * heads + head) * d + c;
                for (n, &j) in keys.iter().enumerate() {
                    let value = v[(group + j) * d + c];
                    exact[out] += e(scores[n]) / sum * f64::from(value);
                    plain[out] += e_f32(scores_f32[n]) / sum_f32 * value;
                }
            }
        }
        let q = tensor(&q, &[b, heads, tq, d]);
        let k = tensor(&k, &[b, kv_heads, tk, d]);
        let v = tensor(&v, &[b, kv_heads, tk, d]);
        let scores = Scores { scale, cap, in_bf16: false };
        let y = ops::causal_attention(&q, &k, &v, scores, first, window).unwrap();
        assert_eq!(y.dims(), [b * tq, heads * d]);
        assert_as_good_as_plain(&values(&y), &plain, &exact, &what);
        let on = |threads| {
            let y = on_threads(threads, || {
                ops::causal_attention(&q, &shifted(&k), &v, scores, first, window).unwrap()
            });
            bits(&y)
        };
        assert!(on(1) == bits(&y) && on(5) == bits(&y), "{what}: threads or offsets matter");
    }
}

#[test]
fn attention_in_bf16_rounds_what_it_multiplies() {
    let mut random = Random(19);
    // Heads of every width that a kernel is compiled for, and of none of them.
    for (b, heads, kv_heads, tq, tk, d, window, cap) in [
        (1, 1, 1, 1, 1, 1, None, None),
        (2, 4, 2, 5, 9, 32, None, None),
        (1, 2, 1, 129, 131, 64, Some(33), None),
        (1, 3, 3, 70, 70, 50, None, Some(5.0)),
        (1, 2, 2, 67, 200, 128, None, None),
        (1, 2, 1, 33, 40, 200, Some(7), Some(30.0)),
    ] {
        let mut operand = |heads, t| {
            let x = tensor(&random.vec(b * heads * t * d, 2.0), &[b, heads, t, d]);
            let rounded = x.to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap();
            (x, rounded)
        };
        let (q, k, v) = (operand(heads, tq), operand(kv_heads, tk), operand(kv_heads, tk));
        let scale = 1.0 / (d as f32).sqrt();
        let attend = |q: &Tensor, k: &Tensor, v: &Tensor, in_bf16| {
            let scores = Scores { scale, cap, in_bf16 };
            values(&ops::causal_attention(q, k, v, scores, tk - tq, window).unwrap())
        };
        let found = attend(&q.0, &k.0, &v.0, true);
        let expected = attend(&q.1, &k.1, &v.1, false);
        // Weights are positive and add up to 1: each of them rounded, and their sum, 2^-9 apiece.
        let most = values(&v.1).into_iter().fold(0.0_f32, |m, v| m.max(v.abs()));
        let error = found.iter().zip(&expected).fold(0.0_f32, |m, (a, b)| m.max((a - b).abs()));
        let what = format!("{:?}", (b, heads, kv_heads, tq, tk, d, window, cap));
        assert!(error <= most / 256.0, "{what}: off by {error:e} of {most:e}");
    }
}

/// Attention without tiles: every score of every head, masked by adding minus infinity.
fn plain_attention(
    x: &[Tensor],
    scale: f64,
    cap: Option<f64>,
    first: usize,
    window: Option<usize>,
) -> candle_core::Result<Tensor> {
    let (b, heads, tq, d) = x[0].dims4()?;
    let (_, kv_heads, tk, _) = x[1].dims4()?;
    let share = heads / kv_heads;
    let spread = |x: &Tensor| {
        x.unsqueeze(2)?.broadcast_as((b, kv_heads, share, tk, d))?.reshape((b, heads, tk, d))
    };
    let (k, v) = (spread(&x[1])?, spread(&x[2])?);
    let scores = (x[0].matmul(&k.transpose(2, 3)?.contiguous()?)? * scale)?;
    let scores = match cap {
        Some(cap) => ((scores / cap)?.tanh()? * cap)?,
        None => scores,
    };
    let sees = |i: usize, j: usize| j <= first + i && window.is_none_or(|w| first + i - j < w);
    let mask = (0..tq).flat_map(|i| (0..tk).map(move |j| (i, j)));
    let mask: Vec<f32> =
        mask.map(|(i, j)| if sees(i, j) { 0.0 } else { f32::NEG_INFINITY }).collect();
    let mask = Tensor::from_vec(mask, (1, 1, tq, tk), &device())?.to_dtype(x[0].dtype())?;
    let scores = scores.broadcast_add(&mask)?;
    let shifted = scores.broadcast_sub(&scores.max_keepdim(3)?.detach())?.exp()?;
    let p = shifted.broadcast_div(&shifted.sum_keepdim(3)?)?;
    p.matmul(&v)?.transpose(1, 2)?.reshape((b * tq, heads * d))
}

#[test]
fn gradient_of_causal_attention() {
    let mut random = Random(5);
    for (b, heads, kv_heads, tq, tk, d, window) in [
        (1, 1, 1, 1, 1, 1, None),
        (2, 4, 2, 33, 33, 7, None),
        (1, 6, 2, 129, 129, 16, Some(31)),
        (1, 2, 2, 65, 100, 32, Some(1)),
        (1, 3, 1, 5, 200, 8, Some(64)),
        (2, 2, 1, 64, 64, 5, Some(1000)),
        (3, 4, 4, 67, 67, 12, Some(5)),
    ] {
        let first: usize = tk - tq;
        let scores = Scores { scale: 0.8, cap: None, in_bf16: false };
        let q = tensor(&random.vec(b * heads * tq * d, 2.0), &[b, heads, tq, d]);
        let k = tensor(&random.vec(b * kv_heads * tk * d, 2.0), &[b, kv_heads, tk, d]);
        let v = tensor(&random.vec(b * kv_heads * tk * d, 2.0), &[b, kv_heads, tk, d]);
        assert_slopes(
            &format!("{:?}", (b, heads, kv_heads, tq, tk, d, window)),
            &[q, k, v],
            &|x| ops::causal_attention(&x[0], &x[1], &x[2], scores, first, window),
            &|x| plain_attention(x, f64::from(0.8_f32), None, first, window),
        );
    }
}

#[test]
fn capped_attention_and_its_gradient_are_their_definitions() {
    let mut random = Random(34);
    for (heads, kv_heads, n, d, window, cap) in [
        (1, 1, 1, 1, 1, Some(1.0)),
        (4, 2, 33, 7, 100, Some(2.0)),
        (3, 1, 130, 5, 17, Some(0.5)),
        (2, 2, 67, 16, 64, Some(30.0)),
        (4, 1, 65, 9, 100, None),
    ] {
        let shape = |heads: usize| [2, heads, n, d];
        let mut make = |h| tensor(&random.vec(2 * h * n * d, 2.0), &shape(h));
        let inputs = [make(heads), make(kv_heads), make(kv_heads)];
        let what = format!("{:?}", (heads, kv_heads, n, d, window, cap));
        let scores = Scores { scale: 0.7, cap, in_bf16: false };
        let op = |x: &[Tensor]| ops::causal_attention(&x[0], &x[1], &x[2], scores, 0, Some(window));
        let (scale, cap) = (f64::from(0.7_f32), cap.map(f64::from));
        let plain = |x: &[Tensor]| plain_attention(x, scale, cap, 0, Some(window));
        assert_value(&what, &inputs, &op, &plain);
        assert_slopes_of_first(3, &what, &inputs, &op, &plain);
    }
}

#[test]
fn causal_attention_refuses_what_does_not_fit() {
    let x = |shape: [usize; 4]| tensor(&vec![0.5; shape.iter().product()], &shape);
    let (q, kv) = (x([1, 2, 4, 2]), x([1, 1, 4, 2]));
    let scores = Scores { scale: 1.0, cap: None, in_bf16: false };
    let attend = |q, k, first, window| ops::causal_attention(q, k, k, scores, first, window);
    assert!(attend(&q, &kv, 0, Some(1)).is_ok());
    assert_refused(attend(&q, &kv, 1, None), &["4 queries from 1 over 4 keys"]);
    assert_refused(attend(&q, &kv, 0, Some(0)), &["window Some(0)"]);
    assert_refused(attend(&kv, &q, 0, None), &["1 heads cannot share 2"]);
    assert_refused(attend(&q, &x([1, 1, 4, 3]), 0, None), &["k has shape"]);
}
