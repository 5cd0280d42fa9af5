//! `bantam.json`, the manifest beside written weights: what was done, and what it is expected to cost.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::arch::Model;
use crate::checkpoint::MANIFEST_FILE;
use crate::error::{Error, Result};
use crate::job::Job;
use crate::measure::Calibration;
use crate::passes::Repairs;
use crate::plan::{LossBasis, Plan, PlannedStack, check_losses};

/// The version of manifests that is written, and the only one that anything is read from.
const LAYOUT: u32 = 2;

/// The manifest.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Manifest {
    layout: u32,
    /// Version of bantam that wrote the model.
    bantam: String,
    /// Bytes of all weights beside it.
    weight_bytes: u64,
    /// Relative error of each changed weight by name, `|W - Ŵ| / |W|`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    relative_error: BTreeMap<String, f64>,
    /// Numeric repairs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    repairs: Option<Repairs>,
    /// The plan that was carried out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    plan: Option<Plan>,
    /// How a stack was cut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) fit: Option<Fit>,
}

/// A stack that was cut to a size.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Fit {
    /// Bytes it was to fit.
    pub(super) budget: u64,
    /// Written as the dense model that the prefix stands for.
    pub(super) folded: bool,
    /// Bytes of the prefix.
    pub(super) prefix_bytes: u64,
    /// Levels of the prefix.
    pub(super) levels: usize,
    /// Expected loss of the prefix.
    pub(super) expected_loss: Option<f64>,
    /// The stack that it is a prefix of.
    pub(super) whole: WholeStack,
    /// Of a stack, what is known of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) stack: Option<StackRecord>,
}

/// A stack as it was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct WholeStack {
    pub(super) fingerprint: String,
    pub(super) weight_bytes: u64,
    pub(super) levels: usize,
}

impl Manifest {
    /// Of a model that `plan` made, with the errors of its weights.
    pub(super) fn of_plan(plan: &Plan, job: &Job, errors: &BTreeMap<String, f64>) -> Self {
        Self {
            relative_error: errors.clone(),
            repairs: Some(job.repairs(&plan.settings.methods)),
            // What this machine needed for it is no property of the model.
            plan: Some(Plan { memory: None, ..plan.clone() }),
            ..Self::new(plan.weight_bytes)
        }
    }

    /// With these bytes of weights beside it, and nothing said of them.
    pub(super) fn new(weight_bytes: u64) -> Self {
        Self {
            layout: LAYOUT,
            bantam: env!("CARGO_PKG_VERSION").to_owned(),
            weight_bytes,
            ..Self::default()
        }
    }

    pub(super) fn to_json(&self) -> Result<Value> {
        serde_json::to_value(self).map_err(|e| Error::Bug(e.to_string()))
    }

    /// Reads the manifest of `model`, which may have none, or one of another layout.
    pub(super) fn read(model: &Model) -> Result<Option<Self>> {
        let file = model.checkpoint().root().join(MANIFEST_FILE);
        let text = match std::fs::read_to_string(&file) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|e| Error::io("read", &file, e))?,
        };
        let read = || -> serde_json::Result<Option<Self>> {
            let value: Value = serde_json::from_str(&text)?;
            // One that another version wrote says nothing that this one understands.
            let known = value["layout"].as_u64() == Some(LAYOUT.into());
            known.then(|| serde_json::from_value(value)).transpose()
        };
        read().map_err(|e| invalid(model, e.to_string()))
    }
}

fn invalid(model: &Model, problem: String) -> Error {
    let file = model.checkpoint().root().join(MANIFEST_FILE);
    Error::InvalidFile { file, problem, hint: Some("a stack can do without it: remove it".into()) }
}

/// What the manifest beside a stack knows of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StackRecord {
    /// What the expected losses rest on.
    pub loss_basis: LossBasis,
    calibration: Option<Calibration>,
    levels: PlannedStack,
}

impl StackRecord {
    /// Reads the manifest of the stack `model`; `None` where it has none, or that of another stack.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] where it is not JSON; [`Error::Usage`] where the model is no stack.
    pub fn read(model: &Model) -> Result<Option<Self>> {
        Self::of(Manifest::read(model)?.as_ref(), model)
    }

    /// What `manifest`, which stands beside the stack `model`, says of it.
    pub(super) fn of(manifest: Option<&Manifest>, model: &Model) -> Result<Option<Self>> {
        let order = model.require_stack()?.sites();
        let Some(Manifest { plan, fit, .. }) = manifest else { return Ok(None) };
        let of_plan = |plan: &Plan| {
            let Plan { loss_basis, calibration, stack, .. } = plan;
            let (loss_basis, calibration) = (*loss_basis, calibration.clone());
            Some(Self { loss_basis, calibration, levels: stack.clone()? })
        };
        let of_fit = fit.as_ref().and_then(|fit| fit.stack.clone());
        let found = of_fit.or_else(|| of_plan(plan.as_ref()?));
        let losses = found.iter().flat_map(|record| record.levels.losses.iter().copied());
        check_losses(losses).map_err(|problem| invalid(model, problem))?;
        // Of another stack it says nothing of this one.
        let fits = |record: &Self| {
            record.levels.order == order && record.levels.losses.len() == order.len()
        };
        Ok(found.filter(fits))
    }

    /// Expected loss of the first `levels` levels.
    pub fn expected_loss(&self, levels: usize) -> Option<f64> {
        self.levels.losses.get(levels.checked_sub(1)?).copied()
    }

    /// What holds of the first `levels` levels.
    pub(super) fn prefix(&self, levels: usize) -> Self {
        let PlannedStack { order, losses } = &self.levels;
        let levels =
            PlannedStack { order: order[..levels].to_vec(), losses: losses[..levels].to_vec() };
        Self { levels, ..self.clone() }
    }
}
