//! Rotary positions, alone and after a norm, and heads put first: against their definitions in f64.

use std::slice::from_ref;

use bantam::ops;
use candle_core::{D, Tensor};

use super::numbers::*;
use super::slopes::assert_slopes;

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
fn gradient_of_rope() {
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
        assert_slopes(&what, from_ref(&x), &|x| ops::rope(&x[0], &cos, &sin), &plain);
        let plain = |x: &[Tensor]| x[0].transpose(1, 2);
        assert_slopes(&what, &[x], &|x| ops::heads_first(&x[0]), &plain);
    }
}

#[test]
fn gradient_of_norm_rope() {
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
        assert_slopes(&format!("{b}x{t}x{h}x{d}, {w} turn"), &[x], &op, &plain);
    }
}

#[test]
fn rope_does_not_depend_on_the_number_of_threads() {
    let mut random = Random(13);
    let heads = tensor(&random.vec(700 * 130, 2.0), &[5, 140, 2, 65]);
    let table = tensor(&random.vec(140 * 32, 1.0), &[140, 32]);
    assert_same_on_threads(|| bits(&ops::rope(&heads, &table, &table).unwrap()));
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
fn heads_first_refuses_what_does_not_fit() {
    let x = tensor(&[0.5; 6], &[2, 3]);
    assert_refused(ops::heads_first(&x), &["heads_first", "[b, t, h, d]"]);
}
