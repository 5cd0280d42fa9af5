//! Produces the tensors of an output that are not copied: one exhaustive match on where each comes from.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::Range;
use std::sync::Mutex;

use candle_core::{DType, Device, Tensor};

use super::run::Run;
use crate::arch::{LevelPart, Model, Piece, Site, Storage};
use crate::checkpoint::{Dtype, TensorSpec, from_f32, to_f32};
use crate::error::{Error, Result};
use crate::job::Job;
use crate::lock::lock;
use crate::model::{Source, Stored, View};
use crate::ops;
use crate::passes::{Pass, Pieces, Weights};
use crate::plan::{Origin, Output, Plan, PlannedSite, Written};

/// Makes the tensors of an output, one after the other.
pub(super) struct Producer<'a> {
    pub(super) model: &'a Model,
    weights: Weights<'a>,
    made_by: Option<MadeBy<'a>>,
    /// Pieces of sites that were made and not asked for yet.
    pending: HashMap<(usize, Piece), Tensor>,
    /// Relative error of each changed weight by name, `|W - Ŵ| / |W|`.
    errors: BTreeMap<String, f64>,
}

/// Where pieces come from that are not in the input.
#[derive(Clone, Copy)]
struct MadeBy<'a> {
    sites: &'a [PlannedSite],
    passes: &'a [Box<dyn Pass>],
    job: &'a Job,
    device: &'a Device,
}

impl fmt::Debug for Producer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer")
            .field("model", &self.model.checkpoint().root())
            .finish_non_exhaustive()
    }
}

/// A tensor of the output.
pub(super) enum Data {
    /// The tensor of the input of that name.
    Copied,
    /// These bytes.
    Bytes(Vec<u8>),
}

impl<'a> Producer<'a> {
    /// Of an output of `model` whose pieces are all in the input.
    pub(super) fn of_model(model: &'a Model) -> Self {
        let weights = Weights::new(model.checkpoint(), &Device::Cpu);
        Self { model, weights, made_by: None, pending: HashMap::new(), errors: BTreeMap::new() }
    }

    /// Of the output of `plan`, made from what `run` measured.
    pub(super) fn of_run(run: &'a Run<'_>, plan: &'a Plan) -> Result<Self> {
        let (model, device) = (run.model, run.device());
        let made_by =
            MadeBy { sites: &plan.sites, passes: &run.passes, job: run.require_job()?, device };
        let weights = Weights::new(model.checkpoint(), device).keeping_last();
        let (pending, errors) = (HashMap::new(), BTreeMap::new());
        Ok(Self { model, weights, made_by: Some(made_by), pending, errors })
    }

    /// Relative errors of the weights made so far.
    pub(super) fn errors(&self) -> &BTreeMap<String, f64> {
        &self.errors
    }

    /// The data of `tensor`.
    pub(super) fn data(&mut self, tensor: &Written) -> Result<Data> {
        let Written { spec, origin } = tensor;
        let values = match origin {
            Origin::Copied => return Ok(Data::Copied),
            &Origin::Rows { site, piece } => {
                let site = &self.model.sites()[site];
                let stored = self.model.checkpoint().stored(site, piece)?;
                stored.check_finite()?;
                return Ok(Data::Bytes(stored.bytes.into_owned()));
            }
            &Origin::Made { site, piece } => self.piece(site, piece)?,
            &Origin::Dense { site } => self.dense(site)?,
            Origin::Joined { sites, piece } => self.joined(sites.clone(), *piece)?,
        };
        if values.dims() != spec.shape {
            let (name, found, planned) = (&spec.name, values.dims(), &spec.shape);
            return Err(Error::Bug(format!("`{name}` was made {found:?}, planned {planned:?}")));
        }
        bytes_of(&values, spec).map(Data::Bytes)
    }

    /// The storage that is made of site `number`, where a method makes any.
    fn chosen(&self, number: usize) -> Option<Storage> {
        let planned = self.made_by.map(|by| &by.sites[number])?;
        planned.method.as_ref().map(|_| planned.offer.storage)
    }

