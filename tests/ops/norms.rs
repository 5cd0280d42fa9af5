//! Norms of rows, with a mean and without, against their definitions in f64.

use bantam::ops;
use candle_core::{D, DType, Tensor};

use super::numbers::*;
use super::slopes::{assert_slopes, assert_slopes_of_first, assert_value};

#[test]
fn rms_norm_is_its_definition() {
    let mut random = Random(1);
    for d in [1, 2, 3, 7, 31, 32, 33, 97, 127, 128, 129, 1031] {
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
fn gradient_of_rms_norm() {
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
            let op = |x: &[Tensor]| ops::rms_norm(&x[0], &w, 1e-5);
            assert_slopes(&format!("[{rows}, {d}]"), &[x], &op, &plain);
        }
    }
}

#[test]
fn rms_norm_does_not_depend_on_the_number_of_threads() {
    let mut random = Random(13);
    let x = tensor(&random.vec(700 * 130, 2.0), &[700, 130]);
    let w = tensor(&random.vec(130, 1.0), &[130]);
    assert_same_on_threads(|| bits(&ops::rms_norm(&x, &w, 1e-6).unwrap()));
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

fn plain_layer_norm(x: &[Tensor]) -> candle_core::Result<Tensor> {
    let centred = x[0].broadcast_sub(&x[0].mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let scaled = centred.broadcast_div(&(variance + 1e-5)?.sqrt()?)?.broadcast_mul(&x[1])?;
    scaled.broadcast_add(&x[2])
}

#[test]
fn layer_norm_is_its_definition() {
    let mut random = Random(31);
    for d in [1, 2, 3, 15, 16, 17, 97, 128, 1031] {
        for (rows, mean) in [(1, 0.0), (3, 40.0), (131, -1.0)] {
            let x: Vec<f32> = random.vec(rows * d, 3.0).iter().map(|v| v + mean).collect();
            let x = tensor(&x, &[rows, d]);
            let (w, b) = (tensor(&random.vec(d, 2.0), &[d]), tensor(&random.vec(d, 1.0), &[d]));
            let what = format!("{rows} rows of {d} around {mean}");
            let op = |x: &[Tensor]| ops::layer_norm(&x[0], &x[1], &x[2], 1e-5);
            let inputs = [x, w, b];
            let y = assert_value(&what, &inputs, &op, &plain_layer_norm);
            assert_eq!(y.dims(), [rows, d]);
            assert_same(&op(&inputs.each_ref().map(shifted)).unwrap(), &y);
            let [x, w, b] = &inputs;
            let y4 = ops::layer_norm(&x.reshape((1, rows, 1, d)).unwrap(), w, b, 1e-5).unwrap();
            assert_eq!((y4.dims(), bits(&y4)), (&[1, rows, 1, d][..], bits(&y)));
            // One channel is all mean, two are plus and minus one: their gradient is rounding alone.
            if d > 2 {
                assert_slopes_of_first(1, &what, &inputs, &op, &plain_layer_norm);
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
