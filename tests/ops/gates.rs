//! Ops on one element at a time against f64: `silu_mul`, `gelu`, `gelu_mul`, `soft_cap`, `add`.

use bantam::ops::{self, Gelu};
use candle_core::{DType, Tensor, Var};

use super::numbers::*;
use super::slopes::{assert_slopes, assert_slopes_of_first, assert_value};

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
fn gradient_of_silu_mul_and_add() {
    let mut random = Random(6);
    for n in [1, 31, 32, 33, 1031, 70_001] {
        let (gate, up) = (tensor(&random.vec(n, 12.0), &[n]), tensor(&random.vec(n, 3.0), &[n]));
        let plain = |x: &[Tensor]| (&x[0] / (x[0].neg()?.exp()? + 1.0)?)? * &x[1];
        let inputs = [gate, up];
        assert_slopes(&format!("{n} gates"), &inputs, &|x| ops::silu_mul(&x[0], &x[1]), &plain);
        let plain = |x: &[Tensor]| &x[0] + &x[1];
        assert_slopes(&format!("{n} sums"), &inputs, &|x| ops::add(&x[0], &x[1]), &plain);
    }
}

#[test]
fn gradient_of_silu_mul_far_out() {
    let gate = Var::from_tensor(&tensor(&[-1e30, -200.0, 0.0, 200.0, 1e30], &[5])).unwrap();
    let up = Var::from_tensor(&tensor(&[2.0; 5], &[5])).unwrap();
    let y = ops::silu_mul(&gate, &up).unwrap();
    let gradients = y.backward().unwrap();
    assert_eq!(values(gradients.get(&gate).unwrap()), [0.0, 0.0, 1.0, 2.0, 2.0]);
    assert_eq!(values(gradients.get(&up).unwrap()), [0.0, 0.0, 0.0, 200.0, 1e30]);
}

#[test]
fn silu_mul_does_not_depend_on_the_number_of_threads() {
    let x = tensor(&Random(13).vec(700 * 130, 2.0), &[700, 130]);
    assert_same_on_threads(|| bits(&ops::silu_mul(&x, &x).unwrap()));
}

#[test]
fn silu_mul_refuses_what_does_not_fit() {
    let a = tensor(&[1.0; 6], &[2, 3]);
    assert_refused(ops::silu_mul(&a, &tensor(&[1.0; 6], &[3, 2])), &["silu_mul", "up"]);
    assert_refused(ops::silu_mul(&a.to_dtype(DType::F64).unwrap(), &a), &["gate is F64"]);
    assert_refused(ops::silu_mul(&a.t().unwrap(), &a.t().unwrap()), &["contiguous"]);
}

fn plain_gelu(x: &Tensor, form: Gelu) -> candle_core::Result<Tensor> {
    match form {
        Gelu::Erf => x.gelu_erf(),
        Gelu::Tanh => x.gelu(),
    }
}

#[test]
fn gelu_is_its_definition() {
    let mut random = Random(32);
    for form in [Gelu::Erf, Gelu::Tanh] {
        for (shape, scale) in [([1, 1], 1.0), ([3, 131], 3.0), ([257, 129], 9.0), ([2, 65], 0.01)] {
            let count = shape.iter().product();
            let both = [scale, 2.0].map(|scale| tensor(&random.vec(count, scale), &shape));
            let moved = both.each_ref().map(shifted);
            let what = format!("{form:?} {shape:?} to {scale}");

            let op = |x: &[Tensor]| ops::gelu(&x[0], form);
            let plain = |x: &[Tensor]| plain_gelu(&x[0], form);
            let y = assert_value(&what, &both[..1], &op, &plain);
            assert_same(&op(&moved).unwrap(), &y);
            assert_slopes_of_first(1, &what, &both[..1], &op, &plain);

            let op = |x: &[Tensor]| ops::gelu_mul(&x[0], &x[1], form);
            let plain = |x: &[Tensor]| plain_gelu(&x[0], form)? * &x[1];
            let y = assert_value(&what, &both, &op, &plain);
            assert_same(&op(&moved).unwrap(), &y);
            assert_slopes_of_first(2, &what, &both, &op, &plain);
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
            let x = [tensor(&random.vec(shape.iter().product(), scale), &shape)];
            let what = format!("cap {cap} of {shape:?} to {scale}");
            let op = |x: &[Tensor]| ops::soft_cap(&x[0], cap);
            let plain = |x: &[Tensor]| (&x[0] / f64::from(cap))?.tanh()? * f64::from(cap);
            assert_value(&what, &x, &op, &plain);
            assert_slopes_of_first(1, &what, &x, &op, &plain);
        }
    }
    let x = Tensor::new(&[1.0_f32], &device()).unwrap();
    assert_refused(ops::soft_cap(&x, 0.0), &["cap is 0"]);
    assert_refused(ops::soft_cap(&x, f32::NAN), &["cap is NaN"]);
}
