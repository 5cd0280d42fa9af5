//! Every method on the whole road: written, carried out from a plan file, and run before it is written.

use std::fs;
use std::path::{Path, PathBuf};

use bantam::arch::{Model, Role, Site};
use bantam::checkpoint::WriteOptions;
use bantam::eval::perplexity;
use bantam::measure::{Compute, Cut, Draw, Footprint, Measured, TextWindows};
use bantam::passes::{ALL, Pass};
use bantam::pipeline::Run;
use bantam::plan::Plan;
use bantam::progress::Silent;
use bantam::settings::{Method, Rule, Settings, StackSettings};

use super::cli::first_difference;
use super::contract::settings;
use super::models::Desk;
use super::toy::{TOY, Toy};

/// Fused linears, biases, experts beside dense layers, shards, half precision.
const MODELS: [&str; 6] =
    ["phi3", "gpt-neox", "qwen3-moe-mixed", "llama-sharded", "llama-bf16", "qwen2"];

fn own() -> Vec<Box<dyn Pass>> {
    vec![Box::new(Toy::new())]
}

pub(crate) fn text(desk: &Desk, model: &Model) -> TextWindows {
    let cut = Cut { length: Some(16), windows: Some(4), draw: Draw::FromStart };
    TextWindows::read(model, std::slice::from_ref(&desk.text), cut).unwrap()
}

fn loss<'a>(view: impl Into<bantam::model::View<'a>>, text: &TextWindows) -> u64 {
    perplexity(view, text.windows(), &Compute::cpu(), &Silent).unwrap().nll.to_bits()
}

/// Writes `plan` to a file and reads it again.
fn through_a_file(plan: &Plan, model: &Model, file: &Path) -> Plan {
    fs::write(file, plan.to_json().unwrap()).unwrap();
    let read = Plan::read(file, model).unwrap();
    assert_eq!(read, *plan);
    read
}

/// Runs `settings` on a model: directly, from the plan file, and as a preview.
fn check(desk: &Desk, folder: &Path, settings: &Settings, what: &str) {
    let model = Model::open(folder).unwrap();
    let text = text(desk, &model);
    let made = tempfile::tempdir_in(desk.made()).unwrap();
    let out = |name: &str| -> PathBuf { made.path().join(name) };
    let run = || Run::with_passes(&model, settings.clone(), own()).unwrap().text(text.clone());
    let options = WriteOptions::default();

    let mut direct = run();
    direct.check(&out("direct"), &options).unwrap();
    direct.measure().unwrap();
    let plan = direct.plan().unwrap();
    assert!(plan.sites.iter().any(|site| site.method.is_some()), "{what}: nothing changes");
    let previewed = loss(&direct.preview(&plan).unwrap(), &text);
    let outcome = direct.write(&out("direct"), &options).unwrap();
    assert_eq!(outcome.plan, plan, "{what}");
    assert_eq!(outcome.written.weight_bytes, plan.weight_bytes, "{what}");
    let written = Model::open(&out("direct")).unwrap();
    assert_eq!(written.weight_bytes(), plan.weight_bytes, "{what}");
    assert_eq!(previewed, loss(&written, &text), "{what}: the preview is another model");

    let read = through_a_file(&plan, &model, &out("plan.json"));
    let mut again = run().carrying_out(read).unwrap();
    again.check(&out("again"), &options).unwrap();
    again.write(&out("again"), &options).unwrap();
    assert_eq!(first_difference(&out("direct"), &out("again")), None, "{what}");
}

#[test]
fn every_method_is_carried_out_from_its_plan_and_run_before_it_is_written() {
    let names = || ALL.iter().map(|entry| Method::named(entry.name)).chain([TOY]);
    for name in MODELS {
        let desk = Desk::with(name);
        for method in names() {
            for (fold, gradients) in [(false, true), (true, true), (false, false)] {
                let methods = vec![method.clone()];
                let settings = Settings { methods, fold, gradients, ..settings() };
                let keep = if name.contains("moe") { 0.97 } else { 0.85 };
                let settings = Settings { rule: Rule::keep(keep), ..settings };
                let what = format!("{name}, {method}, fold {fold}, gradients {gradients}");
                check(&desk, &desk.model, &settings, &what);
            }
        }
    }
}

