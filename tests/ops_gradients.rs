//! The gradient of every op against autograd of the same formula in plain f64 tensors, at awkward
//! sizes. The error allowed is twice that of plain f32 autograd, plus a few ulps of the range.

#![allow(clippy::unwrap_used, reason = "a failing test is to panic")]

#[path = "support/numbers.rs"]
mod numbers;

use std::slice::from_ref;
use std::sync::{Arc, Mutex};

use bantam::ops::{self, CrossEntropy, GradientSink, GradientSinks, Scores, VOCABULARY_TILE};
use candle_core::{D, DType, Tensor, Var};
use numbers::*;

type Formula<'a> = &'a dyn Fn(&[Tensor]) -> candle_core::Result<Tensor>;

fn as_vars(inputs: &[Tensor], dtype: DType) -> Vec<Var> {
    inputs.iter().map(|x| Var::from_tensor(&x.to_dtype(dtype).unwrap()).unwrap()).collect()
}

fn tensors(vars: &[Var]) -> Vec<Tensor> {
    vars.iter().map(|var| var.as_tensor().clone()).collect()
}

/// Gradients of `Σ dy y` by plain tensor operations in `dtype`.
fn plain_gradients(inputs: &[Tensor], dy: &Tensor, dtype: DType, y: Formula<'_>) -> Vec<Tensor> {
    let vars = as_vars(inputs, dtype);
    let y = y(&tensors(&vars)).unwrap();
    let loss = (y * dy.to_dtype(dtype).unwrap()).unwrap().sum_all().unwrap();
    let gradients = loss.backward().unwrap();
    vars.iter().map(|var| gradients.get(var).unwrap().flatten_all().unwrap()).collect()
}

/// The op's gradients at `inputs` are those of `plain`.
#[track_caller]
fn check(
    what: &str,
    inputs: &[Tensor],
    op: &(dyn Fn(&[Tensor]) -> bantam::error::Result<Tensor> + Sync),
    plain: Formula<'_>,
) {
    let gradients = |inputs: &[Tensor]| {
        let vars = as_vars(inputs, DType::F32);
        let y = op(&tensors(&vars)).unwrap();
        let dy = tensor(&Random(98).vec(y.elem_count(), 1.5), y.dims());
        let gradients = ops::upstream(&y, &dy).unwrap().backward().unwrap();
        let all = vars.iter().map(|var| gradients.get(var).unwrap().clone());
        (all.collect::<Vec<_>>(), dy)
    };
    let (found, dy) = gradients(inputs);
    let exact = plain_gradients(inputs, &dy, DType::F64, plain);
    let rounded = plain_gradients(inputs, &dy, DType::F32, plain);
    for (index, found) in found.iter().enumerate() {
        let what = format!("{what}, operand {index}");
        assert_eq!(found.dims(), inputs[index].dims(), "{what}");
        let plain = values(&rounded[index]);
        assert_as_good_as_plain(&values(found), &plain, &values_f64(&exact[index]), &what);
    }
    for threads in [1, 3] {
        let again = on_threads(threads, || gradients(inputs).0);
        let same = found.iter().zip(&again).all(|(a, b)| bits(a) == bits(b));
        assert!(same, "{what}: {threads} threads give other bits");
    }
}

#[test]
fn of_linear() {
    let mut random = Random(1);
    for (t, n, m) in [(1, 1, 1), (3, 7, 5), (131, 33, 65), (64, 129, 31)] {
        let x = tensor(&random.vec(t * n, 1.0), &[t, n]);
        let w = tensor(&random.vec(n * m, 1.0), &[m, n]);
        let bias = tensor(&random.vec(m, 1.0), &[m]);
        let none = GradientSinks::default;
        let what = format!("[{t}, {n}] · [{n}, {m}]");
        let product = |x: &[Tensor]| x[0].matmul(&w.to_dtype(x[0].dtype())?.t()?);
        check(&what, from_ref(&x), &|x| ops::linear(&x[0], &w, None, none()), &product);
        check(&what, from_ref(&x), &|x| ops::linear(&x[0], &w, Some(&bias), none()), &product);
        let y = ops::linear(&x, &w, Some(&bias), none()).unwrap();
        let plain = x.matmul(&w.t().unwrap()).unwrap().broadcast_add(&bias).unwrap();
        assert_eq!(bits(&y), bits(&plain), "{what}");
    }
}

