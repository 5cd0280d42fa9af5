//! What a job was made from and how: everything that, if it were different, would make what is stored
//! wrong.

use std::collections::BTreeMap;
use std::path::Path;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::arch::Model;
use crate::atomic;
use crate::checkpoint::TensorInfo;
use crate::digest::Digest;
use crate::error::{Error, Remedy, Result};
use crate::measure::Calibration;
use crate::progress::Progress;
use crate::settings::Measuring;

/// Version of the folder's layout and of what analyses hold.
const LAYOUT: u32 = 3;

/// The identity of a job, as `job.json` holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    layout: u32,
    bantam: String,
    options: Measuring,
    /// Whether a GPU measured and analysed: the same numbers up to rounding, but not the same bits.
    #[serde(default)]
    on_gpu: bool,
    calibration: Option<Calibration>,
    /// sha256 of `config.json`.
    config: String,
    /// sha256 of the bytes of every tensor.
    tensors: BTreeMap<String, String>,
}

impl Identity {
    /// Reads every byte of `model` for its hash.
    ///
    /// # Errors
    /// Files that cannot be read; [`Error::Interrupted`].
    pub fn of(
        model: &Model,
        calibration: Option<Calibration>,
        options: Measuring,
        on_gpu: bool,
        progress: &dyn Progress,
    ) -> Result<Self> {
        let checkpoint = model.checkpoint();
        let tensors: Vec<&TensorInfo> = checkpoint.tensors().collect();
        progress.begin("hashing", tensors.len() as u64);
        let tensors = tensors
            .into_par_iter()
            .map(|info| {
                progress.check()?;
                let mut digest = Digest::default();
                digest.update(checkpoint.bytes(info)?);
                checkpoint.release(info);
                progress.advance(1);
                Ok((info.name.clone(), digest.hex()))
            })
            .collect::<Result<_>>()?;
        progress.end();
        let mut config = Digest::default();
        config.update(checkpoint.config().text().as_bytes());
        let bantam = env!("CARGO_PKG_VERSION").to_owned();
        let config = config.hex();
        Ok(Self { layout: LAYOUT, bantam, options, on_gpu, calibration, config, tensors })
    }

    /// Refuses to go on with a run of another device. What it finished serves any.
    pub(super) fn expect_same_device_as(&self, stored: &Self, file: &Path) -> Result<()> {
        if self.on_gpu == stored.on_gpu {
            return Ok(());
        }
        let found = if stored.on_gpu { "a GPU" } else { "the CPU" };
        Err(Error::InvalidFile {
            file: file.to_owned(),
            problem: format!("the run that was stopped computed on {found}"),
            hint: Some(Remedy::ComputeOn { gpu: stored.on_gpu }),
        })
    }

    pub(super) fn read(file: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(file).map_err(|e| Error::io("read", file, e))?;
        serde_json::from_str(&text).map_err(|e| Error::InvalidFile {
            file: file.to_owned(),
            problem: e.to_string(),
            hint: Some("delete the job folder and measure again".into()),
        })
    }

    /// Writes `job.json`, whole or not at all.
    pub(super) fn write(&self, file: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).map_err(|e| Error::Bug(e.to_string()))?;
        atomic::write(file, (text + "\n").as_bytes(), true)
    }

    /// Refuses a job made from anything else, naming what differs.
    pub(super) fn expect_same_as(&self, stored: &Self, file: &Path) -> Result<()> {
        match self.difference(stored) {
            None => Ok(()),
            Some(problem) => Err(Error::InvalidFile {
                file: file.to_owned(),
                problem,
                hint: Some(Remedy::OtherJob),
            }),
        }
    }

    /// The first thing in which `stored` differs from this.
    fn difference(&self, stored: &Self) -> Option<String> {
        if (self.layout, &self.bantam) != (stored.layout, &stored.bantam) {
            return Some(format!(
                "it was made by bantam {}, this is {}",
                stored.bantam, self.bantam
            ));
        }
        if self.config != stored.config {
            return Some("the model's config.json is not the one it was made from".into());
        }
        if let Some(name) = differing(&self.tensors, &stored.tensors) {
            return Some(format!("tensor `{name}` of the model is not the one it was made from"));
        }
        match (&self.calibration, &stored.calibration) {
            (here, there) if here == there => {}
            (None, Some(_)) => return Some("it was measured on a text, and none is given".into()),
            (Some(_), None) => return Some("it was made without calibration text".into()),
            (Some(here), Some(there)) if here.text_sha256 != there.text_sha256 => {
                let found = &there.text_sha256;
                return Some(format!("it was measured on another text (sha256 {found})"));
            }
            (_, Some(there)) => {
                let (count, length) = (there.windows, there.window);
                return Some(format!(
                    "it was measured on other windows of the text ({count} of {length} tokens)"
                ));
            }
            (None, None) => {}
        }
        if self.options.gradients != stored.options.gradients {
            let with = if stored.options.gradients { "with" } else { "without" };
            return Some(format!("it was measured {with} gradients"));
        }
        if self.options.paper != stored.options.paper {
            let with = if stored.options.paper { "with" } else { "without" };
            return Some(format!("it was analysed {with} `paper`"));
        }
        None
    }
}

/// The first key that only one of two maps has, or whose values differ.
fn differing<'a>(
    one: &'a BTreeMap<String, String>,
    other: &'a BTreeMap<String, String>,
) -> Option<&'a String> {
    one.iter()
        .find(|(name, hash)| other.get(*name) != Some(hash))
        .map(|(name, _)| name)
        .or_else(|| other.keys().find(|name| !one.contains_key(*name)))
}
