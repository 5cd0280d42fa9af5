//! The backward pass block by block: against autograd of the whole model at once, against finite
//! differences of the loss, and the same bits however it is run.

#![allow(clippy::unwrap_used, reason = "a failing test is to panic")]

#[path = "support/numbers.rs"]
mod numbers;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use bantam::arch::{Model, Port, Site};
use bantam::error::Result;
use bantam::eval::perplexity;
use bantam::measure::{
    Backward, Compute, Draw, GradientMoments, Importance, LayerStats, Scored, Spill, Stream,
    Wanted, Windows,
};
use bantam::model::{Decoder, GradientSink, GradientSinks, Half, Observer, Positions};
use bantam::progress::Silent;
use candle_core::{DType, Device, Tensor, Var};
use numbers::*;

const DEVICE: Device = Device::Cpu;

/// All statistics of a layer.
/// Everything there is of `sites`.
fn everything<'a>(sites: &'a [&'a Site]) -> Wanted<'a> {
    Wanted { moments: sites, shares: true }
}

fn golden(name: &str) -> Model {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden");
    Model::open(&root.join(name)).unwrap()
}

/// Windows of random tokens.
fn windows(model: &Model, count: usize, length: usize) -> Windows {
    let mut random = Random(21);
    let vocab = model.spec().vocab as u64;
    let tokens: Vec<u32> = (0..count * length).map(|_| (random.next() % vocab) as u32).collect();
    Windows::cut(&tokens, length, None, Draw::FromStart).unwrap()
}

fn in_memory() -> Spill {
    Spill { memory: u64::MAX, folder: "/nonexistent".into() }
}

fn backward<'a>(model: &'a Model, windows: &Windows, keep: &Spill) -> Backward<'a> {
    Backward::forward(model, windows, &Compute::cpu(), keep, &Silent).unwrap()
}

/// Moments of every layer, last first, and the gradients at the head's input and at every block's,
/// last first.
fn all_the_way(mut pass: Backward<'_>) -> (Vec<GradientMoments>, Vec<Vec<f32>>) {
    let flat = |pass: &Backward<'_>| {
        pass.gradients().flat_map(|chunk| values(&chunk.unwrap())).collect::<Vec<_>>()
    };
    let (mut moments, mut gradients) = (Vec::new(), vec![flat(&pass)]);
    while pass.next_layer().is_some() {
        moments.push(pass.retreat_unobserved(&Silent).unwrap());
        gradients.push(flat(&pass));
    }
    (moments, gradients)
}

/// Keeps every gradient it is shown.
#[derive(Default)]
struct Recorder(Mutex<Vec<Tensor>>);

impl GradientSink for Recorder {
    fn gradient(&self, gradient: &Tensor) -> Result<()> {
        self.0.lock().unwrap().push(gradient.clone());
        Ok(())
    }
}

/// Asks for the gradients at all outputs, and at the inputs of the sites that it is told.
#[derive(Default)]
struct Everywhere {
    outputs: BTreeMap<String, Arc<Recorder>>,
    inputs: BTreeMap<Port, Arc<Recorder>>,
    /// Activations of the ports that only one site reads.
    hidden: BTreeMap<Port, Vec<f32>>,
    /// What every site wrote.
    written: BTreeMap<String, Tensor>,
    /// The tokens of each expert's rows, in the block that comes; and of each expert's sites.
    routed: BTreeMap<usize, Vec<u32>>,
    tokens: BTreeMap<String, Vec<u32>>,
}

fn one_reader(port: Port) -> bool {
    matches!(port, Port::AttnOut | Port::MlpHidden | Port::ExpertHidden(_))
}

impl Observer for Everywhere {
    fn input(&mut self, port: Port, x: &Tensor) -> Result<()> {
        if one_reader(port) {
            self.hidden.insert(port, values(x));
        }
        Ok(())
    }

    fn output(&mut self, site: &Site, y: &Tensor) -> Result<()> {
        self.written.insert(site.name.clone(), y.detach());
        if let Port::ExpertIn(expert) | Port::ExpertHidden(expert) = site.port {
            self.tokens.insert(site.name.clone(), self.routed[&expert].clone());
        }
        Ok(())
    }

