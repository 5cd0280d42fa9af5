//! Finds every site in the headers and checks what the decoder will ask for.

use indexmap::IndexMap;

use super::declaration::{Declaration, wrong};
use super::family::{NormKind, PositionRule};
use super::names::{Names, RowOrder};
use super::part::{Part, Rows};
use super::piece::{Piece, Storage};
use super::site::{Port, Role, Site};
use super::spec::{LayerSpec, MlpSpec, ModelSpec};
use crate::checkpoint::{Checkpoint, TensorInfo, TensorSpec, float_width};
use crate::error::{Error, Result};

/// Every linear of every block in layer order, then embedding and head, their tensors checked against
/// the headers.
pub(super) fn sites(
    checkpoint: &Checkpoint,
    spec: &ModelSpec,
    declaration: &Declaration,
) -> Result<Vec<Site>> {
    let mut finder = Finder {
        checkpoint,
        names: &spec.family.names,
        declared: declaration.sites.clone(),
        sites: Vec::new(),
    };
    for (index, layer) in spec.layers.iter().enumerate() {
        finder.layer(spec, index, layer)?;
    }
    finder.vocabulary(spec)?;
    if let Some(unknown) = finder.declared.keys().next() {
        let (key, expected) = (format!(".sites.{unknown}"), "the name of a linear of this model");
        return Err(wrong(checkpoint, &key, expected, "no such linear"));
    }
    Ok(finder.sites)
}

struct Finder<'a> {
    checkpoint: &'a Checkpoint,
    names: &'a Names,
    /// Storages that no site was found for yet.
    declared: IndexMap<String, Storage>,
    sites: Vec<Site>,
}

/// A linear as the family's row and the spec have it.
struct Expected {
    name: String,
    role: Role,
    layer: Option<usize>,
    shape: [usize; 2],
    bias: bool,
    port: Port,
}

