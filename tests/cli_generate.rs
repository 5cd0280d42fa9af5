//! `bantam generate` continues a prompt as the model itself does: greedy text is the argmax of logits
//! computed without a cache over the whole sequence, drawn text follows its seed, and stdout holds
//! the text and nothing else. With it the verbs that explain: help, completions, demo.

#![allow(clippy::unwrap_used, reason = "a failing test is to panic")]

#[path = "support/cli.rs"]
mod cli;
#[path = "support/models.rs"]
mod models;

use std::path::Path;

use bantam::arch::Model;
use bantam::measure::Tokenizer;
use bantam::model::Decoder;
use candle_core::Device;
use cli::{Bantam, Run, bantam, fixture, names};
use models::{edit_config, tiny, two_layers};
use serde_json::json;

const PROMPT: &str = "def main(args):\n    if ";

fn generate(model: &Path, prompt: &str, options: &str) -> Bantam {
    bantam("generate").arg(model).arg("--prompt").arg(prompt).args(options)
}

fn text(model: &Path, prompt: &str, options: &str) -> String {
    generate(model, prompt, options).run().ok().stdout
}

/// The tokens that follow `prompt`, each the likeliest by the logits of the whole sequence before it,
/// up to the end of the text.
fn likeliest(folder: &Path, prompt: &str, count: usize) -> Vec<u32> {
    let model = Model::open(folder).unwrap();
    let mut ids = Tokenizer::open(&model).unwrap().encode(prompt, true).unwrap();
    let start = ids.len();
    while ids.len() - start < count {
        let logits = Decoder::new(&model, &Device::Cpu).logits(&ids, 1).unwrap();
        let last = logits.get(ids.len() - 1).unwrap().to_vec1::<f32>().unwrap();
        let best = |best: usize, at: usize| if last[at] > last[best] { at } else { best };
        let next = u32::try_from((0..last.len()).reduce(best).unwrap()).unwrap();
        if model.spec().eos.contains(&next) {
            break;
        }
        ids.push(next);
    }
    ids.split_off(start)
}

fn check_greedy(folder: &Path, prompt: &str, count: usize) {
    let ids = likeliest(folder, prompt, count);
    let model = Model::open(folder).unwrap();
    let continuation = Tokenizer::open(&model).unwrap().decode(&ids).unwrap();
    let found = text(folder, prompt, &format!("--max-tokens {count}"));
    assert_eq!(found, format!("{prompt}{continuation}\n"), "{}", folder.display());
}

#[test]
fn greedy_text_is_the_argmax_without_a_cache() {
    let llama = fixture("pycode-llama");
    check_greedy(&llama, PROMPT, 20);
    let again = || text(&llama, PROMPT, "--max-tokens 20 --temperature 0 --seed 9");
    assert_eq!(again(), text(&llama, PROMPT, "--max-tokens 20"));
    assert_eq!(again(), again());
}

/// Sliding windows that the text outgrows, scaled positions, experts, biases, and factors.
#[test]
fn greedy_text_of_every_kind_of_model() {
    let root = tempfile::tempdir().unwrap();
    let golden =
        ["llama-bias", "llama-rope-yarn", "mistral", "qwen2-sliding", "qwen3", "qwen3-moe-mixed"];
    for name in golden {
        let model = tiny(name, root.path());
        edit_config(&model, &json!({ "eos_token_id": null }));
        check_greedy(&model, "w5 w17 w2 w80 w80 w33", 48);
    }
    let small = root.path().join("small");
    let model = two_layers(root.path());
    bantam("compress").arg(model).args("--method welore --keep 0.7 -o").arg(&small).run().ok();
    check_greedy(&small, PROMPT, 12);
}

#[test]
fn text_ends_where_the_model_ends_it() {
    let root = tempfile::tempdir().unwrap();
    let model = tiny("qwen2", root.path());
    edit_config(&model, &json!({ "eos_token_id": null }));
    let (prompt, words) = ("w5 w17 w2", likeliest(&model, "w5 w17 w2", 12));
    // The first token that was not seen before it: the text ends right before that.
    let at = (1..12).rfind(|&at| !words[..at].contains(&words[at])).unwrap();
    edit_config(&model, &json!({ "eos_token_id": [96, words[at]] }));
    let shown: Vec<String> = words[..at].iter().map(|id| format!("w{id}")).collect();
    let expected = format!("{prompt}{}\n", shown.join(" "));
    assert_eq!(text(&model, prompt, "--max-tokens 12"), expected);
    assert_eq!(text(&model, prompt, "--max-tokens 0"), format!("{prompt}\n"));
}

#[test]
fn drawn_text_follows_its_seed() {
    let root = tempfile::tempdir().unwrap();
    let model = two_layers(root.path());
    let draw = |seed: u32| {
        text(
            &model,
            PROMPT,
            &format!("--max-tokens 12 --temperature 1.2 --top-p 0.95 --seed {seed}"),
        )
    };
    let texts: std::collections::BTreeSet<String> = (0..4).map(draw).collect();
    assert_eq!(texts.len(), 4, "{texts:#?}");
    assert!(texts.contains(&draw(2)));
    // A nucleus of nothing but the likeliest token is greedy, however hot.
    let cold = text(&model, PROMPT, "--max-tokens 12 --temperature 5 --top-p 1e-9 --seed 3");
    assert_eq!(cold, text(&model, PROMPT, "--max-tokens 12"));
}