    /// A piece that a method makes.
    fn piece(&mut self, number: usize, piece: Piece) -> Result<Tensor> {
        if let Some(made) = self.pending.remove(&(number, piece)) {
            return Ok(made);
        }
        let mut pieces = self.make(number, piece)?;
        let name = &self.model.sites()[number].name;
        let missing = || Error::Bug(format!("`{}` was planned but not made", piece.name_in(name)));
        let made = pieces.remove(&piece).ok_or_else(missing)?;
        self.pending.extend(pieces.into_iter().map(|(piece, made)| ((number, piece), made)));
        Ok(made)
    }

    /// Asks the method for `piece` and what comes with it. Factors are rounded as they will be written, and
    /// the error of what is written is recorded.
    fn make(&mut self, number: usize, piece: Piece) -> Result<Pieces> {
        let by = self.made_by.ok_or_else(|| Error::Bug("there is nothing to make".into()))?;
        let (site, planned) = (&self.model.sites()[number], &by.sites[number]);
        let pass = by.passes.iter().find(|pass| Some(pass.method()) == planned.method);
        let pass = pass.ok_or_else(|| Error::Bug(format!("`{}` is not changed", site.name)))?;
        let (method, chosen) = (pass.method(), planned.offer.storage);
        let missing = || Error::Bug(format!("`{}` was not analysed by {method}", site.name));
        let analysis = by.job.get(&site.name, &method, by.device).ok_or_else(missing)?;
        let mut pieces = pass.make(site, &self.weights, &analysis, chosen, piece)?;
        for (&piece, tensor) in &mut pieces {
            let spec = site.spec(chosen, piece);
            if tensor.dtype() == DType::F32 && spec.dtype != Dtype::F32 {
                *tensor = rounded(tensor, &spec)?;
            }
        }
        if !self.errors.contains_key(&site.name) {
            let known = pass.relative_error(&analysis, chosen)?;
            let error = match (known, pieces.get(&Piece::U), pieces.get(&Piece::V)) {
                (Some(known), ..) => Some(known),
                (None, Some(u), Some(v)) => Some(relative_error(&self.weights.dense(site)?, u, v)?),
                (None, ..) => None,
            };
            self.errors.extend(error.map(|error| (site.name.clone(), error)));
        }
        Ok(pieces)
    }

    /// The weight of a site in f32, multiplied out from what is made of it or stored.
    fn dense(&mut self, number: usize) -> Result<Tensor> {
        let Some(chosen) = self.chosen(number) else {
            return self.weights.dense(&self.model.sites()[number]);
        };
        match chosen {
            Storage::Dense => self.piece(number, Piece::Weight),
            Storage::LowRank { .. } => {
                // The factors are those that would be written; their product is taken in f64, so that it is
                // rounded only as it is written.
                let [u, v] = [Piece::U, Piece::V].map(|piece| -> Result<Tensor> {
                    Ok(self.piece(number, piece)?.to_dtype(DType::F64)?)
                });
                Ok(u?.matmul(&v?)?.to_dtype(DType::F32)?)
            }
            Storage::Stack { levels, .. } => {
                let mut part = |part: LevelPart| -> Result<Tensor> {
                    let level = |level| self.piece(number, Piece::Level(level, part));
                    Ok(Tensor::stack(&(0..levels).map(level).collect::<Result<Vec<_>>>()?, 0)?)
                };
                let (signs, u, v) =
                    (part(LevelPart::Sign)?, part(LevelPart::U)?, part(LevelPart::V)?);
                let scale = self.piece(number, Piece::Scale)?;
                let inverse = scale.to_device(&Device::Cpu)?.recip()?.to_device(scale.device())?;
                let rows = 0..self.model.sites()[number].out_features;
                ops::stack_rebuild(&signs, &u, &v, Some(&inverse), rows, DType::F32)
            }
        }
    }

