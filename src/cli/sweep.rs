//! `bantam plan STACK --sweep N`: what a stack is worth at budgets from the smallest to the whole,
//! as a table, as JSON, and as a plot.

use std::path::PathBuf;

use serde::Serialize;
use serde_json::json;

use super::console::Console;
use super::plan::Args;
use super::plot::{self, Curve};
use super::report::perplexity_text;
use super::table::Table;
use crate::arch::Model;
use crate::atomic;
use crate::error::{Error, Result};
use crate::eval::{Perplexity, perplexity};
use crate::measure::Measured;
use crate::paths::check_output_file;
use crate::pipeline::StackRecord;
use crate::plan::LossBasis;
use crate::settings::format_size;

/// What is asked of a stack.
#[derive(Debug, clap::Args)]
pub(super) struct SweepArgs {
    /// Of a stack: N budgets evenly spaced from the smallest model to the whole stack, the expected
    /// loss of each, and with --text its perplexity.
    #[arg(
        long,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(2..=1000),
        conflicts_with_all = ["TargetArgs", "SettingsArgs", "JobArgs", "measure", "output"]
    )]
    pub(super) sweep: Option<u32>,

    /// Plot what --sweep finds to this SVG file.
    #[arg(long, value_name = "FILE", requires = "sweep")]
    plot: Option<PathBuf>,
}

/// One budget.
#[derive(Debug, Serialize)]
struct Row {
    budget: u64,
    weight_bytes: u64,
    blocks: usize,
    mean_levels: f64,
    expected_loss: Option<f64>,
    #[serde(flatten)]
    measured: Option<Perplexity>,
}

pub(super) fn run(args: &Args, budgets: u32, console: &Console) -> Result<()> {
    let model = args.model.open()?;
    model.require_stack()?;
    let record = StackRecord::read(&model)?;
    let record = record.as_ref();
    let basis = record.map(|record| record.loss_basis);
    let plot = args.sweep.plot.as_deref();
    if let Some(file) = plot {
        check_output_file(file, model.checkpoint().root())?;
        if basis.is_none() && !args.calibration.given() {
            return Err(Error::usage(
                format!("`{}` has no expected losses to plot", model.checkpoint().root().display()),
                "add --text FILE to measure perplexities",
            ));
        }
    }
    let mut rows = rows(&model, record, budgets)?;
    let text = args.calibration.windows(&model)?;
    if let Some(text) = &text {
        let length = text.windows().length();
        for row in &mut rows {
            let model = args.model.open()?.prefix(row.budget)?;
            let compute = args.compute.on(&model, length, &Measured::default(), console)?;
            let found = perplexity(&model, text.windows(), &compute, console)?;
            console.detail(&format!("{}: {}", row.budget, perplexity_text(&found)));
            row.measured = Some(found);
        }
    }
    if let Some(file) = plot {
        atomic::write(file, draw(&rows, basis)?.as_bytes(), false)?;
        console.note(&format!("wrote `{}`", file.display()));
    }
    if args.report.json {
        return console.json(&json!({
            "loss_basis": basis,
            "text_sha256": text.as_ref().map(|text| &text.record().text_sha256),
            "windows_sha256": text.as_ref().map(|text| &text.record().windows_sha256),
            "budgets": rows,
        }));
    }
    console.data(&describe(&rows, basis))
}

/// The budgets, and what is known of each from headers and manifest.
fn rows(model: &Model, record: Option<&StackRecord>, budgets: u32) -> Result<Vec<Row>> {
    let order = model.require_stack()?;
    let fixed = model.bytes_outside_levels();
    let smallest = fixed + order.prefix(order.needed()).bytes(model.sites());
    let whole = fixed + order.bytes(model.sites());
    let levels = order.counts(model.sites().len());
    let linears = levels.into_iter().filter(|levels| *levels > 0).count().max(1);
    let steps = u128::from(budgets - 1);
    let row = |step: u128| {
        let budget = smallest + (u128::from(whole - smallest) * step / steps) as u64;
        let prefix = order.prefix_of_bytes(budget, fixed, model.sites())?;
        let blocks = prefix.levels().len();
        Ok(Row {
            budget,
            weight_bytes: fixed + prefix.bytes(model.sites()),
            blocks,
            mean_levels: blocks as f64 / linears as f64,
            expected_loss: record.and_then(|record| record.expected_loss(blocks)),
            measured: None,
        })
    };
    (0..=steps).map(row).collect()
}

fn describe(rows: &[Row], basis: Option<LossBasis>) -> String {
    let mut table =
        Table::new(["budget", "bytes", "size", "blocks", "levels", "expected", "perplexity"]);
    for row in rows {
        table.row([
            row.budget.to_string(),
            row.weight_bytes.to_string(),
            format_size(row.weight_bytes),
            row.blocks.to_string(),
            format!("{:.2}", row.mean_levels),
            row.expected_loss.map_or_else(String::new, |loss| format!("{loss:.5}")),
            row.measured.as_ref().map_or_else(String::new, perplexity_text),
        ]);
    }
    let mut text = table.render();
    if let Some(basis) = basis {
        text += &format!("\nexpected loss: {basis}\n");
    }
    if let Some(found) = rows.iter().find_map(|row| row.measured.as_ref()) {
        text += &format!(
            "perplexity of {} tokens in {} windows of {} ({}), ± standard error\n",
            found.tokens, found.windows, found.window, found.protocol
        );
    }
    text
}

/// Expected loss and perplexity against size.
fn draw(rows: &[Row], basis: Option<LossBasis>) -> Result<String> {
    let mib = |row: &Row| row.weight_bytes as f64 / f64::from(1 << 20);
    let expected = rows.iter().filter_map(|row| Some((mib(row), row.expected_loss?, None)));
    let measured = rows.iter().filter_map(|row| {
        let found = row.measured.as_ref()?;
        Some((mib(row), found.perplexity, found.perplexity_stderr))
    });
    let basis = basis.map_or_else(String::new, |basis| basis.to_string());
    let curves = [
        Curve { title: format!("expected loss ({basis})"), points: expected.collect() },
        Curve { title: "perplexity ± standard error".into(), points: measured.collect() },
    ];
    plot::svg("weights (MiB)", &curves)
}
