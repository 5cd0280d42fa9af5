//! Stacks from the command line: made, read at any budget, cut, folded and swept. A budget is kept
//! and used up to a block, what is cut is the same file whichever way it was cut, and a folded
//! prefix is the model that eval reads at that budget.

#![allow(clippy::unwrap_used, reason = "a failing test is to panic")]

#[path = "support/cli.rs"]
mod cli;
#[path = "support/models.rs"]
mod models;
#[path = "support/own_text.rs"]
mod own_text;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use bantam::arch::Model;
use cli::{Bantam, bantam, files, first_difference, fixture, names, read_json};
use models::{Desk, weight_bytes, weights};
use own_text::OwnText;
use serde_json::Value;

const SHAPE: &str = "--levels 5 --rank 4 --windows 16 --window 32";

/// A tiny model and the stack made of it.
struct Bench {
    desk: Desk,
    stack: PathBuf,
}

impl Bench {
    fn with(golden: &str) -> Self {
        Self::shaped(golden, SHAPE)
    }

    fn shaped(golden: &str, shape: &str) -> Self {
        let desk = Desk::with(golden);
        let stack = desk.made().join("stack");
        let bench = Self { desk, stack };
        bench.compress(shape, &bench.stack).run().ok();
        bench
    }

    fn compress(&self, shape: &str, out: &Path) -> Bantam {
        let command = bantam("compress").arg(&self.desk.model).args("--method bitstack");
        command.args(shape).arg("--text").arg(&self.desk.text).arg("-o").arg(out)
    }

    fn made(&self, name: &str) -> PathBuf {
        self.desk.made().join(name)
    }

    fn ends(&self) -> (u64, u64) {
        let found = bantam("inspect").arg(&self.stack).arg("--json").run().json();
        let number = |value: &Value| value.as_u64().unwrap();
        (number(&found["stack"]["smallest_bytes"]), number(&found["weight_bytes"]))
    }

    fn middle(&self) -> u64 {
        let (smallest, whole) = self.ends();
        u64::midpoint(smallest, whole)
    }

    fn nll(&self, model: &Path, budget: Option<u64>) -> f64 {
        let ids = self.desk.model.join("golden.safetensors");
        let command = bantam("eval").arg(model).arg("--ids").arg(ids).arg("--json");
        let command = match budget {
            Some(budget) => command.args(&format!("--budget {budget}")),
            None => command,
        };
        command.run().json()["nll"].as_f64().unwrap()
    }
}

fn fit(stack: &Path, budget: u64, out: &Path) -> Bantam {
    bantam("fit").arg(stack).args(&format!("--budget {budget}")).arg("-o").arg(out).arg("--json")
}

/// The numbers of the linears, block by block, and the linears' names.
fn order(folder: &Path) -> (Vec<usize>, Vec<String>) {
    let config = read_json(&folder.join("config.json"));
    let order = serde_json::from_value(config["bantam"]["order"].clone()).unwrap();
    let sites = config["bantam"]["sites"].as_object().unwrap().keys().cloned().collect();
    (order, sites)
}

/// The bytes of every block, in their order.
fn block_sizes(folder: &Path) -> Vec<u64> {
    let (order, sites) = order(folder);
    let all = weights(folder);
    let mut levels = BTreeMap::<usize, usize>::new();
    let size = |site: usize| {
        let level = levels.entry(site).or_default();
        let parts = ["sign", "u", "v"].map(|part| format!("{}.{level}.{part}", sites[site]));
        *level += 1;
        parts.iter().map(|name| all[name].data.len() as u64).sum()
    };
    order.into_iter().map(size).collect()
}

