//! `LoRD` against the optimum that Eckart and Young give, and the rules of its factors.

use bantam::arch::{Piece, Storage};
use bantam::linalg;
use bantam::measure::{Importance, Side};
use bantam::passes::{Lord, Pass};
use bantam::settings::{Rule, Settings};
use candle_core::{Device, Tensor};

use super::layer::{Layer, SHAPES, flat, wide};

fn lord() -> Lord {
    Lord::new(&Settings { rank_multiple: 1, ..Settings::new(Rule::keep(0.5)) })
}

/// A layer one input of which is always zero and another thirty times as large as the rest.
fn lopsided(m: usize, n: usize) -> Layer {
    Layer::reading(m, n, false, |mixed, mean| {
        let mut scale = vec![1.0_f32; n];
        (scale[1], scale[2]) = (0.0, 30.0);
        let scale = Tensor::from_vec(scale, (1, n), &Device::Cpu).unwrap();
        mixed.broadcast_add(mean).unwrap().broadcast_mul(&scale).unwrap()
    })
}

#[test]
fn no_matrix_of_the_rank_expects_less() {
    for (m, n) in SHAPES.into_iter().chain([(7, 13), (13, 7), (12, 40)]) {
        for layer in [Layer::new(m, n, false), lopsided(m, n)] {
            let stats = layer.stats(Side::Input);
            let Importance::Gradients { channels, .. } = &stats.importance else { unreachable!() };
            // Whitening: with L Lᵀ the second moment of the inputs and S² the gradients', the least
            // that rank r leaves of S W L is the tail of its singular values.
            let roots: Vec<f64> = channels.iter().map(|g| g.sqrt()).collect();
            let scale = Tensor::from_vec(roots, (m, 1), &Device::Cpu).unwrap();
            let root = stats.moment().unwrap().root(false, "inputs").unwrap();
            let weight = layer.weights().weight(&layer.site).unwrap();
            let white = weight.broadcast_mul(&scale).unwrap().matmul(&root).unwrap();
            let values = linalg::svd(&white, "whitened").unwrap().s;
            let least = |rank: usize| 0.5 * values[rank..].iter().map(|s| s * s).sum::<f64>();
            for side in [Side::Input, Side::Output] {
                let analysis = layer.analysis(&lord(), side);
                let offers = lord().offers(&layer.site, Some(&analysis)).unwrap();
                assert_eq!(offers.len(), layer.site.break_even());
                for offer in offers {
                    let (rank, loss) = (offer.storage.rank(), offer.price.expected_loss);
                    let gap = (loss - least(rank)).abs();
                    assert!(gap < 1e-5 * least(0), "{m}x{n} {side:?} rank {rank}: {gap:e}");
                }
            }
        }
    }
}

#[test]
fn factors_of_a_smaller_rank_are_a_slice_of_those_of_a_larger() {
    for (m, n) in SHAPES {
        let layer = Layer::new(m, n, false);
        let analysis = layer.analysis(&lord(), Side::Input);
        let made = |rank| layer.made(&lord(), &analysis, Storage::LowRank { rank });
        let (small, large) = (made(3), made(8));
        let u = large[&Piece::U].narrow(1, 0, 3).unwrap();
        assert_eq!(flat(&small[&Piece::U]), flat(&u));
        let v = flat(&large[&Piece::V].narrow(0, 0, 3).unwrap());
        for (a, b) in flat(&small[&Piece::V]).into_iter().zip(v) {
            assert!((a - b).abs() < 1e-5 * (1.0 + b.abs()), "{m}x{n}: {a} {b}");
        }
    }
}

#[test]
fn a_linear_with_a_bias_keeps_its_mean_output_and_gains_by_centring() {
    let chosen = Storage::LowRank { rank: 3 };
    for (m, n) in SHAPES {
        for side in [Side::Input, Side::Output] {
            let estimate = |bias: bool| {
                let layer = Layer::new(m, n, bias);
                let analysis = layer.analysis(&lord(), side);
                let found = layer.output(&layer.made(&lord(), &analysis, chosen), chosen);
                let moved = (wide(&layer.y) - &found).unwrap().mean(0).unwrap();
                (layer.estimate(&found), flat(&moved), flat(&wide(&layer.y).mean(0).unwrap()))
            };
            let (centred, moved, mean) = estimate(true);
            for (moved, mean) in moved.into_iter().zip(mean) {
                assert!(moved.abs() < 1e-5 * (1.0 + mean.abs()), "{m}x{n} {side:?}: {moved:e}");
            }
            // The same weight and inputs without a bias, about zero.
            let (about_zero, ..) = estimate(false);
            assert!(centred < about_zero, "{m}x{n} {side:?}: {centred} {about_zero}");
        }
    }
}
