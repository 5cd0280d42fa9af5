//! Perplexities of the fixtures against a second, independent implementation.
//!
//! The expected figures come from `PyTorch` with f64 statistics and factors kept in f32; ours are
//! stored in the checkpoint's bf16, which moves the last digits.

#![allow(clippy::unwrap_used, reason = "a failing test is to panic")]

use std::path::{Path, PathBuf};

use bantam::arch::Model;
use bantam::checkpoint::WriteOptions;
use bantam::eval::perplexity;
use bantam::measure::{Compute, Cut, Draw, TextWindows};
use bantam::pipeline::Run;
use bantam::progress::Silent;
use bantam::settings::{Method, Rule, Settings};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn windows(model: &Model, file: &str, windows: Option<usize>) -> TextWindows {
    let cut = Cut { length: Some(256), windows, draw: Draw::FromStart };
    TextWindows::read(model, &[fixtures().join(file)], cut).unwrap()
}

fn measured(model: &Path) -> f64 {
    let model = Model::open(model).unwrap();
    let test = windows(&model, "pycode.test.txt", None);
    let found = perplexity(&model, test.windows(), &Compute::cpu(), &Silent).unwrap();
    assert_eq!((found.windows, found.tokens), (256, 65_280));
    found.perplexity
}

#[test]
fn dense_perplexities_are_the_reference() {
    for (model, expected) in [("pycode-llama", 15.091), ("pycode-qwen3moe", 13.894)] {
        let found = measured(&fixtures().join(model));
        assert!((found - expected).abs() <= 1e-3, "{model}: {found}, expected {expected}");
    }
}

/// Perplexity of pycode-llama compressed by a published rule.
fn compressed(method: Method, rule: Rule) -> f64 {
    let model = Model::open(&fixtures().join("pycode-llama")).unwrap();
    let text = windows(&model, "pycode.calib.txt", Some(128));
    let settings = Settings { methods: vec![method], rank_multiple: 1, ..Settings::new(rule) };
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let mut run = Run::new(&model, settings).unwrap().text(text);
    run.write(&out, &WriteOptions::default()).unwrap();
    measured(&out)
}

#[test]
fn lord_at_a_uniform_fraction_is_the_reference() {
    let found = compressed(Method::LORD, Rule::Uniform(0.6));
    assert!((found / 15.896 - 1.0).abs() <= 0.01, "{found}");
}

#[test]
fn welore_at_half_the_rank_is_the_reference() {
    let found = compressed(Method::WELORE, Rule::Reduce(0.5));
    assert!((found / 15.254 - 1.0).abs() <= 0.01, "{found}");
}