/// Made, opened, read at three budgets, cut, generated from; more blocks come closer to the model.
fn round_trip(golden: &str) {
    let bench = Bench::shaped(golden, "--levels 8 --rank 8 --windows 16 --window 32");
    let (smallest, whole) = bench.ends();
    assert_eq!(whole, weight_bytes(&bench.stack), "{golden}");
    let reference = bench.nll(&bench.desk.model, None);
    let off = |budget| (bench.nll(&bench.stack, Some(budget)) - reference).abs();
    let (first, all) = (off(smallest), off(whole));
    assert!(all < 0.5 * first, "{golden}: off by {first} with a level and {all} with eight");
    assert!(all < 5e-3, "{golden}: off by {all}");

    let sweep = bantam("plan").arg(&bench.stack).args("--sweep 9 --json").run().json();
    let losses: Vec<f64> = sweep["budgets"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["expected_loss"].as_f64().unwrap())
        .collect();
    assert!(losses.is_sorted_by(|a, b| a > b), "{golden}: {losses:?}");

    let (budget, out) = (u64::midpoint(smallest, whole), bench.made("cut"));
    fit(&bench.stack, budget, &out).run().json();
    let generate = |command: Bantam| {
        command.arg("--prompt").arg("w1 w2 w3").args("--max-tokens 12").run().ok().stdout
    };
    let read = bantam("generate").arg(&bench.stack).args(&format!("--budget {budget}"));
    assert_eq!(generate(read), generate(bantam("generate").arg(&out)), "{golden}");
    let (read, cut) = (bench.nll(&bench.stack, Some(budget)), bench.nll(&out, None));
    assert_eq!(read.to_bits(), cut.to_bits(), "{golden}");
}

#[test]
fn bf16() {
    round_trip("llama-bf16");
}

#[test]
fn biases() {
    round_trip("llama-bias");
    round_trip("qwen2");
}

#[test]
fn grouped_queries() {
    round_trip("mistral");
}

#[test]
fn fused_modules() {
    round_trip("phi3");
    round_trip("gpt-neox");
}

#[test]
fn experts() {
    round_trip("qwen3-moe");
    let bench = Bench::with("qwen3-moe");
    let found = bantam("inspect").arg(&bench.stack).arg("--json").run().json();
    let roles = found["roles"].as_array().unwrap();
    let expert = roles.iter().find(|role| role["role"] == "expert.down").unwrap();
    assert_eq!(expert["stack_sites"], expert["sites"]);
    assert_eq!(expert["low_rank_sites"], 0);
    let sites = expert["sites"].as_u64().unwrap();
    assert_eq!(expert["blocks"].as_u64().unwrap(), 5 * sites);
}

/// A stack of the trained model at `out`.
fn trained(out: &Path, options: &str) -> PathBuf {
    bantam("compress")
        .arg(fixture("pycode-llama"))
        .args(&format!("--method bitstack {options} --windows 8 --window 64 --text"))
        .arg(fixture("pycode.calib.txt"))
        .arg("-o")
        .arg(out)
        .run()
        .ok();
    out.to_owned()
}

#[test]
fn a_trained_model_gets_better_with_every_quarter() {
    let root = tempfile::tempdir().unwrap();
    let stack = trained(&root.path().join("stack"), "--levels 4 --rank 8");
    let plot = root.path().join("plot.svg");
    let found = bantam("plan")
        .arg(&stack)
        .args("--sweep 5 --json --windows 8 --window 64 --text")
        .arg(fixture("pycode.test.txt"))
        .arg("--plot")
        .arg(&plot)
        .run()
        .json();
    assert_eq!(found["loss_basis"], "nats");
    let rows = found["budgets"].as_array().unwrap();
    let column =
        |name: &str| -> Vec<f64> { rows.iter().map(|row| row[name].as_f64().unwrap()).collect() };
    assert!(column("perplexity").is_sorted_by(|a, b| a > b), "{:?}", column("perplexity"));
    assert!(column("expected_loss").is_sorted_by(|a, b| a > b));
    assert!(column("mean_levels").is_sorted_by(|a, b| a < b));
    assert!(column("perplexity_stderr").iter().all(|error| *error > 0.0));
    assert_eq!(rows.first().unwrap()["mean_levels"], 1.0);
    assert_eq!(rows.last().unwrap()["weight_bytes"], weight_bytes(&stack));
    let text = fs::read_to_string(plot).unwrap();
    for title in ["weights (MiB)", "expected loss (nats per token)", "perplexity"] {
        assert!(text.contains(title), "the plot has no `{title}`");
    }
}

