//! Every op against its definition in f64, at awkward sizes. The error allowed is twice that of the
//! same definition in plain f32, plus a floor of a few ulps of the result's range.

#![allow(
    clippy::unwrap_used,
    clippy::float_cmp,
    reason = "a test fails by panicking, and some results are exact"
)]

#[path = "support/numbers.rs"]
mod numbers;

use bantam::error::Error;
use bantam::ops::{self, CrossEntropy, Scores, VOCABULARY_TILE};
use candle_core::{DType, Tensor};
use numbers::*;

const WIDTHS: [usize; 12] = [1, 2, 3, 7, 31, 32, 33, 97, 127, 128, 129, 1031];

#[test]
fn rms_norm_is_its_definition() {
    let mut random = Random(1);
    for d in WIDTHS {
        for rows in [1, 3, 131] {
            let eps = 1e-5;
            let x = random.vec(rows * d, 3.0);
            let w = random.vec(d, 2.0);
            let (mut exact, mut plain) = (Vec::new(), Vec::new());
            for row in x.chunks(d) {
                let mean = row.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / d as f64;
                let mean_f32 = row.iter().map(|v| v * v).sum::<f32>() / d as f32;
                for (&x, &w) in row.iter().zip(&w) {
                    exact.push(f64::from(x) / (mean + eps).sqrt() * f64::from(w));
                    plain.push(x / (mean_f32 + eps as f32).sqrt() * w);
                }
            }
            let (x, w) = (tensor(&x, &[rows, d]), tensor(&w, &[d]));
            let y = ops::rms_norm(&x, &w, eps).unwrap();
            assert_eq!(y.dims(), [rows, d]);
            assert_as_good_as_plain(&values(&y), &plain, &exact, &format!("{rows} rows of {d}"));
            assert_same(&ops::rms_norm(&shifted(&x), &shifted(&w), eps).unwrap(), &y);
            let y4 = ops::rms_norm(&x.reshape((1, rows, 1, d)).unwrap(), &w, eps).unwrap();
            assert_eq!(y4.dims(), [1, rows, 1, d]);
            assert_same(&y4, &y);
        }
    }
}

#[test]
fn rms_norm_of_zeros_is_zeros_and_of_nothing_is_nothing() {
    let w = tensor(&[1.0, 2.0, 3.0], &[3]);
    let y = ops::rms_norm(&tensor(&[0.0; 6], &[2, 3]), &w, 1e-6).unwrap();
    assert_eq!(values(&y), [0.0; 6]);
    assert_eq!(ops::rms_norm(&tensor(&[], &[0, 3]), &w, 1e-6).unwrap().dims(), [0, 3]);
}

#[test]
fn rms_norm_refuses_what_does_not_fit() {
    let (x, w) = (tensor(&[1.0; 6], &[2, 3]), tensor(&[1.0; 3], &[3]));
    assert_refused(ops::rms_norm(&x, &tensor(&[1.0; 2], &[2]), 1e-6), &["rms_norm", "weight"]);
    assert_refused(ops::rms_norm(&x.t().unwrap(), &tensor(&[1.0; 2], &[2]), 1e-6), &["contiguous"]);
    assert_refused(ops::rms_norm(&x.to_dtype(DType::F64).unwrap(), &w, 1e-6), &["x is F64"]);
    assert_refused(ops::rms_norm(&x, &w.to_dtype(DType::BF16).unwrap(), 1e-6), &["weight is BF16"]);
    assert_refused(ops::rms_norm(&tensor(&[1.0], &[]), &w, 1e-6), &["scalar"]);
}

#[test]
fn rope_rotates_halves_and_transposes() {
    let mut random = Random(2);
    let shapes = [
        (1, 1, 1, 2, 1),
        (1, 7, 3, 8, 4),
        (2, 5, 3, 7, 3),
        (2, 33, 2, 62, 31),
        (1, 129, 5, 64, 32),
        (3, 31, 1, 66, 33),
        (2, 9, 4, 80, 16),
        (1, 4, 2, 5, 0),
        (1, 0, 2, 4, 2),
    ];
    for (b, t, h, d, w) in shapes {
        let x = random.vec(b * t * h * d, 2.0);
        let angles: Vec<f64> =
            (0..t * w).map(|i| (i / w.max(1)) as f64 / 10_f64.powf((i % w) as f64 / 8.0)).collect();
        let cos: Vec<f32> = angles.iter().map(|a| a.cos() as f32).collect();
        let sin: Vec<f32> = angles.iter().map(|a| a.sin() as f32).collect();
        let mut exact = vec![0.0; x.len()];
        let mut plain = vec![0.0; x.len()];
        for index in 0..x.len() {
            let (row, i) = (index / d, index % d);
            let (head, position, batch) = (row % h, row / h % t, row / h / t);
            let out = ((batch * h + head) * t + position) * d + i;
            if i < 2 * w {
                let pair = if i < w { index + w } else { index - w };
                let sign = if i < w { -1.0 } else { 1.0 };
                let (c, s) = (cos[position * w + i % w], sin[position * w + i % w]);
                exact[out] = f64::from(x[index]) * f64::from(c)
                    + f64::from(sign) * f64::from(x[pair]) * f64::from(s);
                plain[out] = x[index] * c + sign * x[pair] * s;
            } else {
                exact[out] = f64::from(x[index]);
                plain[out] = x[index];
            }
        }
        let x = tensor(&x, &[b, t, h, d]);
        let (cos, sin) = (tensor(&cos, &[t, w]), tensor(&sin, &[t, w]));
        let y = ops::rope(&x, &cos, &sin).unwrap();
        assert_eq!(y.dims(), [b, h, t, d]);
        assert_as_good_as_plain(&values(&y), &plain, &exact, &format!("{:?}", (b, t, h, d, w)));
        if t > 0 && w > 0 {
            let again = ops::rope(&shifted(&x), &shifted(&cos), &shifted(&sin)).unwrap();
            assert_same(&again, &y);
        }
    }
}

