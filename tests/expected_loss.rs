//! The expected loss of an offer is the second-order estimate it claims to be: what carrying the offer
//! out changes at the output, channel by channel, times the gradients' second moments, and for a stack
//! what a smaller gain costs; and no other factors of the rank cost less than lord's.

#![allow(clippy::unwrap_used, reason = "a failing test is to panic")]

#[path = "support/numbers.rs"]
mod numbers;

use std::collections::HashMap;
use std::sync::Arc;

use bantam::arch::{Port, Role, Site, Storage, Unit};
use bantam::checkpoint::{Checkpoint, Dtype};
use bantam::measure::{Importance, SecondMoment, Side, SiteStats};
use bantam::passes::{Method, PassOptions, StackOptions, UnitOutput, UnitStats, Weights};
use candle_core::{DType, Device, Tensor, safetensors};
use numbers::{Random, tensor};

const TOKENS: usize = 400;

/// What the loss feels of a gain on the whole weight, in nats per token: more than of noise as large.
const GAIN: f64 = 4e3;

/// A linear on disk, what it reads and writes over some tokens, and what its outputs are worth.
struct Layer {
    folder: tempfile::TempDir,
    site: Site,
    x: Tensor,
    y: Tensor,
    importance: Vec<f64>,
}

impl Layer {
    fn new(m: usize, n: usize, bias: bool) -> Self {
        let mut random = Random(m as u64 * 1000 + n as u64);
        let mut matrix = |rows: usize, columns: usize| {
            tensor(&random.vec(rows * columns, 1.0), &[rows, columns])
        };
        let (w, b, mean) = (matrix(m, n), matrix(1, m).squeeze(0).unwrap(), matrix(1, n));
        let x = matrix(TOKENS, n).matmul(&matrix(n, n)).unwrap().broadcast_add(&mean).unwrap();
        let mut y = x.matmul(&w.t().unwrap()).unwrap();
        let mut tensors = HashMap::from([("linear.weight", w)]);
        if bias {
            y = y.broadcast_add(&b).unwrap();
            tensors.insert("linear.bias", b);
        }
        let folder = tempfile::tempdir().unwrap();
        safetensors::save(&tensors, folder.path().join("model.safetensors")).unwrap();
        std::fs::write(folder.path().join("config.json"), "{}").unwrap();
        let site = Site {
            name: "linear".into(),
            role: Role::AttnQ,
            layer: 0,
            out_features: m,
            in_features: n,
            bias,
            dtype: Dtype::F32,
            bias_dtype: bias.then_some(Dtype::F32),
            part: None,
            port: Port::AttnIn,
            storage: Storage::Dense,
        };
        // Over three orders of magnitude, as gradients are.
        let importance =
            (0..m).map(|o| 1e-3 * 10_f64.powf((o * 7 % m) as f64 * 3.0 / m as f64)).collect();
        Self { folder, site, x, y, importance }
    }

    fn stats(&self, side: Side) -> UnitStats {
        let rows = if side == Side::Input { &self.x } else { &self.y };
        let mut moment = SecondMoment::new(rows.dim(1).unwrap(), &Device::Cpu).unwrap();
        moment.add(rows).unwrap();
        let channels = self.importance.clone().into();
        let importance = Importance::Gradients { channels, gain: GAIN };
        let squares = self.x.to_dtype(DType::F64).unwrap().sqr().unwrap().mean(0).unwrap();
        let input_squares = squares.to_vec1::<f64>().unwrap().into();
        let second = Some(Arc::new(moment));
        let stats = SiteStats { side, second, input_squares, importance };
        UnitStats::from([("linear".to_owned(), stats)])
    }

    /// `½ Σ_o E[g_o²] E[δy_o²]` for the output `found`.
    fn estimate(&self, found: &Tensor) -> f64 {
        let squares = (self.y.to_dtype(DType::F64).unwrap() - found).unwrap().sqr().unwrap();
        let per_channel = squares.mean(0).unwrap().to_vec1::<f64>().unwrap();
        0.5 * per_channel.iter().zip(&self.importance).map(|(e, g)| e * g).sum::<f64>()
    }

