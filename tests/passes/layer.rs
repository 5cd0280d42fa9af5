//! A linear on disk, what it reads and writes over some tokens, and what its outputs are worth.

use std::collections::HashMap;
use std::sync::Arc;

use bantam::arch::{LevelPart, Piece, Role, Site, Storage};
use bantam::checkpoint::{Checkpoint, Dtype};
use bantam::linalg;
use bantam::measure::{Importance, SecondMoment, Side, SiteStats};
use bantam::passes::{Analysis, Pass, Pieces, Weights};
use candle_core::{DType, Device, Tensor, safetensors};

use super::numbers::{Random, tensor};

const TOKENS: usize = 400;

/// What the loss feels of a gain on the whole weight, in nats per token: more than of noise as large.
pub(crate) const GAIN: f64 = 4e3;

/// Wide, tall and square, none of them a multiple of anything.
pub(crate) const SHAPES: [(usize, usize); 4] = [(24, 37), (37, 24), (29, 29), (13, 60)];

/// The linear.
pub(crate) struct Layer {
    // Removes the folder at the end.
    _folder: tempfile::TempDir,
    pub(crate) checkpoint: Checkpoint,
    pub(crate) site: Site,
    x: Tensor,
    pub(crate) y: Tensor,
    pub(crate) importance: Vec<f64>,
    gain: f64,
}

impl Layer {
    /// With inputs that depend on each other, and have a mean.
    pub(crate) fn new(m: usize, n: usize, bias: bool) -> Self {
        Self::reading(m, n, bias, |mixed, mean| mixed.broadcast_add(mean).unwrap())
    }

    /// With inputs whose channels are uncorrelated, so that cross terms are none, and a gain that costs as
    /// much as noise does.
    pub(crate) fn plain(m: usize, n: usize, bias: bool) -> Self {
        let mut layer = Self::reading(m, n, bias, |mixed, scale| {
            let columns = linalg::orthonormalise(&wide(mixed), "inputs").unwrap();
            let scaled = columns.broadcast_mul(&(wide(scale) * 30.0).unwrap()).unwrap();
            scaled.to_dtype(DType::F32).unwrap()
        });
        let w = flat(&layer.weights().dense(&layer.site).unwrap());
        let squares = layer.stats(Side::Input).input_squares;
        let terms =
            w.iter().enumerate().map(|(i, w)| layer.importance[i / n] * squares[i % n] * w * w);
        layer.gain = terms.sum();
        layer
    }

    /// Reading what `inputs` makes of random rows and a random row.
    pub(crate) fn reading(
        m: usize,
        n: usize,
        bias: bool,
        inputs: impl Fn(&Tensor, &Tensor) -> Tensor,
    ) -> Self {
        let mut random = Random(m as u64 * 1000 + n as u64);
        let mut matrix = |rows: usize, columns: usize| {
            tensor(&random.vec(rows * columns, 1.0), &[rows, columns])
        };
        let (w, b, mean) = (matrix(m, n), matrix(1, m).squeeze(0).unwrap(), matrix(1, n));
        let x = inputs(&matrix(TOKENS, n).matmul(&matrix(n, n)).unwrap(), &mean);
        let mut y = x.matmul(&w.t().unwrap()).unwrap();
        let mut tensors = HashMap::from([("linear.weight", w)]);
        let mut site = Site::linear("linear", Role::AttnQ, [m, n]);
        if bias {
            y = y.broadcast_add(&b).unwrap();
            tensors.insert("linear.bias", b);
            site = site.with_bias(Dtype::F32);
        }
        let folder = tempfile::tempdir().unwrap();
        safetensors::save(&tensors, folder.path().join("model.safetensors")).unwrap();
        std::fs::write(folder.path().join("config.json"), "{}").unwrap();
        // Over three orders of magnitude, as gradients are.
        let importance =
            (0..m).map(|o| 1e-3 * 10_f64.powf((o * 7 % m) as f64 * 3.0 / m as f64)).collect();
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        Self { _folder: folder, checkpoint, site, x, y, importance, gain: GAIN }
    }

