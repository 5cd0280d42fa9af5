//! The plan: what compress will do, exactly, as a file that can be read, compared and carried out.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::memory::Forecast;
use super::offer::Offer;
use super::output::{self, output_tensors};
use super::target::Target;
use crate::arch::{Role, Site, SourceModel, Storage};
use crate::checkpoint::TensorSpec;
use crate::error::{Error, Result};
use crate::measure::MeasureOptions;
use crate::passes::Method;

/// What compress will do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Version of bantam that drew it.
    pub bantam: String,
    /// The model it is for.
    pub model: ModelId,
    /// How the choices were made.
    pub rule: Rule,
    /// The methods whose offers were considered.
    pub methods: Vec<Method>,
    /// Ranks are multiples of this.
    pub rank_multiple: usize,
    /// Factors are multiplied out again before writing.
    pub fold: bool,
    /// Decompositions are those of the papers, with no gradients in them.
    pub paper: bool,
    /// What the expected losses rest on.
    pub expected_loss: LossBasis,
    /// The calibration, where there was one.
    pub calibration: Option<Calibration>,
    /// Memory that compress will need on this machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Forecast>,
    /// Bytes of all tensors below.
    pub weight_bytes: u64,
    /// What was chosen for every unit, in layer order.
    pub units: Vec<PlannedUnit>,
    /// The blocks of a stack, most important first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stack: Option<PlannedStack>,
    /// Every tensor of the output, in the order written.
    pub tensors: Vec<TensorSpec>,
}

/// Identifies the input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelId {
    /// `model_type`.
    pub family: String,
    /// Hash of config and headers.
    pub fingerprint: String,
    /// Bytes of all weight tensors.
    pub weight_bytes: u64,
}

impl ModelId {
    /// Identifies `model`.
    ///
    /// # Errors
    /// Files that changed since they were opened.
    pub fn of(model: &SourceModel) -> Result<Self> {
        Ok(Self {
            family: model.spec.family.model_type.to_owned(),
            fingerprint: model.checkpoint.fingerprint()?,
            weight_bytes: model.checkpoint.weight_bytes(),
        })
    }
}

/// How ranks are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// The allocator fits the offers to a size.
    Target(Target),
    /// Every linear keeps the same fraction of its parameters.
    Uniform(f64),
    /// One threshold over the normalised singular values of all linears removes this fraction.
    Reduce(f64),
    /// Every linear gets all its blocks: the size is chosen when the stack is read.
    Stack,
}

/// What expected losses rest on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossBasis {
    /// Shapes alone and an assumed spectrum: read from headers.
    Assumed,
    /// The second-order estimate with measured gradients, in nats per token.
    Nats,
    /// The energy each linear loses at its output, relative to the residual stream it adds to.
    OutputEnergy,
    /// The energy of the weights.
    WeightEnergy,
}

/// The text that was measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Calibration {
    /// Hash of the text files.
    pub text_sha256: String,
    /// Windows read.
    pub windows: usize,
    /// Tokens of each.
    pub window: usize,
    /// Hash of the token windows.
    pub windows_sha256: String,
}

/// The blocks of a stack in order of priority.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedStack {
    /// The number of the linear that each block belongs to, in layer order.
    pub order: Vec<usize>,
    /// Expected loss once the block is there, all before it being there, in the plan's unit.
    pub expected_loss: Vec<f64>,
}

/// The choice for one unit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlannedUnit {
    /// The unit's name: of its first site.
    pub unit: String,
    /// Role of its first site.
    pub role: Role,
    /// Its layer.
    pub layer: usize,
    /// `[out, in]` of its first site.
    pub shape: [usize; 2],
    /// Bytes in the input.
    pub bytes_in: u64,
    /// The method whose offer was taken; `None` leaves it as it is.
    pub method: Option<Method>,
    /// The offer.
    #[serde(flatten)]
    pub offer: Offer,
}

impl Plan {
    /// How the statistics are to be taken that it is carried out with.
    pub fn measure_options(&self) -> MeasureOptions {
        let without = matches!(self.expected_loss, LossBasis::OutputEnergy);
        MeasureOptions { gradients: !without, paper: self.paper }
    }