#[derive(Default)]
struct Recorder(Mutex<Vec<Tensor>>);

impl GradientSink for Recorder {
    fn gradient(&self, gradient: &Tensor) -> bantam::error::Result<()> {
        self.0.lock().unwrap().push(gradient.clone());
        Ok(())
    }
}

#[test]
fn linear_shows_its_gradients_and_gives_the_weight_none() {
    let mut random = Random(2);
    let x = Var::from_tensor(&tensor(&random.vec(15, 1.0), &[5, 3])).unwrap();
    let w = Var::from_tensor(&tensor(&random.vec(12, 1.0), &[4, 3])).unwrap();
    let dy = tensor(&random.vec(20, 1.0), &[5, 4]);
    let [input, output, gain] = [(); 3].map(|()| Arc::new(Recorder::default()));
    let sinks = GradientSinks {
        input: Some(input.clone()),
        output: Some(output.clone()),
        gain: Some(gain.clone()),
    };
    let y = ops::linear(&x, &w, None, sinks).unwrap();
    assert!(output.0.lock().unwrap().is_empty(), "shown before there is a gradient");
    let gradients = ops::upstream(&y, &dy).unwrap().backward().unwrap();
    assert!(gradients.get(&w).is_none());
    let [seen] = &output.0.lock().unwrap()[..] else { panic!("not one gradient") };
    assert_eq!(bits(seen), bits(&dy));
    let [seen] = &input.0.lock().unwrap()[..] else { panic!("not one gradient") };
    assert_eq!(bits(seen), bits(gradients.get(&x).unwrap()));
    let [seen] = &gain.0.lock().unwrap()[..] else { panic!("not one gradient") };
    let expected = (y.detach() * dy).unwrap().sum(1).unwrap();
    assert_eq!(seen.dims(), [5]);
    for (found, expected) in values(seen).iter().zip(values(&expected)) {
        assert!((found - expected).abs() < 1e-5, "{found} instead of {expected}");
    }
}

#[test]
fn of_rms_norm() {
    let mut random = Random(3);
    for d in [1, 2, 7, 31, 32, 33, 129, 1031] {
        for rows in [1, 3, 131] {
            let x = tensor(&random.vec(rows * d, 3.0), &[rows, d]);
            let w = tensor(&random.vec(d, 2.0), &[d]);
            let plain = |x: &[Tensor]| {
                let mean = (x[0].sqr()?.sum_keepdim(D::Minus1)? / d as f64)?;
                let normed = x[0].broadcast_div(&(mean + 1e-5)?.sqrt()?)?;
                normed.broadcast_mul(&w.to_dtype(x[0].dtype())?)
            };
            check(&format!("[{rows}, {d}]"), &[x], &|x| ops::rms_norm(&x[0], &w, 1e-5), &plain);
        }
    }
}