#[test]
fn budgets_are_kept_and_used_up_to_a_block() {
    let bench = Bench::with("llama");
    let (smallest, whole) = bench.ends();
    let ((all, _), sizes) = (order(&bench.stack), block_sizes(&bench.stack));
    let mut last = 0;
    for step in 0..16 {
        let budget = smallest + (whole - smallest) * step / 15;
        let out = bench.made("cut");
        let report = fit(&bench.stack, budget, &out).arg("--overwrite").run().json();
        let written = weight_bytes(&out);
        assert_eq!(report["weight_bytes_out"], written);
        assert_eq!(report["prefix_bytes"], written);
        assert!(written <= budget, "{written} bytes in a budget of {budget}");
        let (prefix, _) = order(&out);
        assert_eq!(report["blocks"], prefix.len());
        assert!(prefix.len() >= last && all.starts_with(&prefix), "no prefix");
        if let Some(next) = sizes.get(prefix.len()) {
            assert!(written + next > budget, "another block would fit {budget} bytes");
        }
        last = prefix.len();
        let manifest = read_json(&out.join("bantam.json"));
        let fit = &manifest["fit"];
        assert_eq!(fit["levels"], last);
        assert_eq!(fit["budget"], budget);
        assert_eq!(manifest["weight_bytes"], written);
        let plan = &read_json(&bench.stack.join("bantam.json"))["plan"];
        assert_eq!(fit["expected_loss"], plan["stack"]["losses"][last - 1]);
        assert_eq!(fit["expected_loss"], report["expected_loss"]);
        assert_eq!(fit["whole"]["weight_bytes"], whole);
    }
    assert_eq!(last, all.len());
}

/// Also of shards, and with files that are not weights.
#[test]
fn a_prefix_of_a_prefix_is_the_prefix() {
    let bench = Bench::with("llama-sharded");
    let (smallest, whole) = bench.ends();
    for shards in ["", "--max-shard-size 20KB"] {
        let at = |share: u64| smallest + (whole - smallest) * share / 10;
        let out = |name: &str| bench.made(name);
        let cut = |from: &Path, share, to: &str| {
            fit(from, at(share), &out(to)).args(shards).arg("--overwrite").run().json();
        };
        cut(&bench.stack, 3, "once");
        cut(&bench.stack, 8, "first");
        cut(&out("first"), 5, "second");
        cut(&out("second"), 3, "third");
        assert_eq!(first_difference(&out("once"), &out("third")), None, "{shards}");
        assert_eq!(shards.is_empty(), names(&out("once")).contains(&"model.safetensors".into()));
        assert!(names(&out("once")).contains(&"tokenizer.json".into()));

        // All of it is what it was cut from.
        let same = bench.made("same");
        bench.compress(&format!("{SHAPE} {shards}"), &same).arg("--overwrite").run().ok();
        cut(&same, 10, "all");
        let without_manifest = |folder: &Path| {
            let mut found = files(folder);
            found.remove("bantam.json").unwrap();
            found
        };
        assert!(without_manifest(&same) == without_manifest(&out("all")), "{shards}");
    }
}

#[test]
fn folded_it_is_the_model_that_is_read_at_that_budget() {
    for golden in ["llama", "llama-bias", "phi3", "gpt-neox", "gpt-bigcode", "qwen3-moe"] {
        let bench = Bench::with(golden);
        let (budget, out) = (bench.middle(), bench.made("dense"));
        let report = fit(&bench.stack, budget, &out).arg("--fold").run().json();
        assert_eq!(report["folded"], true);
        let config = read_json(&out.join("config.json"));
        assert!(config.get("bantam").is_none(), "{golden}");
        // The names, shapes and dtypes of the model that the stack was made of, in their order.
        let specs = |folder: &Path| -> Vec<_> {
            weights(folder).into_iter().map(|(name, w)| (name, w.shape, w.dtype)).collect()
        };
        assert_eq!(specs(&out), specs(&bench.desk.model), "{golden}");
        assert_eq!(report["weight_bytes_out"], weight_bytes(&out));
        let (read, folded) = (bench.nll(&bench.stack, Some(budget)), bench.nll(&out, None));
        assert!((read - folded).abs() <= 1e-5, "{golden}: {read} and folded {folded}");
        let inspected = bantam("inspect").arg(&out).arg("--json").run().json();
        assert!(inspected["stack"].is_null(), "{golden}");
    }
    let bench = Bench::with("llama-bf16");
    let (budget, out) = (bench.middle(), bench.made("dense"));
    fit(&bench.stack, budget, &out).arg("--fold").run().json();
    let (read, folded) = (bench.nll(&bench.stack, Some(budget)), bench.nll(&out, None));
    assert!((read - folded).abs() <= 1e-2, "bf16: {read} and folded {folded}");
}