#[test]
fn rope_at_angle_zero_only_transposes() {
    let x: Vec<f32> = (0..2 * 3 * 5 * 4).map(|i| i as f32).collect();
    let x = tensor(&x, &[2, 3, 5, 4]);
    let y = ops::rope(&x, &tensor(&[1.0; 6], &[3, 2]), &tensor(&[0.0; 6], &[3, 2])).unwrap();
    assert_eq!(values(&y), values(&x.transpose(1, 2).unwrap().contiguous().unwrap()));
}

#[test]
fn rope_refuses_what_does_not_fit() {
    let x = tensor(&[1.0; 24], &[1, 3, 2, 4]);
    let table = |t: usize, w: usize| tensor(&vec![1.0; t * w], &[t, w]);
    assert_refused(ops::rope(&x, &table(2, 2), &table(2, 2)), &["rope", "cos"]);
    assert_refused(ops::rope(&x, &table(3, 3), &table(3, 3)), &["cos", "at most 2"]);
    assert_refused(ops::rope(&x, &table(3, 2), &table(3, 1)), &["sin"]);
    assert_refused(ops::rope(&x.i_flat(), &table(3, 2), &table(3, 2)), &["[b, t, h, d]"]);
    assert_refused(ops::rope(&x, &tensor(&[1.0; 6], &[6]), &table(3, 2)), &["[t, w]"]);
    assert_refused(
        ops::rope(&x.transpose(1, 2).unwrap(), &table(3, 2), &table(3, 2)),
        &["x is not contiguous"],
    );
}

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
fn silu_mul_is_its_definition() {
    let mut random = Random(6);
    for n in [0, 1, 31, 32, 33, 1031, 70_001] {
        let gate = random.vec(n, 12.0);
        let up = random.vec(n, 3.0);
        let pairs = || gate.iter().zip(&up);
        let exact: Vec<f64> = pairs()
            .map(|(&g, &u)| f64::from(g) / (1.0 + (-f64::from(g)).exp()) * f64::from(u))
            .collect();
        let plain: Vec<f32> = pairs().map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
        let (gate, up) = (tensor(&gate, &[n]), tensor(&up, &[n]));
        let y = ops::silu_mul(&gate, &up).unwrap();
        assert_as_good_as_plain(&values(&y), &plain, &exact, &format!("{n} elements"));
        let again = ops::silu_mul(&shifted(&gate), &shifted(&up)).unwrap();
        assert_same(&again, &y);
    }
}

#[test]
fn silu_mul_saturates() {
    let gate = tensor(&[-1e30, -200.0, 0.0, 200.0, 1e30], &[1, 5]);
    let y = ops::silu_mul(&gate, &tensor(&[2.0; 5], &[1, 5])).unwrap();
    assert_eq!(values(&y), [0.0, 0.0, 0.0, 400.0, 2e30]);
}

#[test]
fn silu_mul_refuses_what_does_not_fit() {
    let a = tensor(&[1.0; 6], &[2, 3]);
    assert_refused(ops::silu_mul(&a, &tensor(&[1.0; 6], &[3, 2])), &["silu_mul", "up"]);
    assert_refused(ops::silu_mul(&a.to_dtype(DType::F64).unwrap(), &a), &["gate is F64"]);
    assert_refused(ops::silu_mul(&a.t().unwrap(), &a.t().unwrap()), &["contiguous"]);
}

fn targets(values: &[u32]) -> Tensor {
    Tensor::from_slice(values, values.len(), &device()).unwrap()
}

/// The losses, and logits in the tiles that the op asks for.
fn losses(logits: &Tensor, targets: &Tensor) -> bantam::Result<Tensor> {
    let tile = |columns: std::ops::Range<usize>| {
        Ok(logits.narrow(1, columns.start, columns.len())?.contiguous()?)
    };
    let vocabulary = logits.dims().last().copied().unwrap_or(0);
    Ok(CrossEntropy::of(targets, vocabulary, tile)?.losses().clone())
}

