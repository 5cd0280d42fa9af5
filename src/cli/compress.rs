//! `bantam compress`: measure, allocate, apply, write, verify.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::json;

use super::args::{self, CalibrationArgs, MethodArgs, ModelArg, ReportArgs, TargetArgs};
use super::compute::{ComputeArgs, measuring_pass};
use super::console::Console;
use super::job::{JobArgs, existing_parent};
use super::plan::describe;
use super::report::{exact_size, peak_rss_bytes, peak_text};
use crate::arch::SourceModel;
use crate::checkpoint::{ModelWriter, TensorInfo, WriteOptions};
use crate::error::{Error, Result};
use crate::job::Job;
use crate::passes::{Needs, PassOptions, Repairs, StackOptions};
use crate::pipeline::{CalibrationText, Context, Request, analyse, apply, draw_plan};
use crate::plan::{Plan, Rule};

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
    #[arg(
        long,
        value_name = "FILE",
        group = "TargetArgs",
        conflicts_with_all = ["method", "rank_multiple", "floor", "paper", "no_gradients", "fold"]
    )]
    plan: Option<PathBuf>,

    #[command(flatten)]
    method: MethodArgs,

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

/// What a run did.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) plan: Plan,
    pub(super) repairs: Repairs,
    pub(super) seconds: f64,
}

pub(super) fn run(args: &Args, console: &Console) -> Result<()> {
    let started = Instant::now();
    let model = args.model.open()?;
    if model.stack.is_some() {
        return Err(Error::usage(
            format!("`{}` is a stack already", model.checkpoint.root().display()),
            "`bantam fit` cuts it to any size",
        ));
    }
    let options = args.write.options();
    let (choices, passes, measure) = match (&args.plan, &args.target) {
        (Some(file), _) => {
            let plan = Plan::read(file, &model)?;
            let options = PassOptions {
                rank_multiple: plan.rank_multiple,
                paper: plan.paper,
                stack: StackOptions::default(),
            };
            let (passes, measure) = (args::passes(&plan.methods, options), plan.measure_options());
            (Choices::Planned(Box::new(plan)), passes, measure)
        }
        (None, target) => {
            let (method, target) = (&args.method, target.as_ref());
            (
                Choices::Asked(method.request(target)?),
                method.passes(target),
                method.measure_options(target),
            )
        }
    };
    let text = args.calibration.read(&model, console)?;
    let windows = args.calibration.shape(&model)?;
    let pass = measuring_pass(&model, measure.gradients);
    let place = args.compute.place(&model, windows.1, pass, console)?;
    let context = Context {
        passes: &passes,
        measure,
        activation_memory: args.calibration.activation_memory,
        windows,
        place: &place,
        progress: console,
    };
    let (text, out) = (text.as_ref(), args.write.output.as_path());
    refuse_early(&model, &choices, text, out, &options, context)?;
    let mut job = args.job.open(&model, text, &existing_parent(out), context)?;
    let result = compress(&model, choices, text, &mut job, out, &options, context);
    let mut outcome = args.job.explain_failure(result, console)?;
    outcome.seconds = started.elapsed().as_secs_f64();
    console.detail(&describe(&outcome.plan));
    report(&outcome, args, console)
}

/// Where the choices come from.
pub(super) enum Choices {
    /// A plan drawn before.
    Planned(Box<Plan>),
    /// A plan to draw.
    Asked(Request),
}

/// The road from the statistics to the model that is written.
pub(super) fn compress(
    model: &SourceModel,
    choices: Choices,
    text: Option<&CalibrationText>,
    job: &mut Job,
    out: &Path,
    options: &WriteOptions,
    context: Context<'_>,
) -> Result<Outcome> {
    let started = Instant::now();
    analyse(model, text, job, context)?;
    let plan = match choices {
        Choices::Planned(plan) => *plan,
        Choices::Asked(request) => draw_plan(model, &request, Some(job), text, context)?,
    };
    job.record_plan(&plan.to_json()?)?;
    apply(model, &plan, job, out, options, context)?;
    let seconds = started.elapsed().as_secs_f64();
    Ok(Outcome { plan, repairs: job.repairs(), seconds })
}

/// Refuses what can be refused before any work.
pub(super) fn refuse_early(
    model: &SourceModel,
    choices: &Choices,
    text: Option<&CalibrationText>,
    out: &Path,
    options: &WriteOptions,
    context: Context<'_>,
) -> Result<()> {
    let mut passes = context.passes.iter();
    if let (None, Some(pass)) = (text, passes.find(|pass| pass.needs() > Needs::Weights)) {
        return Err(Error::usage(
            format!("method `{}` measures activations and needs calibration text", pass.method()),
            "add --text FILE",
        ));
    }
    let tensors = match choices {
        Choices::Planned(plan) => {
            same_calibration(plan, text)?;
            plan.tensors.clone()
        }
        // Ranks are not known yet, but from the shapes alone it is known whether any fit.
        Choices::Asked(request) if !matches!(request.rule, Rule::Reduce(_)) => {
            draw_plan(model, request, None, text, context)?.tensors
        }
        // This rule has no size to miss.
        Choices::Asked(_) => model.checkpoint.tensors().map(TensorInfo::spec).collect(),
    };
    ModelWriter::create(out, &model.checkpoint, tensors, options).map(drop)?;
    Ok(())
}

/// A plan that was measured holds for the text it was measured on.
fn same_calibration(plan: &Plan, text: Option<&CalibrationText>) -> Result<()> {
    match (&plan.calibration, text.map(CalibrationText::record)) {
        (Some(planned), Some(given)) if *planned != given => Err(Error::usage(
            format!(
                "the plan was measured on {} windows of {} tokens (text {}), not on this text",
                planned.windows, planned.window, planned.text_sha256
            ),
            "give the same --text, --windows, --window and --seed, or draw the plan again",
        )),
        _ => Ok(()),
    }
}

fn report(outcome: &Outcome, args: &Args, console: &Console) -> Result<()> {
    let (plan, peak) = (&outcome.plan, peak_rss_bytes());
    let (before, after) = (plan.model.weight_bytes, plan.weight_bytes);
    let budget = match plan.rule {
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
            "rule": plan.rule,
            "methods": plan.methods,
            "folded": plan.fold,
            "expected_loss": plan.units.iter().map(|u| u.offer.expected_loss).sum::<f64>(),
            "repairs": outcome.repairs,
            "seconds": outcome.seconds,
            "peak_rss_bytes": peak,
        }));
    }
    let mut text = format!(
        "weights     {} -> {}, {:.1}% kept\n",
        exact_size(before),
        exact_size(after),
        100.0 * after as f64 / before as f64
    );
    if let Some(budget) = budget.filter(|_| !plan.fold) {
        text += &format!("budget      {budget} bytes, {} left\n", budget - after.min(budget));
    }
    let Repairs { clipped_eigenvalues, raised_channels, exact_decompositions } = outcome.repairs;
    let repairs = [
        (clipped_eigenvalues, "negative eigenvalues taken as zero"),
        (raised_channels, "channels without gradient raised to the least importance"),
        (exact_decompositions, "blocks decomposed exactly, as the quick way did not converge"),
    ];
    for (count, what) in repairs.into_iter().filter(|(count, _)| *count > 0) {
        text += &format!("repairs     {count} {what}\n");
    }
    text += &format!("time        {:.1} s\npeak memory {}\n", outcome.seconds, peak_text(peak));
    text += &format!("wrote       {}\n", args.write.output.display());
    console.data(&text)
}