    fn residual(&mut self, _: Half, _: &Tensor, _: &Tensor) -> Result<()> {
        Ok(())
    }

    fn routed(&mut self, expert: usize, tokens: &[u32]) -> Result<()> {
        self.routed.insert(expert, tokens.to_vec());
        Ok(())
    }

    fn gradients(&mut self, site: &Site) -> Result<GradientSinks> {
        let output = self.outputs.entry(site.name.clone()).or_default();
        let mut sinks = GradientSinks { output: Some(output.clone()), ..GradientSinks::default() };
        if one_reader(site.port) {
            sinks.input = Some(self.inputs.entry(site.port).or_default().clone());
        }
        Ok(sinks)
    }
}

/// The residual stream before block `first` of `windows`, as one chunk.
fn stream_before(model: &Model, windows: &Windows, first: usize) -> Tensor {
    let mut stream = Stream::new(model, windows, &Compute::cpu()).unwrap();
    for _ in 0..first {
        stream.advance_unobserved(&Silent).unwrap();
    }
    Tensor::cat(stream.chunks(), 0).unwrap()
}

/// The losses of all scored positions, computed in one graph from the stream before block `first`.
fn losses_from(
    model: &Model,
    windows: &Windows,
    first: usize,
    x: &Tensor,
    observer: &mut dyn Observer,
) -> Tensor {
    let decoder = Decoder::new(model, &DEVICE);
    let (length, batch) = (windows.length(), windows.count());
    let (cos, sin) = decoder.rope(0, length).unwrap();
    let context = Positions { batch, length, first: 0, cos: &cos, sin: &sin };
    let mut x = x.clone();
    for layer in first..model.spec().layers.len() {
        x = decoder.block(layer).unwrap().forward(&x, &context, None, observer).unwrap();
    }
    let head = decoder.head().unwrap();
    let groups = Scored::groups(windows.ids(), length, &DEVICE).unwrap();
    // The head computes losses without a graph; here they are taken from the logits, step by step.
    let losses = groups.iter().map(|Scored { rows, targets }| {
        let logits = head.logits(&x.index_select(rows, 0).unwrap()).unwrap();
        negative_log_likelihood(&logits, targets).unwrap()
    });
    Tensor::cat(&losses.collect::<Vec<_>>(), 0).unwrap()
}

fn negative_log_likelihood(logits: &Tensor, targets: &Tensor) -> candle_core::Result<Tensor> {
    let max = logits.max_keepdim(1)?.detach();
    let sum = logits.broadcast_sub(&max)?.exp()?.sum_keepdim(1)?;
    let of_target = logits.gather(&targets.unsqueeze(1)?, 1)?;
    ((sum.log()? + max)? - of_target)?.squeeze(1)
}

/// The largest difference as a share of the largest value.
fn difference(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
    let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(largest > 0.0, "all zero");
    // A maximum passes over what is no number.
    assert!(found.iter().all(|value| value.is_finite()), "not finite");
    f64::from(worst / largest)
}

/// Windows of unequal parts of a chunk, with positions enough for sliding windows of 5.
const SHAPES: [(usize, usize); 2] = [(3, 17), (1, 2)];
const MODELS: [&str; 9] = [
    "llama",
    "llama-bias",
    "qwen2-sliding",
    "qwen3-moe",
    "qwen3-moe-mixed",
    "gpt-bigcode",
    "gpt-neox",
    "phi3-partial-sliding",
    "gemma2",
];

#[test]
fn gradients_are_those_of_the_whole_model_at_once() {
    for name in MODELS {
        let model = golden(name);
        for (count, length) in SHAPES {
            let windows = windows(&model, count, length);
            let (_, gradients) = all_the_way(backward(&model, &windows, &in_memory()));
            let layers = model.spec().layers.len();
            for (place, found) in (0..=layers).rev().zip(&gradients) {
                let x = Var::from_tensor(&stream_before(&model, &windows, place)).unwrap();
                let mut observer = Everywhere::default();
                let losses = losses_from(&model, &windows, place, &x, &mut observer);
                let whole = losses.sum_all().unwrap().backward().unwrap();
                let error = difference(found, &values(whole.get(&x).unwrap()));
                assert!(error < 1e-5, "{name} at block {place}: {error:e}");
            }
        }
    }
}

