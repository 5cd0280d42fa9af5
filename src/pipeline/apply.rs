//! Apply and write: the plan's tensors in file order, one unit's output in memory at a time.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde_json::{Map, Value, json};

use super::Context;
use super::fused::{FusedTensors, joined};
use super::verify::verify;
use crate::arch::{LAYOUT_VERSION, ORDER_KEY, Site, SourceModel, Storage, Unit};
use crate::checkpoint::{
    DataOrder, Dtype, ModelWriter, TensorSpec, WriteOptions, from_f32, to_f32,
};
use crate::error::{Error, Result};
use crate::job::Job;
use crate::model::part_bytes;
use crate::ops;
use crate::passes::{UnitOutput, Weights, check_output};
use crate::plan::{Plan, PlannedUnit};

/// What was written.
#[derive(Debug, Clone)]
pub struct Applied {
    /// The output folder.
    pub path: PathBuf,
    /// Bytes of all weight tensors.
    pub weight_bytes: u64,
}

/// Carries out `plan` and writes the model to `out`, which appears whole and verified or not at all.
///
/// # Errors
/// Whatever the passes or the writer refuse; [`Error::Interrupted`].
pub fn apply(
    model: &SourceModel,
    plan: &Plan,
    job: &Job,
    out: &Path,
    options: &WriteOptions,
    context: Context<'_>,
) -> Result<Applied> {
    let options = &WriteOptions { data_order: data_order(plan), ..options.clone() };
    let mut writer = ModelWriter::create(out, &model.checkpoint, plan.tensors.clone(), options)?;
    let mut maker = Maker::new(model, plan, job, context);
    context.progress.begin("writing", plan.tensors.len() as u64);
    for spec in &plan.tensors {
        context.progress.check()?;
        match maker.make(&spec.name)? {
            Made::Values(tensor) => writer.write(&spec.name, &bytes_of(&tensor, spec)?)?,
            Made::Bytes(bytes) => writer.write(&spec.name, &bytes)?,
            Made::Copy => {
                let (source, info) = (&model.checkpoint, model.checkpoint.require(&spec.name)?);
                match model.is_unread(&spec.name) {
                    true => writer.copy_unread(source, info)?,
                    false => writer.copy(source, info)?,
                }
            }
        }
        context.progress.advance(1);
    }
    context.progress.end();
    let manifest = manifest(plan, job, &maker.errors)?;
    let mut config = model.checkpoint.config().clone();
    let declared = plan.declared_storage(model);
    if declared.is_empty() {
        config.remove("bantam");
    } else {
        let mut bantam = json!({ "version": LAYOUT_VERSION, "sites": declared });
        if let Some(stack) = &plan.stack {
            bantam[ORDER_KEY] = json!(stack.order);
        }
        config.set("bantam", bantam);
    }
    let sealed = writer.seal(&config, &manifest)?;
    verify(sealed.reopen()?, &plan.tensors, context.progress)?;
    let written = sealed.publish()?;
    Ok(Applied { path: written.path, weight_bytes: written.weight_bytes })
}

/// A stack's data stand in the order of priority, whatever their alignment.
fn data_order(plan: &Plan) -> DataOrder {
    if plan.stack.is_some() && !plan.fold { DataOrder::AsGiven } else { DataOrder::Aligned }
}

/// The data of `tensor` in the dtype it is planned in.
pub(super) fn bytes_of(tensor: &Tensor, spec: &TensorSpec) -> Result<Vec<u8>> {
    let flat = tensor.flatten_all()?;
    if spec.dtype == Dtype::U8 {
        return Ok(flat.to_vec1::<u8>()?);
    }
    let values = flat.to_dtype(DType::F32)?.to_vec1::<f32>()?;
    Ok(from_f32(spec.dtype, &values, &spec.name)?)
}

