//! What `config.json` says of linears that are not stored as the family has them.
//!
//! ```text
//! "bantam": { "version": 1,
//!             "sites": { "model.layers.0.mlp.up_proj": { "kind": "low_rank", "rank": 64 }, … },
//!             "order": [0, 1, 2, 0, …] }
//! ```
//!
//! A linear that is not named is dense, in its own tensor or in the family's fused one. `order` is that
//! of a stack's levels ([`StackOrder`](super::StackOrder)).

use indexmap::IndexMap;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::piece::Storage;
use super::site::Site;
use crate::checkpoint::{Checkpoint, Config};
use crate::error::{Error, Result};

/// The key in `config.json`.
const KEY: &str = "bantam";

/// The version that is written, and the only one that is read.
const VERSION: u64 = 1;

/// The object under [`KEY`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Declaration {
    version: u64,
    /// The storage of linears by name, in layer order.
    pub(super) sites: IndexMap<String, Storage>,
    /// The number of the linear that each level of a stack belongs to, most important first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) order: Option<Vec<usize>>,
}

impl Declaration {
    /// What has to be declared of `sites`: every storage that is not dense, and every part of a fused
    /// module that has tensors of its own.
    pub(crate) fn of(sites: &[Site], order: Option<Vec<usize>>) -> Self {
        let declared = sites.iter().filter(|site| {
            site.fused().is_none() && (site.storage != Storage::Dense || site.part.is_some())
        });
        let sites = declared.map(|site| (site.name.clone(), site.storage)).collect();
        Self { version: VERSION, sites, order }
    }

    /// Reads what `checkpoint` declares; nothing is declared where the key is absent.
    pub(super) fn read(checkpoint: &Checkpoint) -> Result<Self> {
        let mut found = Self { version: VERSION, sites: IndexMap::new(), order: None };
        let Some(value) = checkpoint.config().get(KEY) else { return Ok(found) };
        let object = value
            .as_object()
            .ok_or_else(|| wrong(checkpoint, "", "an object", value.to_string()))?;
        if let Some(version) = object.get("version").filter(|v| v.as_u64() != Some(VERSION)) {
            return Err(Error::Unsupported {
                what: format!("`{}`: layout version {version}", checkpoint.root().display()),
                hint: Some("it was written by another version of bantam; use that one".into()),
            });
        }
        let value = |key| object.get(key);
        if let Some(sites) = value("sites") {
            found.sites = typed(checkpoint, ".sites", "a storage per site", sites)?;
        }
        if let Some(order) = value("order") {
            let expected = "a list of numbers of linears";
            found.order = Some(typed(checkpoint, ".order", expected, order)?);
        }
        Ok(found)
    }

    /// Declares it in `config`; with nothing to declare the key goes.
    pub(crate) fn write(&self, config: &mut Config) -> Result<()> {
        if self.sites.is_empty() {
            config.remove(KEY);
            return Ok(());
        }
        config.set(KEY, serde_json::to_value(self).map_err(|e| Error::Bug(e.to_string()))?);
        Ok(())
    }
}

fn typed<T: DeserializeOwned>(
    checkpoint: &Checkpoint,
    below: &str,
    expected: &str,
    value: &Value,
) -> Result<T> {
    T::deserialize(value).map_err(|e| wrong(checkpoint, below, expected, e.to_string()))
}

/// An error in the declaration of `checkpoint`; `below` is empty or begins with a dot.
pub(super) fn wrong(
    checkpoint: &Checkpoint,
    below: &str,
    expected: impl Into<String>,
    found: impl Into<String>,
) -> Error {
    Error::config(checkpoint.config().file(), &format!("{KEY}{below}"), expected, found)
}
