//! `bantam inspect`: what a checkpoint is, from headers alone.

use std::collections::BTreeMap;

use serde_json::json;

use super::args::{ModelArg, PrefixArgs, ReportArgs};
use super::console::Console;
use super::report::{Lines, exact_size};
use super::system;
use super::table::Table;
use crate::arch::{MlpSpec, Model, Role, Storage};
use crate::checkpoint::TensorInfo;
use crate::error::Result;
use crate::settings::format_size;

/// Show family, sizes, dtypes and bytes by role; or what this machine computes with.
///
/// Of a model headers only are read, in milliseconds whatever the size.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  bantam inspect ./model
  bantam inspect org/name --json
  bantam inspect --system")]
pub(super) struct Args {
    #[command(flatten)]
    model: Option<ModelArg>,

    #[command(flatten)]
    prefix: PrefixArgs,

    /// Show what was found of CUDA: driver, libraries and where they lie, devices and their memory.
    #[arg(long, conflicts_with = "MODEL", required_unless_present = "MODEL")]
    system: bool,

    #[command(flatten)]
    report: ReportArgs,
}

/// Bytes of all sites with one role.
#[derive(Debug, Default)]
struct RoleTotals {
    sites: usize,
    parameters: usize,
    bytes: u64,
    low_rank: usize,
    stacks: usize,
    levels: usize,
    dense_parameters: usize,
}

pub(super) fn run(args: &Args, console: &Console) -> Result<()> {
    let Some(model) = &args.model else { return system::run(args.report.json, console) };
    let model = args.prefix.open(model)?;
    let roles = by_role(&model);
    let other: u64 = model.passthrough().iter().map(|t| t.bytes()).sum();
    if args.report.json {
        return console.json(&as_json(&model, &roles, other));
    }
    console.data(&as_text(&model, &roles, other))
}

fn by_role(model: &Model) -> BTreeMap<Role, RoleTotals> {
    let mut roles: BTreeMap<Role, RoleTotals> = BTreeMap::new();
    for site in model.sites() {
        let totals = roles.entry(site.role).or_default();
        totals.sites += 1;
        totals.parameters += site.parameters(site.storage);
        totals.dense_parameters += site.parameters(Storage::Dense);
        totals.bytes += site.stored_bytes();
        match site.storage {
            Storage::Dense => {}
            Storage::LowRank { .. } => totals.low_rank += 1,
            Storage::Stack { levels, .. } => {
                totals.stacks += 1;
                totals.levels += levels;
            }
        }
    }
    roles
}

fn by_dtype(model: &Model) -> BTreeMap<String, u64> {
    let mut dtypes = BTreeMap::new();
    for tensor in model.checkpoint().tensors() {
        *dtypes.entry(format!("{:?}", tensor.dtype)).or_insert(0) += tensor.bytes();
    }
    dtypes
}

fn experts(model: &Model) -> Option<(usize, usize)> {
    model.spec().layers.iter().find_map(|layer| match layer.mlp {
        MlpSpec::Experts { count, top_k, .. } => Some((count, top_k)),
        MlpSpec::Gated { .. } | MlpSpec::Plain { .. } => None,
    })
}

/// Parameters as they are stored; of a stack, those that its levels stand for.
fn parameters(model: &Model, roles: &BTreeMap<Role, RoleTotals>) -> u64 {
    let tensors = |tensors: &mut dyn Iterator<Item = &TensorInfo>| -> u64 {
        tensors.map(|tensor| tensor.elements() as u64).sum()
    };
    match model.stack() {
        None => tensors(&mut model.checkpoint().tensors()),
        Some(_) => {
            let linears: usize = roles.values().map(|totals| totals.parameters).sum();
            linears as u64 + tensors(&mut model.passthrough().into_iter())
        }
    }
}

/// What a stack is made of: its levels, and the bytes that they can be cut to.
fn stack(model: &Model) -> Option<(usize, u64)> {
    let order = model.stack()?;
    let first = order.prefix(order.needed()).bytes(model.sites());
    Some((order.levels().len(), model.bytes_outside_levels() + first))
}