#[test]
fn cross_entropy_is_its_definition() {
    let mut random = Random(7);
    for v in [1, 2, 31, 32, 33, 127, 1023, 1024, 1025, 5003, VOCABULARY_TILE + 1] {
        for (n, scale) in [(1, 1.0), (5, 10.0), (33, 1e4)] {
            let logits = random.vec(n * v, scale);
            let target: Vec<u32> = (0..n).map(|_| (random.next() % v as u64) as u32).collect();
            let (mut exact, mut plain) = (Vec::new(), Vec::new());
            for (row, &t) in logits.chunks(v).zip(&target) {
                let max = row.iter().copied().fold(f32::MIN, f32::max);
                let sum: f64 = row.iter().map(|&x| (f64::from(x) - f64::from(max)).exp()).sum();
                let sum_f32: f32 = row.iter().map(|x| (x - max).exp()).sum();
                exact.push(sum.ln() + f64::from(max) - f64::from(row[t as usize]));
                plain.push(sum_f32.ln() + max - row[t as usize]);
            }
            let (logits, target) = (tensor(&logits, &[n, v]), targets(&target));
            let loss = losses(&logits, &target).unwrap();
            assert_eq!(loss.dims(), [n]);
            assert_as_good_as_plain(&values(&loss), &plain, &exact, &format!("{n} rows of {v}"));
            let again = losses(&shifted(&logits), &shifted(&target)).unwrap();
            assert_same(&again, &loss);
        }
    }
    assert_eq!(losses(&tensor(&[], &[0, 7]), &targets(&[])).unwrap().dims(), [0]);
}

#[test]
fn cross_entropy_of_equal_logits_is_the_logarithm_of_their_number() {
    for v in [1_usize, 3, 1024, 50_257] {
        let loss = losses(&tensor(&vec![7.0; v], &[1, v]), &targets(&[0])).unwrap();
        let error = f64::from(values(&loss)[0]) - (v as f64).ln();
        assert!(error.abs() <= 1e-6, "{v} classes: {error:e}");
    }
}

#[test]
fn cross_entropy_names_the_row_that_is_not_finite() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for column in [0, 40, 64, 66] {
            let mut logits = vec![0.5; 5 * 67];
            logits[3 * 67 + column] = bad;
            let found = losses(&tensor(&logits, &[5, 67]), &targets(&[1; 5]));
            match found {
                Err(Error::NonFinite { what, detail }) => {
                    assert_eq!(what, "logits");
                    assert_eq!(detail, format!("row 3 of 5, column {column}: {bad}"));
                }
                other => panic!("{bad} in column {column}: {other:?}"),
            }
        }
    }
}

#[test]
fn cross_entropy_refuses_what_does_not_fit() {
    let logits = tensor(&[0.0; 6], &[2, 3]);
    assert_refused(
        losses(&logits, &targets(&[2, 3])),
        &["cross_entropy", "target 3 of row 1", "not below 3"],
    );
    assert_refused(losses(&logits, &targets(&[0])), &["logits has shape [2, 3]"]);
    assert_refused(losses(&logits, &tensor(&[0.0; 2], &[2])), &["targets is F32"]);
}

#[test]
fn a_row_that_is_not_finite_is_found_in_any_tile() {
    let v = VOCABULARY_TILE + 77;
    for column in [0, VOCABULARY_TILE - 1, VOCABULARY_TILE, v - 1] {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut logits = vec![0.5; 2 * v];
            logits[v + column] = bad;
            match losses(&tensor(&logits, &[2, v]), &targets(&[1; 2])) {
                Err(Error::NonFinite { detail, .. }) => {
                    assert_eq!(detail, format!("row 1 of 2, column {column}: {bad}"));
                }
                other => panic!("{bad} in column {column}: {other:?}"),
            }
        }
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

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let all = || {
        let mut random = Random(13);
        let x = tensor(&random.vec(700 * 130, 2.0), &[700, 130]);
        let w = tensor(&random.vec(130, 1.0), &[130]);
        let heads = x.reshape((5, 140, 2, 65)).unwrap();
        let table = tensor(&random.vec(140 * 32, 1.0), &[140, 32]);
        let target = targets(&vec![3; 700]);
        let (gram, sums) = (zeros(&[130, 130]), zeros(&[130]));
        ops::gram(&gram, &x).unwrap();
        ops::column_sum(&sums, &x).unwrap();
        let mut bits: Vec<u64> =
            [gram, sums].iter().flat_map(values_f64).map(f64::to_bits).collect();
        for y in [
            ops::rms_norm(&x, &w, 1e-6),
            ops::rope(&heads, &table, &table),
            ops::silu_mul(&x, &x),
            losses(&x, &target),
        ] {
            bits.extend(values(&y.unwrap()).into_iter().map(|v| u64::from(v.to_bits())));
        }
        bits
    };
    let one = on_threads(1, all);
    assert!(one == on_threads(2, all), "1 and 2 threads differ");
    assert!(one == on_threads(5, all), "1 and 5 threads differ");
}