#[test]
fn of_rope() {
    let mut random = Random(4);
    for (b, t, h, d, w) in
        [(1, 1, 1, 2, 1), (1, 7, 3, 8, 4), (2, 5, 3, 7, 3), (2, 33, 2, 62, 31), (2, 9, 4, 80, 16)]
    {
        let x = tensor(&random.vec(b * t * h * d, 2.0), &[b, t, h, d]);
        let angles = random.vec(t * w, 3.0);
        let cos = tensor(&angles.iter().map(|a| a.cos()).collect::<Vec<_>>(), &[t, w]);
        let sin = tensor(&angles.iter().map(|a| a.sin()).collect::<Vec<_>>(), &[t, w]);
        let plain = |x: &[Tensor]| {
            let table = |of: &Tensor| of.reshape((1, t, 1, w))?.to_dtype(x[0].dtype());
            let (cos, sin) = (table(&cos)?, table(&sin)?);
            let (x1, x2) = (x[0].narrow(3, 0, w)?, x[0].narrow(3, w, w)?);
            let y1 = (x1.broadcast_mul(&cos)? - x2.broadcast_mul(&sin)?)?;
            let y2 = (x2.broadcast_mul(&cos)? + x1.broadcast_mul(&sin)?)?;
            let mut parts = vec![y1, y2];
            if d > 2 * w {
                parts.push(x[0].narrow(3, 2 * w, d - 2 * w)?);
            }
            Tensor::cat(&parts, 3)?.transpose(1, 2)
        };
        let what = format!("{:?}", (b, t, h, d, w));
        check(&what, from_ref(&x), &|x| ops::rope(&x[0], &cos, &sin), &plain);
        let plain = |x: &[Tensor]| x[0].transpose(1, 2);
        check(&what, &[x], &|x| ops::heads_first(&x[0]), &plain);
    }
}

/// Attention over whole score matrices; forbidden scores are moved out of reach.
fn plain_attention(
    x: &[Tensor],
    scale: f64,
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
    let sees = |i: usize, j: usize| j <= first + i && window.is_none_or(|w| first + i - j < w);
    let mask = (0..tq).flat_map(|i| (0..tk).map(move |j| (i, j)));
    let mask: Vec<f32> = mask.map(|(i, j)| if sees(i, j) { 0.0 } else { -1e30 }).collect();
    let mask = Tensor::from_vec(mask, (1, 1, tq, tk), &device())?.to_dtype(x[0].dtype())?;
    let scores = (x[0].matmul(&k.transpose(2, 3)?.contiguous()?)? * scale)?.broadcast_add(&mask)?;
    let shifted = scores.broadcast_sub(&scores.max_keepdim(3)?.detach())?.exp()?;
    let p = shifted.broadcast_div(&shifted.sum_keepdim(3)?)?;
    p.matmul(&v)?.transpose(1, 2)?.reshape((b * tq, heads * d))
}

#[test]
fn of_causal_attention() {
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
        check(
            &format!("{:?}", (b, heads, kv_heads, tq, tk, d, window)),
            &[q, k, v],
            &|x| ops::causal_attention(&x[0], &x[1], &x[2], scores, first, window),
            &|x| plain_attention(x, f64::from(0.8_f32), first, window),
        );
    }
}

#[test]
fn of_silu_mul_and_add() {
    let mut random = Random(6);
    for n in [1, 31, 32, 33, 1031, 70_001] {
        let (gate, up) = (tensor(&random.vec(n, 12.0), &[n]), tensor(&random.vec(n, 3.0), &[n]));
        let plain = |x: &[Tensor]| (&x[0] / (x[0].neg()?.exp()? + 1.0)?)? * &x[1];
        let inputs = [gate, up];
        check(&format!("{n} gates"), &inputs, &|x| ops::silu_mul(&x[0], &x[1]), &plain);
        check(&format!("{n} sums"), &inputs, &|x| ops::add(&x[0], &x[1]), &|x| &x[0] + &x[1]);
    }
}

#[test]
fn of_silu_mul_far_out() {
    let gate = Var::from_tensor(&tensor(&[-1e30, -200.0, 0.0, 200.0, 1e30], &[5])).unwrap();
    let up = Var::from_tensor(&tensor(&[2.0; 5], &[5])).unwrap();
    let y = ops::silu_mul(&gate, &up).unwrap();
    let gradients = y.backward().unwrap();
    assert_eq!(values(gradients.get(&gate).unwrap()), [0.0, 0.0, 1.0, 2.0, 2.0]);
    assert_eq!(values(gradients.get(&up).unwrap()), [0.0, 0.0, 0.0, 200.0, 1e30]);
}

