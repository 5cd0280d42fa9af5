//! `bantam demo`: the whole road on a small model that is part of the program.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::json;

use super::args::{ReportArgs, fraction};
use super::compute::ComputeArgs;
use super::console::Console;
use super::report::{exact_size, peak_rss_bytes, peak_text, perplexity_text};
use super::table::Table;
use crate::arch::Model;
use crate::checkpoint::WriteOptions;
use crate::error::{Error, Result};
use crate::eval::perplexity;
use crate::measure::{Cut, Draw, TextWindows};
use crate::pipeline::Run;
use crate::settings::{Rule, Settings};

/// Fit the bundled model to a smaller budget and show what it cost.
///
/// A llama of 4.9 million parameters trained on Python source comes with the program, with text to
/// calibrate on and text to test on. Nothing is left behind unless -o is given.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  bantam demo
  bantam demo --keep 0.7 -o smaller")]
pub(super) struct Args {
    /// Fraction of the bytes to keep.
    #[arg(long, value_name = "FRACTION", default_value_t = 0.5, value_parser = fraction)]
    keep: f64,

    /// Keep the smaller model in this folder.
    #[arg(short, long, value_name = "OUT")]
    output: Option<PathBuf>,

    #[command(flatten)]
    compute: ComputeArgs,

    #[command(flatten)]
    report: ReportArgs,
}

/// Tokens of a window; the bundled model's perplexity is known at this length.
const WINDOW: usize = 256;

/// Windows of calibration text.
const WINDOWS: usize = 128;

macro_rules! bundled {
    ($file:literal) => {
        ($file, include_bytes!(concat!("../../tests/fixtures/pycode-llama/", $file)).as_slice())
    };
}

const MODEL: [(&str, &[u8]); 5] = [
    bundled!("config.json"),
    bundled!("generation_config.json"),
    bundled!("model.safetensors"),
    bundled!("tokenizer.json"),
    bundled!("tokenizer_config.json"),
];
const CALIBRATION: &[u8] = include_bytes!("../../tests/fixtures/pycode.calib.txt");
const TEST: &[u8] = include_bytes!("../../tests/fixtures/pycode.test.txt");

pub(super) fn run(args: &Args, console: &Console) -> Result<()> {
    let started = Instant::now();
    let temporary =
        tempfile::tempdir().map_err(|e| Error::io("make a folder in", &std::env::temp_dir(), e))?;
    let root = temporary.path();
    let input = root.join("pycode-llama");
    unpack(&input)?;
    let calibration_file = write(root, "calibration.txt", CALIBRATION)?;
    let test_file = write(root, "test.txt", TEST)?;
    let output = args.output.clone().unwrap_or_else(|| root.join("smaller"));

    let model = Model::open(&input)?;
    let cut = |windows| Cut { length: Some(WINDOW), windows, draw: Draw::FromStart };
    let test = TextWindows::read(&model, &[test_file], cut(None))?;
    let text = TextWindows::read(&model, &[calibration_file], cut(Some(WINDOWS)))?;
    let run = Run::new(&model, Settings::new(Rule::keep(args.keep)))?.text(text).told(console);
    let compute = args.compute.on(&model, WINDOW, &run.measured(), console)?;
    let before = perplexity(&model, test.windows(), &compute, console)?;

    let (mut run, options) = (run.on(compute.clone()), WriteOptions::default());
    run.check(&output, &options)?;
    let compressing = Instant::now();
    let outcome = run.write(&output, &options)?;
    let compress_seconds = compressing.elapsed().as_secs_f64();
    let after = perplexity(&Model::open(&output)?, test.windows(), &compute, console)?;

    let (bytes_in, bytes_out) = (outcome.plan.model.weight_bytes, outcome.plan.weight_bytes);
    let (seconds, peak) = (started.elapsed().as_secs_f64(), peak_rss_bytes());
    if args.report.json {
        return console.json(&json!({
            "weight_bytes_in": bytes_in,
            "weight_bytes_out": bytes_out,
            "before": before,
            "after": after,
            "compress_seconds": compress_seconds,
            "seconds": seconds,
            "peak_rss_bytes": peak,
            "output": args.output,
        }));
    }
    let mut table = Table::new(["", "weights", "perplexity"]);
    table.row(["pycode-llama".into(), exact_size(bytes_in), perplexity_text(&before)]);
    table.row([format!("kept {}", args.keep), exact_size(bytes_out), perplexity_text(&after)]);
    console.data(&format!(
        "{}\ncompress {compress_seconds:.1} s, with both evaluations {seconds:.1} s; peak memory {}\n",
        table.render(),
        peak_text(peak),
    ))
}

/// The bundled checkpoint as a folder.
fn unpack(folder: &Path) -> Result<()> {
    std::fs::create_dir(folder).map_err(|e| Error::io("make folder", folder, e))?;
    for (name, bytes) in MODEL {
        write(folder, name, bytes)?;
    }
    Ok(())
}

fn write(folder: &Path, name: &str, bytes: &[u8]) -> Result<PathBuf> {
    let file = folder.join(name);
    std::fs::write(&file, bytes).map_err(|e| Error::io("write", &file, e))?;
    Ok(file)
}
