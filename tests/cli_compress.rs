//! `bantam compress` keeps its word: the bytes it reports are the bytes in the written headers and
//! those the plan foretold, never above the budget; every tensor is the planned one, every factor
//! pair smaller than what it replaces, everything else as it was; and the input is left alone.

#![allow(clippy::unwrap_used, reason = "a failing test is to panic")]

#[path = "support/cli.rs"]
mod cli;
#[path = "support/models.rs"]
mod models;
#[path = "support/own_text.rs"]
mod own_text;
#[path = "support/written.rs"]
mod written;

use std::fs;
use std::path::{Path, PathBuf};

use cli::{Bantam, bantam, files, fixture, read_json};
use models::{Desk, two_layers, weight_bytes};
use own_text::OwnText;
use serde_json::Value;
use written::{check_tensors, low_rank};

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
    // LoRD, which is given a text, centres its outputs and moves the bias with them.
    check_tensors(&case.model, out, case.rank_multiple, case.text.is_some(), &what);

    let inspected = bantam("inspect").arg(out).arg("--json").run().json();
    assert_eq!(inspected["weight_bytes"], written, "{what}");
    let declared: u64 = inspected["roles"].as_array().unwrap().iter().map(low_rank_sites).sum();
    assert_eq!(declared, low_rank(plan).count() as u64, "{what}");
    report
}

fn low_rank_sites(role: &Value) -> u64 {
    role["low_rank_sites"].as_u64().unwrap()
}

/// Every kind of target and both methods on a tiny model. `tiny_models.rs` has other models.
fn check_tiny(name: &str) {
    let desk = Desk::with(name);
    let own = OwnText::of(&desk.model, &desk.text, desk.root.path());
    let budget = weight_bytes(&desk.model) * 4 / 5;
    for arguments in [
        "--method lord --keep 0.7".to_owned(),
        format!("--method lord --budget {budget}"),
        "--method lord --uniform 0.6".to_owned(),
        "--method welore --keep 0.9".to_owned(),
        format!("--method welore --budget {budget}"),
        "--method welore --reduce 0.55".to_owned(),
    ] {
        let lord = arguments.contains("lord");
        let text = lord.then(|| (desk.text.clone(), "--windows 16 --window 32"));
        let case = Case { model: desk.model.clone(), arguments, text, rank_multiple: 2 };
        let out = desk.made().join("out");
        check(&case, &out);
        own.assert_made_of_it(own.evaluated(&out), &case.describe());
        fs::remove_dir_all(&out).unwrap();
    }
}

#[test]
fn tiny_llama_with_biases() {
    check_tiny("llama-bias");
}

/// One tensor holds q, k and v, another gate and up.
#[test]
fn tiny_fused_phi3() {
    check_tiny("phi3");
}

/// The calibration that the trained models are measured on.
fn pycode() -> Option<(PathBuf, &'static str)> {
    Some((fixture("pycode.calib.txt"), "--windows 8 --window 64"))
}

/// Loss on the test text of the trained models, in nats per token.
fn loss(model: &Path) -> f64 {
    let command = bantam("eval").arg(model).arg("--text").arg(fixture("pycode.test.txt"));
    let found = command.args("--window 64 --windows 8 --json").run().json();
    found["nll"].as_f64().unwrap()
}

#[test]
fn trained_llama_to_half_its_bytes_by_lord() {
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("out");
    let (model, arguments) = (fixture("pycode-llama"), "--keep 0.5 --method lord".into());
    let case = Case { model, arguments, text: pycode(), rank_multiple: 16 };
    let report = check(&case, &out);
    // The smallest step there is costs 16 · (128 + 256) · 2 bytes: so much may be left, and less is.
    let (budget, written) = (&report["budget_bytes"], &report["weight_bytes_out"]);
    let left = budget.as_u64().unwrap() - written.as_u64().unwrap();
    assert!(left < 12_288, "{left} bytes of the budget are left");
    // Half the bytes are worth something, and less than a seventh of the loss.
    let (before, after) = (loss(&case.model), loss(&out));
    assert!(before < after && after < 1.15 * before, "{before} to {after} nats per token");
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
    // Two layers of six predict badly: what they lose is about what they lost before, and not the same.
    let (before, after) = (loss(&case.model), loss(&out));
    let lost = (after - before).abs() / before;
    assert!(0.0 < lost && lost < 0.05, "{before} to {after} nats per token");
}
