//! Layer norm, gelu, soft cap and capped attention against their definitions in f64, and their gradients against those
//! that candle derives from the same definitions in f64, at awkward sizes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/numbers.rs"]
mod numbers;

use bantam::ops::{self, Gelu, Scores};
use candle_core::{DType, Tensor, Var};
use numbers::*;

const WIDTHS: [usize; 9] = [1, 2, 3, 15, 16, 17, 97, 128, 1031];

fn to_f64(t: &Tensor) -> Tensor {
    t.to_dtype(DType::F64).unwrap()
}

/// The gradient of `Σ weights · y` with respect to each of `inputs`.
fn gradients(
    inputs: &[Tensor],
    weights: &Tensor,
    y: impl Fn(&[Tensor]) -> Tensor,
) -> Vec<Option<Tensor>> {
    let vars: Vec<Var> = inputs.iter().map(|input| Var::from_tensor(input).unwrap()).collect();
    let tensors: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
    let loss = (y(&tensors) * weights).unwrap().sum_all().unwrap();
    let grads = loss.backward().unwrap();
    tensors.iter().map(|tensor| grads.get(tensor).cloned()).collect()
}

/// The gradient that `op` gives its first `active` inputs, against that of `definition` in f64: off by
/// twice what the same definition is off by in f32, or by a few ulps of what came in. The rest of the
/// inputs get none.
fn assert_gradients(
    inputs: &[Tensor],
    active: usize,
    op: impl Fn(&[Tensor]) -> Tensor,
    definition: impl Fn(&[Tensor]) -> Tensor,
    what: &str,
) {
    let weights = Random(77).vec(inputs[0].elem_count(), 1.0);
    // The result of attention has the elements of its queries in another order.
    let weights = tensor(&weights, op(inputs).dims());
    let found = gradients(inputs, &weights, op);
    let plain = gradients(inputs, &weights, &definition);
    let exact: Vec<Tensor> = inputs.iter().map(to_f64).collect();
    let exact = gradients(&exact, &to_f64(&weights), &definition);
    for (i, found) in found.iter().enumerate() {
        let Some(found) = found else {
            assert!(i >= active, "{what}: input {i} has no gradient");
            continue;
        };
        assert!(i < active, "{what}: input {i} has a gradient");
        let (plain, exact) = (plain[i].as_ref().unwrap(), exact[i].as_ref().unwrap());
        let exact = values_f64(exact);
        let error = |t: &Tensor| max_error(values(&t.contiguous().unwrap()), &exact);
        let largest = |m: f64, v: f64| m.max(v.abs());
        let range = exact.iter().copied().fold(1.0, largest);
        let (error, allowed) = (error(found), 2.0 * error(plain) + 3e-7 * range);
        assert!(error <= allowed, "{what}: input {i}: error {error:e}, allowed {allowed:e}");
    }
}

fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Tensor {
    let last = x.rank() - 1;
    let centred = x.broadcast_sub(&x.mean_keepdim(last).unwrap()).unwrap();
    let variance = centred.sqr().unwrap().mean_keepdim(last).unwrap();
    let deviation = (variance + eps).unwrap().sqrt().unwrap();
    let scaled = centred.broadcast_div(&deviation).unwrap().broadcast_mul(weight).unwrap();
    scaled.broadcast_add(bias).unwrap()
}

#[test]
fn layer_norm_is_its_definition() {
    let mut random = Random(31);
    for d in WIDTHS {
        for (rows, mean) in [(1, 0.0), (3, 40.0), (131, -1.0)] {
            let x: Vec<f32> = random.vec(rows * d, 3.0).iter().map(|v| v + mean).collect();
            let x = tensor(&x, &[rows, d]);
            let (w, b) = (tensor(&random.vec(d, 2.0), &[d]), tensor(&random.vec(d, 1.0), &[d]));
            let y = ops::layer_norm(&x, &w, &b, 1e-5).unwrap();
            assert_eq!(y.dims(), [rows, d]);
            let exact = layer_norm(&to_f64(&x), &to_f64(&w), &to_f64(&b), 1e-5);
            let plain = layer_norm(&x, &w, &b, 1e-5);
            let what = format!("{rows} rows of {d} around {mean}");
            assert_as_good_as_plain(&values(&y), &values(&plain), &values_f64(&exact), &what);
            let moved = ops::layer_norm(&shifted(&x), &shifted(&w), &shifted(&b), 1e-5).unwrap();
            assert_same(&moved, &y);
            let y4 = ops::layer_norm(&x.reshape((1, rows, 1, d)).unwrap(), &w, &b, 1e-5).unwrap();
            assert_eq!((y4.dims(), bits(&y4)), (&[1, rows, 1, d][..], bits(&y)));
            // One channel is all mean, two are plus and minus one: their gradient is rounding alone.
            if d > 2 {
                let op = |t: &[Tensor]| ops::layer_norm(&t[0], &t[1], &t[2], 1e-5).unwrap();
                let definition = |t: &[Tensor]| layer_norm(&t[0], &t[1], &t[2], 1e-5);
                assert_gradients(&[x, w, b], 1, op, definition, &what);
            }
        }
    }
}