    /// Per rank offered: the loss that the pass expects, and the estimate for what it makes.
    fn losses(&self, method: Method, paper: bool, side: Side) -> Vec<(usize, f64, f64)> {
        let checkpoint = Checkpoint::open(self.folder.path()).unwrap();
        let weights = Weights::new(&checkpoint, &Device::Cpu);
        let unit = Unit { sites: vec![self.site.clone()] };
        let pass = method.pass(PassOptions { rank_multiple: 1, paper, ..PassOptions::default() });
        let analysis = pass.analyse(&unit, &weights, &self.stats(side)).unwrap();
        let offers = pass.offers(&unit, Some(&analysis)).unwrap();
        let low_rank = offers.iter().filter_map(|offer| match offer.storages[..] {
            [Storage::LowRank { rank }] => Some((rank, offer)),
            _ => None,
        });
        let wide = |t: &Tensor| t.to_dtype(DType::F64).unwrap();
        low_rank
            .map(|(rank, offer)| {
                let made = pass.apply(&unit, &weights, &analysis, offer).unwrap();
                let [u, v] = ["u", "v"].map(|part| wide(&made[&format!("linear.{part}.weight")]));
                let hidden = wide(&self.x).matmul(&v.t().unwrap()).unwrap();
                let mut y = hidden.matmul(&u.t().unwrap()).unwrap();
                if let Some(bias) = made.get("linear.bias") {
                    y = y.broadcast_add(&wide(bias)).unwrap();
                }
                (rank, offer.expected_loss, self.estimate(&y))
            })
            .collect()
    }
}

const SHAPES: [(usize, usize); 4] = [(24, 37), (37, 24), (29, 29), (13, 60)];

