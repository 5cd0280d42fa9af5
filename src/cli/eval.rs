//! `bantam eval`: perplexity, with its protocol, token count and standard error.

use std::path::PathBuf;
use std::time::Instant;

use serde_json::json;

use super::args::{ModelArg, PrefixArgs, ReportArgs};
use super::compute::ComputeArgs;
use super::console::Console;
use super::report::{Lines, peak_rss_bytes, peak_text, perplexity_text};
use crate::arch::Model;
use crate::error::{Error, Result};
use crate::eval::{Perplexity, perplexity};
use crate::measure::{Cut, Draw, Measured, TextWindows, Windows};

/// Measure perplexity.
///
/// The text is tokenised once without special tokens and cut into disjoint windows; the remainder
/// is dropped; every position but a window's first is scored.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  bantam eval ./model --text test.txt
  bantam eval ./model --text test.txt --window 256 --json
  bantam eval ./model --ids tokens.safetensors")]
pub(super) struct Args {
    #[command(flatten)]
    model: ModelArg,

    #[command(flatten)]
    prefix: PrefixArgs,

    /// Text to predict: plain UTF-8, or .jsonl with a `text` field per line.
    #[arg(long, value_name = "FILE", num_args = 1.., required_unless_present = "ids", conflicts_with = "ids")]
    text: Vec<PathBuf>,

    /// Token windows in place of text: a safetensors file with `input_ids` i64 [windows, length].
    #[arg(long, value_name = "FILE", conflicts_with_all = ["window", "windows"])]
    ids: Option<PathBuf>,

    /// Tokens of a window [default: 2048, or what the model takes].
    #[arg(long, value_name = "L", value_parser = clap::value_parser!(u32).range(2..))]
    window: Option<u32>,

    /// Score only the first N windows.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    windows: Option<u32>,

    #[command(flatten)]
    compute: ComputeArgs,

    #[command(flatten)]
    report: ReportArgs,
}

pub(super) fn run(args: &Args, console: &Console) -> Result<()> {
    let model = args.prefix.open(&args.model)?;
    let (windows, text_sha256) = windows(args, &model)?;
    let started = Instant::now();
    let measured = Measured::default();
    let compute = args.compute.on(&model, windows.length(), &measured, console)?;
    let found = perplexity(&model, &windows, &compute, console)?;
    let seconds = started.elapsed().as_secs_f64();
    let peak = peak_rss_bytes();
    if args.report.json {
        let mut value = serde_json::to_value(&found).map_err(|e| Error::Bug(e.to_string()))?;
        value["text_sha256"] = json!(text_sha256);
        value["windows_sha256"] = json!(windows.sha256());
        value["seconds"] = json!(seconds);
        value["peak_rss_bytes"] = json!(peak);
        return console.json(&value);
    }
    let Perplexity { nll, tokens, windows, window, protocol, .. } = found;
    let mut lines = Lines::default();
    lines.add("perplexity", perplexity_text(&found));
    lines.add("nll", format_args!("{nll:.5} nats per token"));
    let text = format_args!("{windows} windows of {window} ({protocol})");
    lines.add("tokens", format_args!("{tokens} scored in {text}"));
    let speed = tokens as f64 / seconds;
    lines.add("time", format_args!("{seconds:.1} s, {speed:.0} tokens per second"));
    lines.add("peak memory", peak_text(peak));
    console.data(&lines.text)
}

/// The token windows, and the hash of the text they come from.
fn windows(args: &Args, model: &Model) -> Result<(Windows, Option<String>)> {
    if let Some(file) = &args.ids {
        let windows = Windows::from_ids_file(file, model.spec().vocab)?;
        let (length, limit) = (windows.length(), model.spec().max_positions);
        if length > limit {
            let message =
                format!("windows of {length} tokens exceed the model's {limit} positions");
            return Err(Error::usage(message, "make shorter windows"));
        }
        return Ok((windows, None));
    }
    let number = |n: Option<u32>| n.map(|n| n as usize);
    let (length, windows) = (number(args.window), number(args.windows));
    let text =
        TextWindows::read(model, &args.text, Cut { length, windows, draw: Draw::FromStart })?;
    Ok((text.windows().clone(), Some(text.record().text_sha256.clone())))
}
