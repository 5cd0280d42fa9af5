//! Every op against its definition in f64, at awkward sizes. The error allowed is twice that of the
//! same definition in plain f32, plus a floor of a few ulps of the result's range.

#![allow(
    clippy::unwrap_used,
    clippy::float_cmp,
    reason = "a test fails by panicking, and some results are exact"
)]

use bantam::error::Error;
use bantam::ops;
use candle_core::{DType, Device, Tensor, Var};

/// SplitMix64; the same numbers on every machine.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in (-1, 1).
    fn uniform(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    }

    fn vec(&mut self, n: usize, scale: f32) -> Vec<f32> {
        (0..n).map(|_| scale * self.uniform()).collect()
    }
}

fn tensor(values: &[f32], shape: &[usize]) -> Tensor {
    Tensor::from_slice(values, shape, &Device::Cpu).unwrap()
}

fn values(t: &Tensor) -> Vec<f32> {
    assert!(t.is_contiguous());
    t.flatten_all().unwrap().to_vec1().unwrap()
}

fn bits(t: &Tensor) -> Vec<u32> {
    values(t).into_iter().map(f32::to_bits).collect()
}

fn max_error(found: impl IntoIterator<Item = f32>, exact: &[f64]) -> f64 {
    found.into_iter().zip(exact).map(|(f, e)| (f64::from(f) - e).abs()).fold(0.0, f64::max)
}

/// `found` errs at most twice as much as `plain`, or a few ulps of the largest value.
fn assert_as_good_as_plain(found: &[f32], plain: &[f32], exact: &[f64], what: &str) {
    assert_eq!(found.len(), exact.len(), "{what}");
    assert_eq!(plain.len(), exact.len(), "{what}");
    assert!(found.iter().all(|v| v.is_finite()), "{what}");
    let range = exact.iter().fold(0.0_f64, |m, v| m.max(v.abs()));
    let error = max_error(found.iter().copied(), exact);
    let allowed = 2.0 * max_error(plain.iter().copied(), exact) + 2e-7 * range;
    assert!(error <= allowed, "{what}: error {error:e}, allowed {allowed:e}");
}

/// The same tensor, starting in the middle of a larger storage.
fn shifted(t: &Tensor) -> Tensor {
    let padding = Tensor::ones(3, t.dtype(), t.device()).unwrap();
    let flat = t.flatten_all().unwrap();
    let long = Tensor::cat(&[&padding, &flat, &padding], 0).unwrap();
    let view = long.narrow(0, 3, flat.elem_count()).unwrap().reshape(t.shape()).unwrap();
    assert!(view.is_contiguous() && view.layout().start_offset() == 3);
    view
}

fn on_threads<R: Send>(threads: usize, work: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(work)
}

fn assert_refused<T: std::fmt::Debug>(result: Result<T, Error>, parts: &[&str]) {
    let message = match result {
        Err(Error::Bug(message)) => message,
        other => panic!("expected a refusal, found {other:?}"),
    };
    for part in parts {
        assert!(message.contains(part), "{message:?} does not say {part:?}");
    }
}

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
            assert_eq!(bits(&ops::rms_norm(&shifted(&x), &shifted(&w), eps).unwrap()), bits(&y));
            let y4 = ops::rms_norm(&x.reshape((1, rows, 1, d)).unwrap(), &w, eps).unwrap();
            assert_eq!(y4.dims(), [1, rows, 1, d]);
            assert_eq!(bits(&y4), bits(&y));
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
            assert_eq!(bits(&again), bits(&y));
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

trait Flat {
    fn i_flat(&self) -> Tensor;
}

impl Flat for Tensor {
    fn i_flat(&self) -> Tensor {
        self.flatten_all().unwrap()
    }
}

#[derive(Debug, Clone, Copy)]
struct Attention {
    b: usize,
    h: usize,
    tq: usize,
    tk: usize,
    first: usize,
    window: Option<usize>,
}

impl Attention {
    fn dims(self) -> [usize; 4] {
        [self.b, self.h, self.tq, self.tk]
    }

    fn len(self) -> usize {
        self.dims().iter().product()
    }

    fn allowed(self, row: usize, key: usize) -> bool {
        let p = self.first + row % self.tq;
        key <= p && self.window.is_none_or(|w| p - key < w)
    }
}