    pub(crate) fn weights(&self) -> Weights<'_> {
        Weights::new(&self.checkpoint, &Device::Cpu)
    }

    pub(crate) fn stats(&self, side: Side) -> SiteStats {
        let rows = if side == Side::Input { &self.x } else { &self.y };
        let mut moment = SecondMoment::new(rows.dim(1).unwrap(), &Device::Cpu).unwrap();
        moment.add(rows).unwrap();
        let channels = self.importance.clone().into();
        let importance = Importance::Gradients { channels, gain: self.gain };
        let squares = self.x.to_dtype(DType::F64).unwrap().sqr().unwrap().mean(0).unwrap();
        let input_squares = squares.to_vec1::<f64>().unwrap().into();
        SiteStats { side, second: Some(Arc::new(moment)), input_squares, importance }
    }

    pub(crate) fn analysis(&self, pass: &dyn Pass, side: Side) -> Analysis {
        pass.analyse(&self.site, &self.weights(), Some(&self.stats(side))).unwrap()
    }

    /// All pieces that `pass` makes of `chosen`, each asked for.
    pub(crate) fn made(&self, pass: &dyn Pass, analysis: &Analysis, chosen: Storage) -> Pieces {
        let mut all = Pieces::new();
        for piece in self.site.pieces(chosen) {
            let made = pass.make(&self.site, &self.weights(), analysis, chosen, piece).unwrap();
            assert!(made.contains_key(&piece), "{}: no {piece:?}", pass.method());
            all.extend(made);
        }
        all
    }

    /// `½ Σ_o E[g_o²] E[δy_o²]` where the output is `found` in place of `y`.
    pub(crate) fn estimate(&self, found: &Tensor) -> f64 {
        let squares = (wide(&self.y) - found).unwrap().sqr().unwrap();
        let per_channel = squares.mean(0).unwrap().to_vec1::<f64>().unwrap();
        0.5 * per_channel.iter().zip(&self.importance).map(|(e, g)| e * g).sum::<f64>()
    }

    /// The output of what was made, f64.
    pub(crate) fn output(&self, made: &Pieces, chosen: Storage) -> Tensor {
        let weight = self.dense(made, chosen);
        let y = wide(&self.x).matmul(&weight.t().unwrap()).unwrap();
        match made.get(&Piece::Bias) {
            Some(bias) => y.broadcast_add(&wide(bias)).unwrap(),
            None => y,
        }
    }

    /// The weight `[out, in]` f64 that was made, by the definition of its storage.
    pub(crate) fn dense(&self, made: &Pieces, chosen: Storage) -> Tensor {
        match chosen {
            Storage::Dense => wide(&made[&Piece::Weight]),
            Storage::LowRank { .. } => {
                wide(&made[&Piece::U]).matmul(&wide(&made[&Piece::V])).unwrap()
            }
            Storage::Stack { levels, .. } => {
                let (m, n) = (self.site.out_features, self.site.in_features);
                let scale = flat(&made[&Piece::Scale]);
                let mut w = vec![0.0; m * n];
                for level in 0..levels {
                    let part = |part| &made[&Piece::Level(level, part)];
                    let [u, v] = [LevelPart::U, LevelPart::V].map(|factor| wide(part(factor)));
                    let magnitudes = flat(&u.matmul(&v).unwrap());
                    let signs = part(LevelPart::Sign).to_vec2::<u8>().unwrap();
                    for (i, (w, magnitude)) in w.iter_mut().zip(magnitudes).enumerate() {
                        let (o, c) = (i / n, i % n);
                        let set = signs[o][c / 8] >> (7 - c % 8) & 1 == 1;
                        *w += if set { magnitude } else { -magnitude } / scale[c];
                    }
                }
                Tensor::from_vec(w, (m, n), &Device::Cpu).unwrap()
            }
        }
    }
}

pub(crate) fn wide(t: &Tensor) -> Tensor {
    t.to_dtype(DType::F64).unwrap()
}

pub(crate) fn flat(t: &Tensor) -> Vec<f64> {
    wide(t).flatten_all().unwrap().to_vec1().unwrap()
}
