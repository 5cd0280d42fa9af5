//! Linears against their definitions in f64: weights in f32 and in bf16, whole and as two factors.

use std::slice::from_ref;
use std::sync::{Arc, Mutex};

use bantam::error::Error;
use bantam::ops::{self, GradientSink, GradientSinks};
use candle_core::{DType, Tensor, Var};

use super::numbers::*;
use super::slopes::assert_slopes;

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}

fn dot_f32(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(&a, &b)| a * b).sum()
}

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
fn gradient_of_linear() {
    let mut random = Random(1);
    for (t, n, m) in [(1, 1, 1), (3, 7, 5), (131, 33, 65), (64, 129, 31)] {
        let x = tensor(&random.vec(t * n, 1.0), &[t, n]);
        let w = tensor(&random.vec(n * m, 1.0), &[m, n]);
        let bias = tensor(&random.vec(m, 1.0), &[m]);
        let none = GradientSinks::default;
        let what = format!("[{t}, {n}] · [{n}, {m}]");
        let product = |x: &[Tensor]| x[0].matmul(&w.to_dtype(x[0].dtype())?.t()?);
        assert_slopes(&what, from_ref(&x), &|x| ops::linear(&x[0], &w, None, none()), &product);
        let op = |x: &[Tensor]| ops::linear(&x[0], &w, Some(&bias), none());
        assert_slopes(&what, from_ref(&x), &op, &product);
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

/// A sink that somebody stopped.
#[derive(Debug)]
struct Stopped;

impl GradientSink for Stopped {
    fn gradient(&self, _: &Tensor) -> bantam::error::Result<()> {
        Err(Error::Interrupted)
    }
}

#[test]
fn the_error_of_a_sink_comes_back_through_the_backward_as_it_was() {
    let x = Var::from_tensor(&tensor(&[0.5; 15], &[5, 3])).unwrap();
    let w = tensor(&[0.25; 12], &[4, 3]);
    let stopped = || -> Option<Arc<dyn GradientSink>> { Some(Arc::new(Stopped)) };
    let none = GradientSinks::default;
    for sinks in [
        GradientSinks { input: stopped(), ..none() },
        GradientSinks { output: stopped(), ..none() },
        GradientSinks { gain: stopped(), ..none() },
    ] {
        let linear = |x: &Tensor| ops::linear(x, &w, None, sinks.clone());
        let alone = linear(&x).unwrap();
        // Of an expert, whose backward runs inside another.
        let within = ops::per_part(&x, &[2, 3], |_, rows| linear(rows)).unwrap();
        for y in [alone, within] {
            let start = ops::upstream(&y, &y.ones_like().unwrap()).unwrap();
            let error = Error::from(start.backward().unwrap_err());
            assert!(matches!(error, Error::Interrupted), "{error:?}");
        }
    }
}

#[test]
fn linear_refuses_what_does_not_fit() {
    let x = |shape: &[usize]| tensor(&vec![0.5; shape.iter().product()], shape);
    let none = GradientSinks::default;
    assert_refused(ops::linear(&x(&[2, 3]), &x(&[4, 2]), None, none()), &["linear", "w has shape"]);
    let bias = x(&[3]);
    let refused = ops::linear(&x(&[2, 3]), &x(&[4, 3]), Some(&bias), none());
    assert_refused(refused, &["bias has shape"]);
    assert_refused(ops::linear(&x(&[3]), &x(&[4, 3]), None, none()), &["not both matrices"]);
}