#[test]
fn of_cross_entropy() {
    let mut random = Random(7);
    for v in [1, 2, 31, 33, 127, 1024, 1025, 5003, VOCABULARY_TILE + 3] {
        for (n, scale) in [(1, 1.0), (5, 10.0), (33, 80.0)] {
            let logits = tensor(&random.vec(n * v, scale), &[n, v]);
            let targets: Vec<u32> = (0..n).map(|_| (random.next() % v as u64) as u32).collect();
            let targets = Tensor::from_vec(targets, n, &device()).unwrap();
            let plain = |x: &[Tensor]| {
                let max = x[0].max_keepdim(1)?.detach();
                let sum = x[0].broadcast_sub(&max)?.exp()?.sum_keepdim(1)?;
                let of_target = x[0].gather(&targets.unsqueeze(1)?, 1)?;
                ((sum.log()? + max)? - of_target)?.squeeze(1)
            };
            let tile = |columns: std::ops::Range<usize>| {
                Ok(logits.narrow(1, columns.start, columns.len())?.contiguous()?)
            };
            let found = CrossEntropy::of(&targets, v, tile).unwrap();
            let gradients: Vec<Tensor> = ops::tiles(v)
                .map(|c| found.gradient(&tile(c.clone()).unwrap(), c.start).unwrap())
                .collect();
            let found = Tensor::cat(&gradients, 1).unwrap();
            let ones = tensor(&vec![1.0; n], &[n]);
            let of = |dtype| plain_gradients(from_ref(&logits), &ones, dtype, &plain).remove(0);
            let what = format!("{n} rows of {v}");
            let (exact, rounded) = (values_f64(&of(DType::F64)), values(&of(DType::F32)));
            assert_as_good_as_plain(&values(&found), &rounded, &exact, &what);
        }
    }
}

#[test]
fn of_norm_rope() {
    let mut random = Random(17);
    for (b, t, h, d, w) in [(1, 1, 1, 2, 1), (2, 5, 3, 8, 4), (1, 7, 2, 33, 12), (2, 3, 1, 64, 32)]
    {
        let x = tensor(&random.vec(b * t * h * d, 2.0), &[b, t, h, d]);
        let weight = tensor(&random.vec(d, 1.5), &[d]);
        let angles = random.vec(t * w, 3.0);
        let table =
            |f: fn(f32) -> f32| tensor(&angles.iter().map(|&a| f(a)).collect::<Vec<_>>(), &[t, w]);
        let (cos, sin) = (table(f32::cos), table(f32::sin));
        let op = |x: &[Tensor]| ops::norm_rope(&x[0], &weight, 1e-5, &cos, &sin);
        let apart = |x: &[Tensor]| ops::rope(&ops::rms_norm(&x[0], &weight, 1e-5)?, &cos, &sin);
        assert_same(&op(from_ref(&x)).unwrap(), &apart(from_ref(&x)).unwrap());
        let plain = |x: &[Tensor]| {
            let to = |t: &Tensor| t.to_dtype(x[0].dtype());
            let mean = x[0].sqr()?.mean_keepdim(D::Minus1)?;
            let normed = x[0].broadcast_div(&(mean + 1e-5)?.sqrt()?)?;
            let normed = normed.broadcast_mul(&to(&weight)?)?.transpose(1, 2)?;
            let (cos, sin) = (to(&cos)?, to(&sin)?);
            let (x1, x2) = (normed.narrow(3, 0, w)?, normed.narrow(3, w, w)?);
            let y1 = (x1.broadcast_mul(&cos)? - x2.broadcast_mul(&sin)?)?;
            let y2 = (x2.broadcast_mul(&cos)? + x1.broadcast_mul(&sin)?)?;
            Tensor::cat(&[y1, y2, normed.narrow(3, 2 * w, d - 2 * w)?], 3)
        };
        check(&format!("{b}x{t}x{h}x{d}, {w} turn"), &[x], &op, &plain);
    }
}

#[test]
fn of_renormalise() {
    let mut random = Random(8);
    for (t, k) in [(1, 1), (7, 2), (33, 8)] {
        let x: Vec<f32> = random.vec(t * k, 0.5).iter().map(|x| x + 0.6).collect();
        let plain = |x: &[Tensor]| x[0].broadcast_div(&x[0].sum_keepdim(1)?);
        check("shares", &[tensor(&x, &[t, k])], &|x| ops::renormalise(&x[0]), &plain);
    }
}