#[test]
fn layer_norm_refuses_what_does_not_fit() {
    let (x, w) = (tensor(&[1.0; 6], &[2, 3]), tensor(&[1.0; 3], &[3]));
    let two = tensor(&[1.0; 2], &[2]);
    assert_refused(ops::layer_norm(&x, &two, &w, 1e-6), &["layer_norm", "weight"]);
    assert_refused(ops::layer_norm(&x, &w, &two, 1e-6), &["layer_norm", "bias"]);
    assert_refused(ops::layer_norm(&to_f64(&x), &w, &w, 1e-6), &["x is F64"]);
    assert_refused(ops::layer_norm(&tensor(&[1.0], &[]), &w, &w, 1e-6), &["scalar"]);
    assert_eq!(ops::layer_norm(&tensor(&[], &[0, 3]), &w, &w, 1e-6).unwrap().dims(), [0, 3]);
}

fn gelu(x: &Tensor, form: Gelu) -> Tensor {
    match form {
        Gelu::Erf => x.gelu_erf().unwrap(),
        Gelu::Tanh => x.gelu().unwrap(),
    }
}

#[test]
fn gelu_is_its_definition() {
    let mut random = Random(32);
    for form in [Gelu::Erf, Gelu::Tanh] {
        for (shape, scale) in [([1, 1], 1.0), ([3, 131], 3.0), ([257, 129], 9.0), ([2, 65], 0.01)] {
            let count = shape.iter().product();
            let x = tensor(&random.vec(count, scale), &shape);
            let up = tensor(&random.vec(count, 2.0), &shape);
            let what = format!("{form:?} {shape:?} to {scale}");
            let y = ops::gelu(&x, form).unwrap();
            let exact = values_f64(&gelu(&to_f64(&x), form));
            assert_as_good_as_plain(&values(&y), &values(&gelu(&x, form)), &exact, &what);
            assert_same(&ops::gelu(&shifted(&x), form).unwrap(), &y);
            let y = ops::gelu_mul(&x, &up, form).unwrap();
            let product = |x: &Tensor, up: &Tensor| (gelu(x, form) * up).unwrap();
            let exact = values_f64(&product(&to_f64(&x), &to_f64(&up)));
            assert_as_good_as_plain(&values(&y), &values(&product(&x, &up)), &exact, &what);
            assert_same(&ops::gelu_mul(&shifted(&x), &shifted(&up), form).unwrap(), &y);

            let op = |t: &[Tensor]| ops::gelu(&t[0], form).unwrap();
            assert_gradients(std::slice::from_ref(&x), 1, op, |t| gelu(&t[0], form), &what);
            let op = |t: &[Tensor]| ops::gelu_mul(&t[0], &t[1], form).unwrap();
            assert_gradients(&[x, up], 2, op, |t| product(&t[0], &t[1]), &what);
        }
    }
}

#[test]
fn gelu_ends_in_zero_and_in_its_argument() {
    for form in [Gelu::Erf, Gelu::Tanh] {
        let x = tensor(&[-1e30, -1e9, -50.0, -0.0, 0.0, 50.0, 1e9, 1e30], &[8]);
        assert_eq!(values(&ops::gelu(&x, form).unwrap()), [0., 0., 0., 0., 0., 50., 1e9, 1e30]);
        let x = Var::from_tensor(&x).unwrap();
        let y = ops::gelu(&x, form).unwrap();
        let slope = y.sum_all().unwrap().backward().unwrap().get(&x).unwrap().clone();
        let exact = [0., 0., 0., 0.5, 0.5, 1., 1., 1.];
        assert!(max_error(values(&slope), &exact) < 1e-7, "{slope}");
        assert!(values(&ops::gelu(&tensor(&[f32::NAN], &[1]), form).unwrap())[0].is_nan());
    }
}

