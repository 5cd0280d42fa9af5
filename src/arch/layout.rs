//! Finds every site in the headers and checks what the decoder will ask for.

use std::collections::BTreeMap;

use super::family::Names;
use super::site::{Port, Role, Site, Storage};
use super::spec::{MlpSpec, ModelSpec};
use super::{LayerSpec, SourceModel};
use crate::checkpoint::{Checkpoint, float_width};
use crate::error::{Error, Result};

/// The version of what `config.json["bantam"]` declares.
pub(crate) const LAYOUT_VERSION: u64 = 1;

/// The storage that `config.json["bantam"]` declares, per site name; a site that is not named is dense.
fn declared_storage(checkpoint: &Checkpoint) -> Result<BTreeMap<String, Storage>> {
    let Some(bantam) = checkpoint.config().get("bantam") else { return Ok(BTreeMap::new()) };
    if !bantam.is_object() {
        return Err(Error::Config {
            file: checkpoint.root().join("config.json"),
            key: "bantam".into(),
            expected: "an object".into(),
            found: bantam.to_string(),
        });
    }
    if let Some(version) = bantam.get("version").filter(|v| v.as_u64() != Some(LAYOUT_VERSION)) {
        return Err(Error::Unsupported {
            what: format!("`{}`: layout version {version}", checkpoint.root().display()),
            hint: Some("it was written by another version of bantam; use that one".into()),
        });
    }
    let Some(declared) = bantam.get("sites") else { return Ok(BTreeMap::new()) };
    serde_json::from_value(declared.clone()).map_err(|e| Error::Config {
        file: checkpoint.root().join("config.json"),
        key: "bantam.sites".into(),
        expected: "a storage per site".into(),
        found: e.to_string(),
    })
}

/// Every linear of every block, its tensors checked against the headers.
pub(super) fn sites(checkpoint: &Checkpoint, spec: &ModelSpec) -> Result<Vec<Site>> {
    let mut finder = Finder {
        checkpoint,
        names: &spec.family.names,
        declared: declared_storage(checkpoint)?,
        sites: Vec::new(),
    };
    for (index, layer) in spec.layers.iter().enumerate() {
        finder.layer(spec, index, layer)?;
    }
    if let Some(unknown) = finder.declared.keys().next() {
        return Err(Error::Config {
            file: checkpoint.root().join("config.json"),
            key: format!("bantam.sites.{unknown}"),
            expected: "the name of a linear of this model".into(),
            found: "no such linear".into(),
        });
    }
    Ok(finder.sites)
}

struct Finder<'a> {
    checkpoint: &'a Checkpoint,
    names: &'a Names,
    declared: BTreeMap<String, Storage>,
    sites: Vec<Site>,
}

impl Finder<'_> {
    fn layer(&mut self, spec: &ModelSpec, layer: usize, description: &LayerSpec) -> Result<()> {
        let (names, a, d) = (self.names, &spec.attention, spec.hidden);
        let (q, kv) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
        let at = |module: &str| format!("{}{layer}.{module}", names.layer);
        self.push(at(names.q), Role::AttnQ, layer, [q, d], a.qkv_bias, Port::AttnIn)?;
        self.push(at(names.k), Role::AttnK, layer, [kv, d], a.qkv_bias, Port::AttnIn)?;
        self.push(at(names.v), Role::AttnV, layer, [kv, d], a.qkv_bias, Port::AttnIn)?;
        self.push(at(names.o), Role::AttnO, layer, [d, q], a.o_bias, Port::AttnOut)?;
        match description.mlp {
            MlpSpec::Gated { intermediate: f, bias } => {
                self.push(at(names.gate), Role::MlpGate, layer, [f, d], bias, Port::MlpIn)?;
                self.push(at(names.up), Role::MlpUp, layer, [f, d], bias, Port::MlpIn)?;
                self.push(at(names.down), Role::MlpDown, layer, [d, f], bias, Port::MlpHidden)?;
            }
            MlpSpec::Experts { count, intermediate: f, .. } => {
                for e in 0..count {
                    let at = |module: &str| at(&format!("{}{e}.{module}", names.experts));
                    let (inside, hidden) = (Port::ExpertIn(e), Port::ExpertHidden(e));
                    self.push(
                        at(names.expert_gate),
                        Role::ExpertGate,
                        layer,
                        [f, d],
                        false,
                        inside,
                    )?;
                    self.push(at(names.expert_up), Role::ExpertUp, layer, [f, d], false, inside)?;
                    self.push(
                        at(names.expert_down),
                        Role::ExpertDown,
                        layer,
                        [d, f],
                        false,
                        hidden,
                    )?;
                }
            }
        }
        Ok(())
    }

    fn push(
        &mut self,
        name: String,
        role: Role,
        layer: usize,
        [out_features, in_features]: [usize; 2],
        bias: bool,
        port: Port,
    ) -> Result<()> {
        let storage = self.declared.remove(&name).unwrap_or(Storage::Dense);
        let first = match storage {
            Storage::Dense => "weight",
            Storage::LowRank { .. } => "v.weight",
        };
        let dtype = self.checkpoint.require(&format!("{name}.{first}"))?.dtype;
        let bias_dtype = match bias {
            true => Some(self.checkpoint.require(&format!("{name}.bias"))?.dtype),
            false => None,
        };
        let site = Site {
            name,
            role,
            layer,
            out_features,
            in_features,
            bias,
            dtype,
            bias_dtype,
            port,
            storage,
        };
        for tensor in site.tensors(&site.storage) {
            check_tensor(self.checkpoint, &tensor.name, &tensor.shape)?;
        }
        self.sites.push(site);
        Ok(())
    }
}

/// Checks the tensors that belong to no site: embeddings, norms, routers, head.
pub(super) fn check_remaining(checkpoint: &Checkpoint, spec: &ModelSpec) -> Result<()> {
    let (names, d) = (&spec.family.names, spec.hidden);
    check_tensor(checkpoint, names.embedding, &[spec.vocab, d])?;
    check_tensor(checkpoint, names.final_norm, &[d])?;
    if !spec.tied {
        check_tensor(checkpoint, names.head, &[spec.vocab, d])?;
    }
    for (index, layer) in spec.layers.iter().enumerate() {
        let at = |tensor: &str| format!("{}{index}.{tensor}", names.layer);
        check_tensor(checkpoint, &at(names.attention_norm), &[d])?;
        check_tensor(checkpoint, &at(names.mlp_norm), &[d])?;
        if spec.attention.qk_norm {
            check_tensor(checkpoint, &at(names.q_norm), &[spec.attention.head_dim])?;
            check_tensor(checkpoint, &at(names.k_norm), &[spec.attention.head_dim])?;
        }
        if let MlpSpec::Experts { count, .. } = layer.mlp {
            check_tensor(checkpoint, &at(names.router), &[count, d])?;
        }
    }
    Ok(())
}

fn check_tensor(checkpoint: &Checkpoint, name: &str, expected: &[usize]) -> Result<()> {
    let info = checkpoint.require(name)?;
    if info.shape != expected {
        return Err(SourceModel::mismatch(checkpoint, info, expected));
    }
    float_width(info.dtype, name)?;
    Ok(())
}
