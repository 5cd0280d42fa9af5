//! Residual stacks on the CPU: one token through a stack against rebuilding its matrix, and the
//! decomposition of a Gaussian matrix.
//!
//! `cargo bench --bench stack -- M N RANK LEVELS ROUNDS` prints one JSON object with the least
//! seconds of each, and what they come to in operations and bytes per second.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a bench may panic and prints")]

use std::time::Instant;

use bantam::linalg::{self, Truncation};
use bantam::ops;
use bantam::passes::{Levels, TakenLevel};
use bantam::settings::StackSettings;
use candle_core::{DType, Device, Tensor};

fn main() {
    let arguments: Vec<usize> = std::env::args().skip(1).filter_map(|a| a.parse().ok()).collect();
    let &[m, n, rank, levels, rounds] = arguments.as_slice() else {
        // `cargo test --benches` runs this with no sizes: there is nothing to measure.
        return;
    };
    let device = Device::Cpu;
    let w = linalg::gaussian(m, n, 1, &device).unwrap();
    let x = linalg::gaussian(1, n, 2, &device).unwrap();
    let options = StackSettings { levels, rank, ..StackSettings::default() };
    let truncation = Truncation::to(rank);
    let mut least = [f64::INFINITY; 8];
    let mut keep = |index: usize, started: Instant| {
        least[index] = least[index].min(started.elapsed().as_secs_f64());
    };
    let mut fell_back = 0;
    for _ in 0..rounds {
        let started = Instant::now();
        let mut taken = Levels::new(w.copy().unwrap(), options, 3).unwrap();
        let (mut parts, mut fallen) = ([vec![], vec![], vec![]], 0);
        while let Some(TakenLevel { sign, u, v, fell_back: fell }) = taken.take("a level").unwrap()
        {
            fallen += usize::from(fell);
            for (part, taken) in parts.iter_mut().zip([sign, u, v]) {
                part.push(taken);
            }
        }
        keep(0, started);
        fell_back = fallen;
        let [signs, u, v] = parts.map(|part| Tensor::stack(&part, 0).unwrap());

        // The steps of the first level, each for itself.
        let r = w.copy().unwrap();
        let omega = linalg::gaussian(n, truncation.width(), truncation.seed, &device).unwrap();
        let started = Instant::now();
        let (sign, sketch) = ops::sign_pack(&r, Some(&omega)).unwrap();
        keep(1, started);
        let started = Instant::now();
        let magnitudes = r.abs().unwrap();
        keep(2, started);
        let started = Instant::now();
        linalg::truncated_svd(&magnitudes, sketch.as_ref(), truncation, "a level").unwrap();
        keep(3, started);
        let [u0, v0] = [&u, &v].map(|factor| factor.narrow(0, 0, 1).unwrap());
        let started = Instant::now();
        ops::take_level(&r, &sign, &u0, &v0, Some(&omega)).unwrap();
        keep(4, started);

        let started = Instant::now();
        let y = ops::stack_matvec(&x, &signs, &u, &v).unwrap();
        keep(5, started);
        let started = Instant::now();
        let rebuilt = ops::stack_rebuild(&signs, &u, &v, None, 0..m, DType::F32).unwrap();
        keep(6, started);
        let started = Instant::now();
        let y_of_w = ops::linear(&x, &rebuilt, None, ops::GradientSinks::default()).unwrap();
        keep(7, started);
        let gap = (y - &y_of_w).unwrap().sqr().unwrap().sum_all().unwrap();
        let size = y_of_w.sqr().unwrap().sum_all().unwrap();
        let gap = (gap / size).unwrap().sqrt().unwrap().to_scalar::<f32>().unwrap();
        assert!(gap < 1e-5, "the two products differ by {gap:e}");
    }
    let [decomposition, sign_pack, abs, truncated_svd, take_level, matvec, rebuild, product] =
        least;
    let flops = (2 * levels * m * n * rank) as f64;
    let bytes = (levels * (m * n.div_ceil(8) + 2 * rank * (m + n))) as f64;
    println!(
        "{}",
        serde_json::json!({
            "shape": [m, n], "rank": rank, "levels": levels, "fell_back": fell_back,
            "decomposition": decomposition, "sign_pack": sign_pack, "abs": abs,
            "truncated_svd": truncated_svd, "take_level": take_level,
            "stack_matvec": matvec, "stack_rebuild": rebuild, "product": product,
            "matvec_gain": (rebuild + product) / matvec,
            "matvec_gflops": flops / matvec / 1e9, "matvec_gbytes": bytes / matvec / 1e9,
            "rebuild_gflops": flops / rebuild / 1e9,
        })
    );
}