/// Parts of one fused module, some factors and some stacks, are fused again in one dtype.
#[test]
fn a_stack_of_what_factors_left_dense() {
    let desk = Desk::with("phi3-bf16");
    let [factors, stack, dense] = ["factors", "stack", "dense"].map(|name| desk.made().join(name));
    let welore = bantam("compress").arg(&desk.model).args("--method welore --keep 0.93");
    welore.args("--rank-multiple 2 -o").arg(&factors).run().ok();
    let bitstack = bantam("compress").arg(&factors).args("--method bitstack").args(SHAPE);
    bitstack.arg("--text").arg(&desk.text).arg("-o").arg(&stack).run().ok();
    let sites = read_json(&stack.join("config.json"))["bantam"]["sites"].clone();
    let kinds = |part: &str| {
        let site = |layer| format!("model.layers.{layer}.{part}");
        [0, 1].map(|layer| sites[site(layer)]["kind"].as_str().unwrap().to_owned()).join(" ")
    };
    let fused = ["q", "k", "v"].map(|part| kinds(&format!("self_attn.qkv_proj.{part}"))).join(" ");
    assert!(fused.contains("low_rank") && fused.contains("stack"), "{fused}");
    fit(&stack, 1 << 30, &dense).arg("--fold").run().json();
    let specs = |folder: &Path| -> Vec<_> {
        weights(folder).into_iter().map(|(name, w)| (name, w.shape, w.dtype)).collect()
    };
    assert_eq!(specs(&dense), specs(&desk.model));
}

#[test]
fn the_same_command_gives_the_same_bytes_on_any_number_of_threads() {
    let bench = Bench::with("qwen2");
    let (budget, dense) = (bench.middle(), bench.made("dense"));
    fit(&bench.stack, budget, &dense).arg("--fold").run().json();
    for threads in ["1", "2", "5"] {
        let (stack, again) = (bench.made(threads), bench.made("dense-again"));
        bench.compress(SHAPE, &stack).env("RAYON_NUM_THREADS", threads).run().ok();
        assert_eq!(first_difference(&bench.stack, &stack), None, "{threads} threads");
        let fold = fit(&stack, budget, &again).args("--fold --overwrite");
        fold.env("RAYON_NUM_THREADS", threads).run().json();
        assert_eq!(first_difference(&dense, &again), None, "{threads} threads");
    }
}

/// The most levels that a linear of a stack of `levels` is ever ahead of another.
fn lead(stack: &Path, levels: usize) -> usize {
    let (all, sites) = order(stack);
    let mut taken = vec![0; sites.len()];
    let mut lead = 0;
    for site in all {
        taken[site] += 1;
        lead = lead.max(taken.iter().max().unwrap() - taken.iter().min().unwrap());
    }
    assert!(taken.iter().all(|taken| *taken == levels), "{taken:?}");
    lead
}

#[test]
fn level_by_level_no_linear_is_more_than_one_ahead() {
    let bench = Bench::shaped("llama", &format!("{SHAPE} --order average"));
    assert_eq!(lead(&bench.stack, 5), 1);
    let own = OwnText::of(&bench.desk.model, &bench.desk.text, bench.desk.root.path());
    let (smallest, whole) = bench.ends();
    let losses = [smallest, bench.middle(), whole].map(|budget| {
        let stack = Model::open(&bench.stack).unwrap();
        own.loss(&stack.prefix(budget).unwrap())
    });
    assert!(losses.is_sorted_by(|a, b| a > b), "{losses:?} nats per token");
    own.assert_made_of_it(losses[1], "half of the levels");
    assert!(lead(&Bench::with("llama").stack, 5) > 1);
}

#[test]
fn without_gradients_the_order_is_level_by_level_unless_told_otherwise() {
    let root = tempfile::tempdir().unwrap();
    let made = |name: &str, options: &str| {
        trained(&root.path().join(name), &format!("--levels 3 --rank 4 --no-gradients {options}"))
    };
    assert_eq!(lead(&made("default", ""), 3), 1);
    assert_eq!(lead(&made("asked-for", "--order priority"), 3), 2);
}

