//! Cut: a stack to another budget, as a stack or as the dense model of that budget. Nothing is
//! measured and nothing beyond the budget is read.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use serde_json::{Map, Value, json};

use super::apply::bytes_of;
use super::fused::{FusedTensors, joined};
use super::verify::verify;
use crate::arch::{ORDER_KEY, Site, SourceModel, StackOrder, Storage, Unit};
use crate::checkpoint::{
    Config, DataOrder, MANIFEST_FILE, ModelWriter, TensorInfo, TensorSpec, WriteOptions,
};
use crate::error::{Error, Result};
use crate::model::{bias, dense_weight, stack_scale};
use crate::plan::{LossBasis, Offer, PlannedStack, PlannedUnit, output_tensors};
use crate::progress::Progress;

/// What was cut.
#[derive(Debug, Clone)]
pub struct Cut {
    /// The output folder.
    pub path: PathBuf,
    /// Bytes of all weight tensors written.
    pub weight_bytes: u64,
    /// Bytes of the prefix: the same, unless it was folded.
    pub prefix_bytes: u64,
    /// Blocks of the prefix.
    pub blocks: usize,
    /// Linears that the blocks belong to.
    pub linears: usize,
    /// Bytes of the input.
    pub bytes_in: u64,
    /// Blocks of the input.
    pub blocks_in: usize,
    /// Expected loss of the prefix, where the input's manifest has it.
    pub expected_loss: Option<f64>,
}

/// Cuts the stack `model` to `budget` bytes and writes it to `out`, which appears whole and
/// verified or not at all; with `fold`, as the dense model that the prefix stands for.
///
/// # Errors
/// As [`SourceModel::within`]; a manifest that cannot be read; whatever reader and writer refuse;
/// [`Error::Interrupted`].
pub fn cut(
    model: SourceModel,
    budget: u64,
    fold: bool,
    out: &Path,
    options: &WriteOptions,
    progress: &dyn Progress,
) -> Result<Cut> {
    let blocks_in = model.require_stack()?.blocks().len();
    let bytes_in = model.weight_bytes();
    let record = StackRecord::read(&model)?;
    let model = model.within(budget)?;
    for site in &model.sites {
        if let Storage::Stack { .. } = site.storage {
            stack_scale(&model.checkpoint, site)?;
        }
    }
    let order = model.require_stack()?.clone();
    let expected_loss = record.expected_loss(order.blocks().len());
    let found = order.levels(model.sites.len());
    let mut cut = Cut {
        path: out.to_owned(),
        weight_bytes: 0,
        prefix_bytes: model.weight_bytes(),
        blocks: order.blocks().len(),
        linears: found.into_iter().filter(|levels| *levels > 0).count(),
        bytes_in,
        blocks_in,
        expected_loss,
    };
    let whole = match &record.whole {
        // A prefix of a prefix is a prefix of the first, and the same one.
        Some(whole) => whole.clone(),
        None => json!({
            "fingerprint": model.checkpoint.fingerprint()?,
            "weight_bytes": bytes_in,
            "blocks": blocks_in,
        }),
    };
    let mut manifest = json!({
        "bantam": env!("CARGO_PKG_VERSION"),
        "command": COMMAND,
        "budget": budget,
        "folded": fold,
        "weight_bytes": cut.prefix_bytes,
        "blocks": cut.blocks,
        "expected_loss": expected_loss,
        "stack": whole,
    });
    let mut config = model.checkpoint.config().clone();
    let written = if fold {
        config.remove("bantam");
        let model = with_dense_dtype(model)?;
        let (units, planned) = planned_units(&model);
        let tensors = dense_tensors(&model, &planned);
        let bytes: u64 = tensors.iter().map(TensorSpec::bytes).sum();
        manifest["weight_bytes"] = json!(bytes);
        manifest["prefix_bytes"] = json!(cut.prefix_bytes);
        let fused = FusedTensors::of(&units, &planned, true);
        let make = |name: &str| dense_tensor(&model, &fused, name);
        write(&model, &tensors, make, out, options, (&config, &manifest), progress)?
    } else {
        declare(&mut config, &model, &order);
        manifest["plan"] = record.plan_of(cut.blocks);
        let options = WriteOptions { data_order: DataOrder::AsGiven, ..options.clone() };
        let tensors = prefix_tensors(&model, &order);
        write(&model, &tensors, |_| Ok(None), out, &options, (&config, &manifest), progress)?
    };
    (cut.path, cut.weight_bytes) = written;
    Ok(cut)
}