fn attentions() -> Vec<Attention> {
    let mut all = Vec::new();
    let shapes: [(usize, usize, usize); 10] = [
        (1, 1, 0),
        (1, 33, 32),
        (31, 31, 0),
        (32, 32, 0),
        (33, 33, 0),
        (127, 129, 2),
        (129, 129, 0),
        (5, 64, 59),
        (7, 40, 10),
        (3, 200, 150),
    ];
    for (tq, tk, first) in shapes {
        for window in [None, Some(1), Some(2), Some(31), Some(33), Some(1000)] {
            // A window that would leave the last query without a key belongs to another test.
            if window.is_none_or(|w| (first + tq).saturating_sub(w) < tk) {
                all.push(Attention { b: 2, h: 3, tq, tk, first, window });
            }
        }
    }
    all
}

#[test]
fn causal_softmax_is_its_definition() {
    let mut random = Random(3);
    for case in attentions() {
        let scale = 0.37;
        let s = random.vec(case.len(), 20.0);
        let (mut exact, mut plain) = (Vec::new(), Vec::new());
        for (row, s) in s.chunks(case.tk).enumerate() {
            let allowed = |j: usize| case.allowed(row, j);
            let max = (0..case.tk).filter(|&j| allowed(j)).map(|j| s[j]).fold(f32::MIN, f32::max);
            let e = |j: usize| (f64::from(scale) * (f64::from(s[j]) - f64::from(max))).exp();
            let e_f32 = |j: usize| (scale * s[j] - scale * max).exp();
            let sum: f64 = (0..case.tk).filter(|&j| allowed(j)).map(e).sum();
            let sum_f32: f32 = (0..case.tk).filter(|&j| allowed(j)).map(e_f32).sum();
            for j in 0..case.tk {
                exact.push(if allowed(j) { e(j) / sum } else { 0.0 });
                plain.push(if allowed(j) { e_f32(j) / sum_f32 } else { 0.0 });
            }
        }
        let s = tensor(&s, &case.dims());
        let y = ops::causal_softmax(&s, scale, case.first, case.window).unwrap();
        assert_eq!(y.dims(), case.dims());
        let found = values(&y);
        assert_as_good_as_plain(&found, &plain, &exact, &format!("{case:?}"));
        for (row, y) in found.chunks(case.tk).enumerate() {
            let sum: f64 = y.iter().map(|&v| f64::from(v)).sum();
            assert!((sum - 1.0).abs() < 1e-6, "{case:?}, row {row} sums to {sum}");
            for (j, &v) in y.iter().enumerate() {
                assert!(case.allowed(row, j) || v == 0.0, "{case:?}, row {row}, key {j}: {v}");
            }
        }
        let view = shifted(&s);
        let again = ops::causal_softmax(&view, scale, case.first, case.window).unwrap();
        assert_eq!(bits(&again), bits(&y), "{case:?}");
        let in_place =
            ops::causal_softmax_in_place(view.clone(), scale, case.first, case.window).unwrap();
        assert_eq!(bits(&in_place), bits(&y), "{case:?}");
        assert_eq!(bits(&view), bits(&y), "the storage itself holds the result");
    }
}

#[test]
fn causal_softmax_in_place_touches_nothing_outside_its_view() {
    let long = tensor(&[9.0; 3 + 4 + 3], &[10]);
    let view = long.narrow(0, 3, 4).unwrap().reshape((1, 1, 2, 2)).unwrap();
    ops::causal_softmax_in_place(view, 1.0, 0, None).unwrap();
    assert_eq!(values(&long), [9.0, 9.0, 9.0, 1.0, 0.0, 0.5, 0.5, 9.0, 9.0, 9.0]);
}

#[test]
fn causal_softmax_never_reads_a_masked_score() {
    for case in attentions() {
        let mut clean = Random(4).vec(case.len(), 5.0);
        let y = ops::causal_softmax(&tensor(&clean, &case.dims()), 1.0, case.first, case.window);
        let mut random = Random(5);
        for (index, s) in clean.iter_mut().enumerate() {
            if !case.allowed(index / case.tk, index % case.tk) {
                *s = [f32::NAN, f32::INFINITY, 1e30][random.next() as usize % 3];
            }
        }
        let dirty = tensor(&clean, &case.dims());
        let expected = bits(&y.unwrap());
        let dirty_y = ops::causal_softmax(&dirty, 1.0, case.first, case.window).unwrap();
        assert_eq!(bits(&dirty_y), expected, "{case:?}");
        let in_place = ops::causal_softmax_in_place(dirty, 1.0, case.first, case.window).unwrap();
        assert_eq!(bits(&in_place), expected, "{case:?}");
    }
}