/// `Σ g²` by channel, in f64.
fn squares(gradients: &[Tensor]) -> Vec<f64> {
    let width = gradients[0].dim(1).unwrap();
    let mut sums = vec![0.0; width];
    for row in gradients.iter().flat_map(|g| g.to_vec2::<f32>().unwrap()) {
        sums.iter_mut().zip(row).for_each(|(sum, g)| *sum += f64::from(g).powi(2));
    }
    sums
}

#[test]
fn channel_moments_are_those_of_the_whole_model_at_once() {
    for name in MODELS {
        let model = golden(name);
        let windows = windows(&model, 3, 17);
        let (moments, _) = all_the_way(backward(&model, &windows, &in_memory()));
        let x = Var::from_tensor(&stream_before(&model, &windows, 0)).unwrap();
        let mut observer = Everywhere::default();
        let losses = losses_from(&model, &windows, 0, &x, &mut observer);
        losses.sum_all().unwrap().backward().unwrap();
        let found: BTreeMap<_, _> = moments.iter().flat_map(GradientMoments::iter).collect();
        assert_eq!(found.len(), observer.outputs.len(), "{name}");
        for (site, seen) in &observer.outputs {
            let seen = seen.0.lock().unwrap();
            let tokens: usize = seen.iter().map(|g| g.dim(0).unwrap()).sum();
            assert_eq!(found[site.as_str()].tokens, tokens as u64, "{name} {site}");
            let exact = squares(&seen);
            let largest = exact.iter().copied().fold(0.0, f64::max);
            for (found, exact) in found[site.as_str()].squares.iter().zip(&exact) {
                let error = (found - exact).abs() / largest;
                assert!(error < 1e-5, "{name} {site}: {found} instead of {exact}");
            }
        }
    }
}

/// `Σ_t ⟨g[t], y[t] - bias⟩` over the tokens of every window, in f64, and the same of absolute values: what
/// a norm makes of `y` next may not feel its size at all.
fn pulls(
    gradient: &Tensor,
    y: &Tensor,
    bias: Option<&Tensor>,
    tokens: Option<&Vec<u32>>,
    length: usize,
) -> BTreeMap<usize, (f64, f64)> {
    let wide = |t: &Tensor| t.to_dtype(DType::F64).unwrap();
    let y = bias.map_or(wide(y), |bias| wide(y).broadcast_sub(&wide(bias)).unwrap());
    let products = (wide(gradient) * y).unwrap().to_vec2::<f64>().unwrap();
    let mut windows = BTreeMap::<usize, (f64, f64)>::new();
    for (row, products) in products.into_iter().enumerate() {
        let token = tokens.map_or(row, |tokens| tokens[row] as usize);
        let (sum, size) = windows.entry(token / length).or_default();
        *sum += products.iter().sum::<f64>();
        *size += products.iter().map(|product| product.abs()).sum::<f64>();
    }
    windows
}

#[test]
fn the_gain_of_a_weight_is_pulled_by_all_tokens_of_a_window_together() {
    for name in MODELS {
        let model = golden(name);
        let windows = windows(&model, 3, 17);
        let (moments, _) = all_the_way(backward(&model, &windows, &in_memory()));
        let found: BTreeMap<_, _> = moments.iter().flat_map(GradientMoments::iter).collect();
        let x = Var::from_tensor(&stream_before(&model, &windows, 0)).unwrap();
        let mut seen = Everywhere::default();
        let losses = losses_from(&model, &windows, 0, &x, &mut seen);
        losses.sum_all().unwrap().backward().unwrap();
        assert!(found.keys().eq(seen.outputs.keys()), "{name}: other sites");
        for site in model.sites().iter().filter(|site| found.contains_key(site.name.as_str())) {
            let gradient = &seen.outputs[&site.name].0.lock().unwrap()[0];
            let bias = bantam::model::bias(model.checkpoint(), site, &DEVICE).unwrap();
            let (y, tokens) = (&seen.written[&site.name], seen.tokens.get(&site.name));
            let windows = pulls(gradient, y, bias.as_ref(), tokens, 17);
            let exact: f64 = windows.values().map(|(sum, _)| sum * sum).sum();
            let size: f64 = windows.values().map(|(_, size)| size * size).sum();
            let gain = found[site.name.as_str()].gain;
            let error = (gain - exact).abs() / size;
            assert!(error < 1e-6, "{name} {}: {gain} instead of {exact}", site.name);
        }
    }
}