/// What the manifest calls this.
const COMMAND: &str = "fit";

/// Writes `tensors`: the values that `make` has for a name, else the input's tensor as it is.
fn write(
    model: &SourceModel,
    tensors: &[TensorSpec],
    make: impl Fn(&str) -> Result<Option<candle_core::Tensor>>,
    out: &Path,
    options: &WriteOptions,
    (config, manifest): (&Config, &Value),
    progress: &dyn Progress,
) -> Result<(PathBuf, u64)> {
    let source = &model.checkpoint;
    let mut writer = ModelWriter::create(out, source, tensors.to_vec(), options)?;
    progress.begin("writing", tensors.len() as u64);
    for spec in tensors {
        progress.check()?;
        match make(&spec.name)? {
            Some(values) => writer.write(&spec.name, &bytes_of(&values, spec)?)?,
            None if model.is_unread(&spec.name) => {
                writer.copy_unread(source, source.require(&spec.name)?)?;
            }
            None => writer.copy(source, source.require(&spec.name)?)?,
        }
        progress.advance(1);
    }
    progress.end();
    let sealed = writer.seal(config, manifest)?;
    verify(sealed.reopen()?, tensors, progress)?;
    let written = sealed.publish()?;
    Ok((written.path, written.weight_bytes))
}

/// The tensors of a prefix: all that are no blocks, in the order of the files, then the blocks.
fn prefix_tensors(model: &SourceModel, order: &StackOrder) -> Vec<TensorSpec> {
    let mut tensors: Vec<TensorSpec> =
        model.outside_blocks().into_iter().map(TensorInfo::spec).collect();
    for block in order.blocks() {
        let site = &model.sites[block.site];
        if let Storage::Stack { rank, .. } = site.storage {
            tensors.extend(site.level_tensors(rank, block.level));
        }
    }
    tensors
}

/// Changes what `config` declares to the levels of `model` and their `order`, and nothing else.
fn declare(config: &mut Config, model: &SourceModel, order: &StackOrder) {
    let mut bantam = config.get("bantam").cloned().unwrap_or_else(|| json!({}));
    for site in &model.sites {
        if let Storage::Stack { levels, .. } = site.storage {
            bantam["sites"][&site.name]["levels"] = json!(levels);
        }
    }
    bantam[ORDER_KEY] = json!(order.sites());
    config.set("bantam", bantam);
}

/// The model with the dtype that its stacks have as dense weights: that of its embedding.
fn with_dense_dtype(mut model: SourceModel) -> Result<SourceModel> {
    let dtype = model.checkpoint.require(model.spec.family.names.embedding)?.dtype;
    let module = |site: &Site| site.part.as_ref().map(|part| part.module.clone());
    let is_stack = |site: &Site| matches!(site.storage, Storage::Stack { .. });
    // What is fused again has one dtype.
    let stacks = model.sites.iter().filter(|site| is_stack(site));
    let modules: HashSet<String> = stacks.filter_map(module).collect();
    for site in &mut model.sites {
        if is_stack(site) || module(site).is_some_and(|module| modules.contains(&module)) {
            site.dtype = dtype;
        }
    }
    Ok(model)
}

/// Every unit with the storage it has.
fn planned_units(model: &SourceModel) -> (Vec<Unit>, Vec<PlannedUnit>) {
    let units = model.units();
    let of = |unit: &Unit| {
        let site = unit.sites.first()?;
        let storages = unit.sites.iter().map(|site| site.storage.clone()).collect();
        Some(PlannedUnit {
            unit: unit.name().to_owned(),
            role: site.role,
            layer: site.layer,
            shape: [site.out_features, site.in_features],
            bytes_in: unit.stored_bytes(),
            method: None,
            offer: Offer { bytes: unit.stored_bytes(), expected_loss: 0.0, storages },
        })
    };
    let planned = units.iter().filter_map(of).collect();
    (units, planned)
}

