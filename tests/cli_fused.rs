//! Models that fuse q, k, v or gate, up into one tensor: what is left alone is carried byte for byte,
//! what is compressed is dissolved into parts that read back, and `--fold` puts them together again.

#![allow(clippy::unwrap_used, reason = "a failing test is to panic")]

#[path = "support/cli.rs"]
mod cli;
#[path = "support/models.rs"]
mod models;
#[path = "support/own_text.rs"]
mod own_text;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use cli::{Bantam, bantam, first_difference, read_json};
use models::{Weight, edit_config, edit_weights, tiny, tiny_text, weight_bytes, weights};
use own_text::OwnText;
use safetensors::Dtype;
use serde_json::{Value, json};

/// A fused module of a layer: its parts, and the part that each of its rows belongs to.
struct Module {
    name: String,
    parts: &'static [&'static str],
    owner: Vec<usize>,
}

/// Rows of parts that stand one above the other.
fn stacked(rows: &[usize]) -> Vec<usize> {
    rows.iter().enumerate().flat_map(|(part, &n)| vec![part; n]).collect()
}

/// The fused modules of a golden model, told by hand.
fn modules(model: &str) -> Vec<Module> {
    const QKV: &[&str] = &["q", "k", "v"];
    let per_head = |heads: usize, d: usize| (0..heads).flat_map(|_| stacked(&[d; 3])).collect();
    (0..2)
        .flat_map(|layer| match model {
            "phi3" | "phi3-bf16" => {
                let (kv, up) = (if model == "phi3" { 60 } else { 30 }, &["gate", "up"]);
                let at = |module: &str| format!("model.layers.{layer}.{module}");
                vec![
                    Module {
                        name: at("self_attn.qkv_proj"),
                        parts: QKV,
                        owner: stacked(&[60, kv, kv]),
                    },
                    Module { name: at("mlp.gate_up_proj"), parts: up, owner: stacked(&[53; 2]) },
                ]
            }
            "gpt-neox" => {
                let name = format!("gpt_neox.layers.{layer}.attention.query_key_value");
                vec![Module { name, parts: QKV, owner: per_head(4, 10) }]
            }
            "gpt-bigcode" | "gpt-bigcode-multi-head" => {
                let name = format!("transformer.h.{layer}.attn.c_attn");
                let owner = match model {
                    "gpt-bigcode" => stacked(&[35, 7, 7]),
                    _ => per_head(7, 5),
                };
                vec![Module { name, parts: QKV, owner }]
            }
            other => panic!("{other} fuses nothing"),
        })
        .collect()
}

const MODELS: [&str; 5] =
    ["phi3", "phi3-bf16", "gpt-neox", "gpt-bigcode", "gpt-bigcode-multi-head"];

/// The rows of `whole` that belong to `part`.
fn rows_of(whole: &Weight, owner: &[usize], part: usize) -> Weight {
    let row = whole.data.len() / owner.len();
    let mine = |(_, owner): &(&[u8], &usize)| **owner == part;
    let rows: Vec<&[u8]> =
        whole.data.chunks(row).zip(owner).filter(mine).map(|(row, _)| row).collect();
    let shape = [&[rows.len()], &whole.shape[1..]].concat();
    Weight { dtype: whole.dtype, shape, data: rows.concat() }
}

struct Desk {
    root: tempfile::TempDir,
    model: PathBuf,
    text: PathBuf,
}

impl Desk {
    fn with(model: &str) -> Self {
        let root = tempfile::tempdir().unwrap();
        let (model, text) = (tiny(model, root.path()), tiny_text(root.path()));
        Self { root, model, text }
    }