/// The summed loss in f64.
fn loss(model: &Model, windows: &Windows, x: &Tensor) -> f64 {
    let losses = losses_from(model, windows, 0, x, &mut bantam::model::Unobserved);
    losses.to_vec1::<f32>().unwrap().into_iter().map(f64::from).sum()
}

#[test]
fn gradients_are_the_slopes_of_the_loss() {
    for name in MODELS {
        let model = golden(name);
        let windows = windows(&model, 3, 17);
        let (_, gradients) = all_the_way(backward(&model, &windows, &in_memory()));
        let gradient = gradients.last().unwrap();
        let x = stream_before(&model, &windows, 0);
        let norm = |v: &[f32]| v.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
        let mut random = Random(5);
        // The steepest way, and ways of which a third of the rows is part.
        let mut ways = vec![gradient.clone()];
        for part in 0..3 {
            let width = model.spec().hidden;
            let mixed = gradient.iter().enumerate().map(|(i, g)| match i / width % 3 == part {
                true => g * (1.0 + random.uniform()),
                false => 0.0,
            });
            ways.push(mixed.collect());
        }
        for (index, way) in ways.iter().enumerate() {
            let length = norm(way);
            let slope: f64 =
                way.iter().zip(gradient).map(|(w, g)| f64::from(*w) * f64::from(*g)).sum::<f64>()
                    / length;
            // Small enough that no token changes its experts: there the loss jumps.
            let step = 2e-4 * norm(&values(&x)) / (x.dim(0).unwrap() as f64).sqrt();
            let way = tensor(way, x.dims());
            let at =
                |by: f64| loss(&model, &windows, &(&x + (&way * (by / length)).unwrap()).unwrap());
            // Central differences of two steps, the error of order step² taken out.
            let central = |step: f64| (at(step) - at(-step)) / (2.0 * step);
            let found = (4.0 * central(step) - central(2.0 * step)) / 3.0;
            let error = (found / slope - 1.0).abs();
            assert!(error < 1e-3, "{name}, way {index}: slope {found}, expected {slope}");
        }
    }
}

/// The moments and gradients of 100 windows, four chunks.
fn long_run(model: &Model, keep: &Spill) -> (Vec<GradientMoments>, Vec<Vec<u32>>) {
    let (moments, gradients) = all_the_way(backward(model, &windows(model, 100, 32), keep));
    let bits = |v: Vec<f32>| v.into_iter().map(f32::to_bits).collect();
    (moments, gradients.into_iter().map(bits).collect())
}

#[test]
fn bits_do_not_depend_on_threads_or_on_where_activations_are_kept() {
    for name in ["llama", "qwen3-moe"] {
        let model = golden(name);
        let expected = long_run(&model, &in_memory());
        for threads in [1, 2, 3] {
            let found = on_threads(threads, || long_run(&model, &in_memory()));
            assert!(found == expected, "{name}: {threads} threads give other bits");
        }
        let folder = tempfile::tempdir().unwrap();
        for memory in [0, 150_000, 500_000] {
            let keep = Spill { memory, folder: folder.path().to_owned() };
            assert!(long_run(&model, &keep) == expected, "{name}: {memory} bytes in memory");
            assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "a file is left");
        }
    }
}