#[test]
fn gelu_refuses_what_does_not_fit() {
    let (x, up) = (tensor(&[1.0; 6], &[2, 3]), tensor(&[1.0; 6], &[3, 2]));
    assert_refused(ops::gelu(&x.t().unwrap(), Gelu::Erf), &["gelu", "contiguous"]);
    assert_refused(ops::gelu_mul(&x, &up, Gelu::Tanh), &["gelu_mul", "up has shape"]);
    assert_refused(ops::gelu_mul(&x, &to_f64(&x), Gelu::Tanh), &["up is F64"]);
}

#[test]
fn soft_cap_is_its_definition() {
    let mut random = Random(33);
    for cap in [0.5, 1.0, 30.0] {
        for (shape, scale) in [([1, 1], 1.0), ([7, 131], 100.0), ([257, 129], 0.3)] {
            let x = tensor(&random.vec(shape.iter().product(), scale), &shape);
            let what = format!("cap {cap} of {shape:?} to {scale}");
            let definition = |x: &Tensor| {
                (((x / f64::from(cap)).unwrap()).tanh().unwrap() * f64::from(cap)).unwrap()
            };
            let y = ops::soft_cap(&x, cap).unwrap();
            let exact = values_f64(&definition(&to_f64(&x)));
            assert_as_good_as_plain(&values(&y), &values(&definition(&x)), &exact, &what);
            let op = |t: &[Tensor]| ops::soft_cap(&t[0], cap).unwrap();
            assert_gradients(&[x], 1, op, |t| definition(&t[0]), &what);
        }
    }
    let x = Tensor::new(&[1.0_f32], &device()).unwrap();
    assert_refused(ops::soft_cap(&x, 0.0), &["cap is 0"]);
    assert_refused(ops::soft_cap(&x, f32::NAN), &["cap is NaN"]);
}

/// Attention without tiles: every score of every head, masked by adding minus infinity.
fn attention(t: &[Tensor], scale: f64, cap: Option<f64>, window: usize) -> Tensor {
    let (b, heads, n, d) = t[0].dims4().unwrap();
    let kv_heads = t[1].dim(1).unwrap();
    let shared = |x: &Tensor| {
        let wide = x.unsqueeze(2).unwrap().broadcast_as((b, kv_heads, heads / kv_heads, n, d));
        wide.unwrap().reshape((b, heads, n, d)).unwrap().contiguous().unwrap()
    };
    let (k, v) = (shared(&t[1]), shared(&t[2]));
    let scores = t[0].matmul(&k.transpose(2, 3).unwrap().contiguous().unwrap()).unwrap() * scale;
    let scores = match cap {
        Some(cap) => ((scores.unwrap() / cap).unwrap().tanh().unwrap() * cap).unwrap(),
        None => scores.unwrap(),
    };
    let sees = |i: usize, j: usize| j <= i && i - j < window;
    let mask: Vec<f64> =
        (0..n * n).map(|at| if sees(at / n, at % n) { 0.0 } else { f64::NEG_INFINITY }).collect();
    let mask = Tensor::from_vec(mask, (n, n), &device()).unwrap();
    let scores = scores.broadcast_add(&mask.to_dtype(scores.dtype()).unwrap()).unwrap();
    let exp =
        scores.broadcast_sub(&scores.max_keepdim(3).unwrap().detach()).unwrap().exp().unwrap();
    let p = exp.broadcast_div(&exp.sum_keepdim(3).unwrap()).unwrap();
    p.matmul(&v).unwrap().transpose(1, 2).unwrap().reshape((b * n, heads * d)).unwrap()
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
        let op = |t: &[Tensor]| {
            ops::causal_attention(&t[0], &t[1], &t[2], scores, 0, Some(window)).unwrap()
        };
        let (scale, cap) = (f64::from(0.7_f32), cap.map(f64::from));
        let definition = |t: &[Tensor]| attention(t, scale, cap, window);
        let exact = values_f64(&definition(&inputs.each_ref().map(to_f64)));
        let plain = values(&definition(&inputs));
        assert_as_good_as_plain(&values(&op(&inputs)), &plain, &exact, &what);
        assert_gradients(&inputs, 3, op, definition, &what);
    }
}
