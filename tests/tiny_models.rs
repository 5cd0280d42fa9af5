//! Small models of many kinds, compressed by every rule: every tensor is the planned one, everything else
//! as it was, and what comes out still says much of what the model said. `cli_compress.rs` does the same
//! from the command line.

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

use bantam::arch::{Model, Storage};
use bantam::checkpoint::WriteOptions;
use bantam::measure::{Cut, Draw, TextWindows};
use bantam::pipeline::{Outcome, Run};
use bantam::plan::Plan;
use bantam::settings::{Method, Rule, Settings};
use cli::{files, read_json};
use models::{Desk, weight_bytes};
use own_text::OwnText;
use written::{check_tensors, low_rank};

/// Biases; norms of q and k beside a head that is the embedding; a sliding window; shards; half precision;
/// experts, which stay, beside a dense layer.
const MODELS: [&str; 6] =
    ["qwen2", "qwen3", "mistral", "llama-sharded", "llama-bf16", "qwen3-moe-mixed"];

const RANK_MULTIPLE: usize = 2;

/// Every kind of target, with both methods of factors.
fn every_rule(budget: u64) -> [Settings; 6] {
    let of = |method: Method, rule: Rule| Settings {
        methods: vec![method],
        rank_multiple: RANK_MULTIPLE,
        ..Settings::new(rule)
    };
    [
        of(Method::LORD, Rule::keep(0.7)),
        of(Method::LORD, Rule::budget(budget)),
        of(Method::LORD, Rule::Uniform(0.6)),
        of(Method::WELORE, Rule::keep(0.9)),
        of(Method::WELORE, Rule::budget(budget)),
        of(Method::WELORE, Rule::Reduce(0.55)),
    ]
}

/// Compresses the model of `desk`, and holds everything that tells the result against the rest.
fn check(desk: &Desk, settings: Settings, own: &OwnText, what: &str) {
    let model = Model::open(&desk.model).unwrap();
    let (before, out) = (files(&desk.model), desk.made().join("out"));
    let budget = match settings.rule {
        Rule::Target(target) => target.bytes(model.weight_bytes()),
        Rule::Uniform(_) | Rule::Reduce(_) | Rule::Stack => model.weight_bytes() - 1,
    };
    let lord = settings.methods == [Method::LORD];
    let mut run = Run::new(&model, settings).unwrap();
    if lord {
        let cut = Cut { length: Some(32), windows: Some(16), draw: Draw::FromStart };
        let text = std::slice::from_ref(&desk.text);
        run = run.text(TextWindows::read(&model, text, cut).unwrap());
    }
    run.check(&out, &WriteOptions::default()).unwrap();
    let Outcome { plan, written, .. } = run.write(&out, &WriteOptions::default()).unwrap();
    assert!(files(&desk.model) == before, "{what}: the input was changed");

    let (manifest, bytes) = (read_json(&out.join("bantam.json")), weight_bytes(&out));
    assert_eq!([written.weight_bytes, plan.weight_bytes], [bytes; 2], "{what}");
    assert_eq!(manifest["weight_bytes"], bytes, "{what}");
    assert!(bytes <= budget, "{what}: {bytes} bytes in a budget of {budget}");
    // What this machine needs for it is told, and no property of the model.
    let plan = serde_json::to_value(Plan { memory: None, ..plan }).unwrap();
    assert_eq!(manifest["plan"], plan, "{what}");
    // LoRD centres its outputs and moves the bias with them.
    check_tensors(&desk.model, &out, RANK_MULTIPLE as u64, lord, what);

    let reopened = Model::open(&out).unwrap();
    assert_eq!(reopened.weight_bytes(), bytes, "{what}");
    let sites = reopened.sites().iter();
    let declared = sites.filter(|site| matches!(site.storage, Storage::LowRank { .. })).count();
    assert_eq!(declared, low_rank(&plan).count(), "{what}");
    own.assert_made_of_it(own.loss(&reopened), what);
    drop(reopened);
    fs::remove_dir_all(&out).unwrap();
}

#[test]
fn every_rule_gives_the_planned_tensors_and_leaves_the_rest() {
    for name in MODELS {
        let desk = Desk::with(name);
        let own = OwnText::of(&desk.model, &desk.text, desk.root.path());
        for settings in every_rule(weight_bytes(&desk.model) * 4 / 5) {
            let what = format!("{name}, {} by {:?}", settings.methods[0], settings.rule);
            check(&desk, settings, &own, &what);
        }
    }
}
