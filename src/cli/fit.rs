//! `bantam fit`: cut a stack to another budget, no calibration.

use std::time::Instant;

use serde_json::json;

use super::args::{ModelArg, ReportArgs, size};
use super::compress::OutputArgs;
use super::console::Console;
use super::report::{Lines, exact_size, peak_rss_bytes};
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
    let (blocks, all) = (found.levels, found.levels_in);
    let left = args.budget - found.prefix_bytes;
    let mut lines = Lines::default();
    lines.add("stack", [found.bytes_in, found.prefix_bytes].map(exact_size).join(" -> "));
    let on_average = format_args!("{mean_levels:.2} levels on average");
    lines.add("blocks", format_args!("{blocks} of {all}, {on_average}"));
    lines.add("budget", format_args!("{} bytes, {left} left", args.budget));
    if args.fold {
        lines.add("folded", exact_size(found.written.weight_bytes));
    }
    if let Some(loss) = found.expected_loss {
        lines.add("expected", format_args!("{loss:.5}"));
    }
    lines.add_end(seconds, peak, &args.write.output);
    console.data(&lines.text)
}
