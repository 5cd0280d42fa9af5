//! Ops whose operands are bf16 or rounded to it, against their definitions in f64 on rounded operands.

#![allow(clippy::unwrap_used, reason = "a failing test is to panic")]

#[path = "support/numbers.rs"]
mod numbers;

use bantam::ops::{self, Scores};
use candle_core::{DType, Tensor};
use numbers::*;

#[test]
fn low_rank_matvec_is_two_products() {
    let mut random = Random(17);
    for (n, r, m) in [(1, 1, 1), (5, 3, 7), (64, 8, 129), (257, 33, 31), (96, 128, 640)] {
        let x = random.vec(n, 1.0);
        let (v, u) = (random.vec(r * n, 1.0), random.vec(m * r, 1.0));
        let bias = random.vec(m, 5.0);
        for dtype in [DType::F32, DType::BF16] {
            let held =
                |values: &[f32], shape: &[usize]| tensor(values, shape).to_dtype(dtype).unwrap();
            let (v, u) = (held(&v, &[r, n]), held(&u, &[m, r]));
            let wide = |t: &Tensor| values(&t.to_dtype(DType::F32).unwrap());
            let (v_values, u_values) = (wide(&v), wide(&u));
            let (mut exact, mut plain) = (Vec::new(), Vec::new());
            let z: Vec<f64> = v_values.chunks(n).map(|row| dot(row, &x)).collect();
            let z_f32: Vec<f32> = v_values.chunks(n).map(|row| dot_f32(row, &x)).collect();
            for (row, &bias) in u_values.chunks(r).zip(&bias) {
                let sum: f64 = row.iter().zip(&z).map(|(&u, z)| f64::from(u) * z).sum();
                exact.push(sum + f64::from(bias));
                plain.push(dot_f32(row, &z_f32) + bias);
            }
            let (x, bias) = (tensor(&x, &[1, n]), tensor(&bias, &[m]));
            let y = ops::low_rank_matvec(&x, &v, &u, Some(&bias)).unwrap();
            let what = format!("{m}x{r}x{n} in {dtype:?}");
            assert_as_good_as_plain(&values(&y), &plain, &exact, &what);
            let without = ops::low_rank_matvec(&shifted(&x), &shifted(&v), &shifted(&u), None);
            assert_same(&(without.unwrap() + bias.unsqueeze(0).unwrap()).unwrap(), &y);
        }
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

fn dot_f32(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(&a, &b)| a * b).sum()
}

#[test]
fn a_linear_with_a_bf16_weight_rounds_what_it_multiplies() {
    let mut random = Random(18);
    for (t, n, m) in [(1, 1, 1), (3, 7, 5), (33, 129, 31), (64, 64, 64)] {
        let x = random.vec(t * n, 2.0);
        let w = tensor(&random.vec(m * n, 1.0), &[m, n]).to_dtype(DType::BF16).unwrap();
        let round = |x: &f32| half::bf16::from_f32(*x).to_f32();
        let rounded: Vec<f32> = x.iter().map(round).collect();
        let wide = values(&w.to_dtype(DType::F32).unwrap());
        let rows = rounded.chunks(n).flat_map(|x| wide.chunks(n).map(move |w| (x, w)));
        let (exact, plain): (Vec<f64>, Vec<f32>) =
            rows.map(|(x, w)| (dot(x, w), dot_f32(x, w))).unzip();
        let y = ops::linear(&tensor(&x, &[t, n]), &w, None, Default::default()).unwrap();
        assert_as_good_as_plain(&values(&y), &plain, &exact, &format!("{t}x{n} by {m}"));

        let dy = random.vec(t * m, 2.0);
        let rounded: Vec<f32> = dy.iter().map(round).collect();
        let (mut exact, mut plain) = (Vec::new(), Vec::new());
        for dy in rounded.chunks(m) {
            for j in 0..n {
                let column: Vec<f32> = wide.iter().skip(j).step_by(n).copied().collect();
                exact.push(dot(dy, &column));
                plain.push(dot_f32(dy, &column));
            }
        }
        let dx = ops::linear_gradient(&tensor(&dy, &[t, m]), &w).unwrap();
        assert_as_good_as_plain(&values(&dx), &plain, &exact, &format!("{t}x{m} back by {n}"));
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
