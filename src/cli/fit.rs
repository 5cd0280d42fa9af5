//! `bantam fit`: cut a stack to another budget, no calibration.

use std::time::Instant;

use serde_json::json;

use super::args::{ModelArg, ReportArgs, size};
use super::compress::OutputArgs;
use super::console::Console;
use super::report::{exact_size, peak_rss_bytes, peak_text};
use crate::error::Result;
use crate::pipeline::cut;

/// Cut a stack to a budget.
///
/// Copies the blocks that the budget holds, most important first, and never reads the others: the
/// output is a stack again. A stack is made by `bantam compress --method bitstack`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  bantam fit ./stack --budget 5.5GiB -o fitted
  bantam fit ./stack --budget 5.5GiB --fold -o dense")]
pub(super) struct Args {
    #[command(flatten)]
    model: ModelArg,

    /// Bytes of all weights of the prefix: 5.5GiB, 800MB, 123456.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    budget: u64,

    /// Write the dense model that the prefix stands for, which loads anywhere but saves nothing.
    #[arg(long)]
    fold: bool,

    #[command(flatten)]
    write: OutputArgs,

    #[command(flatten)]
    report: ReportArgs,
}

pub(super) fn run(args: &Args, console: &Console) -> Result<()> {
    let started = Instant::now();
    let (model, out) = (args.model.open()?, args.write.output.as_path());
    let found = cut(model, args.budget, args.fold, out, &args.write.options(), console)?;
    let (seconds, peak) = (started.elapsed().as_secs_f64(), peak_rss_bytes());
    let mean_levels = found.levels as f64 / found.linears.max(1) as f64;
    if args.report.json {
        return console.json(&json!({
            "output": args.write.output,
            "weight_bytes_in": found.bytes_in,
            "weight_bytes_out": found.written.weight_bytes,
            "budget_bytes": args.budget,
            "prefix_bytes": found.prefix_bytes,
            "blocks_in": found.levels_in,
            "blocks": found.levels,
            "mean_levels": mean_levels,
            "expected_loss": found.expected_loss,
            "folded": args.fold,
            "seconds": seconds,
            "peak_rss_bytes": peak,
        }));
    }
    let mut text = format!(
        "stack       {} -> {}\nblocks      {} of {}, {mean_levels:.2} levels on average\n",
        exact_size(found.bytes_in),
        exact_size(found.prefix_bytes),
        found.levels,
        found.levels_in,
    );
    text +=
        &format!("budget      {} bytes, {} left\n", args.budget, args.budget - found.prefix_bytes);
    if args.fold {
        text += &format!("folded      {}\n", exact_size(found.written.weight_bytes));
    }
    if let Some(loss) = found.expected_loss {
        text += &format!("expected    {loss:.5}\n");
    }
    text += &format!("time        {seconds:.1} s\npeak memory {}\n", peak_text(peak));
    text += &format!("wrote       {}\n", args.write.output.display());
    console.data(&text)
}
