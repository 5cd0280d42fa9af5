//! The decoder against transformers: logits of small random models, family by family.
//!
//! `scripts/golden.py` made the files in `fixtures/golden`: a checkpoint, token ids, and the logits
//! that transformers computes for them in f32.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test may panic and say what it saw"
)]

use std::path::Path;

use bantam::arch::SourceModel;
use bantam::model::Decoder;
use candle_core::{Device, Tensor, safetensors};

/// Largest difference allowed, as a share of the range of the reference's logits.
const TOLERANCE: f32 = 1e-4;

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
    let model = SourceModel::open(folder).unwrap();
    let ours = flat(&Decoder::new(&model, &Device::Cpu).logits(&ids, batch).unwrap());
    let theirs = flat(&golden["logits"]);
    assert_eq!(ours.len(), theirs.len());
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
    assert!(cases.len() >= 28, "only {} golden cases in {}", cases.len(), root.display());
    let mut failures = Vec::new();
    for case in cases {
        let found = difference(&case);
        println!("{:>32} {found:.1e}", case.file_name().unwrap().to_string_lossy());
        if found.is_nan() || found > TOLERANCE {
            failures.push(format!("{}: {found:e}", case.display()));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}