    fn out(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn run(&self, verb: &str, from: &Path, options: &str) -> Bantam {
        let command = bantam(verb).arg(from).arg("--text").arg(&self.text);
        command.args("--windows 8 --window 32").args(options)
    }

    fn own_text(&self) -> OwnText {
        OwnText::of(&self.model, &self.text, self.root.path())
    }

    fn compress(&self, from: &Path, options: &str, to: &str) -> Value {
        self.run("compress", from, options).args("--json -o").arg(self.out(to)).run().json()
    }

    fn nll(&self, model: &Path) -> f64 {
        let ids = self.model.join("golden.safetensors");
        let command = bantam("eval").arg(model).arg("--ids").arg(ids).arg("--json");
        command.run().json()["nll"].as_f64().unwrap()
    }
}

/// Whether the module is dissolved in `output`; either way it must be so whole and as declared.
fn check_module(
    module: &Module,
    input: &BTreeMap<String, Weight>,
    output: &BTreeMap<String, Weight>,
    declared: &Value,
) -> bool {
    let name = &module.name;
    let tensors = ["weight", "bias"].map(|suffix| format!("{name}.{suffix}"));
    let site = |part: &str| format!("{name}.{part}");
    if output.contains_key(&tensors[0]) {
        for tensor in tensors {
            assert!(output.get(&tensor) == input.get(&tensor), "`{tensor}` is not as it was");
        }
        for part in module.parts {
            assert!(declared[site(part)].is_null(), "`{name}` is whole and {part} declared");
            let own = output.keys().find(|tensor| tensor.starts_with(&(site(part) + ".")));
            assert!(own.is_none(), "`{name}` is whole, and there is {own:?}");
        }
        return false;
    }
    let mut factored = 0;
    for (index, part) in module.parts.iter().enumerate() {
        let kind = declared[site(part)]["kind"].as_str();
        let own = |suffix: &str| output.get(&format!("{}.{suffix}", site(part)));
        let original = rows_of(&input[&tensors[0]], &module.owner, index);
        match kind {
            Some("dense") => {
                assert!(own("weight") == Some(&original), "{name}.{part} is not the rows it was");
            }
            Some("low_rank") => {
                let rank = declared[site(part)]["rank"].as_u64().unwrap() as usize;
                let [v, u] = ["v.weight", "u.weight"].map(|suffix| own(suffix).unwrap());
                assert_eq!(v.shape, [rank, original.shape[1]]);
                assert_eq!(u.shape, [original.shape[0], rank]);
                assert_eq!((u.dtype, v.dtype), (original.dtype, original.dtype));
                factored += 1;
            }
            other => panic!("{name}.{part} is declared as {other:?}"),
        }
        // Factors may come with a bias that makes up for what they lose.
        let bias = input.get(&tensors[1]).map(|bias| rows_of(bias, &module.owner, index));
        match kind {
            Some("dense") => assert!(own("bias") == bias.as_ref(), "the bias of {name}.{part}"),
            _ => assert_eq!(own("bias").map(|b| &b.shape), bias.as_ref().map(|b| &b.shape)),
        }
    }
    assert!(factored > 0, "`{name}` was dissolved for nothing");
    true
}

#[test]
fn a_fused_tensor_is_carried_or_dissolved() {
    let (mut whole, mut dissolved, mut dense) = (0, 0, 0);
    for model in MODELS {
        let desk = Desk::with(model);
        let own = desk.own_text();
        for (i, options) in [
            "--keep 0.93 --method lord --rank-multiple 2 --floor 0",
            "--keep 0.75 --method welore --rank-multiple 3",
            "--uniform 0.6 --method lord --rank-multiple 4",
        ]
        .into_iter()
        .enumerate()
        {
            let name = format!("out{i}");
            let plan = desk.run("plan", &desk.model, options).arg("--measure").arg("--json");
            let plan = plan.run().json();
            let report = desk.compress(&desk.model, options, &name);
            let out = desk.out(&name);
            assert_eq!(report["weight_bytes_out"], plan["weight_bytes"], "{model} {options}");
            assert_eq!(weight_bytes(&out), plan["weight_bytes"].as_u64().unwrap());
            let (input, output) = (weights(&desk.model), weights(&out));
            let config = read_json(&out.join("config.json"));
            let declared = &config["bantam"]["sites"];
            for module in modules(model) {
                let is_dissolved = check_module(&module, &input, &output, declared);
                whole += usize::from(!is_dissolved);
                dissolved += usize::from(is_dissolved);
            }
            let sites = declared.as_object().unwrap().values();
            dense += sites.filter(|storage| storage["kind"] == "dense").count();
            own.assert_made_of_it(own.evaluated(&out), &format!("{model} {options}"));
            let generate = bantam("generate").arg(&out).arg("--prompt").arg("w1 w2");
            generate.args("--max-tokens 2").run().ok();
        }
    }
    assert!(whole > 3 && dissolved > 10 && dense > 3, "{whole} whole, {dissolved}, {dense} dense");
}

#[test]
fn nothing_to_do_changes_nothing() {
    for model in MODELS {
        let desk = Desk::with(model);
        desk.compress(&desk.model, "--keep 1.0 --rank-multiple 2", "same");
        assert!(weights(&desk.out("same")) == weights(&desk.model), "{model}");
        let config = |folder: &Path| std::fs::read(folder.join("config.json")).unwrap();
        assert!(config(&desk.out("same")) == config(&desk.model), "{model}");
    }
}

#[test]
fn a_dissolved_model_is_a_model() {
    for model in MODELS {
        let desk = Desk::with(model);
        let first = desk.compress(&desk.model, "--keep 0.8 --rank-multiple 2", "first");
        let (out, again) = (desk.out("first"), desk.out("again"));
        let found = bantam("inspect").arg(&out).arg("--json").run().json();
        assert_eq!(found["weight_bytes"], first["weight_bytes_out"]);
        let sites: u64 =
            found["roles"].as_array().unwrap().iter().map(|r| bytes(&r["bytes"])).sum();
        assert_eq!(sites + bytes(&found["other_bytes"]), bytes(&found["weight_bytes"]), "{model}");

        let second = desk.compress(&out, "--keep 0.85 --rank-multiple 2 --method welore", "again");
        assert_eq!(second["weight_bytes_in"], first["weight_bytes_out"]);
        assert_eq!(second["weight_bytes_out"], weight_bytes(&again));
        assert!(bytes(&second["weight_bytes_out"]) < bytes(&first["weight_bytes_out"]));
        let own = desk.own_text();
        own.assert_made_of_it(own.evaluated(&again), model);
        desk.compress(&out, "--keep 1.0 --rank-multiple 2", "kept");
        assert!(weights(&desk.out("kept")) == weights(&out), "{model}");
        assert_eq!(read_json(&desk.out("kept/config.json")), read_json(&out.join("config.json")));
    }
}

fn bytes(value: &Value) -> u64 {
    value.as_u64().unwrap()
}

/// The same names, dtypes and shapes.
fn layout(folder: &Path) -> Vec<String> {
    let tensors = weights(folder).into_iter();
    tensors.map(|(name, w)| format!("{name} {:?} {:?}", w.dtype, w.shape)).collect()
}

#[test]
fn folding_puts_fused_tensors_together() {
    for model in MODELS {
        let desk = Desk::with(model);
        let options = "--keep 0.75 --rank-multiple 2";
        desk.compress(&desk.model, options, "factored");
        let report = desk.compress(&desk.model, &format!("{options} --fold"), "folded");
        // Folded later it is the same model, up to one more rounding.
        desk.compress(&desk.out("factored"), "--keep 1.0 --rank-multiple 2 --fold", "later");
        let input = layout(&desk.model);
        for name in ["folded", "later"] {
            let out = desk.out(name);
            assert_eq!(layout(&out), input, "{model} {name}");
            assert!(read_json(&out.join("config.json"))["bantam"].is_null());
            let (one, other) = (desk.nll(&desk.out("factored")), desk.nll(&out));
            let tolerance = if model == "phi3-bf16" { 0.5_f64.powi(7) } else { 1e-5 };
            assert!((one - other).abs() <= tolerance * one, "{model} {name}: {one} and {other}");
        }
        assert_eq!(report["weight_bytes_out"], weight_bytes(&desk.model));

        // Rows of parts that no method touched are the input's; of the others none is.
        let (before, after) = (weights(&desk.model), weights(&desk.out("folded")));
        let config = read_json(&desk.out("factored/config.json"));
        let factored = weights(&desk.out("factored"));
        for module in modules(model) {
            let name = format!("{}.weight", module.name);
            for (index, part) in module.parts.iter().enumerate() {
                let site = format!("{}.{part}", module.name);
                let changed = config["bantam"]["sites"][&site]["kind"] == "low_rank";
                let rows =
                    |all: &BTreeMap<String, Weight>| rows_of(&all[&name], &module.owner, index);
                assert_eq!(rows(&before) != rows(&after), changed, "{site}");
            }
            let Some(bias) = factored.get(&format!("{}.q.bias", module.name)) else { continue };
            let whole = &after[&format!("{}.bias", module.name)];
            assert!(rows_of(whole, &module.owner, 0) == *bias, "the bias of {}", module.name);
        }
    }
}

#[test]
fn a_plan_for_parts_is_carried_out() {
    for model in ["phi3", "gpt-neox"] {
        for options in ["--keep 0.8 --rank-multiple 2", "--uniform 0.5 --fold --rank-multiple 2"] {
            let desk = Desk::with(model);
            let plan = desk.out("plan.json");
            desk.run("plan", &desk.model, options).args("--measure -o").arg(&plan).run().ok();
            desk.compress(&desk.model, options, "direct");
            let carried = desk.run("compress", &desk.model, "").arg("--plan").arg(&plan);
            carried.arg("-o").arg(desk.out("carried")).run().ok();
            assert_eq!(first_difference(&desk.out("carried"), &desk.out("direct")), None);
        }
    }
}

#[test]
fn parts_that_are_missing_are_named() {
    let desk = Desk::with("gpt-neox");
    desk.compress(&desk.model, "--uniform 0.6 --rank-multiple 2", "out");
    let out = desk.out("out");
    let site = "gpt_neox.layers.1.attention.query_key_value.k";
    let mut config = read_json(&out.join("config.json"));
    let kept = config["bantam"].clone();
    config["bantam"]["sites"].as_object_mut().unwrap().remove(site).unwrap();
    edit_config(&out, &json!({ "bantam": config["bantam"] }));
    bantam("inspect").arg(&out).run().refused(3, &["config.json", site, "missing"]);
    edit_config(&out, &json!({ "bantam": kept }));
    bantam("inspect").arg(&out).run().ok();
    edit_weights(&out, |weights| drop(weights.remove(&format!("{site}.bias")).unwrap()));
    bantam("inspect").arg(&out).run().refused(3, &[site]);
}

/// The place of a bad value is told in the tensor that the user has.
#[test]
fn a_bad_value_is_found_in_the_fused_tensor() {
    for method in ["--method welore", "--method lord", "--method welore --fold"] {
        let desk = Desk::with("gpt-neox");
        let name = "gpt_neox.layers.1.attention.query_key_value.weight";
        edit_weights(&desk.model, |weights| {
            // Row 57 is the eighth of k in the second head.
            weights.get_mut(name).unwrap().plant(57 * 40 + 3, f32::INFINITY);
        });
        let options = format!("--uniform 0.6 --rank-multiple 2 {method}");
        let command = desk.run("compress", &desk.model, &options).arg("-o").arg(desk.out("out"));
        command.run().refused(6, &[name, "2283"]);
        let ids = desk.model.join("golden.safetensors");
        let eval = bantam("eval").arg(&desk.model).arg("--ids").arg(ids);
        eval.run().refused(6, &[name, "2283"]);
    }
}

/// Older GPT-NeoX files hold a mask's minus infinity; it is nobody's damage, and carried as it is.
#[test]
fn a_mask_in_the_file_is_no_bad_value() {
    let desk = Desk::with("gpt-neox");
    let mask = Weight { dtype: Dtype::F16, shape: vec![], data: vec![0x00, 0xfc] };
    let triangle = Weight { dtype: Dtype::BOOL, shape: vec![1, 1, 2, 2], data: vec![1, 0, 1, 1] };
    let named = |name: &str| format!("gpt_neox.layers.1.attention.{name}");
    edit_weights(&desk.model, |weights| {
        weights.insert(named("masked_bias"), mask.clone());
        weights.insert(named("bias"), triangle.clone());
    });
    desk.compress(&desk.model, "--keep 0.8 --rank-multiple 2", "out");
    let output = weights(&desk.out("out"));
    assert!(output[&named("masked_bias")] == mask && output[&named("bias")] == triangle);
    edit_weights(&desk.model, |weights| {
        weights.insert("gpt_neox.other".into(), mask);
    });
    let command = desk.run("compress", &desk.model, "--keep 0.8 --rank-multiple 2");
    command.arg("-o").arg(desk.out("none")).run().refused(6, &["gpt_neox.other"]);
}