#[test]
fn stdout_is_text_and_stderr_is_talk() {
    let root = tempfile::tempdir().unwrap();
    let model = tiny("llama", root.path());
    let loud = generate(&model, "w1 w2", "--max-tokens 3").run().ok();
    let quiet = generate(&model, "w1 w2", "--max-tokens 3 --quiet").run().ok();
    assert!(loud.stderr.contains("tokens"), "{}", loud.stderr);
    assert_eq!(quiet.stderr, "");
    assert_eq!(quiet.stdout, loud.stdout);
    assert!(loud.stdout.starts_with("w1 w2") && loud.stdout.ends_with('\n'));
}

/// `bantam … | head` is a way to read, not a failure.
#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let root = tempfile::tempdir().unwrap();
    let model = tiny("llama", root.path());
    let inspect = bantam("inspect").arg(&model);
    for command in [inspect, bantam("completions").arg("zsh"), generate(&model, "w1", "-q")] {
        let mut child = command.spawn();
        drop(child.stdout.take());
        let run = Run::of("bantam … | true".into(), child.wait_with_output().unwrap()).ok();
        assert_eq!(run.stderr, "");
    }
}

/// The verbs that the program's help lists.
fn verbs() -> Vec<String> {
    let help = bantam("--help").run().ok().stdout;
    let (_, list) = help.split_once("Commands:\n").unwrap();
    let lines = list.lines().take_while(|line| !line.is_empty());
    let verbs = lines.map(|line| line.split_whitespace().next().unwrap().to_owned());
    verbs.filter(|verb| verb != "help").collect()
}

#[test]
fn every_verb_has_an_example() {
    let verbs = verbs();
    for verb in ["demo", "inspect", "plan", "compress", "eval", "generate", "completions"] {
        assert!(verbs.iter().any(|known| known == verb), "{verb} is not among {verbs:?}");
    }
    for verb in verbs {
        let help = bantam(&verb).arg("--help").run().ok();
        assert!(help.stdout.contains("Example"), "{verb} --help:\n{}", help.stdout);
        assert!(help.stdout.contains(&format!("\n  bantam {verb}")), "{verb}:\n{}", help.stdout);
        assert_eq!(help.stderr, "", "{verb}");
    }
    let version = bantam("--version").run().ok().stdout;
    assert_eq!(version, format!("bantam {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn completions_know_every_verb() {
    for shell in ["bash", "zsh", "fish"] {
        let script = bantam("completions").arg(shell).run().ok().stdout;
        for verb in verbs() {
            assert!(script.contains(&verb), "{shell}: no `{verb}`");
        }
    }
    bantam("completions").arg("ed").run().refused(2, &["ed"]);
}

#[test]
fn the_demo_needs_nothing_and_leaves_nothing() {
    let (temporary, here) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let report = bantam("demo")
        .args("--json --keep 0.6")
        .env("TMPDIR", temporary.path())
        .within(here.path())
        .run()
        .json();
    assert_eq!(names(temporary.path()), [""; 0]);
    assert_eq!(names(here.path()), [""; 0]);
    let bytes_in = models::weight_bytes(&fixture("pycode-llama"));
    assert_eq!(report["weight_bytes_in"], bytes_in);
    let bytes_out = report["weight_bytes_out"].as_u64().unwrap();
    assert!(bytes_out <= bytes_in * 6 / 10 && bytes_out > bytes_in / 2, "{bytes_out}");
    let perplexity = |when: &str| report[when]["perplexity"].as_f64().unwrap();
    let (before, after) = (perplexity("before"), perplexity("after"));
    // Nothing is gained by throwing two fifths away, and a good method loses less than half.
    assert!(before > 1.0 && before < after && after < 1.5 * before, "{before} to {after}");
    for when in ["before", "after"] {
        let measured = &report[when];
        assert_eq!((&measured["protocol"], &measured["window"]), (&json!("windows"), &json!(256)));
        let (windows, tokens) = (&measured["windows"], &measured["tokens"]);
        assert_eq!(tokens.as_u64().unwrap(), windows.as_u64().unwrap() * 255);
        // What is told of perplexity is what is told of the loss, to the last digits.
        let number = |key: &str| measured[key].as_f64().unwrap();
        let (perplexity, stderr) = (number("perplexity"), number("perplexity_stderr"));
        let [loss, error] = [perplexity.ln() / number("nll"), stderr / number("nll_stderr")];
        assert!((loss - 1.0).abs() < 1e-9, "{when}: {measured:#}");
        assert!((error / perplexity - 1.0).abs() < 1e-9, "{when}: {measured:#}");
    }
    assert_eq!(report["before"]["tokens"], report["after"]["tokens"]);
    // Compressing is a part of it all.
    let [whole, part] =
        ["seconds", "compress_seconds"].map(|figure| report[figure].as_f64().unwrap());
    assert!(0.0 < part && part < whole, "{part} of {whole} seconds");
    assert!(report["output"].is_null());
}