#[test]
fn of_mix_rows() {
    let mut random = Random(9);
    for (t, k, d) in [(1, 1, 1), (5, 3, 7), (67, 4, 33)] {
        // A stride that shares no factor with the number of rows takes every row once.
        let places: Vec<usize> = (0..t * k).map(|i| i * 127 % (t * k)).collect();
        let rows: Vec<u32> = places.iter().map(|&place| place as u32).collect();
        let rows = Tensor::from_vec(rows, t * k, &device()).unwrap();
        let x = tensor(&random.vec(t * k * d, 1.0), &[t * k, d]);
        let weights = tensor(&random.vec(t * k, 1.0), &[t, k]);
        let op = |x: &[Tensor]| ops::mix_rows(&x[0], &x[1], &places);
        let plain = |x: &[Tensor]| {
            let rows = x[0].index_select(&rows, 0)?.reshape((t, k, d))?;
            rows.broadcast_mul(&x[1].unsqueeze(2)?)?.sum(1)
        };
        let inputs = [x, weights];
        check(&format!("{t} tokens of {k}"), &inputs, &op, &plain);
        let (y, plain) = (op(&inputs).unwrap(), plain(&inputs).unwrap());
        let furthest = values(&(y - plain).unwrap()).iter().fold(0.0_f32, |m, v| m.max(v.abs()));
        assert!(furthest < 1e-6, "{furthest:e}");
    }
}

#[test]
fn of_per_part() {
    let mut random = Random(10);
    let sizes = [3, 0, 1, 7, 0];
    let x = tensor(&random.vec(11 * 5, 1.0), &[11, 5]);
    let power = |part: usize, rows: &Tensor| rows.powf(part as f64 + 2.0);
    let plain = |x: &[Tensor]| {
        let first: [usize; 5] = std::array::from_fn(|part| sizes[..part].iter().sum());
        let parts = (0..5).filter(|&part| sizes[part] > 0);
        let parts = parts.map(|part| power(part, &x[0].narrow(0, first[part], sizes[part])?));
        Tensor::cat(&parts.collect::<candle_core::Result<Vec<_>>>()?, 0)
    };
    let op = |x: &[Tensor]| ops::per_part(&x[0], &sizes, |part, rows| Ok(power(part, rows)?));
    check("powers", from_ref(&x), &op, &plain);
    assert_eq!(bits(&op(from_ref(&x)).unwrap()), bits(&plain(&[x]).unwrap()));
}

#[test]
fn of_what_does_not_fit_is_refused() {
    let x = |shape: &[usize]| tensor(&vec![0.5; shape.iter().product()], shape);
    let none = GradientSinks::default;
    assert_refused(ops::linear(&x(&[2, 3]), &x(&[4, 2]), None, none()), &["linear", "w has shape"]);
    let bias = x(&[3]);
    let refused = ops::linear(&x(&[2, 3]), &x(&[4, 3]), Some(&bias), none());
    assert_refused(refused, &["bias has shape"]);
    assert_refused(ops::linear(&x(&[3]), &x(&[4, 3]), None, none()), &["not both matrices"]);
    assert_refused(ops::upstream(&x(&[2, 3]), &x(&[3, 2])), &["upstream"]);
    assert_refused(ops::heads_first(&x(&[2, 3])), &["heads_first", "[b, t, h, d]"]);
    assert_refused(ops::renormalise(&x(&[3])), &["renormalise"]);
    assert_refused(ops::mix_rows(&x(&[2, 3]), &x(&[1, 2]), &[0, 0]), &["place 0 of 2"]);
    assert_refused(ops::mix_rows(&x(&[2, 3]), &x(&[1, 2]), &[0]), &["1 places for 2 rows"]);
    let same = |_: usize, rows: &Tensor| Ok(rows.clone());
    assert_refused(ops::per_part(&x(&[2, 3]), &[1], same), &["per_part"]);
}
