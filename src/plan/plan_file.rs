//! The plan: what compress will do, exactly, as a file that can be read, compared and carried out.

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::offer::Offer;
use super::output::Output;
use crate::arch::{Model, Role, Site, Storage};
use crate::checkpoint::TensorSpec;
use crate::error::{Error, Remedy, Result};
use crate::measure::{Calibration, Footprint};
use crate::settings::{Method, Rule, Settings};

/// The version of plan files that is written, and the only one that is read.
const LAYOUT: u32 = 2;

/// What compress will do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Version of the file's layout.
    pub layout: u32,
    /// Version of bantam that drew it.
    pub bantam: String,
    /// The model it is for.
    pub model: ModelId,
    /// What was asked for, and how it is carried out.
    pub settings: Settings,
    /// What the expected losses rest on.
    pub loss_basis: LossBasis,
    /// The calibration, where there was one.
    pub calibration: Option<Calibration>,
    /// Memory that compress will need on this machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Footprint>,
    /// Bytes of all tensors below.
    pub weight_bytes: u64,
    /// What was chosen for every site, in the model's order.
    pub sites: Vec<PlannedSite>,
    /// The levels of a stack, most important first.
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

impl fmt::Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { family, fingerprint, weight_bytes } = self;
        write!(f, "a {family} model of {weight_bytes} bytes with fingerprint {fingerprint}")
    }
}

impl ModelId {
    /// Identifies `model`.
    ///
    /// # Errors
    /// Files that changed since they were opened.
    pub fn of(model: &Model) -> Result<Self> {
        Ok(Self {
            family: model.spec().family.model_type.to_owned(),
            fingerprint: model.checkpoint().fingerprint()?,
            weight_bytes: model.checkpoint().weight_bytes(),
        })
    }
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

impl fmt::Display for LossBasis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Assumed => "assumed from shapes",
            Self::Nats => "nats per token",
            Self::OutputEnergy => "output energy lost, relative to the residual stream",
            Self::WeightEnergy => "weight energy lost",
        })
    }
}

/// The levels of a stack in order of priority.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedStack {
    /// The number of the linear that each level belongs to, in layer order.
    pub order: Vec<usize>,
    /// Expected loss once the level is there, all before it being there, in the plan's unit.
    pub losses: Vec<f64>,
}

/// Refuses numbers from a file that cannot be expected losses: sums and differences of such stay finite.
pub(crate) fn check_losses(mut losses: impl Iterator<Item = f64>) -> Result<(), String> {
    let is_loss = |loss: &f64| loss.abs() < 1e100;
    let odd = losses.find(|loss| !is_loss(loss));
    odd.map_or(Ok(()), |odd| Err(format!("an expected loss of {odd:e} is none")))
}

/// The choice for one site.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlannedSite {
    /// The site's name.
    pub site: String,
    /// Its role.
    pub role: Role,
    /// Its layer; none for embedding and head.
    pub layer: Option<usize>,
    /// `[out, in]`.
    pub shape: [usize; 2],
    /// Bytes in the input.
    pub bytes_in: u64,
    /// The method whose offer was taken; `None` leaves it as it is.
    pub method: Option<Method>,
    /// The offer.
    #[serde(flatten)]
    pub offer: Offer,
}

impl PlannedSite {
    /// `offer` for `site`, made by `method`.
    pub(crate) fn of(site: &Site, method: Option<Method>, offer: Offer) -> Self {
        Self {
            site: site.name.clone(),
            role: site.role,
            layer: site.layer,
            shape: [site.out_features, site.in_features],
            bytes_in: site.stored_bytes(),
            method,
            offer,
        }
    }
}

impl Plan {
    /// The plan that stores the sites of `model` as `sites` says, with the levels of a stack in the order
    /// of `stack`.
    pub(crate) fn new(
        model: &Model,
        settings: Settings,
        sites: Vec<PlannedSite>,
        stack: Option<PlannedStack>,
    ) -> Result<Self> {
        let mut plan = Self {
            layout: LAYOUT,
            bantam: env!("CARGO_PKG_VERSION").to_owned(),
            model: ModelId::of(model)?,
            settings,
            loss_basis: LossBasis::Assumed,
            calibration: None,
            memory: None,
            weight_bytes: 0,
            sites,
            stack,
            tensors: Vec::new(),
        };
        plan.tensors = plan.output(model).specs();
        plan.weight_bytes = plan.tensors.iter().map(TensorSpec::bytes).sum();
        Ok(plan)
    }

    /// The output that follows from the choices.
    pub(crate) fn output(&self, model: &Model) -> Output {
        let chosen: Vec<Storage> = self.sites.iter().map(|site| site.offer.storage).collect();
        let order = self.stack.as_ref().map(|stack| stack.order.as_slice());
        Output::new(model, &chosen, self.settings.fold, order)
    }

