//! Gram, decomposition and factors of single layers, for `scripts/compare_low_rank.py`, which gives
//! the data and runs the straightforward pipeline in `PyTorch` beside it.
//!
//! `cargo bench --bench low_rank -- FOLDER RANK ROUNDS` reads `FOLDER/model.safetensors` with
//! `NAME.weight [m, n]` f32 and `NAME.x [tokens, n]` f32 for each NAME, and prints one JSON object per
//! layer: the least seconds of each step over the rounds, and how far the energy that the factors
//! lose on `x` is from what the spectrum foretold, as a share of all energy.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a bench may panic and prints")]

use std::sync::Arc;
use std::time::Instant;

use bantam::arch::{Piece, Role, Site, Storage};
use bantam::checkpoint::Checkpoint;
use bantam::measure::{Importance, SecondMoment, Side, SiteStats};
use bantam::passes::{Analysis, Lord, Pass, Weights};
use bantam::settings::{Rule, Settings};
use candle_core::{DType, Device, Tensor};

/// Tokens that are taken into a moment at a time, as measure does.
const CHUNK: usize = 1024;

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|a| !a.starts_with("--"));
    let Some(folder) = arguments.next() else {
        // `cargo test --benches` runs this with no data: there is nothing to measure.
        return;
    };
    let rank: usize = arguments.next().unwrap().parse().unwrap();
    let rounds: usize = arguments.next().unwrap().parse().unwrap();
    let checkpoint = Checkpoint::open(folder.as_ref()).unwrap();
    let names = checkpoint.tensors().filter_map(|t| t.name.strip_suffix(".weight"));
    for name in names.map(str::to_owned).collect::<Vec<_>>() {
        println!("{}", layer(&checkpoint, &name, rank, rounds));
    }
}

fn layer(checkpoint: &Checkpoint, name: &str, rank: usize, rounds: usize) -> serde_json::Value {
    let device = Device::Cpu;
    let load = |name: &str| bantam::model::load_tensor(checkpoint, name, &device).unwrap();
    let (weight, x) = (load(&format!("{name}.weight")), load(&format!("{name}.x")));
    let (m, n) = weight.dims2().unwrap();
    let site = Site::linear(name, Role::MlpUp, [m, n]);
    // The smaller side, as measure chooses it; outputs are at hand in the forward pass.
    let y = x.matmul(&weight.t().unwrap()).unwrap();
    let (side, rows) = if m < n { (Side::Output, &y) } else { (Side::Input, &x) };
    let settings = Settings { rank_multiple: 1, paper: true, ..Settings::new(Rule::keep(0.5)) };
    let pass = Lord::new(&settings);
    let weights = Weights::new(checkpoint, &device);
    let chosen = Storage::LowRank { rank };
    let mut least = [f64::INFINITY; 3];
    let mut gap = 0.0;
    for _ in 0..rounds {
        let started = Instant::now();
        let mut moment = SecondMoment::new(rows.dim(1).unwrap(), &device).unwrap();
        for first in (0..rows.dim(0).unwrap()).step_by(CHUNK) {
            let count = CHUNK.min(rows.dim(0).unwrap() - first);
            moment.add(&rows.narrow(0, first, count).unwrap()).unwrap();
        }
        let gram = started.elapsed().as_secs_f64();
        let stats = SiteStats {
            side,
            second: Some(Arc::new(moment)),
            input_squares: Arc::from([]),
            importance: Importance::Energy(1.0),
        };
        let started = Instant::now();
        let analysis = pass.analyse(&site, &weights, Some(&stats)).unwrap();
        let decomposition = started.elapsed().as_secs_f64();
        let started = Instant::now();
        let made = pass.make(&site, &weights, &analysis, chosen, Piece::V).unwrap();
        let factors = started.elapsed().as_secs_f64();
        for (least, seconds) in least.iter_mut().zip([gram, decomposition, factors]) {
            *least = least.min(seconds);
        }
        let [u, v] = [Piece::U, Piece::V].map(|piece| &made[&piece]);
        gap = identity_gap(&x, &y, u, v, &analysis, rank);
    }
    serde_json::json!({
        "layer": name, "shape": [m, n], "rank": rank,
        "gram": least[0], "decomposition": least[1], "factors": least[2],
        "identity_gap": gap,
    })
}

/// `| |y - u v x|² / |y|² - tail share |`.
fn identity_gap(
    x: &Tensor,
    y: &Tensor,
    u: &Tensor,
    v: &Tensor,
    analysis: &Analysis,
    rank: usize,
) -> f64 {
    let wide = |t: &Tensor| t.to_dtype(DType::F64).unwrap();
    let (x, y, u, v) = (wide(x), wide(y), wide(u), wide(v));
    let kept = x.matmul(&v.t().unwrap()).unwrap().matmul(&u.t().unwrap()).unwrap();
    let energy = |t: &Tensor| t.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap();
    let lost = energy(&(&y - kept).unwrap()) / energy(&y);
    // The share is 1, so losses are shares of the energy.
    (lost - analysis.numbers("losses").unwrap()[rank]).abs()
}
