//! `bantam compress`: measure, allocate, make, write, verify.

use std::path::PathBuf;
use std::time::Instant;

use serde_json::json;

use super::args::{self, CalibrationArgs, ModelArg, ReportArgs};
use super::compute::ComputeArgs;
use super::console::Console;
use super::job::JobArgs;
use super::plan::describe;
use super::report::{Lines, exact_size, peak_rss_bytes};
use super::settings::{SettingsArgs, TargetArgs};
use crate::arch::Model;
use crate::checkpoint::WriteOptions;
use crate::error::Result;
use crate::passes::Repairs;
use crate::pipeline::{Outcome, Run};
use crate::plan::{LossBasis, Plan};
use crate::settings::Rule;

/// Write a smaller model.
///
/// The output folder appears whole or not at all; the input is never written to.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  bantam compress ./model --keep 0.6 --text calib.txt -o smaller
  bantam compress ./model --budget 5.5GiB --text calib.txt -o smaller --max-shard-size 2GB
  bantam compress ./model --keep 0.5 --text calib.txt -o half --job job --resume
  bantam compress ./model --method welore --reduce 0.3 -o smaller
  bantam compress ./model --uniform 0.8 --rank-multiple 1 --text calib.txt -o smaller
  bantam compress ./model --method bitstack --text calib.txt -o stack")]
pub(super) struct Args {
    #[command(flatten)]
    model: ModelArg,

    #[command(flatten)]
    target: Option<TargetArgs>,

    /// Carry out this plan, drawn by `bantam plan -o`.
    #[arg(long, value_name = "FILE", group = "TargetArgs", conflicts_with = "SettingsArgs")]
    plan: Option<PathBuf>,

    #[command(flatten)]
    settings: SettingsArgs,

    #[command(flatten)]
    calibration: CalibrationArgs,

    #[command(flatten)]
    compute: ComputeArgs,

    #[command(flatten)]
    job: JobArgs,

    #[command(flatten)]
    write: OutputArgs,

    #[command(flatten)]
    report: ReportArgs,
}

/// Where and how to write.
#[derive(Debug, clap::Args)]
pub(super) struct OutputArgs {
    /// The folder to write.
    #[arg(short, long, value_name = "OUT")]
    pub(super) output: PathBuf,

    /// Largest weight file.
    #[arg(long, value_name = "SIZE", default_value = "5GB", value_parser = args::size)]
    max_shard_size: u64,

    /// Replace OUT if it is a model folder.
    #[arg(long)]
    overwrite: bool,
}

impl OutputArgs {
    pub(super) fn options(&self) -> WriteOptions {
        WriteOptions {
            max_shard_size: self.max_shard_size,
            overwrite: self.overwrite,
            ..WriteOptions::default()
        }
    }
}

pub(super) fn run(args: &Args, console: &Console) -> Result<()> {
    let started = Instant::now();
    let model = args.model.open()?;
    let run = match &args.plan {
        Some(file) => {
            let plan = Plan::read(file, &model)?;
            if plan.loss_basis == LossBasis::Assumed {
                console.note("the plan was drawn from headers: its choices are by shape alone");
            }
            Run::of_plan(&model, plan).map_err(|e| e.in_file(file))?
        }
        None => Run::new(&model, args.settings.settings(args.target.as_ref())?)?,
    };
    let run = prepared(run, &args.calibration, &args.compute, true, &model, console)?;
    let (out, options) = (args.write.output.as_path(), args.write.options());
    let mut run = args.job.open(run)?;
    run.check(out, &options)?;
    let outcome = args.job.explain_failure(run.write(out, &options), console)?;
    console.detail(&describe(&outcome.plan));
    report(&outcome, started.elapsed().as_secs_f64(), args, console)
}

/// A run with its text, and with a device where it `computes`.
pub(super) fn prepared<'a>(
    run: Run<'a>,
    calibration: &CalibrationArgs,
    compute: &ComputeArgs,
    computes: bool,
    model: &'a Model,
    console: &'a Console,
) -> Result<Run<'a>> {
    let cut = calibration.cut();
    let length = cut.length(model)?;
    let run = run.told(console).with_activation_memory(calibration.activation_memory);
    let run = match calibration.read(model, console)? {
        Some(text) => run.text(text),
        None => run.expecting(cut.windows.unwrap_or_default(), length),
    };
    match computes {
        true => {
            let place = compute.on(model, length, &run.measured(), console)?;
            Ok(run.on(place))
        }
        false => Ok(run),
    }
}

fn report(outcome: &Outcome, seconds: f64, args: &Args, console: &Console) -> Result<()> {
    let (plan, peak) = (&outcome.plan, peak_rss_bytes());
    let settings = &plan.settings;
    let (before, after) = (plan.model.weight_bytes, plan.weight_bytes);
    let budget = match settings.rule {
        Rule::Target(target) => Some(target.bytes(before)),
        Rule::Uniform(_) | Rule::Reduce(_) | Rule::Stack => None,
    };
    if args.report.json {
        return console.json(&json!({
            "output": args.write.output,
            "weight_bytes_in": before,
            "weight_bytes_out": after,
            "budget_bytes": budget,
            "keep": after as f64 / before as f64,
            "rule": settings.rule,
            "methods": settings.methods,
            "folded": settings.fold,
            "expected_loss": plan.expected_loss(),
            "repairs": outcome.repairs,
            "seconds": seconds,
            "peak_rss_bytes": peak,
        }));
    }
    let mut lines = Lines::default();
    let kept = 100.0 * after as f64 / before as f64;
    let sizes = [before, after].map(exact_size).join(" -> ");
    lines.add("weights", format_args!("{sizes}, {kept:.1}% kept"));
    if let Some(budget) = budget.filter(|_| !settings.fold) {
        lines.add("budget", format_args!("{budget} bytes, {} left", budget - after.min(budget)));
    }
    let Repairs { clipped_eigenvalues, raised_channels, exact_decompositions } = outcome.repairs;
    let repairs = [
        (clipped_eigenvalues, "negative eigenvalues taken as zero"),
        (raised_channels, "channels without gradient raised to the least importance"),
        (exact_decompositions, "levels decomposed exactly, as the quick way did not converge"),
    ];
    for (count, what) in repairs.into_iter().filter(|(count, _)| *count > 0) {
        lines.add("repairs", format_args!("{count} {what}"));
    }
    lines.add_end(seconds, peak, &args.write.output);
    console.data(&lines.text)
}
