//! Which tensors the output holds: every choice of a plan, and every fused tensor, brought into the
//! order of the input.
//!
//! Sites that the family fuses into one module make a group. While all of them stay dense the fused
//! tensors are carried as they are; once one is stored as factors the group is dissolved, and every
//! part has tensors of its own. Folding puts them together again.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value, json};

use super::plan_file::{PlannedStack, PlannedUnit};
use crate::arch::{Part, Site, SourceModel, StackBlock, StackOrder, Storage, Unit};
use crate::checkpoint::TensorSpec;

/// A site and the storage planned for it.
pub(crate) type Choice<'a> = (&'a Site, &'a Storage);

/// Every site of `units` with the storage that `planned` gives it.
pub(crate) fn choices<'a>(units: &'a [Unit], planned: &'a [PlannedUnit]) -> Vec<Choice<'a>> {
    let pairs = units.iter().zip(planned);
    pairs.flat_map(|(unit, planned)| unit.sites.iter().zip(&planned.offer.storages)).collect()
}

/// The parts of each fused module together, and every other site alone.
pub(crate) fn groups<'a, 'b>(choices: &'b [Choice<'a>]) -> impl Iterator<Item = &'b [Choice<'a>]> {
    let module = |choice: &Choice<'a>| choice.0.part.as_ref().map(|part| &part.module);
    choices.chunk_by(move |a, b| module(a).is_some() && module(a) == module(b))
}

/// The fused module that holds the sites of a group in the output, where one does.
pub(crate) fn fused_output<'a>(group: &[Choice<'a>], fold: bool) -> Option<&'a Part> {
    let stays =
        |(site, storage): &Choice<'a>| site.fused().is_some() && **storage == Storage::Dense;
    let (site, _) = group.first()?;
    site.part.as_ref().filter(|_| fold || group.iter().all(stays))
}

/// The storage that `config.json` has to declare: of every site that is not dense, and of every part
/// of a fused module that is dissolved.
pub(crate) fn declared_storage(choices: &[Choice<'_>], fold: bool) -> Map<String, Value> {
    let mut declared = Map::new();
    for group in groups(choices) {
        let dissolved = fused_output(group, fold).is_none();
        for (site, storage) in group.iter().filter(|_| !fold && dissolved) {
            let value = match storage {
                Storage::Dense if site.part.is_none() => continue,
                Storage::Dense => json!({ "kind": "dense" }),
                Storage::LowRank { rank } => json!({ "kind": "low_rank", "rank": rank }),
                Storage::Stack { rank, levels } => {
                    json!({ "kind": "stack", "rank": rank, "levels": levels })
                }
            };
            declared.insert(site.name.clone(), value);
        }
    }
    declared
}

/// Every tensor of the output in the order of the input: the weights of a site, or of a group that is
/// fused before or after, stand where its first weight stood, biases where its first bias stood, and
/// everything else stays.
/// The blocks of a `stack` come last, in its order.
pub(crate) fn output_tensors(
    model: &SourceModel,
    planned: &[PlannedUnit],
    fold: bool,
    stack: Option<&PlannedStack>,
) -> Vec<TensorSpec> {
    let units = model.units();
    let choices = choices(&units, planned);
    let mut places = Places::default();
    for group in groups(&choices) {
        let fused = fused_output(group, fold);
        if let (Some(part), Some((site, _))) = (fused, group.first()) {
            places.add(group, fused_tensors(site, part));
        } else if group.iter().any(|(site, _)| site.fused().is_some()) {
            places.add(group, own_tensors(group, fold));
        } else {
            for one in group.chunks(1) {
                places.add(one, own_tensors(one, fold));
            }
        }
    }
    let mut tensors = Vec::new();
    let mut done = HashSet::new();
    for info in model.checkpoint.tensors() {
        match places.of.get(&info.name) {
            None => tensors.push(info.spec()),
            Some(&place) if done.insert(place) => tensors.append(&mut places.new[place]),
            Some(_) => {}
        }
    }
    match stack {
        Some(stack) if !fold => in_order(tensors, &units, planned, stack),
        _ => tensors,
    }
}

/// `tensors` with the blocks of a stack behind all others, in the stack's order.
fn in_order(
    mut tensors: Vec<TensorSpec>,
    units: &[Unit],
    planned: &[PlannedUnit],
    stack: &PlannedStack,
) -> Vec<TensorSpec> {
    let sites: Vec<Choice<'_>> = choices(units, planned);
    let order = StackOrder::of_sites(stack.order.iter().copied());
    let level = |block: &StackBlock| match sites.get(block.site) {
        Some((site, Storage::Stack { rank, .. })) => site.level_tensors(*rank, block.level),
        _ => Vec::new(),
    };
    let blocks: Vec<TensorSpec> = order.blocks().iter().flat_map(level).collect();
    let names: HashSet<&String> = blocks.iter().map(|tensor| &tensor.name).collect();
    tensors.retain(|tensor| !names.contains(&tensor.name));
    tensors.extend(blocks);
    tensors
}

/// Where tensors of the input give way to new ones.
#[derive(Default)]
struct Places {
    /// Index into `new` per name of an input tensor.
    of: HashMap<String, usize>,
    /// What stands at each place.
    new: Vec<Vec<TensorSpec>>,
}

impl Places {
    /// Puts `tensors` where those of `group` stood, weights and biases each at their first place.
    fn add(&mut self, group: &[Choice<'_>], tensors: Vec<TensorSpec>) {
        let is_bias = |name: &str| name.rsplit('.').next() == Some("bias");
        let (biases, weights) = tensors.into_iter().partition(|tensor| is_bias(&tensor.name));
        let first = self.new.len();
        self.new.extend([weights, biases]);
        for name in group.iter().flat_map(|(site, _)| site.stored_in()) {
            let place = first + usize::from(is_bias(&name));
            self.of.insert(name, place);
        }
    }
}

fn own_tensors(group: &[Choice<'_>], fold: bool) -> Vec<TensorSpec> {
    let storage = |chosen| if fold { &Storage::Dense } else { chosen };
    group.iter().flat_map(|(site, chosen)| site.tensors(storage(chosen))).collect()
}

/// The tensors of the module that holds `site`.
fn fused_tensors(site: &Site, part: &Part) -> Vec<TensorSpec> {
    let weight = format!("{}.weight", part.module);
    let mut tensors = vec![TensorSpec::new(weight, site.dtype, [part.total, site.in_features])];
    if let Some(dtype) = site.bias_dtype {
        tensors.push(TensorSpec::new(format!("{}.bias", part.module), dtype, [part.total]));
    }
    tensors
}
