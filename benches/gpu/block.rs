//! One block through `LoRD`, step by step, as `bantam compress --no-gradients` goes: its weights
//! are read, calibration tokens go through it while their moments are taken, every linear is
//! analysed, and factors are made.

use std::path::Path;
use std::time::Instant;

use bantam::arch::{Model, Piece, Site, Storage};
use bantam::error::Result;
use bantam::measure::{Compute, Draw, LayerStats, Measured, Wanted, Windows};
use bantam::model::{Block, Decoder, Observer, Positions, Unobserved};
use bantam::ops;
use bantam::passes::{Lord, Pass, Weights};
use bantam::settings::{Rule, Settings};
use candle_core::{Device, Tensor};

use crate::bench::Bench;
use crate::report::Figure;

/// A pass at any rank, as published.
pub(crate) fn lord() -> Lord {
    Lord::new(&Settings { rank_multiple: 1, paper: true, ..Settings::new(Rule::keep(0.5)) })
}

/// What a run of it without gradients takes.
pub(crate) fn measured(model: &Model) -> Measured<'_> {
    let taken: Vec<&Site> = model.sites().iter().filter(|site| lord().takes(site)).collect();
    Measured { gradients: false, moments: taken.clone(), analysed: taken }
}

/// Runs from reading to factors, of which the best counts; the first also loads the libraries.
const RUNS: usize = 2;

pub(crate) fn measure(bench: &mut Bench, folder: &Path) -> Result<()> {
    let model = Model::open(folder)?;
    let windows = random_windows(bench, &model)?;
    let memory = ops::free_memory(&bench.device)?.unwrap_or(u64::MAX);
    let place = Compute::on(&bench.device, memory, &model, windows.length(), &measured(&model))?;
    let layer = Layer::new(&model, &windows, &place)?;

    let plain = {
        let block = layer.read()?;
        bench.seconds(|_| layer.forward(&block, &mut Unobserved))?
    };
    let observed = {
        let block = layer.read()?;
        let mut moments = layer.moments()?;
        bench.seconds(|_| layer.forward(&block, &mut moments))?
    };
    report_forward(bench, &layer, plain, observed);

    let mut best: Option<Steps> = None;
    for _ in 0..RUNS {
        let run = layer.lord(bench.sizes.rank)?;
        if best.as_ref().is_none_or(|best| run.total() < best.total()) {
            best = Some(run);
        }
    }
    if let Some(best) = best {
        report_lord(bench, &layer, &best, observed - plain);
    }
    Ok(())
}

/// Windows of tokens drawn uniformly from the vocabulary, as many as the sizes say.
pub(crate) fn random_windows(bench: &Bench, model: &Model) -> Result<Windows> {
    let length = bench.sizes.window.min(model.spec().max_positions);
    let mut state = 1_u64;
    let ids: Vec<u32> = (0..bench.sizes.tokens)
        .map(|_| {
            // Knuth's MMIX generator; its high bits are random enough.
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            ((state >> 33) % model.spec().vocab as u64) as u32
        })
        .collect();
    Windows::cut(&ids, length, None, Draw::FromStart)
}

/// The first block of a model and the chunks of tokens that go through it.
struct Layer<'a> {
    model: &'a Model,
    decoder: Decoder<'a>,
    chunks: Vec<Tensor>,
    rope: (Tensor, Tensor),
    length: usize,
}

/// Seconds of each step.
struct Steps {
    read: f64,
    forward: f64,
    analyse: Vec<(&'static str, f64)>,
    apply: f64,
}

impl Steps {
    fn analyses(&self) -> f64 {
        self.analyse.iter().map(|(_, seconds)| seconds).sum()
    }

    fn total(&self) -> f64 {
        self.read + self.forward + self.analyses() + self.apply
    }
}

impl<'a> Layer<'a> {
    fn new(model: &'a Model, windows: &Windows, place: &Compute) -> Result<Self> {
        let decoder = Decoder::new(model, place.device());
        let length = windows.length();
        let chunks = windows.ids().chunks(place.chunk_tokens(length));
        let chunks = chunks.map(|ids| decoder.embed(ids, 0, length)).collect::<Result<_>>()?;
        let rope = decoder.rope(0, length)?;
        Ok(Self { model, decoder, chunks, rope, length })
    }

    fn device(&self) -> &Device {
        self.decoder.device()
    }

