//! What `bantam compress` leaves in its output folder: the input's config with one key more, its side
//! files byte for byte, the same bytes from the same command, the same model however it is cut into
//! files, dense tensors of the same function with `--fold`, and a model to compress again.

#![allow(clippy::unwrap_used, reason = "a failing test is to panic")]

#[path = "support/cli.rs"]
mod cli;
#[path = "support/models.rs"]
mod models;
#[path = "support/own_text.rs"]
mod own_text;

use std::fs;
use std::path::Path;

use cli::{Bantam, bantam, files, first_difference, fixture, names, read_json};
use models::{Weight, shard_names, tiny, tiny_text, two_layers, weight_bytes, weights};
use own_text::OwnText;
use safetensors::Dtype;
use serde_json::Value;

/// Half a unit in the last place, relative: the most that rounding to a dtype changes a value.
fn unit_roundoff(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F32 => 0.5_f64.powi(24),
        Dtype::BF16 => 0.5_f64.powi(8),
        other => panic!("no fixture is {other}"),
    }
}

fn lord(model: &Path, text: &Path, out: &Path) -> Bantam {
    bantam("compress").arg(model).arg("-o").arg(out).arg("--text").arg(text)
}

/// The two layers of pycode, and their calibration text.
fn pycode(model: &Path, out: &Path) -> Bantam {
    lord(model, &fixture("pycode.calib.txt"), out).args("--windows 8 --window 64")
}

fn nll_of_text(model: &Path) -> f64 {
    let text = fixture("pycode.test.txt");
    let command = bantam("eval").arg(model).arg("--text").arg(text);
    nll(command.args("--window 64 --windows 8"))
}

fn nll_of_ids(model: &Path, ids: &Path) -> f64 {
    nll(bantam("eval").arg(model).arg("--ids").arg(ids))
}

fn nll(command: Bantam) -> f64 {
    command.arg("--json").run().json()["nll"].as_f64().unwrap()
}

#[test]
fn the_config_gains_one_key_and_side_files_are_copied() {
    let root = tempfile::tempdir().unwrap();
    let model = tiny("llama", root.path());
    for (name, text) in [
        ("LICENSE", "free\r\n"),
        ("README.md", "# mod\u{e8}le"),
        ("chat_template.jinja", "{{ x }}"),
        ("empty.txt", ""),
        ("generation_config.json", "{\"eos_token_id\": 1e0}"),
        ("modeling_custom.py", "pass"),
        ("additional_chat_templates/tool.jinja", "{% tool %}"),
        // Weights in other forms, and what belongs to the place they came from.
        ("pytorch_model.bin", "not copied"),
        ("onnx/model.json", "not copied"),
        (".gitattributes", "not copied"),
        ("bantam.json", "made anew"),
    ] {
        let file = model.join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }
    // Spelled as no JSON writer would, so that rewriting it would show.
    let config = fs::read_to_string(model.join("config.json")).unwrap();
    let config = config.replace("1e-05", "1.0E-5").replace("\"head_dim\": ", "\"head_dim\" :  ");
    fs::write(model.join("config.json"), &config).unwrap();
    let before = files(&model);

    let out = root.path().join("out");
    lord(&model, &tiny_text(root.path()), &out)
        .args("--keep 0.7 --rank-multiple 2 --windows 8 --window 32")
        .run()
        .ok();
    assert!(files(&model) == before, "the input was changed");
    let after = files(&out);
    let expected = [
        "LICENSE",
        "README.md",
        "additional_chat_templates/tool.jinja",
        "bantam.json",
        "chat_template.jinja",
        "config.json",
        "empty.txt",
        "generation_config.json",
        "model.safetensors",
        "modeling_custom.py",
        "tokenizer.json",
    ];
    assert!(after.keys().eq(&expected), "{:?}", after.keys());
    for name in expected {
        if !["bantam.json", "config.json", "model.safetensors"].contains(&name) {
            assert!(after[name] == before[name], "{name} was changed");
        }
    }
    let written = fs::read_to_string(out.join("config.json")).unwrap();
    let (kept, added) = written.split_once(",\n  \"bantam\": ").unwrap();
    assert_eq!(kept, config.trim_end().trim_end_matches('}').trim_end());
    let added: Value = serde_json::from_str(added.trim_end().strip_suffix('}').unwrap()).unwrap();
    assert!(!added["sites"].as_object().unwrap().is_empty(), "{added:#}");
}

