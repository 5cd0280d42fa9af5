//! Ops of a mixture of experts against plain tensors: `renormalise`, `mix_rows`, `per_part`.

use std::slice::from_ref;

use bantam::ops;
use candle_core::Tensor;

use super::numbers::*;
use super::slopes::assert_slopes;

#[test]
fn gradient_of_renormalise() {
    let mut random = Random(8);
    for (t, k) in [(1, 1), (7, 2), (33, 8)] {
        let x: Vec<f32> = random.vec(t * k, 0.5).iter().map(|x| x + 0.6).collect();
        let plain = |x: &[Tensor]| x[0].broadcast_div(&x[0].sum_keepdim(1)?);
        assert_slopes("shares", &[tensor(&x, &[t, k])], &|x| ops::renormalise(&x[0]), &plain);
    }
}

#[test]
fn gradient_of_mix_rows() {
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
        assert_slopes(&format!("{t} tokens of {k}"), &inputs, &op, &plain);
        let (y, plain) = (op(&inputs).unwrap(), plain(&inputs).unwrap());
        let furthest = values(&(y - plain).unwrap()).iter().fold(0.0_f32, |m, v| m.max(v.abs()));
        assert!(furthest < 1e-6, "{furthest:e}");
    }
}

#[test]
fn gradient_of_per_part() {
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
    assert_slopes("powers", from_ref(&x), &op, &plain);
    assert_eq!(bits(&op(from_ref(&x)).unwrap()), bits(&plain(&[x]).unwrap()));
}

#[test]
fn renormalise_mix_rows_and_per_part_refuse_what_does_not_fit() {
    let x = |shape: &[usize]| tensor(&vec![0.5; shape.iter().product()], shape);
    assert_refused(ops::renormalise(&x(&[3])), &["renormalise"]);
    assert_refused(ops::mix_rows(&x(&[2, 3]), &x(&[1, 2]), &[0, 0]), &["place 0 of 2"]);
    assert_refused(ops::mix_rows(&x(&[2, 3]), &x(&[1, 2]), &[0]), &["1 places for 2 rows"]);
    let same = |_: usize, rows: &Tensor| Ok(rows.clone());
    assert_refused(ops::per_part(&x(&[2, 3]), &[1], same), &["per_part"]);
}