#[test]
fn expected_losses_are_the_estimate_on_every_route() {
    for (m, n) in SHAPES {
        for bias in [false, true] {
            let layer = Layer::new(m, n, bias);
            let nothing = layer.y.zeros_like().unwrap().to_dtype(DType::F64).unwrap();
            let scale = layer.estimate(&nothing);
            for side in [Side::Input, Side::Output] {
                for (method, paper) in
                    [(Method::Lord, false), (Method::Lord, true), (Method::Welore, false)]
                {
                    let losses = layer.losses(method, paper, side);
                    assert!(losses.len() >= m.min(n) / 2 - 1, "{} ranks", losses.len());
                    for (rank, expected, found) in losses {
                        let gap = (expected - found).abs() / scale;
                        assert!(
                            gap < 1e-5,
                            "{m}x{n} {method} bias {bias} paper {paper} {side:?} rank {rank}: \
                             {expected:e} expected, {found:e} found"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn no_method_costs_less_than_weighted_directions() {
    for (m, n) in SHAPES {
        let layer = Layer::new(m, n, false);
        let best = layer.losses(Method::Lord, false, Side::Input);
        let published = layer.losses(Method::Lord, true, Side::Input);
        let plain = layer.losses(Method::Welore, false, Side::Input);
        let mut better = 0;
        for ((best, published), plain) in best.iter().zip(&published).zip(&plain) {
            assert!(best.2 <= published.2 * (1.0 + 1e-6), "{m}x{n}: {best:?} {published:?}");
            assert!(best.2 <= plain.2 * (1.0 + 1e-6), "{m}x{n}: {best:?} {plain:?}");
            better += usize::from(best.2 < 0.95 * published.2);
        }
        assert!(2 * better > best.len(), "{m}x{n}: only {better} ranks gained from gradients");
    }
}

/// The weight `[out, in]` that the first `levels` blocks stand for, from what the pass made.
fn unstacked(made: &UnitOutput, levels: usize, (m, n): (usize, usize)) -> Vec<f64> {
    let scale = made["linear.scale"].to_vec1::<f32>().unwrap();
    let mut w = vec![0.0; m * n];
    for level in 0..levels {
        let part = |part: &str| made[&format!("linear.{level}.{part}")].clone();
        let [u, v] = ["u", "v"].map(|factor| part(factor).to_dtype(DType::F64).unwrap());
        let magnitudes = flat(&u.matmul(&v).unwrap());
        let signs = part("sign").to_vec2::<u8>().unwrap();
        for (i, (w, magnitude)) in w.iter_mut().zip(magnitudes).enumerate() {
            let (o, c) = (i / n, i % n);
            let sign = if signs[o][c / 8] >> (7 - c % 8) & 1 == 1 { 1.0 } else { -1.0 };
            *w += sign * magnitude / f64::from(scale[c]);
        }
    }
    w
}

fn flat(t: &Tensor) -> Vec<f64> {
    t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// A layer as a stack of three levels of rank two.
struct Stacked {
    /// The weight.
    w: Vec<f64>,
    /// `E[x_c²]`.
    squares: Arc<[f64]>,
    /// Of every number of levels offered: the loss that the pass expects, and what is left of the weight.
    offers: Vec<(usize, f64, Vec<f64>)>,
}

impl Stacked {
    fn new(layer: &Layer, stats: &UnitStats) -> Self {
        let checkpoint = Checkpoint::open(layer.folder.path()).unwrap();
        let weights = Weights::new(&checkpoint, &Device::Cpu);
        let w = flat(&weights.dense(&layer.site).unwrap());
        let unit = Unit { sites: vec![layer.site.clone()] };
        let stack = StackOptions { levels: 3, rank: 2, exact: false };
        let pass = Method::Bitstack.pass(PassOptions { stack, ..PassOptions::default() });
        let analysis = pass.analyse(&unit, &weights, stats).unwrap();
        let mut offers = Vec::new();
        for offer in pass.offers(&unit, Some(&analysis)).unwrap() {
            let [Storage::Stack { levels, .. }] = offer.storages[..] else { continue };
            let made = pass.apply(&unit, &weights, &analysis, &offer).unwrap();
            let kept = unstacked(&made, levels, (layer.site.out_features, layer.site.in_features));
            let left = w.iter().zip(&kept).map(|(w, kept)| w - kept).collect();
            offers.push((levels, offer.expected_loss, left));
        }
        assert_eq!(offers.len(), 3);
        Self { w, squares: stats["linear"].input_squares.clone(), offers }
    }
}

#[test]
fn what_a_stack_leaves_costs_as_a_share_of_the_weight_and_as_noise() {
    for (m, n) in SHAPES {
        let layer = Layer::new(m, n, false);
        let Stacked { w, squares, offers } = Stacked::new(&layer, &layer.stats(Side::Input));
        // ½ Σ_o E[g_o²] Σ_c E[x_c²] a[o, c] b[o, c]
        let product = |a: &[f64], b: &[f64]| -> f64 {
            let terms = a.iter().zip(b).enumerate();
            terms.map(|(i, (a, b))| 0.5 * layer.importance[i / n] * squares[i % n] * a * b).sum()
        };
        let whole = product(&w, &w);
        assert!(GAIN > 4.0 * whole, "a gain that weighs no more than noise shows nothing: {whole}");
        for (levels, found, left) in offers {
            let share = product(&left, &w) / whole;
            let noise: Vec<f64> = left.iter().zip(&w).map(|(left, w)| left - share * w).collect();
            let expected = product(&noise, &noise) + 0.5 * share * share * GAIN;
            let error = (found / expected - 1.0).abs();
            assert!(error < 1e-4, "{m}x{n}, {levels} levels: {found} {expected}");
            assert!(share > 0.0, "{m}x{n}, {levels} levels: {share} of the weight is left");
        }
    }
}

#[test]
fn without_gradients_a_stack_costs_its_part_of_what_the_linear_writes() {
    const SHARE: f64 = 0.3;
    for (m, n) in SHAPES {
        let layer = Layer::new(m, n, false);
        let mut stats = layer.stats(Side::Input);
        stats.get_mut("linear").unwrap().importance = Importance::Share(SHARE);
        let Stacked { w, squares, offers } = Stacked::new(&layer, &stats);
        let energy =
            |a: &[f64]| -> f64 { a.iter().enumerate().map(|(i, a)| squares[i % n] * a * a).sum() };
        for (levels, found, left) in offers {
            let expected = SHARE * energy(&left) / energy(&w);
            let error = (found / expected - 1.0).abs();
            assert!(error < 1e-4, "{m}x{n}, {levels} levels: {found} {expected}");
        }
    }
}