    /// The weights or biases of `sites` in the rows of the module that holds them all, f32.
    fn joined(&mut self, sites: Range<usize>, piece: Piece) -> Result<Tensor> {
        // Blocks in the order of the rows: where each starts, and the rows of the part it is.
        let mut blocks = Vec::new();
        for number in sites {
            let site = &self.model.sites()[number];
            let missing = |what: &str| Error::Bug(format!("`{}` {what}", site.name));
            let values = match piece {
                Piece::Bias if self.chosen(number).is_some() => self.piece(number, piece)?,
                Piece::Bias => self.weights.bias(site)?.ok_or_else(|| missing("has no bias"))?,
                Piece::Weight => self.dense(number)?,
                Piece::V | Piece::U | Piece::Scale | Piece::Level(..) => {
                    return Err(missing("joins weights and biases only"));
                }
            };
            let values = values.to_dtype(DType::F32)?;
            let part = site.part.as_ref().ok_or_else(|| missing("is not a part of anything"))?;
            let mut row = 0;
            for block in part.rows.blocks(1) {
                blocks.push((block.start, values.narrow(0, row, block.len())?));
                row += block.len();
            }
        }
        blocks.sort_by_key(|(start, _)| *start);
        let blocks: Vec<Tensor> = blocks.into_iter().map(|(_, block)| block).collect();
        Ok(Tensor::cat(&blocks, 0)?)
    }
}

/// The data of `tensor` in the dtype it is planned in.
fn bytes_of(tensor: &Tensor, spec: &TensorSpec) -> Result<Vec<u8>> {
    let flat = tensor.flatten_all()?;
    if spec.dtype == Dtype::U8 {
        return Ok(flat.to_vec1::<u8>()?);
    }
    let values = flat.to_dtype(DType::F32)?.to_vec1::<f32>()?;
    from_f32(spec.dtype, &values, &spec.name)
}

/// `tensor` f32 as it will be read back from the dtype of `spec`.
fn rounded(tensor: &Tensor, spec: &TensorSpec) -> Result<Tensor> {
    let values = tensor.flatten_all()?.to_vec1::<f32>()?;
    let values = to_f32(spec.dtype, &from_f32(spec.dtype, &values, &spec.name)?, &spec.name)?;
    Ok(Tensor::from_vec(values, tensor.shape(), tensor.device())?)
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

/// A model that is planned and not written: its linears are made when they are read.
#[derive(Debug)]
pub struct Preview<'a> {
    model: &'a Model,
    sites: Vec<Site>,
    /// Where tensors come from, by their names.
    tensors: HashMap<String, Written>,
    producer: Mutex<Producer<'a>>,
}

impl<'a> Preview<'a> {
    pub(super) fn new(run: &'a Run<'_>, plan: &'a Plan) -> Result<Self> {
        let Output { sites, tensors, .. } = plan.output(run.model);
        let tensors = tensors.into_iter().map(|t| (t.spec.name.clone(), t)).collect();
        let producer = Mutex::new(Producer::of_run(run, plan)?);
        Ok(Self { model: run.model, sites, tensors, producer })
    }
}

impl Source for Preview<'_> {
    fn stored(&self, site: &Site, piece: Piece) -> Result<Stored<'_>> {
        let name = site.name_of(piece);
        let missing = || Error::Bug(format!("`{name}` is no tensor of the output"));
        let tensor = self.tensors.get(&name).ok_or_else(missing)?;
        let bytes = match lock(&self.producer).data(tensor)? {
            Data::Copied => return self.model.checkpoint().stored(site, piece),
            Data::Bytes(bytes) => bytes,
        };
        let (dtype, shape) = (tensor.spec.dtype, tensor.spec.shape.clone());
        Ok(Stored::of_site(site, name, dtype, shape, Cow::Owned(bytes)))
    }
}

impl<'a> From<&'a Preview<'_>> for View<'a> {
    fn from(preview: &'a Preview<'_>) -> Self {
        Self { model: preview.model, sites: &preview.sites, source: preview }
    }
}
