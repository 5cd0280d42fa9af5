//! The loop that makes a residual stack: what every level takes off, and that levels add up.

use bantam::linalg;
use bantam::ops;
use bantam::passes::{Levels, TakenLevel};
use bantam::settings::StackSettings;
use candle_core::{DType, Tensor};

use super::numbers::*;

/// Decomposes `w` level by level; the relative error after each. The levels add up to what was taken
/// off.
fn decompose(w: &Tensor, rank: usize, levels: usize) -> Vec<f64> {
    let m = w.dim(0).unwrap();
    let norm = |t: &Tensor| {
        t.to_dtype(DType::F64)
            .unwrap()
            .sqr()
            .unwrap()
            .sum_all()
            .unwrap()
            .to_scalar::<f64>()
            .unwrap()
    };
    let options = StackSettings { levels, rank, ..StackSettings::default() };
    // Not exact for want of room.
    assert!(rank + 16 < w.dims().iter().copied().min().unwrap());
    let mut taken = Levels::new(w.copy().unwrap(), options, 5).unwrap();
    let (mut parts, mut errors) = ([vec![], vec![], vec![]], Vec::new());
    while let Some(TakenLevel { sign, u, v, fell_back }) = taken.take("a level").unwrap() {
        assert!(!fell_back, "level {}", errors.len());
        errors.push((norm(taken.residual()) / norm(w)).sqrt());
        for (part, taken) in parts.iter_mut().zip([sign, u, v]) {
            part.push(taken.unsqueeze(0).unwrap());
        }
    }
    assert_eq!(errors.len(), levels);
    let [signs, u, v] = parts.map(|part| Tensor::cat(&part, 0).unwrap());
    let sum = ops::stack_rebuild(&signs, &u, &v, None, 0..m, DType::F32).unwrap();
    let gap = ((sum + taken.residual()).unwrap() - w).unwrap();
    assert!((norm(&gap) / norm(w)).sqrt() < 1e-6, "levels and residual do not add up");
    errors
}

#[test]
fn a_gaussian_matrix_loses_what_it_should_level_by_level() {
    // What is emulated has no time for large matrices.
    let (n, tolerance) = if ON_GPU { (256, 0.1) } else { (1024, 0.01) };
    let w = linalg::gaussian(n, n, 6, &device()).unwrap();
    let errors = decompose(&w, n / 64, 4);
    for (error, expected) in errors.iter().zip([0.585, 0.342, 0.219, 0.153]) {
        assert!((error / expected - 1.0).abs() < tolerance, "{errors:?}");
    }
}

#[test]
fn every_level_of_sixteen_takes_something_off() {
    let n = if ON_GPU { 96 } else { 512 };
    let w = linalg::gaussian(n, n, 7, &device()).unwrap();
    let errors = decompose(&w, 16, 16);
    assert!(errors.windows(2).all(|pair| pair[1] < pair[0]), "{errors:?}");
}