/// Threads take chunks in any order, and activations wait in memory or in a file; neither shows in a
/// single bit, of the weights or of what the manifest says they cost.
#[test]
fn the_same_command_gives_the_same_bytes() {
    let root = tempfile::tempdir().unwrap();
    let model = two_layers(root.path());
    let made = |name: &str, threads: &str, arguments: &str| {
        let out = root.path().join(name);
        let command = lord(&model, &fixture("pycode.calib.txt"), &out).args(arguments);
        // Three chunks and a part of one.
        let command = command.args("--windows 52 --window 64 --keep 0.6");
        command.env("RAYON_NUM_THREADS", threads).run().ok();
        out
    };
    for (method, arguments) in [("lord", ""), ("both", "--method lord --method welore")] {
        let first = made(method, "1", arguments);
        for (threads, more) in [("1", ""), ("2", ""), ("3", "--activation-memory 1MB")] {
            let again =
                made(&format!("{method}-{threads}"), threads, &format!("{arguments} {more}"));
            assert_eq!(
                first_difference(&first, &again),
                None,
                "{method}, {threads} threads {more}"
            );
            fs::remove_dir_all(again).unwrap();
        }
    }
    let without = ["1", "2"].map(|threads| made(threads, threads, "--no-gradients"));
    assert_eq!(first_difference(&without[0], &without[1]), None);
}

#[test]
fn small_shards_hold_the_same_model() {
    let root = tempfile::tempdir().unwrap();
    let model = two_layers(root.path());
    let [whole, cut] = ["whole", "cut"].map(|name| root.path().join(name));
    let welore =
        |out| bantam("compress").arg(&model).args("--method welore --keep 0.7 -o").arg(out);
    welore(&whole).run().ok();
    welore(&cut).args("--max-shard-size 300KB").run().ok();
    let shards = shard_names(&cut);
    assert!(shards.len() > 3, "{shards:?}");
    let index = read_json(&cut.join("model.safetensors.index.json"));
    assert_eq!(index["metadata"]["total_size"], weight_bytes(&cut));
    for (i, shard) in shards.iter().enumerate() {
        assert_eq!(*shard, format!("model-{:05}-of-{:05}.safetensors", i + 1, shards.len()));
        let bytes = fs::read(cut.join(shard)).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let data: usize = tensors.iter().map(|(_, view)| view.data().len()).sum();
        assert!(data <= 300_000 || tensors.len() == 1, "{shard} holds {data} bytes");
        for (name, _) in tensors.iter() {
            assert_eq!(index["weight_map"][name], *shard, "{name}");
        }
    }
    assert_eq!(index["weight_map"].as_object().unwrap().len(), weights(&whole).len());
    assert!(weights(&whole) == weights(&cut), "the shards hold other tensors");
    assert_eq!(nll_of_text(&whole).to_bits(), nll_of_text(&cut).to_bits());
}

/// Folds the same factors that `factored` holds, and compares weight by weight.
///
/// The tolerance is the rounding itself: with `e` the unit roundoff of the dtype, the factors on disk
/// are off by a relative `e` each and the folded weight by another, so that no element may differ by
/// more than `e |w| + (2e + e²) Σ|u||v|` (and an ulp of f32 for the product's way to disk).
fn check_fold(input: &Path, factored: &Path, folded: &Path) {
    let (input, factored, folded) = (weights(input), weights(factored), weights(folded));
    let named = |weights: &std::collections::BTreeMap<String, Weight>| {
        weights.iter().map(|(n, w)| (n.clone(), w.dtype, w.shape.clone())).collect::<Vec<_>>()
    };
    assert_eq!(named(&folded), named(&input));
    let mut products = 0;
    for (name, dense) in &folded {
        let site = name.strip_suffix(".weight").unwrap_or(name);
        let factor = |part: &str| factored.get(&format!("{site}.{part}.weight"));
        let (Some(v), Some(u)) = (factor("v"), factor("u")) else {
            assert!(factored[name] == *dense, "`{name}` is no product and differs");
            continue;
        };
        products += 1;
        let (e, n, rank) = (unit_roundoff(dense.dtype), dense.shape[1], v.shape[0]);
        let (w, v, u) = (dense.values(), v.values(), u.values());
        for (at, w) in w.iter().enumerate() {
            let pairs = || (0..rank).map(|k| u[at / n * rank + k] * v[k * n + at % n]);
            let (product, size) = (pairs().sum::<f64>(), pairs().map(f64::abs).sum::<f64>());
            let allowed = e * w.abs() + (2.0 * e + e * e) * size + 0.5_f64.powi(23) * size;
            assert!((w - product).abs() <= allowed, "`{name}`[{at}]: {w}, {product} ± {allowed}");
        }
    }
    assert!(products > 5, "only {products} products");
}

#[test]
fn folded_is_the_same_function_in_the_inputs_shapes() {
    let root = tempfile::tempdir().unwrap();
    let text = tiny_text(root.path());
    for name in ["llama-bias", "llama-sharded", "qwen3", "llama-bf16"] {
        let model = tiny(name, root.path());
        let [factored, folded] =
            ["factored", "folded"].map(|kind| root.path().join(format!("{name}-{kind}")));
        let options = "--keep 0.7 --rank-multiple 2 --windows 8 --window 32 --json";
        let plain = lord(&model, &text, &factored).args(options).run().json();
        let report = lord(&model, &text, &folded).args(options).arg("--fold").run().json();
        assert_eq!(report["weight_bytes_out"], weight_bytes(&model), "{name}");
        assert!(plain["weight_bytes_out"].as_u64().unwrap() < weight_bytes(&model), "{name}");
        assert_eq!(
            fs::read_to_string(folded.join("config.json")).unwrap(),
            fs::read_to_string(model.join("config.json")).unwrap(),
            "{name}: what is dense needs no declaration"
        );
        check_fold(&model, &factored, &folded);
        let ids = model.join("golden.safetensors");
        let (one, other) = (nll_of_ids(&factored, &ids), nll_of_ids(&folded, &ids));
        // F32 sums in another order; in BF16 every weight is off by 2⁻⁸ at most, and the mean loss
        // of random weights is moved by no more than that.
        let tolerance = if name == "llama-bf16" { 0.5_f64.powi(8) } else { 1e-5 };
        assert!((one - other).abs() <= tolerance * one, "{name}: {one} and {other}");
    }
}

