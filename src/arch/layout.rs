//! Finds every site in the headers and checks what the decoder will ask for.

use std::collections::BTreeMap;

use super::family::{NormKind, PositionRule};
use super::names::{Names, RowOrder};
use super::part::{Part, Rows};
use super::site::{Port, Role, Site, Storage};
use super::spec::{MlpSpec, ModelSpec};
use super::{LayerSpec, SourceModel};
use crate::checkpoint::{Checkpoint, TensorSpec, float_width};
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

/// What the family's row and the spec say of a linear.
struct Linear {
    name: String,
    role: Role,
    layer: usize,
    shape: [usize; 2],
    bias: bool,
    port: Port,
}

impl Finder<'_> {
    fn layer(&mut self, spec: &ModelSpec, layer: usize, description: &LayerSpec) -> Result<()> {
        let (names, a, d) = (self.names, &spec.attention, spec.hidden);
        let (q, kv) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
        let at = |module: &str| format!("{}{layer}.{module}", names.layer);
        let linear = |name: &str, role, shape, bias, port| Linear {
            name: at(name),
            role,
            layer,
            shape,
            bias,
            port,
        };
        let qkv = [
            linear(names.q, Role::AttnQ, [q, d], a.qkv_bias, Port::AttnIn),
            linear(names.k, Role::AttnK, [kv, d], a.qkv_bias, Port::AttnIn),
            linear(names.v, Role::AttnV, [kv, d], a.qkv_bias, Port::AttnIn),
        ];
        match names.qkv {
            Some(fused) if fused.order == RowOrder::PerHead && q == kv => {
                let h = a.head_dim;
                let rows = |part| Rows { first: part * h, length: h, every: 3 * h, count: a.heads };
                self.parts(&at(fused.module), qkv.into_iter().zip((0..3).map(rows)))?;
            }
            Some(fused) => self.stack(&at(fused.module), qkv)?,
            None => qkv.into_iter().try_for_each(|linear| self.push(linear, None))?,
        }
        self.push(linear(names.o, Role::AttnO, [d, q], a.o_bias, Port::AttnOut), None)?;
        match description.mlp {
            MlpSpec::Gated { intermediate: f, bias, .. } => {
                let gate_up = [
                    linear(names.gate, Role::MlpGate, [f, d], bias, Port::MlpIn),
                    linear(names.up, Role::MlpUp, [f, d], bias, Port::MlpIn),
                ];
                match names.gate_up {
                    Some(module) => self.stack(&at(module), gate_up)?,
                    None => gate_up.into_iter().try_for_each(|linear| self.push(linear, None))?,
                }
                self.push(linear(names.down, Role::MlpDown, [d, f], bias, Port::MlpHidden), None)
            }
            MlpSpec::Plain { intermediate: f, bias, .. } => {
                self.push(linear(names.up, Role::MlpUp, [f, d], bias, Port::MlpIn), None)?;
                self.push(linear(names.down, Role::MlpDown, [d, f], bias, Port::MlpHidden), None)
            }
            MlpSpec::Experts { count, intermediate: f, .. } => (0..count).try_for_each(|e| {
                let linear = |module: &str, role, shape, port| {
                    linear(&format!("{}{e}.{module}", names.experts), role, shape, false, port)
                };
                let (inside, hidden) = (Port::ExpertIn(e), Port::ExpertHidden(e));
                let gate = linear(names.expert_gate, Role::ExpertGate, [f, d], inside);
                self.push(gate, None)?;
                self.push(linear(names.expert_up, Role::ExpertUp, [f, d], inside), None)?;
                self.push(linear(names.expert_down, Role::ExpertDown, [d, f], hidden), None)
            }),
        }
    }

    /// Linears whose rows stand one above the other in the tensors of `module`.
    fn stack<const N: usize>(&mut self, module: &str, linears: [Linear; N]) -> Result<()> {
        let mut first = 0;
        let rows = linears.each_ref().map(|linear| {
            let rows = Rows::range(first, linear.shape[0]);
            first += linear.shape[0];
            rows
        });
        self.parts(module, linears.into_iter().zip(rows))
    }

    /// Linears that share the tensors of `module`, which hold all of them or, where `config.json`
    /// declares them, none.
    fn parts(&mut self, module: &str, parts: impl Iterator<Item = (Linear, Rows)>) -> Result<()> {
        let parts: Vec<_> = parts.collect();
        let total = parts.iter().map(|(linear, _)| linear.shape[0]).sum();
        let declared = |(linear, _): &&(Linear, Rows)| self.declared.contains_key(&linear.name);
        let dissolved = parts.iter().any(|part| declared(&part));
        if let Some((missing, _)) = parts.iter().find(|part| dissolved && !declared(part)) {
            return Err(Error::Config {
                file: self.checkpoint.root().join("config.json"),
                key: format!("bantam.sites.{}", missing.name),
                expected: format!("a storage, as other parts of `{module}` have"),
                found: "missing".into(),
            });
        }
        let first = self.sites.len();
        for (linear, rows) in parts {
            let module = module.to_owned();
            self.push(linear, Some(Part { module, rows, total, fused: !dissolved }))?;
        }
        // One tensor had one dtype, and has to have it again when the parts are folded.
        // Stacks have no dtype of their own: what they are folded to is chosen then.
        let is_stack = |site: &Site| matches!(site.storage, Storage::Stack { .. });
        let weights = || self.sites[first..].iter().filter(|site| !is_stack(site));
        let common = weights().next().map(|site| site.dtype);
        let dtypes = |site: &Site| {
            let dtype = if is_stack(site) { common } else { Some(site.dtype) };
            (dtype.unwrap_or(site.dtype), site.bias_dtype)
        };
        match self.sites[first..].iter().find(|s| dtypes(s) != dtypes(&self.sites[first])) {
            None => Ok(()),
            Some(other) => Err(Error::TensorMismatch {
                tensor: other.name.clone(),
                file: self.checkpoint.root().to_owned(),
                expected: format!("{:?} as in the other parts", dtypes(&self.sites[first])),
                found: format!("{:?}", dtypes(other)),
            }),
        }
    }

    fn push(&mut self, linear: Linear, part: Option<Part>) -> Result<()> {
        let Linear { name, role, layer, shape: [out_features, in_features], bias, port } = linear;
        let storage = self.declared.remove(&name).unwrap_or(Storage::Dense);
        let fused = part.as_ref().filter(|part| part.fused);
        let module = fused.map_or(&name, |part| &part.module);
        let first = match storage {
            Storage::Dense => "weight",
            Storage::LowRank { .. } => "v.weight",
            Storage::Stack { .. } => "scale",
        };
        let dtype = self.checkpoint.require(&format!("{module}.{first}"))?.dtype;
        let bias_dtype = match bias {
            true => Some(self.checkpoint.require(&format!("{module}.bias"))?.dtype),
            false => None,
        };
        if let Some(Part { module, total, .. }) = fused {
            check_tensor(self.checkpoint, &format!("{module}.weight"), &[*total, in_features])?;
            if bias {
                check_tensor(self.checkpoint, &format!("{module}.bias"), &[*total])?;
            }
        }
        if let Storage::Stack { rank, levels } = storage {
            check_stack(self.checkpoint, &name, rank, levels)?;
        }
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
            part,
        };
        if site.fused().is_none() {
            let is_stack = matches!(site.storage, Storage::Stack { .. });
            for tensor in site.tensors(&site.storage) {
                match is_stack && tensor.name.rsplit('.').next() != Some("bias") {
                    true => check_exact(self.checkpoint, &tensor)?,
                    false => check_tensor(self.checkpoint, &tensor.name, &tensor.shape)?,
                }
            }
        }
        self.sites.push(site);
        Ok(())
    }
}

