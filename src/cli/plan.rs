//! `bantam plan`: what compress would do, per layer and role; writes nothing but `-o plan.json`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::args::{CalibrationArgs, ModelArg, ReportArgs};
use super::compress::prepared;
use super::compute::ComputeArgs;
use super::console::Console;
use super::job::JobArgs;
use super::report::{Lines, exact_size};
use super::settings::{SettingsArgs, TargetArgs};
use super::sweep::{self, SweepArgs};
use super::table::Table;
use crate::arch::{Role, Storage};
use crate::atomic;
use crate::error::Result;
use crate::paths::check_output_file;
use crate::pipeline::Run;
use crate::plan::{LossBasis, Plan, PlannedSite};
use crate::settings::{Rule, format_size};

/// Show what compress would do, and what it would need.
///
/// Reads headers only, and spreads the budget by shape; with --measure (or --text) it reads weights
/// and text as compress does, and spends the budget where it is worth most.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  bantam plan ./model --keep 0.6
  bantam plan ./model --budget 5.5GiB --text calib.txt --job job -o plan.json
  bantam plan ./stack --sweep 16 --text test.txt --window 256 --plot stack.svg
  bantam compress ./model --plan plan.json --text calib.txt --job job -o smaller")]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) model: ModelArg,

    #[command(flatten)]
    target: Option<TargetArgs>,

    #[command(flatten)]
    settings: SettingsArgs,

    #[command(flatten)]
    pub(super) calibration: CalibrationArgs,

    #[command(flatten)]
    pub(super) compute: ComputeArgs,

    #[command(flatten)]
    job: JobArgs,

    /// Read the weights (and --text, where the method needs it), not only headers.
    #[arg(long)]
    measure: bool,

    /// Write the plan to this file, for `compress --plan`.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    #[command(flatten)]
    pub(super) sweep: SweepArgs,

    #[command(flatten)]
    pub(super) report: ReportArgs,
}

pub(super) fn run(args: &Args, console: &Console) -> Result<()> {
    if let Some(budgets) = args.sweep.sweep {
        return sweep::run(args, budgets, console);
    }
    let model = args.model.open()?;
    let run = Run::new(&model, args.settings.settings(args.target.as_ref())?)?;
    if let Some(file) = &args.output {
        check_output_file(file, model.checkpoint().root())?;
        args.job.keep_apart(file)?;
    }
    let measured = args.measure || args.calibration.given();
    let mut run = prepared(run, &args.calibration, &args.compute, measured, &model, console)?;
    if measured {
        run = args.job.open(run)?;
        args.job.explain_failure(run.measure(), console)?;
    }
    let plan = run.plan()?;
    if let Some(file) = &args.output {
        atomic::write(file, plan.to_json()?.as_bytes(), false)?;
        console.note(&format!("wrote `{}`", file.display()));
    }
    if args.report.json {
        return console.data(&plan.to_json()?);
    }
    console.data(&describe(&plan))
}

/// The plan for people: what each layer and role is stored as, then totals.
pub(super) fn describe(plan: &Plan) -> String {
    let in_blocks: Vec<&PlannedSite> =
        plan.sites.iter().filter(|site| site.layer.is_some()).collect();
    let roles: BTreeSet<Role> = in_blocks.iter().map(|site| site.role).collect();
    let mut table =
        Table::new(["layer".to_owned()].into_iter().chain(roles.iter().map(Role::to_string)));
    let mut layers: BTreeMap<usize, BTreeMap<Role, Vec<&PlannedSite>>> = BTreeMap::new();
    for &site in &in_blocks {
        let layer = layers.entry(site.layer.unwrap_or_default()).or_default();
        layer.entry(site.role).or_default().push(site);
    }
    for (layer, by_role) in &layers {
        let cells =
            roles.iter().map(|role| by_role.get(role).map_or("-".into(), |sites| cell(sites)));
        table.row([layer.to_string()].into_iter().chain(cells));
    }
    let settings = &plan.settings;
    let head = match plan.stack {
        None => "kept parameters (rank) per layer and role",
        Some(_) => "levels x rank, or kept parameters (rank), per layer and role",
    };
    let (before, after) = (plan.model.weight_bytes, plan.weight_bytes);
    let mut lines = Lines::below(format!("{head}\n\n{}\n", table.render()), 13);
    lines.add("weights", [before, after].map(exact_size).join(" -> "));
    let (linears_in, linears) = bytes(&in_blocks);
    let [linears_in, linears, other] = [linears_in, linears, before - linears_in].map(format_size);
    lines.add("linears", format_args!("{linears_in} -> {linears}, other tensors {other}"));
    // A stack has no target: its size is chosen when it is read.
    if settings.rule != Rule::Stack {
        // Rounded up: the same plan fits it.
        let keep = (1e4 * after as f64 / before.max(1) as f64).ceil() / 1e4;
        lines.add("target", format_args!("--budget {after} = --keep {keep:.4}"));
    }
    if settings.fold {
        lines.add("folded", "factors are multiplied out: the output has the input's size");
    }
    if plan.loss_basis != LossBasis::Assumed {
        lines.add("expected", format_args!("{:.5}", plan.expected_loss()));
    }
    let more = match plan.loss_basis {
        LossBasis::Assumed => "; add --text FILE (or --measure) to learn what counts",
        LossBasis::Nats => ", second order in measured gradients",
        LossBasis::OutputEnergy | LossBasis::WeightEnergy => "",
    };
    lines.add("loss basis", format_args!("{}{more}", plan.loss_basis));
    if let Some(memory) = plan.memory {
        let peak = format_size(memory.peak);
        lines.add("peak memory", format_args!("about {peak} besides mapped files"));
    }
    lines.text
}

/// What one layer's linears of one role are stored as, where there is one; else the bytes they keep.
fn cell(sites: &[&PlannedSite]) -> String {
    if let [site] = sites {
        let [m, n] = site.shape;
        return match site.offer.storage {
            Storage::Dense => "dense".into(),
            Storage::LowRank { rank } => {
                format!("{:.0}% ({rank})", 100.0 * (rank * (m + n)) as f64 / (m * n) as f64)
            }
            Storage::Stack { rank, levels } => format!("{levels} x {rank}"),
        };
    }
    let (before, after) = bytes(sites);
    format!("{:.0}%", 100.0 * after as f64 / before.max(1) as f64)
}

/// Bytes of these linears in the input, and as planned.
fn bytes(sites: &[&PlannedSite]) -> (u64, u64) {
    let pairs = sites.iter().map(|site| (site.bytes_in, site.offer.price.bytes));
    pairs.fold((0, 0), |sums, pair| (sums.0 + pair.0, sums.1 + pair.1))
}
