//! `bantam compress` keeps its word: the bytes it reports are the bytes in the written headers and
//! those the plan foretold, never above the budget; every tensor is the planned one, every factor
//! pair smaller than what it replaces, everything else as it was; and the input is left alone.

#![allow(clippy::unwrap_used, reason = "a failing test is to panic")]

#[path = "support/cli.rs"]
mod cli;
#[path = "support/models.rs"]
mod models;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use cli::{Bantam, bantam, files, fixture, read_json};
use models::{Weight, tiny, tiny_text, two_layers, weight_bytes, weights};
use serde_json::{Value, json};

/// A compression to carry out and check.
struct Case {
    model: PathBuf,
    /// Target and method.
    arguments: String,
    /// The calibration text and its windows, for a method that measures.
    text: Option<(PathBuf, &'static str)>,
    rank_multiple: u64,
}

impl Case {
    fn command(&self, verb: &str) -> Bantam {
        let command = bantam(verb)
            .arg(&self.model)
            .args(&self.arguments)
            .args(&format!("--rank-multiple {} --json", self.rank_multiple));
        match &self.text {
            Some((text, windows)) => command.arg("--text").arg(text).args(windows),
            None => command,
        }
    }

    fn describe(&self) -> String {
        format!("{} {}", self.model.display(), self.arguments)
    }
}

/// Compresses to `out`, and holds everything that tells the result against the rest.
fn check(case: &Case, out: &Path) -> Value {
    let what = case.describe();
    let before = files(&case.model);
    let report = case.command("compress").arg("-o").arg(out).run().json();
    assert!(files(&case.model) == before, "{what}: the input was changed");

    let manifest = read_json(&out.join("bantam.json"));
    let plan = &manifest["plan"];
    let written = weight_bytes(out);
    assert_eq!(report["weight_bytes_in"], weight_bytes(&case.model), "{what}");
    for told in [&report["weight_bytes_out"], &plan["weight_bytes"], &manifest["weight_bytes"]] {
        assert_eq!(*told, written, "{what}");
    }
    if let Some(budget) = report["budget_bytes"].as_u64() {
        assert!(written <= budget, "{what}: {written} bytes in a budget of {budget}");
    }
    let planned = match case.text {
        Some(_) => case.command("plan"),
        None => case.command("plan").arg("--measure"),
    };
    // What this machine needs for it is told, and no property of the model.
    let mut planned = planned.run().json();
    assert!(planned.as_object_mut().unwrap().remove("memory").is_some(), "{what}");
    assert_eq!(planned, *plan, "{what}: `plan` and `compress` differ");
    check_tensors(case, out, plan);

    let inspected = bantam("inspect").arg(out).arg("--json").run().json();
    assert_eq!(inspected["weight_bytes"], written, "{what}");
    let declared: u64 = inspected["roles"].as_array().unwrap().iter().map(low_rank_sites).sum();
    assert_eq!(declared, low_rank(plan).count() as u64, "{what}");
    report
}

fn low_rank_sites(role: &Value) -> u64 {
    role["low_rank_sites"].as_u64().unwrap()
}

/// `(site, rank)` of every site that the plan stores as factors.
fn low_rank(plan: &Value) -> impl Iterator<Item = (&Value, u64)> {
    let sites = plan["sites"].as_array().unwrap().iter();
    sites.filter_map(|site| Some((site, site["storage"]["rank"].as_u64()?)))
}

/// The written tensors are exactly the input's with factors in place of the planned weights.
fn check_tensors(case: &Case, out: &Path, plan: &Value) {
    let what = case.describe();
    let (input, mut output) = (weights(&case.model), weights(out));
    let config = read_json(&out.join("config.json"));
    let mut declared = config["bantam"]["sites"].as_object().cloned().unwrap_or_default();
    let spec = |name: &str, w: &Weight| json!({ "name": name, "dtype": w.dtype, "shape": w.shape });
    let found: BTreeMap<&str, Value> =
        output.iter().map(|(name, weight)| (name.as_str(), spec(name, weight))).collect();
    let planned = plan["tensors"].as_array().unwrap().iter();
    let planned: BTreeMap<&str, Value> =
        planned.map(|t| (t["name"].as_str().unwrap(), t.clone())).collect();
    assert_eq!(found, planned, "{what}");

    let mut rest = input.clone();
    for (planned, rank) in low_rank(plan) {
        let site = planned["site"].as_str().unwrap();
        let dense = rest.remove(&format!("{site}.weight")).unwrap();
        let [v, u] =
            ["v", "u"].map(|part| output.remove(&format!("{site}.{part}.weight")).unwrap());
        let size = |weight: &Weight| weight.data.len();
        assert!(size(&v) + size(&u) < size(&dense), "{what}: `{site}` did not shrink");
        assert_eq!([v.dtype, u.dtype], [dense.dtype; 2], "{what}: `{site}`");
        let rank = usize::try_from(rank).unwrap();
        assert_eq!(v.shape, [rank, dense.shape[1]], "{what}: `{site}`");
        assert_eq!(u.shape, [dense.shape[0], rank], "{what}: `{site}`");
        assert!((rank as u64).is_multiple_of(case.rank_multiple), "{what}: `{site}` has {rank}");
        assert_eq!(declared.remove(site).unwrap()["rank"], rank, "{what}: `{site}`");
        // LoRD centres its outputs and moves the bias with them.
        if let (Some(_), Some(_)) = (&case.text, rest.remove(&format!("{site}.bias"))) {
            output.remove(&format!("{site}.bias")).unwrap();
        } else if let Some(bias) = input.get(&format!("{site}.bias")) {
            assert_eq!(output.remove(&format!("{site}.bias")).as_ref(), Some(bias), "{what}");
        }
    }
    assert!(declared.is_empty(), "{what}: config.json declares more: {declared:?}");
    assert!(output == rest, "{what}: a tensor that was to stay as it is was changed");
}

/// Every kind of target and both methods on a tiny model; each output's perplexity can be measured.
fn check_tiny(name: &str) {
    let root = tempfile::tempdir().unwrap();
    let (model, text) = (tiny(name, root.path()), tiny_text(root.path()));
    let budget = weight_bytes(&model) * 4 / 5;
    for arguments in [
        "--method lord --keep 0.7".to_owned(),
        format!("--method lord --budget {budget}"),
        "--method lord --uniform 0.6".to_owned(),
        "--method welore --keep 0.9".to_owned(),
        format!("--method welore --budget {budget}"),
        "--method welore --reduce 0.55".to_owned(),
    ] {
        let lord = arguments.contains("lord");
        let text = lord.then(|| (text.clone(), "--windows 16 --window 32"));
        let case = Case { model: model.clone(), arguments, text, rank_multiple: 2 };
        let out = root.path().join("out");
        check(&case, &out);
        let ids = model.join("golden.safetensors");
        let found = bantam("eval").arg(&out).arg("--ids").arg(ids).arg("--json").run().json();
        assert!(found["nll"].as_f64().unwrap() > 0.0, "{}", case.describe());
        fs::remove_dir_all(&out).unwrap();
    }
}

#[test]
fn tiny_llama_with_biases() {
    check_tiny("llama-bias");
}

#[test]
fn tiny_qwen2() {
    check_tiny("qwen2");
}

#[test]
fn tiny_qwen3() {
    check_tiny("qwen3");
}

#[test]
fn tiny_mistral() {
    check_tiny("mistral");
}

#[test]
fn tiny_sharded_llama() {
    check_tiny("llama-sharded");
}

#[test]
fn tiny_bf16_llama() {
    check_tiny("llama-bf16");
}

/// Attention of a mixture of experts is compressed, its experts and routers stay.
#[test]
fn tiny_mixture_of_experts() {
    check_tiny("qwen3-moe-mixed");
}

/// The calibration that the trained models are measured on.
fn pycode() -> Option<(PathBuf, &'static str)> {
    Some((fixture("pycode.calib.txt"), "--windows 8 --window 64"))
}

#[test]
fn trained_llama_to_half_its_bytes_by_lord() {
    let root = tempfile::tempdir().unwrap();
    let (model, arguments) = (fixture("pycode-llama"), "--keep 0.5 --method lord".into());
    let report = check(
        &Case { model, arguments, text: pycode(), rank_multiple: 16 },
        &root.path().join("out"),
    );
    // The smallest step there is costs 16 · (128 + 256) · 2 bytes: so much may be left, and less is.
    let (budget, written) = (&report["budget_bytes"], &report["weight_bytes_out"]);
    let left = budget.as_u64().unwrap() - written.as_u64().unwrap();
    assert!(left < 12_288, "{left} bytes of the budget are left");
}

#[test]
fn trained_llama_by_the_published_rule_of_welore() {
    let root = tempfile::tempdir().unwrap();
    let (model, arguments) = (two_layers(root.path()), "--reduce 0.6 --method welore".into());
    let report =
        check(&Case { model, arguments, text: None, rank_multiple: 8 }, &root.path().join("out"));
    assert!(report["budget_bytes"].is_null());
    assert!(report["keep"].as_f64().unwrap() < 1.0, "{report:#}");
}

/// `--uniform F` gives every linear the rank `⌊F · m n / (m + n)⌋`, rounded down to a multiple.
#[test]
fn trained_llama_uniformly() {
    let root = tempfile::tempdir().unwrap();
    let model = two_layers(root.path());
    let out = root.path().join("uniform");
    let case = Case { model, arguments: "--uniform 0.8".into(), text: pycode(), rank_multiple: 8 };
    check(&case, &out);
    let manifest = read_json(&out.join("bantam.json"));
    let ranks: Vec<(u64, u64, u64)> = low_rank(&manifest["plan"])
        .map(|(site, rank)| {
            (site["shape"][0].as_u64().unwrap(), site["shape"][1].as_u64().unwrap(), rank)
        })
        .collect();
    // q 256x256, k and v 128x256, o 256x256, gate and up 688x256, down 256x688.
    assert_eq!(ranks.len(), 14);
    for (m, n, rank) in ranks {
        let wanted = m * n * 4 / (m + n) / 5 / 8 * 8;
        assert_eq!(rank, wanted, "{m}x{n}");
    }
    bantam("eval")
        .arg(&out)
        .arg("--text")
        .arg(fixture("pycode.test.txt"))
        .args("--window 64 --windows 2")
        .run()
        .ok();
}
