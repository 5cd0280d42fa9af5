//! Device memory that is taken against what was forecast, byte by byte as the emulated driver counts
//! it. On a GPU `benches/gpu.rs` measures the same from outside.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test may panic and say what it saw"
)]

#[path = "support/cli.rs"]
mod cli;

use std::path::Path;

use bantam::arch::Model;
use bantam::measure::{Activations, Footprint, Measured, OVERHEAD};
use bantam::pipeline::Run;
use bantam::settings::{Rule, Settings};
use cli::bantam;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");

/// Bytes taken at the peak by `verb` of `model` over `windows` of `window` tokens.
fn taken(verb: &str, model: &Path, windows: usize, window: usize, memory: u64) -> u64 {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("peak");
    let (verb, options) = verb.split_once(' ').unwrap_or((verb, ""));
    let text = format!("{FIXTURES}/pycode.calib.txt");
    let run = bantam(verb).arg(model).args(options).arg("--text").arg(text);
    let run = run.args(&format!("--windows {windows} --window {window} --compute cuda --json"));
    let run = run.args(&format!("--device-memory {memory}"));
    let run = match verb {
        "compress" => run.arg("-o").arg(folder.path().join("out")),
        _ => run,
    };
    run.env("EMU_MEMORY_LOG", &log).run().ok();
    let peak = std::fs::read_to_string(log);
    peak.expect("the emulated driver counts: scripts/emulate.sh").trim().parse().unwrap()
}

#[test]
fn what_is_taken_is_what_was_forecast() {
    let lord = |keep, gradients| Settings { gradients, ..Settings::new(Rule::keep(keep)) };
    for (verb, name, settings) in [
        ("eval", "pycode-llama", None),
        ("eval", "pycode-qwen3moe", None),
        ("compress --keep 0.7 --no-gradients", "pycode-llama", Some(lord(0.7, false))),
        ("compress --keep 0.7", "pycode-llama", Some(lord(0.7, true))),
        ("compress --keep 0.97", "pycode-qwen3moe", Some(lord(0.97, true))),
    ] {
        for (windows, window) in [(4, 64), (3, 200)] {
            let folder = Path::new(FIXTURES).join(name);
            let model = Model::open(&folder).unwrap();
            let measured = match &settings {
                Some(settings) => Run::new(&model, settings.clone()).unwrap().measured(),
                None => Measured::default(),
            };
            let needs = Footprint::on_gpu(&model, windows * window, &measured);
            let taken = taken(verb, &folder, windows, window, 8 << 30);
            // With memory to spare, the inputs of the blocks below stay on the device for the way back.
            let below = if measured.gradients { model.spec().layers.len() - 1 } else { 0 };
            let kept = Activations::bytes_for(below, windows * window, model.spec().hidden);
            let forecast = needs.peak - OVERHEAD + kept;
            let ratio = taken as f64 / forecast as f64;
            println!(
                "{verb} {name} {windows} of {window}: {taken} taken, {ratio:.3} of {kept} and {needs:?}"
            );
            // What a decomposition takes is an upper bound.
            let least = if verb == "eval" { 0.95 } else { 0.85 };
            assert!(
                (least..=1.05).contains(&ratio),
                "{verb} {name} {windows} of {window}: {ratio}"
            );
        }
    }
}

/// Room for the pass and for one of eight chunks of the stream: the others wait in host memory.
#[test]
fn a_limit_is_kept() {
    let folder = Path::new(FIXTURES).join("pycode-llama");
    let model = Model::open(&folder).unwrap();
    let (windows, window) = (8, 64);
    let measured = Measured::default();
    // Chunks halve until they fit: room for one window at a time, and no more.
    let limit = Footprint::on_gpu(&model, window, &measured).peak + (100 << 10);
    let taken = taken("eval", &folder, windows, window, limit);
    assert!(taken <= (limit - OVERHEAD) * 105 / 100, "{taken} of {limit}");
    let at_once = Footprint::on_gpu(&model, windows * window, &measured).peak - OVERHEAD;
    assert!(taken < at_once / 2, "{taken}, all at once {at_once}");
    assert!(taken < model.checkpoint().weight_bytes(), "the model would have fitted in whole");
}