fn as_json(model: &Model, roles: &BTreeMap<Role, RoleTotals>, other: u64) -> serde_json::Value {
    let (spec, attention) = (model.spec(), &model.spec().attention);
    let by_role: Vec<_> = roles
        .iter()
        .map(|(role, t)| {
            json!({
                "role": role, "sites": t.sites, "low_rank_sites": t.low_rank,
                "stack_sites": t.stacks, "blocks": t.levels,
                "parameters": t.parameters, "dense_parameters": t.dense_parameters, "bytes": t.bytes,
            })
        })
        .collect();
    json!({
        "path": model.checkpoint().root(),
        "fingerprint": model.checkpoint().fingerprint().ok(),
        "family": spec.family.model_type,
        "layers": spec.layers.len(),
        "hidden": spec.hidden,
        "heads": attention.heads,
        "kv_heads": attention.kv_heads,
        "head_dim": attention.head_dim,
        "vocab": spec.vocab,
        "max_positions": spec.max_positions,
        "tied": spec.tied,
        "experts": experts(model).map(|(count, _)| count),
        "experts_per_token": experts(model).map(|(_, k)| k),
        "weight_files": model.checkpoint().files().len(),
        "tensors": model.checkpoint().tensors().len(),
        "parameters": parameters(model, roles),
        "weight_bytes": model.weight_bytes(),
        "stack": stack(model).map(|(levels, smallest)| json!({
            "blocks": levels, "smallest_bytes": smallest, "file_bytes": model.checkpoint().weight_bytes(),
        })),
        "bytes_by_dtype": by_dtype(model),
        "roles": by_role,
        "other_bytes": other,
    })
}

fn as_text(model: &Model, roles: &BTreeMap<Role, RoleTotals>, other: u64) -> String {
    let (spec, a, total) = (model.spec(), &model.spec().attention, model.weight_bytes());
    let by_dtype = by_dtype(model).into_iter();
    let dtypes: Vec<_> = by_dtype.map(|(d, bytes)| format!("{d} {}", format_size(bytes))).collect();
    let experts = experts(model)
        .map_or(String::new(), |(count, k)| format!(", {count} experts, {k} per token"));
    let (family, layers) = (spec.family.model_type, spec.layers.len());
    let title = format!("{family} · {layers} layers of {}{experts}\n", spec.hidden);
    let mut lines = Lines::below(title, 12);
    let heads =
        format_args!("{} heads of {}, {} for keys and values", a.heads, a.head_dim, a.kv_heads);
    lines.add("attention", heads);
    let tied = if spec.tied { " (tied)" } else { "" };
    lines.add("vocabulary", format_args!("{}{tied}, {} positions", spec.vocab, spec.max_positions));
    let (tensors, files) = (model.checkpoint().tensors().len(), model.checkpoint().files().len());
    let parts = format_args!("{tensors} tensors in {files} file(s)");
    let parameters = parameters(model, roles);
    lines.add("weights", format_args!("{}, {parameters} parameters, {parts}", exact_size(total)));
    lines.add("dtypes", dtypes.join(", ") + "\n");
    if let Some((levels, smallest)) = stack(model) {
        let (file, smallest) =
            (format_size(model.checkpoint().weight_bytes()), exact_size(smallest));
        let cut = format_args!("{file} on disk; smallest model {smallest}\n");
        lines.add("stack", format_args!("{levels} blocks, {cut}"));
    }
    let stacked = model.stack().is_some();
    let heads = if stacked { ["levels", "bits per weight"] } else { ["low rank", "kept"] };
    let mut table = Table::new(["role", "sites", heads[0], heads[1], "bytes", "share"]);
    let share = |bytes: u64| format!("{:.1}%", 100.0 * bytes as f64 / total.max(1) as f64);
    for (role, t) in roles {
        let dense = t.dense_parameters as f64;
        let (form, kept) = if stacked {
            let levels = t.levels as f64 / t.stacks.max(1) as f64;
            (format!("{levels:.2}"), format!("{:.2}", 8.0 * t.bytes as f64 / dense))
        } else {
            (t.low_rank.to_string(), format!("{:.1}%", 100.0 * t.parameters as f64 / dense))
        };
        let sites = t.sites.to_string();
        table.row([role.to_string(), sites, form, kept, format_size(t.bytes), share(t.bytes)]);
    }
    let rest = [format_size(other), share(other)];
    table.row(["other", "-", "-", "-"].map(String::from).into_iter().chain(rest));
    lines.text + &table.render()
}