#[test]
fn methods_compete_for_one_budget() {
    let desk = Desk::with("qwen2");
    let model = Model::open(&desk.model).unwrap();
    let text = text(&desk, &model);
    let plan = |methods: &[Method]| {
        let settings = Settings { methods: methods.to_vec(), ..settings() };
        let settings = Settings { rule: Rule::keep(0.8), floor: 0.0, ..settings };
        let mut run = Run::with_passes(&model, settings, own()).unwrap().text(text.clone());
        run.measure().unwrap();
        run.plan().unwrap()
    };
    let alone = [plan(&[TOY]), plan(&[Method::LORD])];
    let both = plan(&[TOY, Method::LORD]);
    for alone in alone {
        assert!(both.weight_bytes <= (model.weight_bytes() as f64 * 0.8) as u64);
        assert!(both.expected_loss() <= alone.expected_loss() * (1.0 + 1e-9));
    }
}

/// Memory is forecast for what is taken: no second moments for a method that has no use for them, nor of
/// experts that a method does not reach.
#[test]
fn memory_is_forecast_for_what_the_methods_take() {
    let desk = Desk::with("qwen3-moe-mixed");
    let model = Model::open(&desk.model).unwrap();
    let forecast = |methods: &[Method]| {
        let settings = Settings { methods: methods.to_vec(), ..settings() };
        let run = Run::new(&model, Settings { rule: Rule::keep(0.97), ..settings }).unwrap();
        run.text(text(&desk, &model)).plan().unwrap().memory.unwrap()
    };
    assert_eq!(forecast(&[Method::BITSTACK]).moments, 0);
    // q, k and v read one activation and o another, gate and up a third and down a fourth: of each either
    // the square of the input or those of the outputs, whichever is less.
    let smaller = |layer: usize, roles: &[Role]| -> u64 {
        let square = |n: usize| 8 * (n * n) as u64;
        let readers: Vec<_> =
            model.layer_sites(layer).filter(|site| roles.contains(&site.role)).collect();
        let outputs = readers.iter().map(|site| square(site.out_features)).sum::<u64>();
        readers.first().map_or(0, |site| square(site.in_features).min(outputs))
    };
    let qkv = [Role::AttnQ, Role::AttnK, Role::AttnV];
    let ports = [&qkv[..], &[Role::AttnO], &[Role::MlpGate, Role::MlpUp], &[Role::MlpDown]];
    let layers = 0..model.spec().layers.len();
    let most = layers.map(|layer| ports.iter().map(|roles| smaller(layer, roles)).sum()).max();
    assert_eq!(Some(forecast(&[Method::LORD]).moments), most);
    // Nor where a method that reaches the experts has no use for their moments.
    assert_eq!(Some(forecast(&[Method::LORD, Method::BITSTACK]).moments), most);
}

/// On a device a stack takes what it takes on the disk, not what the matrix would.
#[test]
fn a_stack_is_forecast_as_it_is_stored() {
    let desk = Desk::with("llama-bf16");
    let dense = Model::open(&desk.model).unwrap();
    let out = desk.made().join("stack");
    let stack = Settings { methods: vec![Method::BITSTACK], ..Settings::new(Rule::Stack) };
    let stack = Settings { stack: StackSettings { levels: 2, rank: 1, ..stack.stack }, ..stack };
    let mut run = Run::new(&dense, stack).unwrap().text(text(&desk, &dense));
    run.write(&out, &WriteOptions::default()).unwrap();
    let stack = Model::open(&out).unwrap();
    let stored = |layer| stack.layer_sites(layer).map(Site::stored_bytes).sum::<u64>();
    // Two blocks are there at a time: one that computes and one that is copied.
    let layers = 1..stack.spec().layers.len();
    let most = layers.map(|layer| stored(layer - 1) + stored(layer)).max();
    let forecast = Footprint::on_gpu(&stack, 16, &Measured::default());
    assert_eq!(Some(forecast.block_weights), most);
}

/// Compressed again, with parts that were dissolved and factors that are there already.
#[test]
fn what_was_compressed_is_compressed_again() {
    for name in ["phi3", "gpt-neox"] {
        let desk = Desk::with(name);
        let model = Model::open(&desk.model).unwrap();
        let once = desk.made().join("once");
        let first = Settings { rule: Rule::keep(0.9), ..settings() };
        let mut run = Run::new(&model, first).unwrap().text(text(&desk, &model));
        run.write(&once, &WriteOptions::default()).unwrap();
        for fold in [false, true] {
            let again = Settings { rule: Rule::keep(0.95), fold, ..settings() };
            check(&desk, &once, &again, &format!("{name} again, fold {fold}"));
        }
    }
}