/// The tensors of the dense model, in the order of the input.
fn dense_tensors(model: &SourceModel, planned: &[PlannedUnit]) -> Vec<TensorSpec> {
    let outside: HashSet<&str> =
        model.outside_blocks().into_iter().map(|tensor| tensor.name.as_str()).collect();
    let mut tensors = output_tensors(model, planned, true, None);
    // Blocks beyond the budget belong to no site any more.
    let beyond = |name: &str| model.checkpoint.get(name).is_some() && !outside.contains(name);
    tensors.retain(|tensor| !beyond(&tensor.name));
    tensors
}

/// The values of tensor `name` of the dense model, where the input has it in another form.
fn dense_tensor(
    model: &SourceModel,
    fused: &FusedTensors,
    name: &str,
) -> Result<Option<candle_core::Tensor>> {
    let (checkpoint, device) = (&model.checkpoint, &Device::Cpu);
    let values = |site: &Site, suffix: &str| match suffix {
        "bias" => bias(checkpoint, site, device)?
            .ok_or_else(|| Error::Bug(format!("`{}` has no bias", site.name))),
        _ => dense_weight(checkpoint, site, device),
    };
    if let Some((sites, suffix)) = fused.put_together(name) {
        let parts =
            sites.iter().map(|site| Ok((site, values(site, suffix)?.to_dtype(DType::F32)?)));
        return joined(&parts.collect::<Result<Vec<_>>>()?).map(Some);
    }
    let site = name.strip_suffix(".weight").and_then(|module| {
        let changed = |site: &&Site| site.name == module && site.storage != Storage::Dense;
        model.sites.iter().find(changed)
    });
    site.map(|site| values(site, "weight")).transpose()
}

/// What the manifest beside a stack knows of it.
#[derive(Debug, Clone, Default)]
pub struct StackRecord {
    /// Expected loss after every block, and the order of the blocks.
    stack: Option<PlannedStack>,
    /// The plan it was made by.
    plan: Map<String, Value>,
    /// The stack that it is a prefix of, where it was cut before.
    whole: Option<Value>,
}

impl StackRecord {
    /// Reads the manifest of the stack `model`, which may have none.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] where it is not JSON.
    pub fn read(model: &SourceModel) -> Result<Self> {
        let file = model.checkpoint.root().join(MANIFEST_FILE);
        let text = match std::fs::read_to_string(&file) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            other => other.map_err(|e| Error::io("read", &file, e))?,
        };
        let manifest: Value = serde_json::from_str(&text).map_err(|e| Error::InvalidFile {
            file: file.clone(),
            problem: e.to_string(),
            hint: Some("a stack can do without it: remove it".into()),
        })?;
        let plan = manifest.get("plan").and_then(Value::as_object).cloned().unwrap_or_default();
        let stack = plan.get("stack").cloned().and_then(|s| serde_json::from_value(s).ok());
        // Of another stack it says nothing of this one.
        let order = model.require_stack()?.sites();
        let fits =
            |stack: &PlannedStack| stack.order == order && stack.expected_loss.len() == order.len();
        let Some(stack) = stack.filter(fits) else { return Ok(Self::default()) };
        let was_cut = manifest.get("command").is_some_and(|command| command == COMMAND);
        let whole = manifest.get("stack").filter(|_| was_cut).cloned();
        Ok(Self { stack: Some(stack), plan, whole })
    }

    /// Expected loss of the first `blocks` blocks.
    pub fn expected_loss(&self, blocks: usize) -> Option<f64> {
        let losses = &self.stack.as_ref()?.expected_loss;
        losses.get(blocks.checked_sub(1)?).copied()
    }

    /// What expected losses rest on.
    pub fn basis(&self) -> Option<LossBasis> {
        serde_json::from_value(self.plan.get("expected_loss")?.clone()).ok()
    }

    /// What holds of the first `blocks` blocks as it holds of all.
    fn plan_of(&self, blocks: usize) -> Value {
        let Some(stack) = &self.stack else { return Value::Null };
        let mut plan = Map::new();
        for key in ["model", "methods", "paper", "expected_loss", "calibration"] {
            plan.extend(self.plan.get(key).map(|value| (key.to_owned(), value.clone())));
        }
        let (order, losses) = (&stack.order[..blocks], &stack.expected_loss[..blocks]);
        plan.insert("stack".into(), json!({ "order": order, "expected_loss": losses }));
        Value::Object(plan)
    }
}