/// A tensor of the output.
enum Made {
    /// To be rounded to its dtype.
    Values(Tensor),
    /// Rows of a tensor of the input, as they are.
    Bytes(Vec<u8>),
    /// A tensor of the input.
    Copy,
}

/// Makes the tensors that passes change, a unit when the first of its tensors is due.
struct Maker<'a> {
    model: &'a SourceModel,
    plan: &'a Plan,
    job: &'a Job,
    context: Context<'a>,
    /// Index of the unit that makes a tensor.
    makers: HashMap<String, (usize, Unit)>,
    /// What is taken out of fused tensors, and what is put together into them.
    fused: FusedTensors,
    /// Made and not yet written.
    pending: UnitOutput,
    /// Relative error of each changed weight, `|W - u v| / |W|`.
    errors: BTreeMap<String, f64>,
}

impl<'a> Maker<'a> {
    fn new(model: &'a SourceModel, plan: &'a Plan, job: &'a Job, context: Context<'a>) -> Self {
        let units = model.units();
        let fused = FusedTensors::of(&units, &plan.units, plan.fold);
        let mut makers = HashMap::new();
        for (index, (unit, planned)) in units.into_iter().zip(&plan.units).enumerate() {
            if !changes(&unit, planned, plan.fold) {
                continue;
            }
            for tensor in written_tensors(&unit, planned, plan.fold) {
                makers.insert(tensor.name, (index, unit.clone()));
            }
        }
        Self {
            model,
            plan,
            job,
            context,
            makers,
            fused,
            pending: UnitOutput::new(),
            errors: BTreeMap::new(),
        }
    }

    fn make(&mut self, name: &str) -> Result<Made> {
        if let Some((part, suffix)) = self.fused.taken_out(name) {
            return Ok(Made::Bytes(part_bytes(&self.model.checkpoint, part, suffix)?));
        }
        if let Some((sites, suffix)) = self.fused.put_together(name) {
            return self.fuse(&sites, suffix).map(Made::Values);
        }
        Ok(self.values(name)?.map_or(Made::Copy, Made::Values))
    }

    /// Tensor `suffix` of the module that `sites` are the parts of.
    fn fuse(&mut self, sites: &[Site], suffix: &str) -> Result<Tensor> {
        let mut parts = Vec::with_capacity(sites.len());
        for site in sites {
            let made = self.values(&format!("{}.{suffix}", site.name))?;
            let weights = Weights::new(&self.model.checkpoint, self.context.device());
            let values = match (made, suffix) {
                (Some(made), _) => Some(made),
                (None, "bias") => weights.bias(site)?,
                (None, _) => Some(weights.weight(site)?),
            };
            let values =
                values.ok_or_else(|| Error::Bug(format!("`{}` has no bias", site.name)))?;
            parts.push((site, values.to_dtype(DType::F32)?));
        }
        joined(&parts)
    }

    /// The values of tensor `name` in f32, where the plan changes them.
    fn values(&mut self, name: &str) -> Result<Option<Tensor>> {
        if let Some(tensor) = self.pending.remove(name) {
            return Ok(Some(tensor));
        }
        let Some((index, unit)) = self.makers.get(name).cloned() else { return Ok(None) };
        if let Some(part) = self.part_of(name, index, &unit)? {
            self.pending.extend(part);
            return Ok(self.pending.remove(name));
        }
        let output = self.unit_output(&unit, &self.plan.units[index])?;
        check_output(&output, &written_tensors(&unit, &self.plan.units[index], self.plan.fold))?;
        self.pending.extend(output);
        Ok(self.pending.remove(name))
    }