/// Checks the tensors that belong to no site: embeddings, norms, routers, head.
pub(super) fn check_remaining(checkpoint: &Checkpoint, spec: &ModelSpec) -> Result<()> {
    let (names, d) = (&spec.family.names, spec.hidden);
    check_tensor(checkpoint, names.embedding, &[spec.vocab, d])?;
    if spec.family.positions == PositionRule::Learned {
        check_tensor(checkpoint, names.positions, &[spec.max_positions, d])?;
    }
    check_norm(checkpoint, spec, names.final_norm, d)?;
    if !spec.tied {
        check_tensor(checkpoint, names.head, &[spec.vocab, d])?;
    }
    for (index, layer) in spec.layers.iter().enumerate() {
        let at = |tensor: &str| format!("{}{index}.{tensor}", names.layer);
        let norms = [Some(names.attention_norm), Some(names.mlp_norm)];
        for norm in norms.into_iter().chain([names.attention_post_norm, names.mlp_post_norm]) {
            norm.map_or(Ok(()), |norm| check_norm(checkpoint, spec, &at(norm), d))?;
        }
        if spec.attention.qk_norm {
            check_norm(checkpoint, spec, &at(names.q_norm), spec.attention.head_dim)?;
            check_norm(checkpoint, spec, &at(names.k_norm), spec.attention.head_dim)?;
        }
        if let MlpSpec::Experts { count, .. } = layer.mlp {
            check_tensor(checkpoint, &at(names.router), &[count, d])?;
        }
    }
    Ok(())
}

/// Checks the tensors of a norm over `width` channels.
fn check_norm(checkpoint: &Checkpoint, spec: &ModelSpec, module: &str, width: usize) -> Result<()> {
    check_tensor(checkpoint, &format!("{module}.weight"), &[width])?;
    match spec.norm.kind {
        NormKind::Layer => check_tensor(checkpoint, &format!("{module}.bias"), &[width]),
        NormKind::Rms | NormKind::RmsOffset => Ok(()),
    }
}

fn check_tensor(checkpoint: &Checkpoint, name: &str, expected: &[usize]) -> Result<()> {
    let info = checkpoint.require(name)?;
    if info.shape != expected {
        return Err(SourceModel::mismatch(checkpoint, info, expected));
    }
    float_width(info.dtype, name)?;
    Ok(())
}

/// Checks that linear `name` has all the levels it is declared with, before anything is made of their
/// number.
fn check_stack(checkpoint: &Checkpoint, name: &str, rank: usize, levels: usize) -> Result<()> {
    if rank == 0 || levels == 0 {
        return Err(Error::Config {
            file: checkpoint.root().join("config.json"),
            key: format!("bantam.sites.{name}"),
            expected: "a rank and levels above 0".into(),
            found: format!("rank {rank}, {levels} levels"),
        });
    }
    // Ends at the first that is missing.
    (0..levels).try_for_each(|level| {
        checkpoint.require(&format!("{name}.{level}.sign")).map(drop).map_err(Error::from)
    })
}

/// Checks shape and dtype of a tensor that can have but one.
fn check_exact(checkpoint: &Checkpoint, expected: &TensorSpec) -> Result<()> {
    let info = checkpoint.require(&expected.name)?;
    if info.shape != expected.shape {
        return Err(SourceModel::mismatch(checkpoint, info, &expected.shape));
    }
    if info.dtype == expected.dtype {
        return Ok(());
    }
    Err(Error::TensorMismatch {
        tensor: expected.name.clone(),
        file: checkpoint.file_of(info).to_owned(),
        expected: format!("dtype {}", expected.dtype),
        found: format!("dtype {}", info.dtype),
    })
}