    /// The sum of the expected losses of all choices.
    pub fn expected_loss(&self) -> f64 {
        self.sites.iter().map(|site| site.offer.price.expected_loss).sum()
    }

    /// Reads a plan file and checks that it was drawn for `model`.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] where it is malformed, of another layout, or for another model.
    pub fn read(file: &Path, model: &Model) -> Result<Self> {
        let invalid = |problem: String, hint: Remedy| Error::InvalidFile {
            file: file.to_owned(),
            problem,
            hint: Some(hint),
        };
        let text = std::fs::read_to_string(file).map_err(|e| Error::io("read", file, e))?;
        let parsed = || -> serde_json::Result<(Option<u64>, Value)> {
            let value: Value = serde_json::from_str(&text)?;
            Ok((value.get("layout").and_then(Value::as_u64), value))
        };
        let not_a_plan = |e: serde_json::Error| invalid(e.to_string(), Remedy::DrawPlan);
        let (layout, value) = parsed().map_err(not_a_plan)?;
        if let Some(other) = layout.filter(|&layout| layout != u64::from(LAYOUT)) {
            let problem = format!("it has layout {other}, this bantam reads layout {LAYOUT}");
            return Err(invalid(problem, "draw the plan again".into()));
        }
        let plan: Self = serde_json::from_value(value).map_err(not_a_plan)?;
        // A plan may have been edited: everything that follows from the choices must still follow.
        plan.check(model).map_err(|problem| invalid(problem, "draw the plan again".into()))?;
        Ok(plan)
    }

    /// Holds the plan against `model`; whether the methods offer what it chooses is not known here.
    pub(crate) fn check(&self, model: &Model) -> Result<(), String> {
        let found = ModelId::of(model).map_err(|e| e.to_string())?;
        if self.model != found {
            return Err(format!("it was drawn for {}, this is {found}", self.model));
        }
        let settled = self.settings.clone().settled().map_err(|e| e.to_string())?;
        if settled != self.settings {
            return Err("its settings contradict each other".into());
        }
        let (found, expected) = (self.sites.len(), model.sites().len());
        if found != expected {
            return Err(format!("it has {found} sites, the model {expected}"));
        }
        for (site, planned) in model.sites().iter().zip(&self.sites) {
            let Offer { storage, price } = planned.offer;
            let most = site.out_features.min(site.in_features);
            if storage.rank() > most || storage.levels() > Settings::MOST_LEVELS {
                return Err(format!("`{}` cannot become {storage}", site.name));
            }
            let offer = Offer::of(site, storage, price.expected_loss);
            let follows = PlannedSite::of(site, planned.method.clone(), offer);
            if *planned != follows {
                let (said, name, bytes) = (&planned.site, &site.name, offer.price.bytes);
                return Err(format!("`{said}` is not the model's `{name}` of {bytes} bytes"));
            }
        }
        check_losses(self.sites.iter().map(|site| site.offer.price.expected_loss))?;
        self.check_stack()?;
        let tensors = self.output(model).specs();
        if tensors != self.tensors {
            return Err("its list of tensors does not follow from its sites".into());
        }
        let bytes: u64 = tensors.iter().map(TensorSpec::bytes).sum();
        if bytes != self.weight_bytes {
            return Err(format!("its tensors have {bytes} bytes, not {}", self.weight_bytes));
        }
        if let Rule::Target(target) = self.settings.rule {
            let budget = target.bytes(self.model.weight_bytes);
            if bytes > budget && !self.settings.fold {
                return Err(format!("its {bytes} bytes exceed its budget of {budget}"));
            }
        }
        Ok(())
    }

    /// The order must name every level of every stack once, each with a loss.
    fn check_stack(&self) -> Result<(), String> {
        let (order, losses) =
            self.stack.as_ref().map_or((&[][..], &[][..]), |stack| (&stack.order, &stack.losses));
        let mut named = vec![0; self.sites.len()];
        if losses.len() != order.len() {
            let (levels, losses) = (order.len(), losses.len());
            return Err(format!("its stack has {levels} levels and {losses} losses"));
        }
        check_losses(losses.iter().copied())?;
        for &site in order {
            *named.get_mut(site).ok_or_else(|| format!("its order names linear {site}"))? += 1;
        }
        for (index, (planned, named)) in self.sites.iter().zip(named).enumerate() {
            let levels = planned.offer.storage.levels();
            if named != levels {
                return Err(format!(
                    "its order has {named} levels of linear {index}, not {levels}"
                ));
            }
        }
        Ok(())
    }

    /// The plan as JSON, a line per value.
    ///
    /// # Errors
    /// [`Error::Bug`] if it cannot be written as JSON.
    pub fn to_json(&self) -> Result<String> {
        let text = serde_json::to_string_pretty(self).map_err(|e| Error::Bug(e.to_string()))?;
        Ok(text + "\n")
    }
}