    /// Tensor `name` and what is written beside it, where a unit's tensors are not written together.
    fn part_of(&mut self, name: &str, index: usize, unit: &Unit) -> Result<Option<UnitOutput>> {
        let planned = &self.plan.units[index];
        let (Some(method), false) = (planned.method, self.plan.fold) else { return Ok(None) };
        let Some(pass) = self.context.passes.iter().find(|pass| pass.method() == method) else {
            return Ok(None);
        };
        let Some(analysis) = self.job.get(unit.name(), method, self.context.device()) else {
            return Ok(None);
        };
        let weights = Weights::new(&self.model.checkpoint, self.context.device());
        let part = pass.apply_part(unit, &weights, &analysis, &planned.offer, name)?;
        if let (Some(_), [Storage::Stack { levels, .. }]) = (&part, &*planned.offer.storages) {
            let errors = analysis.numbers("errors")?;
            let error = errors.get(levels - 1).copied().unwrap_or(0.0);
            self.errors.insert(unit.name().to_owned(), error);
        }
        Ok(part)
    }

    fn unit_output(&mut self, unit: &Unit, planned: &PlannedUnit) -> Result<UnitOutput> {
        let weights = Weights::new(&self.model.checkpoint, self.context.device());
        let Some(method) = planned.method else {
            // Stored as factors and left as it is, but to be folded.
            return unit
                .sites
                .iter()
                .map(|site| folded(site, &weights))
                .collect::<Result<Vec<_>>>()
                .map(|sites| sites.into_iter().flatten().collect());
        };
        let pass =
            self.context.passes.iter().find(|pass| pass.method() == method).ok_or_else(|| {
                Error::usage(
                    format!("the plan uses method `{method}`"),
                    format!("add --method {method}"),
                )
            })?;
        let analysis = self
            .job
            .get(unit.name(), method, self.context.device())
            .ok_or_else(|| Error::Bug(format!("`{}` was not analysed by {method}", unit.name())))?;
        let mut output = pass.apply(unit, &weights, &analysis, &planned.offer)?;
        for (site, storage) in unit.sites.iter().zip(&planned.offer.storages) {
            self.finish_site(site, storage, &weights, &mut output)?;
        }
        Ok(output)
    }

    /// Rounds a site's factors as they will be written, records their error, and folds them.
    fn finish_site(
        &mut self,
        site: &Site,
        storage: &Storage,
        weights: &Weights<'_>,
        output: &mut UnitOutput,
    ) -> Result<()> {
        match *storage {
            Storage::LowRank { .. } => {}
            Storage::Stack { rank, levels } if self.plan.fold => {
                return fold_stack(site, rank, levels, output);
            }
            // As it is, or made part by part.
            Storage::Dense | Storage::Stack { .. } => return Ok(()),
        }
        let mut factors = Vec::with_capacity(2);
        for part in ["u.weight", "v.weight"] {
            let name = format!("{}.{part}", site.name);
            let Some(factor) = output.get(&name) else { return Ok(()) };
            let factor = rounded(factor, site.dtype, &name)?;
            factors.push(factor.clone());
            output.insert(name, factor);
        }
        let error = relative_error(&weights.dense(site)?, &factors[0], &factors[1])?;
        self.errors.insert(site.name.clone(), error);
        if self.plan.fold {
            for part in ["u.weight", "v.weight"] {
                output.remove(&format!("{}.{part}", site.name));
            }
            let [u, v] = [&factors[0], &factors[1]].map(|factor| factor.to_dtype(DType::F64));
            let product = u?.matmul(&v?)?.to_dtype(DType::F32)?;
            output.insert(format!("{}.weight", site.name), product);
        }
        Ok(())
    }
}

/// Puts the dense weight in the place of the blocks of a stack.
fn fold_stack(site: &Site, rank: usize, levels: usize, output: &mut UnitOutput) -> Result<()> {
    let missing = |name: &str| Error::Bug(format!("`{name}` was not made"));
    let mut parts: [Vec<Tensor>; 3] = Default::default();
    for level in 0..levels {
        for (part, spec) in parts.iter_mut().zip(site.level_tensors(rank, level)) {
            part.push(output.remove(&spec.name).ok_or_else(|| missing(&spec.name))?);
        }
    }
    let name = format!("{}.scale", site.name);
    let scale = output.remove(&name).ok_or_else(|| missing(&name))?;
    let [signs, u, v] = parts.each_ref().map(|part| Tensor::stack(part, 0));
    let inverse = scale.to_device(&Device::Cpu)?.recip()?.to_device(scale.device())?;
    let (signs, u, v, rows) = (signs?, u?, v?, 0..site.out_features);
    let weight = ops::stack_rebuild(&signs, &u, &v, Some(&inverse), rows, DType::F32)?;
    output.insert(format!("{}.weight", site.name), weight);
    Ok(())
}