#[test]
fn the_way_back_shows_an_observer_what_the_way_there_does() {
    let model = golden("qwen3-moe");
    let windows = windows(&model, 100, 32);
    let (expected, _) = all_the_way(backward(&model, &windows, &in_memory()));
    let mut pass = backward(&model, &windows, &in_memory());
    let mut stream = Stream::new(&model, &windows, &Compute::cpu()).unwrap();
    let mut there = Vec::new();
    let layers = model.spec().layers.len();
    for layer in 0..layers {
        let sites: Vec<&Site> = model.layer_sites(layer).collect();
        let mut moments = LayerStats::new(&sites, everything(&sites), &DEVICE).unwrap();
        stream.advance(&mut moments, &Silent).unwrap();
        there.push(moments.finish(&sites, None).unwrap());
    }
    for (expected, layer) in expected.iter().zip((0..layers).rev()) {
        assert_eq!(pass.next_layer(), Some(layer));
        let sites: Vec<&Site> = model.layer_sites(layer).collect();
        let mut moments = LayerStats::new(&sites, everything(&sites), &DEVICE).unwrap();
        let gradients = pass.retreat(&mut moments, &Silent).unwrap();
        assert!(gradients == *expected, "block {layer}: an observer changes the gradients");
        let back = moments.finish(&sites, None).unwrap();
        assert!(there[layer].keys().eq(back.keys()));
        // What the experts add together is shared out by the tokens that each was sent.
        let per_token: Vec<f64> = sites
            .iter()
            .filter(|site| matches!(site.port, Port::ExpertIn(_)) && back.contains_key(&site.name))
            .map(|site| match back[&site.name].importance {
                Importance::Energy(share) => {
                    share / gradients.get(&site.name).unwrap().tokens as f64
                }
                Importance::Gradients { .. } => panic!("no gradients were given"),
            })
            .collect();
        assert!(per_token.len() > 2 && per_token[0] > 0.0, "{per_token:?}");
        assert!(per_token.iter().all(|share| (share / per_token[0] - 1.0).abs() < 1e-12));
        for (name, back) in &back {
            let there = &there[layer][name];
            let (Importance::Energy(one), Importance::Energy(other)) =
                (&there.importance, &back.importance)
            else {
                panic!("{name}: no gradients were taken");
            };
            assert_eq!(one.to_bits(), other.to_bits(), "{name}");
            let second = |stats: &bantam::measure::SiteStats| {
                values_f64(&stats.moment().unwrap().second(false, "second").unwrap())
            };
            assert!(second(there) == second(back), "{name}: other second moments");
        }
    }
    assert_eq!(pass.next_layer(), None);
    assert!(pass.retreat_unobserved(&Silent).is_err());
}

#[test]
fn an_expert_counts_the_same_whoever_else_is_measured() {
    let model = golden("qwen3-moe");
    let windows = windows(&model, 3, 17);
    let shares = |wanted: fn(&Site) -> bool| -> BTreeMap<String, u64> {
        let sites: Vec<&Site> = model.layer_sites(0).filter(|site| wanted(site)).collect();
        let mut moments = LayerStats::new(&sites, everything(&[]), &DEVICE).unwrap();
        let mut stream = Stream::new(&model, &windows, &Compute::cpu()).unwrap();
        stream.advance(&mut moments, &Silent).unwrap();
        let share = |importance: &Importance| match importance {
            Importance::Energy(share) => share.to_bits(),
            Importance::Gradients { .. } => panic!("no gradients were given"),
        };
        let stats = moments.finish(&sites, None).unwrap();
        stats.iter().map(|(name, stats)| (name.clone(), share(&stats.importance))).collect()
    };
    let (all, some) = (shares(|_| true), shares(|site| matches!(site.port, Port::ExpertHidden(1))));
    assert!(some.len() == 1 && all.len() > 4, "{some:?}");
    assert!(some.iter().all(|(name, share)| all[name] == *share), "{some:?} of {all:?}");
}

