//! The decoder against transformers: logits of small random models, family by family; and its
//! gradients against the slopes of its own loss.
//!
//! `scripts/golden.py` made the files in `fixtures/golden`: a checkpoint, token ids, and the logits
//! that transformers computes for them in f32.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test may panic and say what it saw"
)]

#[path = "support/numbers.rs"]
mod numbers;

use std::path::Path;

use bantam::arch::Model;
use bantam::measure::{Backward, Compute, Draw, Measured, Spill, Windows};
use bantam::model::{Decoder, Positions, Session, Unobserved};
use bantam::progress::Silent;
use candle_core::{Device, Tensor, safetensors};
use numbers::{ON_GPU, device};

/// Largest difference allowed, as a share of the range of the reference's logits. On a GPU products
/// with bf16 weights are of bf16 numbers, with eight bits, and a few of them follow one another.
fn tolerance(case: &Path) -> f32 {
    let bf16 = case.to_string_lossy().ends_with("bf16");
    if ON_GPU && bf16 { 2e-2 } else { 1e-4 }
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// The largest difference between our logits and the golden ones, as a share of their range.
fn difference(folder: &Path) -> f32 {
    let golden = safetensors::load(folder.join("golden.safetensors"), &Device::Cpu).unwrap();
    let ids = &golden["input_ids"];
    let batch = ids.dim(0).unwrap();
    let ids: Vec<i64> = ids.flatten_all().unwrap().to_vec1().unwrap();
    let ids: Vec<u32> = ids.into_iter().map(|id| u32::try_from(id).unwrap()).collect();
    let model = Model::open(folder).unwrap();
    let ours = flat(&Decoder::new(&model, &device()).logits(&ids, batch).unwrap());
    let theirs = flat(&golden["logits"]);
    assert_eq!(ours.len(), theirs.len());
    // A maximum passes over what is no number.
    assert!(ours.iter().all(|logit| logit.is_finite()), "{}", folder.display());
    let largest = theirs.iter().copied().fold(f32::MIN, f32::max);
    let smallest = theirs.iter().copied().fold(f32::MAX, f32::min);
    let worst = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    worst / (largest - smallest)
}

#[test]
fn logits_equal_those_of_transformers() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden");
    let mut cases: Vec<_> = std::fs::read_dir(&root)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.is_dir())
        .collect();
    cases.sort();
    assert!(cases.len() >= 31, "only {} golden cases in {}", cases.len(), root.display());
    let mut failures = Vec::new();
    for case in cases {
        let found = difference(&case);
        println!("{:>32} {found:.1e}", case.file_name().unwrap().to_string_lossy());
        if found.is_nan() || found > tolerance(&case) {
            failures.push(format!("{}: {found:e}", case.display()));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

fn place(model: &Model, length: usize) -> Compute {
    Compute::on(&device(), u64::MAX, model, length, &Measured::default()).unwrap()
}

/// The summed loss of next tokens where `x` is the stream before the first block.
fn loss(decoder: &Decoder<'_>, ids: &[u32], x: &Tensor) -> f64 {
    let (cos, sin) = decoder.rope(0, ids.len()).unwrap();
    let context = Positions { batch: 1, length: ids.len(), first: 0, cos: &cos, sin: &sin };
    let through = |x: Tensor, layer| {
        decoder.block(layer).unwrap().forward(&x, &context, None, &mut Unobserved).unwrap()
    };
    let y = (0..decoder.model().spec().layers.len()).fold(x.clone(), through);
    let predicting = y.narrow(0, 0, ids.len() - 1).unwrap();
    let targets = Tensor::new(&ids[1..], &device()).unwrap();
    let losses = decoder.head().unwrap().losses(&predicting, &targets).unwrap();
    flat(&losses).into_iter().map(f64::from).sum()
}

/// Along the gradient the loss changes as the gradient says: `(L(x + h e) - L(x - h e)) / 2h = |g|`
/// with `e = g / |g|`, but for terms of third order and the rounding of the losses.
#[test]
fn gradients_are_the_slopes_of_the_loss() {
    for case in [
        "llama",
        "starcoder2",
        "gpt-bigcode",
        "gpt-bigcode-multi-head",
        "gpt-neox",
        "gpt-neox-sequential",
        "phi3-partial-sliding",
        "gemma2",
        "gemma2-uncapped",
    ] {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden");
        let model = Model::open(&root.join(case)).unwrap();
        let ids: Vec<u32> = (0..23).map(|i| i * i * 7 % 80).collect();
        let windows = Windows::cut(&ids, ids.len(), None, Draw::FromStart).unwrap();
        let keep = Spill { memory: u64::MAX, folder: "/nonexistent".into() };
        let mut pass =
            Backward::forward(&model, &windows, &place(&model, ids.len()), &keep, &Silent).unwrap();
        while pass.next_layer().is_some() {
            pass.retreat_unobserved(&Silent).unwrap();
        }
        let gradient = pass.gradients().next().unwrap().unwrap();
        let norm =
            f64::from(gradient.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap());
        let norm = norm.sqrt();
        let decoder = Decoder::new(&model, &device());
        let x = decoder.embed(&ids, 0, ids.len()).unwrap();
        let h = 3e-3;
        let moved =
            |by: f64| loss(&decoder, &ids, &(&x + (&gradient * (by / norm)).unwrap()).unwrap());
        let slope = (moved(h) - moved(-h)) / (2.0 * h);
        println!("{case:>32} slope {slope:.4} gradient {norm:.4}");
        assert!((slope - norm).abs() < 0.01 * norm, "{case}: slope {slope}, gradient {norm}");
    }
}

/// Token by token, and in pieces, a cache gives the logits of the whole text.
#[test]
fn decoding_with_a_cache_is_the_same_model() {
    for case in ["starcoder2-sliding", "gpt-bigcode", "gpt-neox", "phi3-partial-sliding", "gemma2"]
    {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/golden");
        let model = Model::open(&root.join(case)).unwrap();
        let ids: Vec<u32> = (0..23).map(|i| i * i * 7 % 80).collect();
        let whole = Decoder::new(&model, &device()).logits(&ids, 1).unwrap();
        let mut session = Session::new(&model, &device()).unwrap();
        let mut fed = 0;
        for piece in [1, 1, 9, 1, 8, 1, 1, 1] {
            let logits = flat(&session.feed(&ids[fed..fed + piece]).unwrap());
            fed += piece;
            let expected = flat(&whole.get(fed - 1).unwrap());
            assert!(logits.iter().all(|logit| logit.is_finite()), "{case} after {fed}");
            let worst =
                logits.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 1e-4, "{case} after {fed}: off by {worst}");
        }
    }
}
