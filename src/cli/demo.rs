//! `bantam demo`: the whole road on a small model that is part of the program.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::json;

use super::args::{ACTIVATION_MEMORY, ReportArgs, fraction, passes, windows_of_text};
use super::compress::{Choices, compress, refuse_early};
use super::compute::{ComputeArgs, measuring_pass};
use super::console::Console;
use super::report::{exact_size, peak_rss_bytes, peak_text, perplexity_text};
use super::table::Table;
use crate::arch::SourceModel;
use crate::checkpoint::WriteOptions;
use crate::error::{Error, Result};
use crate::eval::{Perplexity, perplexity};
use crate::job::Job;
use crate::measure::{Draw, MeasureOptions};
use crate::passes::{Method, PassOptions};
use crate::pipeline::{Context, Request};
use crate::plan::{BlockOrder, Rule, Target};

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

    let model = SourceModel::open(&input)?;
    let test = windows_of_text(&model, &[test_file], WINDOW, None, Draw::FromStart)?;
    let text =
        windows_of_text(&model, &[calibration_file], WINDOW, Some(WINDOWS), Draw::FromStart)?;
    let pass = measuring_pass(&model, true);
    let place = args.compute.place(&model, WINDOW, pass, console)?;
    let before = perplexity(&model, &test.windows, &place, console)?;

    let measure = MeasureOptions { gradients: true, paper: false };
    let passes = passes(&[Method::Lord], PassOptions::default());
    let context = Context {
        passes: &passes,
        measure,
        activation_memory: ACTIVATION_MEMORY,
        windows: (WINDOWS, WINDOW),
        place: &place,
        progress: console,
    };
    let request = Request {
        rule: Rule::Target(Target::Keep(args.keep)),
        rank_multiple: 8,
        floor: 0.5,
        fold: false,
        order: BlockOrder::default(),
    };
    let options = WriteOptions::default();
    let (choices, text) = (Choices::Asked(request), Some(&text));
    refuse_early(&model, &choices, text, &output, &options, context)?;
    let mut job = Job::temporary(root)?;
    let outcome = compress(&model, choices, text, &mut job, &output, &options, context)?;
    let after = perplexity(&SourceModel::open(&output)?, &test.windows, &place, console)?;

    let figures = Figures {
        bytes: [outcome.plan.model.weight_bytes, outcome.plan.weight_bytes],
        perplexity: [before, after],
        compress_seconds: outcome.seconds,
        seconds: started.elapsed().as_secs_f64(),
        peak: peak_rss_bytes(),
    };
    figures.print(args, console)
}

/// What the demo measured, before and after.
struct Figures {
    bytes: [u64; 2],
    perplexity: [Perplexity; 2],
    compress_seconds: f64,
    seconds: f64,
    peak: Option<u64>,
}

impl Figures {
    fn print(&self, args: &Args, console: &Console) -> Result<()> {
        let ([bytes_in, bytes_out], [before, after]) = (self.bytes, &self.perplexity);
        if args.report.json {
            return console.json(&json!({
                "weight_bytes_in": bytes_in,
                "weight_bytes_out": bytes_out,
                "before": before,
                "after": after,
                "compress_seconds": self.compress_seconds,
                "seconds": self.seconds,
                "peak_rss_bytes": self.peak,
                "output": args.output,
            }));
        }
        let mut table = Table::new(["", "weights", "perplexity"]);
        table.row(["pycode-llama".into(), exact_size(bytes_in), perplexity_text(before)]);
        table.row([format!("kept {}", args.keep), exact_size(bytes_out), perplexity_text(after)]);
        console.data(&format!(
            "{}\ncompress {:.1} s, with both evaluations {:.1} s; peak memory {}\n",
            table.render(),
            self.compress_seconds,
            self.seconds,
            peak_text(self.peak),
        ))
    }
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