    /// Reads a plan file and checks that it was drawn for `model`.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] where it is malformed, or for another model.
    pub fn read(file: &Path, model: &SourceModel) -> Result<Self> {
        let invalid = |problem: String, hint: &str| Error::InvalidFile {
            file: file.to_owned(),
            problem,
            hint: Some(hint.into()),
        };
        let text = std::fs::read_to_string(file).map_err(|e| Error::io("read", file, e))?;
        let plan: Self = serde_json::from_str(&text)
            .map_err(|e| invalid(e.to_string(), "write a plan with `bantam plan … -o FILE`"))?;
        let found = ModelId::of(model)?;
        if plan.model != found {
            let problem = format!("it was drawn for model {:?}, this is {found:?}", plan.model);
            return Err(invalid(problem, "draw a new plan for this model"));
        }
        // A plan may have been edited: everything that follows from the choices must still follow.
        plan.check(model).map_err(|problem| invalid(problem, "draw the plan again"))?;
        Ok(plan)
    }

    fn check(&self, model: &SourceModel) -> Result<(), String> {
        if self.rank_multiple == 0 {
            return Err("`rank_multiple` is 0".into());
        }
        let units = model.units();
        if units.len() != self.units.len() {
            return Err(format!("it has {} units, the model {}", self.units.len(), units.len()));
        }
        for (unit, planned) in units.iter().zip(&self.units) {
            let name = &planned.unit;
            if unit.name() != name || unit.sites.len() != planned.offer.storages.len() {
                return Err(format!("unit `{name}` stands where `{}` is expected", unit.name()));
            }
            let sites = || unit.sites.iter().zip(&planned.offer.storages);
            let changed = |(site, storage): &(&Site, &Storage)| site.storage != **storage;
            if planned.method.is_some() != sites().any(|pair| changed(&pair)) {
                return Err(format!("unit `{name}` and its method disagree on whether it changes"));
            }
            for (site, storage) in sites().filter(changed) {
                self.check_choice(site, storage, planned)?;
            }
            let bytes: u64 = sites().map(|(site, storage)| site.bytes(storage)).sum();
            if bytes != planned.offer.bytes {
                return Err(format!(
                    "unit `{name}` has {bytes} bytes, not {}",
                    planned.offer.bytes
                ));
            }
        }
        self.check_stack()?;
        let tensors = output_tensors(model, &self.units, self.fold, self.stack.as_ref());
        if tensors != self.tensors {
            return Err("its list of tensors does not follow from its units".into());
        }
        let bytes: u64 = tensors.iter().map(TensorSpec::bytes).sum();
        if bytes != self.weight_bytes {
            return Err(format!("its tensors have {bytes} bytes, not {}", self.weight_bytes));
        }
        Ok(())
    }

    /// The order must name every block of every stack once.
    fn check_stack(&self) -> Result<(), String> {
        let storages = || self.units.iter().flat_map(|unit| &unit.offer.storages);
        let order = self.stack.as_ref().map_or(&[][..], |stack| &stack.order);
        let mut named = vec![0; storages().count()];
        for &site in order {
            *named.get_mut(site).ok_or_else(|| format!("its order names linear {site}"))? += 1;
        }
        for (index, (storage, named)) in storages().zip(named).enumerate() {
            let levels = if let Storage::Stack { levels, .. } = storage { *levels } else { 0 };
            if named != levels {
                return Err(format!(
                    "its order has {named} blocks of linear {index}, not {levels}"
                ));
            }
        }
        Ok(())
    }

    /// A changed storage must be one that the planned method offers.
    fn check_choice(
        &self,
        site: &Site,
        storage: &Storage,
        planned: &PlannedUnit,
    ) -> Result<(), String> {
        let name = &site.name;
        if !planned.method.is_some_and(|method| self.methods.contains(&method)) {
            return Err(format!("`{name}` changes by no method of the plan"));
        }
        match *storage {
            Storage::LowRank { rank } if rank > 0 && rank.is_multiple_of(self.rank_multiple) => {}
            // A stack may be larger than what it is made from: it is cut when it is read.
            Storage::Stack { rank, levels } if rank > 0 && levels > 0 => return Ok(()),
            _ => return Err(format!("`{name}` cannot become {storage:?}")),
        }
        match site.bytes(storage) < site.bytes(&site.storage) {
            true => Ok(()),
            false => Err(format!("`{name}` would not be smaller as {storage:?}")),
        }
    }

    /// The plan as JSON, a line per value.
    ///
    /// # Errors
    /// [`Error::Bug`] if it cannot be written as JSON.
    pub fn to_json(&self) -> Result<String> {
        let text = serde_json::to_string_pretty(self).map_err(|e| Error::Bug(e.to_string()))?;
        Ok(text + "\n")
    }

    /// The storage that `config.json` has to declare, per site.
    pub fn declared_storage(
        &self,
        model: &SourceModel,
    ) -> serde_json::Map<String, serde_json::Value> {
        output::declared_storage(&output::choices(&model.units(), &self.units), self.fold)
    }
}
