//! Perplexities of the fixtures against a second, independent implementation.
//!
//! The expected figures come from `PyTorch` with f64 statistics and factors kept in f32; ours are
//! stored in the checkpoint's bf16, which moves the last digits.

#![allow(clippy::unwrap_used, reason = "a failing test is to panic")]

use std::path::{Path, PathBuf};

use bantam::arch::SourceModel;
use bantam::checkpoint::WriteOptions;
use bantam::eval::perplexity;
use bantam::job::Job;
use bantam::measure::{Draw, MeasureOptions, Place, Text, Tokenizer, Windows};
use bantam::passes::{Method, Pass, PassOptions};
use bantam::pipeline::{CalibrationText, Context, Request, analyse, apply, draw_plan};
use bantam::plan::{BlockOrder, Rule};
use bantam::progress::Silent;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn windows(model: &SourceModel, file: &str, limit: Option<usize>) -> (Windows, String) {
    let text = Text::read(&[fixtures().join(file)]).unwrap();
    let tokens = Tokenizer::open(model).unwrap().encode(&text.content, false).unwrap();
    (Windows::cut(&tokens, 256, limit, Draw::FromStart).unwrap(), text.sha256)
}

fn measured(model: &Path) -> f64 {
    let model = SourceModel::open(model).unwrap();
    let (test, _) = windows(&model, "pycode.test.txt", None);
    let found = perplexity(&model, &test, &Place::cpu(), &Silent).unwrap();
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
    let model = SourceModel::open(&fixtures().join("pycode-llama")).unwrap();
    let (windows, text_sha256) = windows(&model, "pycode.calib.txt", Some(128));
    let text = CalibrationText { windows, text_sha256, text_bytes: 0 };
    let measure = MeasureOptions { gradients: false, paper: true };
    let passes: Vec<Box<dyn Pass>> =
        vec![method.pass(PassOptions { rank_multiple: 1, paper: true, ..PassOptions::default() })];
    let context = Context {
        passes: &passes,
        measure,
        activation_memory: 0,
        windows: (128, 256),
        place: &Place::cpu(),
        progress: &Silent,
    };
    let request =
        Request { rule, rank_multiple: 1, floor: 0.0, fold: false, order: BlockOrder::default() };
    let folder = tempfile::tempdir().unwrap();
    let mut job = Job::temporary(folder.path()).unwrap();
    analyse(&model, Some(&text), &mut job, context).unwrap();
    let plan = draw_plan(&model, &request, Some(&job), Some(&text), context).unwrap();
    let out = folder.path().join("out");
    apply(&model, &plan, &job, &out, &WriteOptions::default(), context).unwrap();
    measured(&out)
}

#[test]
fn lord_at_a_uniform_fraction_is_the_reference() {
    let found = compressed(Method::Lord, Rule::Uniform(0.6));
    assert!((found / 15.896 - 1.0).abs() <= 0.01, "{found}");
}

#[test]
fn welore_at_half_the_rank_is_the_reference() {
    let found = compressed(Method::Welore, Rule::Reduce(0.5));
    assert!((found / 15.254 - 1.0).abs() <= 0.01, "{found}");
}