#[test]
fn moments_of_the_parts_add_up_to_those_of_the_whole() {
    for name in ["qwen2-sliding", "qwen3-moe"] {
        let model = golden(name);
        // More than one chunk of them.
        let all = windows(&model, 80, 16);
        let (whole, _) = all_the_way(backward(&model, &all, &in_memory()));
        let mut sums: BTreeMap<String, (Vec<f64>, f64, u64)> = BTreeMap::new();
        for ids in all.ids().chunks(16) {
            let one = Windows::cut(ids, 16, None, Draw::FromStart).unwrap();
            let (parts, _) = all_the_way(backward(&model, &one, &in_memory()));
            for (site, part) in parts.iter().flat_map(GradientMoments::iter) {
                let zero = || (vec![0.0; part.squares.len()], 0.0, 0);
                let (sum, gain, tokens) = sums.entry(site.to_owned()).or_insert_with(zero);
                sum.iter_mut().zip(&part.squares).for_each(|(sum, part)| *sum += part);
                *gain += part.gain;
                *tokens += part.tokens;
            }
        }
        assert!(whole.iter().all(|layer| layer.tokens() == 80 * 16), "{name}");
        let strongest = sums.values().map(|(_, gain, _)| *gain).fold(0.0, f64::max);
        for (site, whole) in whole.iter().flat_map(GradientMoments::iter) {
            let (sum, gain, tokens) = &sums[site];
            assert_eq!(*tokens, whole.tokens, "{name} {site}");
            let error = (whole.gain - gain).abs() / strongest;
            assert!(error < 1e-5, "{name} {site}: gain {} and {gain}", whole.gain);
            let largest = whole.squares.iter().copied().fold(0.0, f64::max);
            for (whole, sum) in whole.squares.iter().zip(sum) {
                let error = (whole - sum).abs() / largest;
                assert!(error < 1e-5, "{name} {site}: {whole} and {sum}");
            }
        }
    }
}

#[test]
fn the_loss_is_that_of_eval() {
    for (name, count, length) in [("llama", 100, 32), ("qwen3-moe", 3, 17), ("mistral", 1, 2)] {
        let model = golden(name);
        let windows = windows(&model, count, length);
        let expected = perplexity(&model, &windows, &Compute::cpu(), &Silent).unwrap().nll;
        let found = backward(&model, &windows, &in_memory()).loss();
        assert_eq!(found.to_bits(), expected.to_bits(), "{name}: {found}, eval {expected}");
    }
}

/// Scaling the hidden activation of an MLP by 1 + ε moves the loss by ε Σ g h; at the output of the
/// same linear, which it scales as well, by ε Σ g y. Both are known to an observer.
#[test]
fn the_gradient_at_a_hidden_activation_is_shown() {
    for name in ["llama", "qwen3-moe"] {
        let model = golden(name);
        let windows = windows(&model, 3, 17);
        let mut pass = backward(&model, &windows, &in_memory());
        let mut observer = Everywhere::default();
        pass.retreat(&mut observer, &Silent).unwrap();
        let layer = model.spec().layers.len() - 1;
        let x = stream_before(&model, &windows, layer);
        let mut outputs = Outputs::default();
        losses_from(&model, &windows, layer, &x, &mut outputs);
        let dot = |a: &[f32], b: &[f32]| -> f64 {
            a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        };
        for site in model.layer_sites(layer).filter(|site| one_reader(site.port)) {
            let Some(at_input) = observer.inputs.get(&site.port) else { continue };
            let at_input = values(&at_input.0.lock().unwrap()[0]);
            let at_output = values(&observer.outputs[&site.name].0.lock().unwrap()[0]);
            let through_input = dot(&at_input, &observer.hidden[&site.port]);
            let through_output = dot(&at_output, &outputs.0[&site.name]);
            let scale = at_output.iter().map(|g| f64::from(g.abs())).sum::<f64>();
            let error = (through_input - through_output).abs() / scale;
            assert!(error < 1e-6, "{name} {}: {through_input} {through_output}", site.name);
        }
    }
}

/// Keeps the outputs of all sites.
#[derive(Default)]
struct Outputs(BTreeMap<String, Vec<f32>>);

impl Observer for Outputs {
    fn input(&mut self, _: Port, _: &Tensor) -> Result<()> {
        Ok(())
    }

    fn output(&mut self, site: &Site, y: &Tensor) -> Result<()> {
        self.0.insert(site.name.clone(), values(y));
        Ok(())
    }

    fn residual(&mut self, _: Half, _: &Tensor, _: &Tensor) -> Result<()> {
        Ok(())
    }
}
