//! The expected loss of an offer is the second-order estimate it claims to be: what carrying the offer
//! out changes at the output, channel by channel, times the gradients' second moments, and for a stack
//! what a smaller gain costs; and no other factors of the rank cost less than lord's.

use std::sync::Arc;

use bantam::arch::Storage;
use bantam::measure::{Importance, Side, SiteStats};
use bantam::passes::{Bitstack, Lord, Pass, Welore};
use bantam::settings::{Rule, Settings, StackSettings};
use candle_core::DType;

use super::layer::{GAIN, Layer, SHAPES, flat};

fn settings(paper: bool) -> Settings {
    Settings { rank_multiple: 1, paper, ..Settings::new(Rule::keep(0.5)) }
}

/// Per rank offered: the loss that the pass expects, and the estimate for what it makes.
fn losses(layer: &Layer, pass: &dyn Pass, side: Side) -> Vec<(usize, f64, f64)> {
    let analysis = layer.analysis(pass, side);
    let offers = pass.offers(&layer.site, Some(&analysis)).unwrap();
    offers
        .into_iter()
        .map(|offer| {
            let made = layer.made(pass, &analysis, offer.storage);
            let found = layer.estimate(&layer.output(&made, offer.storage));
            (offer.storage.rank(), offer.price.expected_loss, found)
        })
        .collect()
}

#[test]
fn expected_losses_are_the_estimate_on_every_route() {
    let passes: [(&str, Box<dyn Pass>); 3] = [
        ("lord", Box::new(Lord::new(&settings(false)))),
        ("lord as published", Box::new(Lord::new(&settings(true)))),
        ("welore", Box::new(Welore::new(&settings(false)))),
    ];
    for (m, n) in SHAPES {
        for bias in [false, true] {
            let layer = Layer::new(m, n, bias);
            let nothing = layer.y.zeros_like().unwrap().to_dtype(DType::F64).unwrap();
            let scale = layer.estimate(&nothing);
            for side in [Side::Input, Side::Output] {
                for (name, pass) in &passes {
                    let losses = losses(&layer, pass.as_ref(), side);
                    assert!(losses.len() >= m.min(n) / 2 - 1, "{} ranks", losses.len());
                    for (rank, expected, found) in losses {
                        let gap = (expected - found).abs() / scale;
                        assert!(
                            gap < 1e-5,
                            "{m}x{n} {name} bias {bias} {side:?} rank {rank}: \
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
        let best = losses(&layer, &Lord::new(&settings(false)), Side::Input);
        let published = losses(&layer, &Lord::new(&settings(true)), Side::Input);
        let plain = losses(&layer, &Welore::new(&settings(false)), Side::Input);
        let mut better = 0;
        for ((best, published), plain) in best.iter().zip(&published).zip(&plain) {
            assert!(best.2 <= published.2 * (1.0 + 1e-6), "{m}x{n}: {best:?} {published:?}");
            assert!(best.2 <= plain.2 * (1.0 + 1e-6), "{m}x{n}: {best:?} {plain:?}");
            better += usize::from(best.2 < 0.95 * published.2);
        }
        assert!(2 * better > best.len(), "{m}x{n}: only {better} ranks gained from gradients");
    }
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
    fn new(layer: &Layer, stats: &SiteStats) -> Self {
        let w = flat(&layer.weights().dense(&layer.site).unwrap());
        let stack = StackSettings { levels: 3, rank: 2, ..StackSettings::default() };
        let pass = Bitstack::new(&Settings { stack, ..settings(false) });
        let analysis = pass.analyse(&layer.site, &layer.weights(), Some(stats)).unwrap();
        let offers = pass.offers(&layer.site, Some(&analysis)).unwrap().into_iter().map(|offer| {
            let made = layer.made(&pass, &analysis, offer.storage);
            let kept = flat(&layer.dense(&made, offer.storage));
            let left = w.iter().zip(&kept).map(|(w, kept)| w - kept).collect();
            assert!(matches!(offer.storage, Storage::Stack { rank: 2, .. }));
            (offer.storage.levels(), offer.price.expected_loss, left)
        });
        let offers: Vec<_> = offers.collect();
        assert_eq!(offers.len(), 3);
        Self { w, squares: stats.input_squares.clone(), offers }
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
        let stats = SiteStats { importance: Importance::Energy(SHARE), ..layer.stats(Side::Input) };
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
