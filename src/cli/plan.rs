//! `bantam plan`: what compress would do, per layer and role; writes nothing but `-o plan.json`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::args::{CalibrationArgs, MethodArgs, ModelArg, ReportArgs, TargetArgs};
use super::compute::{ComputeArgs, measuring_pass};
use super::console::Console;
use super::job::{JobArgs, keep_out_of_model};
use super::report::exact_size;
use super::sweep::{self, Sweep, SweepArgs};
use super::table::Table;
use crate::arch::{Role, Storage};
use crate::atomic;
use crate::error::{Error, Result};
use crate::measure::Place;
use crate::pipeline::{Context, analyse, draw_plan};
use crate::plan::{LossBasis, Plan, PlannedUnit, format_size};

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
    model: ModelArg,

    #[command(flatten)]
    target: Option<TargetArgs>,

    #[command(flatten)]
    method: MethodArgs,

    #[command(flatten)]
    calibration: CalibrationArgs,

    #[command(flatten)]
    compute: ComputeArgs,

    #[command(flatten)]
    job: JobArgs,

    /// Read the weights (and --text, where the method needs it), not only headers.
    #[arg(long)]
    measure: bool,

    /// Write the plan to this file, for `compress --plan`.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    #[command(flatten)]
    sweep: SweepArgs,

    #[command(flatten)]
    report: ReportArgs,
}

pub(super) fn run(args: &Args, console: &Console) -> Result<()> {
    if let Some(budgets) = args.sweep.sweep {
        let (arguments, text) = (&args.sweep, &args.calibration);
        let (model, compute, json) = (&args.model, &args.compute, args.report.json);
        return sweep::run(&Sweep { model, arguments, text, compute, json }, budgets, console);
    }
    let model = args.model.open()?;
    let target = args.target.as_ref();
    let (passes, measure) = (args.method.passes(target), args.method.measure_options(target));
    let windows = args.calibration.shape(&model)?;
    let measured = args.measure || args.calibration.given();
    let pass = measuring_pass(&model, measure.gradients);
    let place = match measured {
        true => args.compute.place(&model, windows.1, pass, console)?,
        false => Place::cpu(),
    };
    let context = Context {
        passes: &passes,
        measure,
        activation_memory: args.calibration.activation_memory,
        windows,
        place: &place,
        progress: console,
    };
    let request = args.method.request(target)?;
    if let Some(file) = &args.output {
        let folder = file.parent().filter(|p| !p.as_os_str().is_empty());
        if folder.is_some_and(|folder| !folder.is_dir()) {
            return Err(Error::usage(
                format!("the folder of `{}` does not exist", file.display()),
                "make it, or write the plan elsewhere",
            ));
        }
        keep_out_of_model(file, &model)?;
    }
    let text = args.calibration.read(&model, console)?;
    let job = match measured {
        true => {
            let (text, scratch) = (text.as_ref(), std::env::temp_dir());
            let mut job = args.job.open(&model, text, &scratch, context)?;
            args.job.explain_failure(analyse(&model, text, &mut job, context), console)?;
            Some(job)
        }
        false => None,
    };
    let plan = draw_plan(&model, &request, job.as_ref(), text.as_ref(), context)?;
    if let Some(file) = &args.output {
        atomic::write(file, plan.to_json()?.as_bytes(), false)?;
        console.note(&format!("wrote `{}`", file.display()));
    }
    if args.report.json {
        return console.data(&plan.to_json()?);
    }
    console.data(&describe(&plan))
}

/// The plan for people: kept parameters per layer and role, then totals.
pub(super) fn describe(plan: &Plan) -> String {
    let roles: Vec<Role> = plan
        .units
        .iter()
        .map(|u| u.role)
        .collect::<std::collections::BTreeSet<_>>()
        .into_iter()
        .collect();
    let mut table =
        Table::new(["layer".to_owned()].into_iter().chain(roles.iter().map(Role::to_string)));
    let mut layers: BTreeMap<usize, BTreeMap<Role, Vec<&PlannedUnit>>> = BTreeMap::new();
    for unit in &plan.units {
        layers.entry(unit.layer).or_default().entry(unit.role).or_default().push(unit);
    }
    for (layer, by_role) in &layers {
        let cells =
            roles.iter().map(|role| by_role.get(role).map_or("-".into(), |units| cell(units)));
        table.row([layer.to_string()].into_iter().chain(cells));
    }
    let total = |of: &dyn Fn(&PlannedUnit) -> u64| plan.units.iter().map(of).sum::<u64>();
    let (linears_in, linears) = (total(&|u| u.bytes_in), total(&|u| u.offer.bytes));
    let keep = plan.weight_bytes as f64 / plan.model.weight_bytes.max(1) as f64;
    let basis = match plan.expected_loss {
        LossBasis::Assumed => {
            "assumed from shapes; add --text FILE (or --measure) to spend the budget where it counts"
        }
        LossBasis::Nats => "nats per token, second order in measured gradients",
        LossBasis::OutputEnergy => "output energy lost, relative to the residual stream",
        LossBasis::WeightEnergy => "weight energy lost",
    };
    let loss: f64 = plan.units.iter().map(|u| u.offer.expected_loss).sum();
    let mut text = format!("kept parameters (rank) per layer and role\n\n{}\n", table.render());
    let size = |bytes| format_size(bytes);
    text += &format!(
        "weights      {} -> {}\n",
        exact_size(plan.model.weight_bytes),
        exact_size(plan.weight_bytes)
    );
    text += &format!(
        "linears      {} -> {}, other tensors {}\n",
        size(linears_in),
        size(linears),
        size(plan.model.weight_bytes - linears_in)
    );
    text += &format!("target       --budget {} = --keep {keep:.4}\n", plan.weight_bytes);
    if plan.fold {
        text += "folded       factors are multiplied out: the output has the input's size\n";
    }
    if plan.expected_loss != LossBasis::Assumed {
        text += &format!("expected     {loss:.5}\n");
    }
    text += &format!("loss basis   {basis}\n");
    if let Some(memory) = plan.memory {
        text += &format!("peak memory  about {} besides mapped files\n", size(memory.peak));
    }
    text
}

/// Kept share of one layer's sites of one role, and the rank where there is one site.
fn cell(units: &[&PlannedUnit]) -> String {
    if let [unit] = units {
        let dense = unit.shape[0] * unit.shape[1];
        if let [Storage::LowRank { rank }] = unit.offer.storages.as_slice() {
            let kept = rank * (unit.shape[0] + unit.shape[1]);
            return format!("{:.0}% ({rank})", 100.0 * kept as f64 / dense as f64);
        }
        return "dense".into();
    }
    let sum = |of: &dyn Fn(&PlannedUnit) -> u64| units.iter().map(|u| of(u)).sum::<u64>();
    format!("{:.0}%", 100.0 * sum(&|u| u.offer.bytes) as f64 / sum(&|u| u.bytes_in).max(1) as f64)
}