/// `|W - u v| / |W|` in f64, some rows at a time; zero for a weight of zeros.
fn relative_error(weight: &Tensor, u: &Tensor, v: &Tensor) -> Result<f64> {
    const ROWS: usize = 256;
    let v = v.to_dtype(DType::F64)?;
    let energy =
        |t: &Tensor| -> Result<f64> { Ok(t.sqr()?.sum(1)?.sum_all()?.to_scalar::<f64>()?) };
    let (mut size, mut error) = (0.0, 0.0);
    let m = weight.dim(0)?;
    for first in (0..m).step_by(ROWS) {
        let rows = |t: &Tensor| t.narrow(0, first, ROWS.min(m - first))?.to_dtype(DType::F64);
        let weight = rows(weight)?;
        size += energy(&weight)?;
        error += energy(&(&weight - rows(u)?.matmul(&v)?)?)?;
    }
    Ok(if size > 0.0 { (error / size).sqrt() } else { 0.0 })
}

/// `tensor` f32 as it will be read back from `dtype`.
fn rounded(tensor: &Tensor, dtype: Dtype, name: &str) -> Result<Tensor> {
    let values = tensor.flatten_all()?.to_vec1::<f32>()?;
    let values = to_f32(dtype, &from_f32(dtype, &values, name)?, name)?;
    Ok(Tensor::from_vec(values, tensor.shape(), tensor.device())?)
}

/// Whether any tensor of the unit differs from the input's.
fn changes(unit: &Unit, planned: &PlannedUnit, fold: bool) -> bool {
    let folds = fold && unit.sites.iter().any(|site| site.storage != Storage::Dense);
    planned.method.is_some() || folds
}

fn written_tensors(unit: &Unit, planned: &PlannedUnit, fold: bool) -> Vec<TensorSpec> {
    let sites = unit.sites.iter().zip(&planned.offer.storages);
    sites.flat_map(|(site, s)| site.tensors(if fold { &Storage::Dense } else { s })).collect()
}

/// A site's weight multiplied out, and its bias.
fn folded(site: &Site, weights: &Weights<'_>) -> Result<Vec<(String, Tensor)>> {
    let mut tensors =
        vec![(format!("{}.weight", site.name), weights.weight(site)?.to_dtype(DType::F32)?)];
    if let Some(bias) = weights.bias(site)? {
        tensors.push((format!("{}.bias", site.name), bias.to_dtype(DType::F32)?));
    }
    Ok(tensors)
}

/// `bantam.json`: the plan, the error of every changed weight, and the numeric repairs.
fn manifest(plan: &Plan, job: &Job, errors: &BTreeMap<String, f64>) -> Result<Value> {
    let as_json = |e: serde_json::Error| Error::Bug(e.to_string());
    let mut manifest = Map::new();
    manifest.insert("bantam".into(), json!(env!("CARGO_PKG_VERSION")));
    manifest.insert("weight_bytes".into(), json!(plan.weight_bytes));
    manifest.insert("relative_error".into(), serde_json::to_value(errors).map_err(as_json)?);
    manifest.insert("repairs".into(), serde_json::to_value(job.repairs()).map_err(as_json)?);
    // What this machine needed for it is no property of the model.
    let plan = Plan { memory: None, ..plan.clone() };
    manifest.insert("plan".into(), serde_json::to_value(plan).map_err(as_json)?);
    Ok(Value::Object(manifest))
}