#[test]
fn causal_softmax_is_stable_and_lets_infinity_mask() {
    let s = tensor(&[1e30, 0.0, -1e30, 1e30, f32::NEG_INFINITY, 1e30], &[1, 1, 2, 3]);
    let y = ops::causal_softmax(&s, 0.5, 1, None).unwrap();
    assert_eq!(values(&y), [1.0, 0.0, 0.0, 0.5, 0.0, 0.5]);
    let nan = tensor(&[0.0, f32::NAN], &[1, 1, 1, 2]);
    assert!(values(&ops::causal_softmax(&nan, 1.0, 1, None).unwrap())[0].is_nan());
}

#[test]
fn causal_softmax_refuses_a_query_without_keys() {
    let s = |tq: usize, tk: usize| tensor(&vec![0.0; tq * tk], &[1, 1, tq, tk]);
    let parts = ["causal_softmax", "query 7", "none of 4 keys"];
    assert_refused(ops::causal_softmax(&s(3, 4), 1.0, 5, Some(4)), &parts);
    assert_refused(ops::causal_softmax_in_place(s(3, 4), 1.0, 5, Some(4)), &parts);
    assert!(ops::causal_softmax(&s(3, 4), 1.0, 5, Some(5)).is_ok());
    assert_refused(ops::causal_softmax(&s(1, 4), 1.0, 0, Some(0)), &["window Some(0)"]);
    assert_refused(ops::causal_softmax(&s(2, 0), 1.0, 0, None), &["none of 0 keys"]);
    assert_refused(ops::causal_softmax(&s(2, 4), 1.0, usize::MAX, None), &["2 queries from"]);
    assert_eq!(ops::causal_softmax(&s(0, 4), 1.0, 9, Some(1)).unwrap().dims(), [1, 1, 0, 4]);
}

#[test]
fn causal_softmax_refuses_what_does_not_fit() {
    let s = tensor(&[0.0; 4], &[1, 1, 2, 2]);
    for scale in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        assert_refused(ops::causal_softmax(&s, scale, 0, None), &["scale"]);
    }
    assert_refused(ops::causal_softmax(&s.i_flat(), 1.0, 0, None), &["[b, h, tq, tk]"]);
    assert_refused(ops::causal_softmax(&s.t().unwrap(), 1.0, 0, None), &["contiguous"]);
    let var = Var::from_tensor(&s).unwrap();
    assert_refused(
        ops::causal_softmax_in_place(var.as_tensor().clone(), 1.0, 0, None),
        &["autograd"],
    );
    assert!(ops::causal_softmax(var.as_tensor(), 1.0, 0, None).is_ok());
}