    fn sites(&self) -> Vec<&'a Site> {
        self.model.layer_sites(0).collect()
    }

    fn tokens(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.dims()[0]).sum()
    }

    fn read(&self) -> Result<Block> {
        self.decoder.block(0)
    }

    fn moments(&self) -> Result<LayerStats> {
        let sites = self.sites();
        let wanted = Wanted { moments: &sites, shares: true };
        LayerStats::new(&sites, wanted, self.device())
    }

    /// All chunks through `block`.
    fn forward(&self, block: &Block, observer: &mut dyn Observer) -> Result<()> {
        let (length, (cos, sin)) = (self.length, &self.rope);
        for x in &self.chunks {
            let batch = x.dim(0)? / length;
            let context = Positions { batch, length, first: 0, cos, sin };
            block.forward(x, &context, None, observer)?;
        }
        Ok(())
    }

    /// From reading to factors of at most `rank`.
    fn lord(&self, rank: usize) -> Result<Steps> {
        let pass = lord();
        let weights = Weights::new(self.model.checkpoint(), self.device());
        let (read, block) = self.timed(|| self.read())?;
        let (forward, stats) = self.timed(|| {
            let mut moments = self.moments()?;
            self.forward(&block, &mut moments)?;
            moments.finish(&self.sites(), None)
        })?;
        drop(block);
        let (mut analyse, mut apply) = (Vec::new(), 0.0);
        for site in self.sites().into_iter().filter(|site| pass.takes(site)) {
            let Some(stats) = stats.get(&site.name) else { continue };
            let (seconds, analysis) = self.timed(|| pass.analyse(site, &weights, Some(stats)))?;
            analyse.push((site.role.as_str(), seconds));
            let chosen = Storage::LowRank { rank: rank.min(site.break_even()) };
            let (seconds, _) =
                self.timed(|| pass.make(site, &weights, &analysis, chosen, Piece::V))?;
            apply += seconds;
        }
        Ok(Steps { read, forward, analyse, apply })
    }

    /// What `work` makes, once the device is done with it, and the seconds that took.
    fn timed<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<(f64, T)> {
        let started = Instant::now();
        let made = work()?;
        self.device().synchronize()?;
        Ok((started.elapsed().as_secs_f64(), made))
    }
}

fn report_forward(bench: &mut Bench, layer: &Layer<'_>, plain: f64, observed: f64) {
    let (tokens, spec) = (layer.tokens() as f64, &layer.model.spec().attention);
    let weights: usize = layer.sites().iter().map(|site| site.parameters(Storage::Dense)).sum();
    // Score and weighted sum of every query with the keys up to it.
    let attention = 2.0 * (spec.heads * spec.head_dim) as f64 * (layer.length as f64 + 1.0);
    let operations = tokens * (2.0 * weights as f64 + attention);
    let limit = bench.report.value("matmul_bf16");
    let value = operations / plain / 1e12;
    let note = format!("{weights} weights, {:.0} tokens/s", tokens / plain);
    bench.report.add("forward", Figure { value, unit: "TFLOP/s", limit, note });
    let mut seconds = |name, value, note: &str| {
        bench.report.add(name, Figure { value, unit: "s", limit: None, note: note.to_owned() });
    };
    seconds("forward_seconds", plain, &format!("{tokens} tokens through the block"));
    seconds("forward_with_moments_seconds", observed, "the same, observed");
}

fn report_lord(bench: &mut Bench, layer: &Layer<'_>, steps: &Steps, gram: f64) {
    let mut seconds = |name: &str, value: f64, note: String| {
        bench.report.add(name, Figure { value, unit: "s", limit: None, note });
    };
    let tokens = layer.tokens();
    seconds("lord_read", steps.read, "the block's weights, from file to device".into());
    seconds("lord_gram", gram.max(0.0), format!("moments of {tokens} tokens"));
    seconds("lord_analyse", steps.analyses(), "eigenproblems of all linears".into());
    for (role, value) in &steps.analyse {
        seconds(&format!("lord_analyse_{}", role.replace('.', "_")), *value, String::new());
    }
    seconds("lord_apply", steps.apply, "factors of all linears".into());
    let rest = (steps.total() - gram - steps.analyses()).max(0.0);
    seconds("lord_rest", rest, "read, forward and factors".into());
    seconds("lord_block", steps.total(), format!("{tokens} tokens, from file to factors"));
}