impl Finder<'_> {
    fn layer(&mut self, spec: &ModelSpec, layer: usize, description: &LayerSpec) -> Result<()> {
        let (names, a, d) = (self.names, &spec.attention, spec.hidden);
        let (q, kv) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
        let at = |module: &str| format!("{}{layer}.{module}", names.layer);
        let linear = |name: &str, role, shape, bias, port| Expected {
            name: at(name),
            role,
            layer: Some(layer),
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
            Some(fused) => self.rows_below(&at(fused.module), qkv)?,
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
                    Some(module) => self.rows_below(&at(module), gate_up)?,
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

    /// The embedding, and the head where it is a tensor of its own.
    fn vocabulary(&mut self, spec: &ModelSpec) -> Result<()> {
        let head = (!spec.tied).then_some((self.names.head, Role::Head));
        for (tensor, role) in [(self.names.embedding, Role::Embed)].into_iter().chain(head) {
            let name = tensor.strip_suffix(".weight").unwrap_or(tensor).to_owned();
            if let Some(storage) = self.declared.get(&name) {
                let key = format!(".sites.{name}");
                return Err(wrong(
                    self.checkpoint,
                    &key,
                    "no storage but dense",
                    storage.to_string(),
                ));
            }
            let (shape, port) = ([spec.vocab, spec.hidden], Port::of(role));
            self.push(Expected { name, role, layer: None, shape, bias: false, port }, None)?;
        }
        Ok(())
    }

    /// Linears whose rows stand one below the other in the tensors of `module`.
    fn rows_below<const N: usize>(&mut self, module: &str, linears: [Expected; N]) -> Result<()> {
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
    fn parts(&mut self, module: &str, parts: impl Iterator<Item = (Expected, Rows)>) -> Result<()> {
        let parts: Vec<_> = parts.collect();
        let total = parts.iter().map(|(linear, _)| linear.shape[0]).sum();
        let declared = |(linear, _): &&(Expected, Rows)| self.declared.contains_key(&linear.name);
        let dissolved = parts.iter().any(|part| declared(&part));
        if let Some((missing, _)) = parts.iter().find(|part| dissolved && !declared(part)) {
            let key = format!(".sites.{}", missing.name);
            let expected = format!("a storage, as other parts of `{module}` have");
            return Err(wrong(self.checkpoint, &key, expected, "missing"));
        }
        let first = self.sites.len();
        for (linear, rows) in parts {
            let module = module.to_owned();
            self.push(linear, Some(Part { module, rows, total, fused: !dissolved }))?;
        }
        // One tensor had one dtype, and has to have it again when the parts are folded.
        // Stacks have no dtype of their own: what they are folded to is chosen then.
        let weights = || self.sites[first..].iter().filter(|site| !site.storage.is_stack());
        let common = weights().next().map(|site| site.dtype);
        let dtypes = |site: &Site| {
            let dtype = if site.storage.is_stack() { common } else { Some(site.dtype) };
            (dtype.unwrap_or(site.dtype), site.bias)
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

    fn push(&mut self, linear: Expected, part: Option<Part>) -> Result<()> {
        let Expected { name, role, layer, shape: [m, n], bias, port } = linear;
        let storage = self.declared.shift_remove(&name).unwrap_or(Storage::Dense);
        let fused = part.as_ref().filter(|part| part.fused);
        let module = fused.map_or(&name, |part| &part.module);
        let dtype_of = |piece: Piece| -> Result<_> {
            Ok(self.checkpoint.require(&piece.name_in(module))?.dtype)
        };
        let first = match storage {
            Storage::Dense => Piece::Weight,
            Storage::LowRank { .. } => Piece::V,
            Storage::Stack { .. } => Piece::Scale,
        };
        let dtype = dtype_of(first)?;
        let bias = bias.then(|| dtype_of(Piece::Bias)).transpose()?;
        if let Some(Part { total, .. }) = fused {
            check_tensor(self.checkpoint, &Piece::Weight.name_in(module), &[*total, n])?;
            if bias.is_some() {
                check_tensor(self.checkpoint, &Piece::Bias.name_in(module), &[*total])?;
            }
        }
        if let Storage::Stack { rank, levels } = storage {
            check_levels(self.checkpoint, &name, rank, levels)?;
        }
        let (out_features, in_features) = (m, n);
        let site =
            Site { name, role, layer, out_features, in_features, dtype, bias, port, storage, part };
        if site.fused().is_none() {
            for piece in site.pieces(storage) {
                let spec = site.spec(storage, piece);
                match piece.has_fixed_dtype() {
                    true => check_exact(self.checkpoint, &spec)?,
                    false => check_tensor(self.checkpoint, &spec.name, &spec.shape)?,
                }
            }
        }
        self.sites.push(site);
        Ok(())
    }
}

/// Checks the tensors that belong to no site: learned positions, norms, routers.
pub(super) fn check_remaining(checkpoint: &Checkpoint, spec: &ModelSpec) -> Result<()> {
    let (names, d) = (&spec.family.names, spec.hidden);
    if spec.family.positions == PositionRule::Learned {
        check_tensor(checkpoint, names.positions, &[spec.max_positions, d])?;
    }
    check_norm(checkpoint, spec, names.final_norm, d)?;
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
        return Err(mismatch(checkpoint, info, expected));
    }
    float_width(info.dtype, name)?;
    Ok(())
}

/// The error for a tensor whose shape contradicts `config.json`.
fn mismatch(checkpoint: &Checkpoint, info: &TensorInfo, expected: &[usize]) -> Error {
    Error::TensorMismatch {
        tensor: info.name.clone(),
        file: checkpoint.file_of(info).to_owned(),
        expected: format!("shape {expected:?}"),
        found: format!("shape {:?}", info.shape),
    }
}

/// Checks that linear `name` has all the levels it is declared with, before anything is made of their
/// number.
fn check_levels(checkpoint: &Checkpoint, name: &str, rank: usize, levels: usize) -> Result<()> {
    if rank == 0 || levels == 0 {
        let found = format!("rank {rank}, {levels} levels");
        let key = format!(".sites.{name}");
        return Err(wrong(checkpoint, &key, "a rank and levels above 0", found));
    }
    // Ends at the first that is missing.
    (0..levels).try_for_each(|level| {
        let [sign, ..] = Piece::of_level(level);
        checkpoint.require(&sign.name_in(name)).map(drop)
    })
}

/// Checks shape and dtype of a tensor that can have but one.
fn check_exact(checkpoint: &Checkpoint, expected: &TensorSpec) -> Result<()> {
    let info = checkpoint.require(&expected.name)?;
    if info.shape != expected.shape {
        return Err(mismatch(checkpoint, info, &expected.shape));
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