#[test]
fn causal_attention_is_its_definition() {
    let mut random = Random(14);
    for (b, heads, kv_heads, tq, tk, d, window) in [
        (1, 1, 1, 1, 1, 1, None),
        (2, 4, 2, 33, 33, 7, None),
        (1, 6, 2, 129, 129, 16, Some(31)),
        (1, 2, 2, 65, 100, 32, Some(1)),
        (1, 3, 1, 5, 200, 8, Some(64)),
        (2, 2, 1, 64, 64, 5, Some(1000)),
    ] {
        let first: usize = tk - tq;
        let what = format!("{:?}", (b, heads, kv_heads, tq, tk, d, window));
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
            let dot = |j: usize| pairs(j).map(|(a, b)| f64::from(q[a]) * f64::from(k[b])).sum();
            let scores: Vec<f64> = keys.iter().map(|&j| dot(j)).collect();
            let dot = |j: usize| pairs(j).map(|(a, b)| q[a] * k[b]).sum();
            let scores_f32: Vec<f32> = keys.iter().map(|&j| dot(j)).collect();
            let max = scores_f32.iter().copied().fold(f32::MIN, f32::max);
            let e = |s: f64| (f64::from(scale) * (s - f64::from(max))).exp();
            let e_f32 = |s: f32| (scale * (s - max)).exp();
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
        let y = ops::causal_attention(&q, &k, &v, scale, first, window).unwrap();
        assert_eq!(y.dims(), [b * tq, heads * d]);
        assert_as_good_as_plain(&values(&y), &plain, &exact, &what);
        let on = |threads| {
            let y = on_threads(threads, || {
                ops::causal_attention(&q, &shifted(&k), &v, scale, first, window).unwrap()
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
        assert_eq!(bits(&again), bits(&y));
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
    Tensor::from_slice(values, values.len(), &Device::Cpu).unwrap()
}

#[test]
fn cross_entropy_is_its_definition() {
    let mut random = Random(7);
    for v in [1, 2, 31, 32, 33, 127, 1023, 1024, 1025, 5003] {
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
            let loss = ops::cross_entropy(&logits, &target).unwrap();
            assert_eq!(loss.dims(), [n]);
            assert_as_good_as_plain(&values(&loss), &plain, &exact, &format!("{n} rows of {v}"));
            let again = ops::cross_entropy(&shifted(&logits), &shifted(&target)).unwrap();
            assert_eq!(bits(&again), bits(&loss));
        }
    }
    assert_eq!(ops::cross_entropy(&tensor(&[], &[0, 7]), &targets(&[])).unwrap().dims(), [0]);
}

#[test]
fn cross_entropy_of_equal_logits_is_the_logarithm_of_their_number() {
    for v in [1_usize, 3, 1024, 50_257] {
        let loss = ops::cross_entropy(&tensor(&vec![7.0; v], &[1, v]), &targets(&[0])).unwrap();
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
            let found = ops::cross_entropy(&tensor(&logits, &[5, 67]), &targets(&[1; 5]));
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
        ops::cross_entropy(&logits, &targets(&[2, 3])),
        &["cross_entropy", "target 3 of row 1", "not below 3"],
    );
    assert_refused(ops::cross_entropy(&logits, &targets(&[0])), &["targets"]);
    assert_refused(ops::cross_entropy(&logits.i_flat(), &targets(&[0])), &["[n, v]"]);
    assert_refused(ops::cross_entropy(&logits, &tensor(&[0.0; 2], &[2])), &["targets is F32"]);
}

fn zeros(shape: &[usize]) -> Tensor {
    Tensor::zeros(shape, DType::F64, &Device::Cpu).unwrap()
}

fn values_f64(t: &Tensor) -> Vec<f64> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

fn exact_gram(x: &[f32], n: usize) -> Vec<f64> {
    let mut g = vec![0.0; n * n];
    for row in x.chunks(n) {
        for i in 0..n {
            for j in 0..n {
                g[i * n + j] += f64::from(row[i]) * f64::from(row[j]);
            }
        }
    }
    g
}

/// Largest `|found - exact|` of two Gram matrices in units of `sqrt(exact_ii exact_jj)`.
fn gram_error(found: &[f64], exact: &[f64], n: usize) -> f64 {
    let mut worst = 0.0_f64;
    for i in 0..n {
        for j in 0..n {
            let unit = (exact[i * n + i] * exact[j * n + j]).sqrt();
            worst = worst.max((found[i * n + j] - exact[i * n + j]).abs() / unit);
        }
    }
    worst
}

#[test]
fn gram_is_its_definition_in_one_piece_and_in_chunks() {
    let mut random = Random(8);
    for (t, n) in [(1, 1), (3, 1), (1, 33), (31, 32), (129, 31), (2500, 33), (300, 129), (700, 97)]
    {
        let x = random.vec(t * n, 2.0);
        let exact = exact_gram(&x, n);
        let x = tensor(&x, &[t, n]);
        let whole = zeros(&[n, n]);
        ops::gram(&whole, &x).unwrap();
        ops::symmetrise(&whole).unwrap();
        let error = gram_error(&values_f64(&whole), &exact, n);
        assert!(error < 1e-6, "[{t}, {n}] in one piece: {error:e}");

        let chunked = zeros(&[n, n]);
        for first in (0..t).step_by(97) {
            ops::gram(&chunked, &x.narrow(0, first, 97.min(t - first)).unwrap()).unwrap();
        }
        ops::symmetrise(&chunked).unwrap();
        let error = gram_error(&values_f64(&chunked), &exact, n);
        assert!(error < 1e-6, "[{t}, {n}] in chunks: {error:e}");
    }
}

#[test]
fn gram_keeps_its_accuracy_over_many_rows_of_one_sign() {
    let (t, n) = (20_000, 3);
    let x: Vec<f32> = Random(9).vec(t * n, 0.5).iter().map(|v| v + 1.0).collect();
    let master = zeros(&[n, n]);
    ops::gram(&master, &tensor(&x, &[t, n])).unwrap();
    ops::symmetrise(&master).unwrap();
    let error = gram_error(&values_f64(&master), &exact_gram(&x, n), n);
    assert!(error < 2e-6, "{error:e}");
}

#[test]
fn gram_wider_than_a_panel_is_the_matrix_product() {
    let (t, n) = (19, 1100);
    let x = Random(10).vec(t * n, 1.0);
    let master = zeros(&[n, n]);
    ops::gram(&master, &tensor(&x, &[t, n])).unwrap();
    ops::symmetrise(&master).unwrap();
    let error = gram_error(&values_f64(&master), &exact_gram(&x, n), n);
    assert!(error < 1e-6, "{error:e}");
}

#[test]
fn gram_writes_the_lower_triangle_and_symmetrise_the_upper() {
    for n in [1, 2, 31, 32, 33, 65] {
        let x = Random(11).vec(5 * n, 1.0);
        let master = (zeros(&[n, n]) + 7.0).unwrap();
        ops::gram(&master, &tensor(&x, &[5, n])).unwrap();
        let half = values_f64(&master);
        ops::symmetrise(&master).unwrap();
        let full = values_f64(&master);
        for i in 0..n {
            for j in 0..n {
                if j > i {
                    assert_eq!(half[i * n + j], 7.0, "above the diagonal of {n}");
                    assert_eq!(full[i * n + j], half[j * n + i]);
                } else {
                    assert_ne!(half[i * n + j], 7.0, "below the diagonal of {n}");
                    assert_eq!(full[i * n + j], half[i * n + j]);
                }
            }
        }
    }
}

#[test]
fn gram_of_nothing_adds_nothing() {
    let master = (zeros(&[3, 3]) + 2.0).unwrap();
    ops::gram(&master, &tensor(&[], &[0, 3])).unwrap();
    assert_eq!(values_f64(&master), [2.0; 9]);
    let sums = (zeros(&[3]) + 2.0).unwrap();
    ops::column_sum(&sums, &tensor(&[], &[0, 3])).unwrap();
    assert_eq!(values_f64(&sums), [2.0; 3]);
}

#[test]
fn column_sum_is_exact_to_f64() {
    let mut random = Random(12);
    for (t, n) in [(1, 1), (3, 33), (255, 2), (257, 31), (1000, 129)] {
        let x = random.vec(t * n, 2.0);
        let mut exact = vec![5.0; n];
        for row in x.chunks(n) {
            exact.iter_mut().zip(row).for_each(|(sum, &v)| *sum += f64::from(v));
        }
        let x = shifted(&tensor(&x, &[t, n]));
        let master = (zeros(&[n]) + 5.0).unwrap();
        ops::column_sum(&master, &x).unwrap();
        for (found, exact) in values_f64(&master).iter().zip(&exact) {
            assert!((found - exact).abs() < 1e-11, "[{t}, {n}]: {found} instead of {exact}");
        }
    }
}

#[test]
fn moments_refuse_what_does_not_fit() {
    let x = tensor(&[1.0; 6], &[2, 3]);
    assert_refused(ops::gram(&zeros(&[2, 2]), &x), &["gram", "master"]);
    assert_refused(ops::gram(&tensor(&[0.0; 9], &[3, 3]), &x), &["master is F32"]);
    assert_refused(ops::gram(&zeros(&[2, 2]), &x.t().unwrap()), &["x is not contiguous"]);
    assert_refused(ops::gram(&zeros(&[3, 3]), &x.i_flat()), &["[t, n]"]);
    assert_refused(ops::symmetrise(&zeros(&[2, 3])), &["symmetrise"]);
    assert_refused(ops::column_sum(&zeros(&[2]), &x), &["column_sum", "master"]);
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let all = || {
        let mut random = Random(13);
        let x = tensor(&random.vec(700 * 130, 2.0), &[700, 130]);
        let w = tensor(&random.vec(130, 1.0), &[130]);
        let scores = tensor(&random.vec(6 * 129 * 129, 9.0), &[2, 3, 129, 129]);
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
            ops::causal_softmax(&scores, 0.1, 0, Some(40)),
            ops::causal_softmax_in_place(scores, 0.1, 0, Some(40)),
            ops::silu_mul(&x, &x),
            ops::cross_entropy(&x, &target),
        ] {
            bits.extend(values(&y.unwrap()).into_iter().map(|v| u64::from(v.to_bits())));
        }
        bits
    };
    let one = on_threads(1, all);
    assert!(one == on_threads(2, all), "1 and 2 threads differ");
    assert!(one == on_threads(5, all), "1 and 5 threads differ");
}