#[test]
fn a_trained_model_folds_with_the_same_perplexity() {
    let root = tempfile::tempdir().unwrap();
    let model = two_layers(root.path());
    let [factored, folded] = ["factored", "folded"].map(|name| root.path().join(name));
    pycode(&model, &factored).args("--keep 0.6").run().ok();
    pycode(&model, &folded).args("--keep 0.6 --fold").run().ok();
    check_fold(&model, &factored, &folded);
    let (one, other) = (nll_of_text(&factored), nll_of_text(&folded));
    assert!((one - other).abs() <= 0.5_f64.powi(8) * one, "{one} and {other}");
}

/// `bantam.json` tells how far each product on disk is from the weight it replaced.
#[test]
fn the_recorded_errors_are_those_of_the_written_factors() {
    let root = tempfile::tempdir().unwrap();
    let (model, out) = (tiny("llama-bf16", root.path()), root.path().join("out"));
    bantam("compress")
        .arg(&model)
        .args("--method welore --uniform 0.95 --rank-multiple 1 -o")
        .arg(&out)
        .run()
        .ok();
    let (input, output) = (weights(&model), weights(&out));
    let manifest = read_json(&out.join("bantam.json"));
    let recorded = manifest["relative_error"].as_object().unwrap();
    assert_eq!(recorded.len(), 14);
    for (site, error) in recorded {
        let dense = &input[&format!("{site}.weight")];
        let [v, u] = ["v", "u"].map(|part| &output[&format!("{site}.{part}.weight")]);
        let (n, rank) = (dense.shape[1], v.shape[0]);
        let (w, v, u) = (dense.values(), v.values(), u.values());
        let product = |at: usize| -> f64 {
            (0..rank).map(|k| u[at / n * rank + k] * v[k * n + at % n]).sum()
        };
        let size: f64 = w.iter().map(|w| w * w).sum();
        let lost: f64 = w.iter().enumerate().map(|(at, w)| (w - product(at)).powi(2)).sum();
        let (found, recorded) = ((lost / size).sqrt(), error.as_f64().unwrap());
        assert!((found - recorded).abs() <= 1e-9 * found, "{site}: {found}, recorded {recorded}");
    }
}

#[test]
fn an_output_is_an_input_again() {
    let root = tempfile::tempdir().unwrap();
    let (model, text) = (tiny("qwen2", root.path()), tiny_text(root.path()));
    let own = OwnText::of(&model, &text, root.path());
    let bytes = |report: &Value, key: &str| report[key].as_u64().unwrap();
    for method in ["lord", "welore"] {
        let out = |name: &str| root.path().join(format!("{method}-{name}"));
        let compress = |from: &Path, to: &Path, keep: &str| {
            lord(from, &text, to)
                .args("--rank-multiple 2 --windows 16 --window 32 --json")
                .args(&format!("--method {method} --keep {keep}"))
                .run()
                .json()
        };
        let first = compress(&model, &out("first"), "0.8");
        let second = compress(&out("first"), &out("second"), "0.9");
        assert_eq!(second["weight_bytes_in"], first["weight_bytes_out"]);
        let written = bytes(&second, "weight_bytes_out");
        assert!(written <= bytes(&second, "budget_bytes"));
        assert!(written < bytes(&first, "weight_bytes_out"));
        assert_eq!(written, weight_bytes(&out("second")));
        // What is taken away twice costs twice.
        let losses = ["first", "second"].map(|name| own.evaluated(&out(name)));
        for loss in losses {
            own.assert_made_of_it(loss, method);
        }
        assert!(losses[0] < losses[1], "{method}: {losses:?} nats per token");
        assert_eq!(read_json(&out("second").join("config.json"))["bantam"]["version"], 1);

        // Nothing has to go, so nothing is touched: neither dense tensors nor factors.
        compress(&model, &out("whole"), "1.0");
        assert!(weights(&out("whole")) == weights(&model));
        assert_eq!(
            fs::read(out("whole").join("config.json")).unwrap(),
            fs::read(model.join("config.json")).unwrap()
        );
        compress(&out("first"), &out("same"), "1.0");
        assert!(weights(&out("same")) == weights(&out("first")));
        assert!(names(&out("same")) == names(&out("first")));
    }
}
