//! Cross entropy against its definition in f64, in any tile, and where a backward pass begins.

use std::ops::Range;
use std::slice::from_ref;

use bantam::error::Error;
use bantam::ops::{self, CrossEntropy, VOCABULARY_TILE};
use candle_core::{DType, Tensor};

use super::numbers::*;
use super::slopes::plain_slopes;

fn targets(values: &[u32]) -> Tensor {
    Tensor::from_slice(values, values.len(), &device()).unwrap()
}

/// Logits in the tiles that the op asks for.
fn tile(logits: &Tensor, columns: Range<usize>) -> bantam::Result<Tensor> {
    Ok(logits.narrow(1, columns.start, columns.len())?.contiguous()?)
}

fn losses(logits: &Tensor, targets: &Tensor) -> bantam::Result<Tensor> {
    let vocabulary = logits.dims().last().copied().unwrap_or(0);
    let found = CrossEntropy::of(targets, vocabulary, |columns| tile(logits, columns))?;
    Ok(found.losses().clone())
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
fn gradient_of_cross_entropy() {
    let mut random = Random(7);
    for v in [1, 2, 31, 33, 127, 1024, 1025, 5003, VOCABULARY_TILE + 3] {
        for (n, scale) in [(1, 1.0), (5, 10.0), (33, 80.0)] {
            let logits = tensor(&random.vec(n * v, scale), &[n, v]);
            let target: Vec<u32> = (0..n).map(|_| (random.next() % v as u64) as u32).collect();
            let target = targets(&target);
            let plain = |x: &[Tensor]| {
                let max = x[0].max_keepdim(1)?.detach();
                let sum = x[0].broadcast_sub(&max)?.exp()?.sum_keepdim(1)?;
                let of_target = x[0].gather(&target.unsqueeze(1)?, 1)?;
                ((sum.log()? + max)? - of_target)?.squeeze(1)
            };
            let found = CrossEntropy::of(&target, v, |columns| tile(&logits, columns)).unwrap();
            let gradients: Vec<Tensor> = ops::tiles(v)
                .map(|c| found.gradient(&tile(&logits, c.clone()).unwrap(), c.start).unwrap())
                .collect();
            let found = Tensor::cat(&gradients, 1).unwrap();
            let ones = tensor(&vec![1.0; n], &[n]);
            let of = |dtype| plain_slopes(from_ref(&logits), &ones, dtype, &plain).remove(0);
            let what = format!("{n} rows of {v}");
            let (exact, rounded) = (values_f64(&of(DType::F64)), values(&of(DType::F32)));
            assert_as_good_as_plain(&values(&found), &rounded, &exact, &what);
        }
    }
}

#[test]
fn cross_entropy_does_not_depend_on_the_number_of_threads() {
    let x = tensor(&Random(13).vec(700 * 130, 2.0), &[700, 130]);
    let target = targets(&[3; 700]);
    assert_same_on_threads(|| bits(&losses(&x, &target).unwrap()));
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
fn upstream_refuses_what_does_not_fit() {
    let (y, dy) = (tensor(&[0.5; 6], &[2, 3]), tensor(&[0.5; 6], &[3, 2]));
    assert_refused(ops::upstream(&y, &dy), &["upstream"]);
}