#[test]
fn what_cannot_be_cut_is_refused() {
    let bench = Bench::with("llama");
    let ((smallest, whole), out) = (bench.ends(), bench.made("cut"));
    let before = files(&bench.stack);
    fit(&bench.desk.model, whole, &out).run().refused(2, &["is not a stack", "hint: "]);
    let sweep = bantam("plan").arg(&bench.desk.model).args("--sweep 4");
    sweep.run().refused(2, &["is not a stack", "hint: "]);
    for budget in [1, smallest - 1] {
        fit(&bench.stack, budget, &out).run().refused(4, &[&smallest.to_string()]);
    }
    fit(&bench.stack, whole, &bench.stack).run().refused(2, &["stack"]);
    fit(&bench.stack, whole, &bench.stack).arg("--overwrite").run().refused(2, &["stack"]);
    fit(&bench.stack, whole, &bench.stack.join("in")).run().refused(2, &["stack"]);
    let plot = bench.stack.join("plot.svg");
    let sweep = bantam("plan").arg(&bench.stack).args("--sweep 4 --plot").arg(plot);
    sweep.run().refused(2, &["plot.svg"]);
    assert!(files(&bench.stack) == before && !out.exists());
    assert_eq!(names(&bench.desk.made()), ["stack"]);

    let again = bantam("compress").arg(&bench.stack).args("--method welore --keep 0.9");
    again.arg("-o").arg(&out).run().refused(2, &["is a stack already", "bantam fit"]);
    fit(&bench.stack, smallest, &out).run().json();
    fit(&bench.stack, whole, &out).run().refused(2, &["--overwrite"]);
    for wrong in ["--sweep 1", "--sweep 3 --keep 0.5", "--plot x.svg", "--sweep 3 --measure"] {
        let run = bantam("plan").arg(&bench.stack).args(wrong).run();
        assert_eq!(run.code, Some(2), "{wrong}:\n{}", run.stderr);
    }
}

/// Without its manifest a stack is cut and swept all the same; the expected losses are not known.
#[test]
fn a_stack_without_its_manifest() {
    let bench = Bench::with("llama");
    let out = bench.made("cut");
    let manifest = bench.stack.join("bantam.json");
    let mut damaged = read_json(&manifest);
    damaged["plan"]["stack"]["losses"][1] = serde_json::json!(-1e308);
    fs::write(&manifest, damaged.to_string()).unwrap();
    let cut = fit(&bench.stack, bench.middle(), &out).run();
    cut.refused(3, &["bantam.json", "expected loss", "remove it"]);
    fs::remove_file(&manifest).unwrap();
    let report = fit(&bench.stack, bench.middle(), &out).run().json();
    assert_eq!(report.get("expected_loss"), Some(&Value::Null));
    let fit = &read_json(&out.join("bantam.json"))["fit"];
    assert_eq!(fit.get("expected_loss"), Some(&Value::Null));
    // A prefix of it still knows the first stack.
    let again = bench.made("again");
    let report = self::fit(&out, bench.ends().0, &again).run().json();
    assert_eq!(report["weight_bytes_out"], bench.ends().0);
    assert_eq!(read_json(&again.join("bantam.json"))["fit"]["whole"], fit["whole"]);
    let sweep = || bantam("plan").arg(&bench.stack).args("--sweep 3");
    let found = sweep().arg("--json").run().json();
    assert_eq!(found["budgets"][1].get("expected_loss"), Some(&Value::Null));
    let table = sweep().run().ok().stdout;
    assert_eq!(table.lines().count(), 4, "{table}");
    let plot = bench.made("plot.svg");
    sweep().arg("--plot").arg(&plot).run().refused(2, &["no expected losses", "--text"]);
    let text = &bench.desk.text;
    let run = sweep().arg("--plot").arg(&plot).args("--window 32 --windows 4 --text").arg(text);
    run.run().ok();
    assert!(fs::read_to_string(plot).unwrap().contains("perplexity"));
    fs::write(bench.stack.join("bantam.json"), "{").unwrap();
    sweep().run().refused(3, &["bantam.json"]);
}
