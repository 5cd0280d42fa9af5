//! The output, described once: its sites, and every tensor with where it comes from.
//!
//! Tensors keep the order of the input. A site's new tensors stand in the place of its first weight, its
//! bias in the place of its bias; the levels of a stack stand at the end, in the stack's order.
//!
//! Sites that the family fuses into one module make a group. While all of them stay dense the fused
//! tensors are carried as they are; once one is stored otherwise the group is dissolved, and every part
//! has tensors of its own, in the place of the fused ones. Folding puts them together again.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use crate::arch::{Declaration, Model, Piece, Site, StackOrder, Storage};
use crate::checkpoint::{DataOrder, TensorSpec};

/// A model that is to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Output {
    /// The input's sites, as the output stores them.
    pub(crate) sites: Vec<Site>,
    /// Every tensor, in the order of writing.
    pub(crate) tensors: Vec<Written>,
    /// The number of the linear that each level of a stack belongs to, in the stack's order.
    order: Option<Vec<usize>>,
}

/// A tensor of the output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Written {
    /// Its name, dtype and shape.
    pub(crate) spec: TensorSpec,
    /// Where its data come from.
    pub(crate) origin: Origin,
}

/// Where the data of a tensor come from. Sites are numbers in the model's list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The input's tensor of that name, bytes as they are.
    Copied,
    /// Rows of a fused tensor of the input, bytes as they are.
    Rows { site: usize, piece: Piece },
    /// The method that the plan names for the site.
    Made { site: usize, piece: Piece },
    /// The site's weight, multiplied out.
    Dense { site: usize },
    /// The weights or biases of these sites, put together again in a fused tensor.
    Joined { sites: Range<usize>, piece: Piece },
}

impl Output {
    /// The output of `model` with site `i` stored as `chosen[i]`; with `fold` all are multiplied out. The
    /// levels of stacks are written in `order`.
    pub(crate) fn new(
        model: &Model,
        chosen: &[Storage],
        fold: bool,
        order: Option<&[usize]>,
    ) -> Self {
        let order = order.filter(|_| !fold);
        let mut sites = model.sites().to_vec();
        let mut places = Places::default();
        for group in groups(model.sites()) {
            let inputs = &model.sites()[group.clone()];
            let stays = |site: &Site, chosen| site.fused().is_some() && chosen == Storage::Dense;
            let carried = inputs.iter().zip(&chosen[group.clone()]).all(|(s, &c)| stays(s, c));
            let dissolved = inputs.iter().any(|site| site.fused().is_some());
            for at in group.clone() {
                sites[at].storage = if fold { Storage::Dense } else { chosen[at] };
                if let Some(part) = &mut sites[at].part {
                    part.fused = fold || carried;
                }
            }
            if sites[group.start].fused().is_some() {
                places.add(inputs, fused(&sites, group, carried));
            } else if dissolved {
                let own = |at| own(model, &sites[at], at, chosen[at]);
                places.add(inputs, group.flat_map(own).collect());
            } else {
                for at in group {
                    let input = &model.sites()[at..=at];
                    places.add(input, own(model, &sites[at], at, chosen[at]));
                }
            }
        }
        let mut tensors = places.in_place(model);
        if let Some(order) = order {
            levels_last(&mut tensors, &sites, order);
        }
        Self { sites, tensors, order: order.map(<[usize]>::to_vec) }
    }

    /// Names, dtypes and shapes of the tensors.
    pub(crate) fn specs(&self) -> Vec<TensorSpec> {
        self.tensors.iter().map(|tensor| tensor.spec.clone()).collect()
    }

    /// What `config.json` has to declare.
    pub(crate) fn declaration(&self) -> Declaration {
        Declaration::of(&self.sites, self.order.clone())
    }

    /// A stack's data stand in the order of priority, whatever their alignment.
    pub(crate) fn data_order(&self) -> DataOrder {
        if self.order.is_some() { DataOrder::AsGiven } else { DataOrder::Aligned }
    }
}

/// The parts of each fused module together, and every other site alone.
fn groups(sites: &[Site]) -> impl Iterator<Item = Range<usize>> {
    let module = |site: &Site| site.part.as_ref().map(|part| part.module.clone());
    let alike = move |a: &Site, b: &Site| module(a).is_some() && module(a) == module(b);
    let mut first = 0;
    sites.chunk_by(alike).map(move |group| {
        let range = first..first + group.len();
        first = range.end;
        range
    })
}

/// The tensors that a site of the output has for itself: site `number`, for which `chosen` was chosen.
fn own(model: &Model, site: &Site, number: usize, chosen: Storage) -> Vec<(Piece, Written)> {
    let input = &model.sites()[number];
    let (changed, folded) = (chosen != input.storage, site.storage != chosen);
    let origin = |piece| match (changed, input.fused()) {
        _ if folded && piece == Piece::Weight => Origin::Dense { site: number },
        (true, _) => Origin::Made { site: number, piece },
        (false, Some(_)) => Origin::Rows { site: number, piece },
        (false, None) => Origin::Copied,
    };
    let written = |piece| {
        let (spec, origin) = (site.spec(site.storage, piece), origin(piece));
        (piece, Written { spec, origin })
    };
    site.pieces(site.storage).into_iter().map(written).collect()
}

/// The tensors of the module that holds the sites of `group` in the output; `carried` as they are in the
/// input.
fn fused(sites: &[Site], group: Range<usize>, carried: bool) -> Vec<(Piece, Written)> {
    let first = &sites[group.start];
    let Some(part) = first.fused() else { return Vec::new() };
    let written = |piece: Piece| {
        let own = first.spec(Storage::Dense, piece);
        let shape = [&[part.total], &own.shape[1..]].concat();
        let spec = TensorSpec::new(piece.name_in(&part.module), own.dtype, shape);
        let origin = match carried {
            true => Origin::Copied,
            false => Origin::Joined { sites: group.clone(), piece },
        };
        (piece, Written { spec, origin })
    };
    first.pieces(Storage::Dense).into_iter().map(written).collect()
}

/// Puts the levels of stacks behind all other tensors, in `order`.
fn levels_last(tensors: &mut [Written], sites: &[Site], order: &[usize]) {
    let levels = StackOrder::of_sites(order.iter().copied());
    let names = levels.levels().iter().filter_map(|level| Some((sites.get(level.site)?, level)));
    let names = names.flat_map(|(site, level)| {
        Piece::of_level(level.level).map(|piece| piece.name_in(&site.name))
    });
    let place: HashMap<String, usize> = names.enumerate().map(|(at, name)| (name, at)).collect();
    // Stable: what is no level keeps its place, before all levels.
    tensors.sort_by_key(|tensor| place.get(&tensor.spec.name).map_or(0, |at| at + 1));
}

/// Where tensors of the input give way to new ones.
#[derive(Default)]
struct Places {
    /// Index into `new` by the name of an input tensor.
    of: HashMap<String, usize>,
    /// What stands at each place.
    new: Vec<Vec<Written>>,
}

impl Places {
    /// Puts `tensors` where those of `sites` stood, weights and biases each at their first place.
    fn add(&mut self, sites: &[Site], tensors: Vec<(Piece, Written)>) {
        let is_bias = |piece: Piece| piece == Piece::Bias;
        let (biases, weights): (Vec<_>, Vec<_>) =
            tensors.into_iter().partition(|(piece, _)| is_bias(*piece));
        let first = self.new.len();
        for tensors in [weights, biases] {
            self.new.push(tensors.into_iter().map(|(_, tensor)| tensor).collect());
        }
        for (piece, name) in sites.iter().flat_map(Site::stored_in) {
            self.of.insert(name, first + usize::from(is_bias(piece)));
        }
    }

    /// All tensors in the order of the input, but for levels of a stack that are beyond its budget.
    fn in_place(mut self, model: &Model) -> Vec<Written> {
        let outside: HashSet<&str> =
            model.outside_levels().into_iter().map(|tensor| tensor.name.as_str()).collect();
        let mut tensors = Vec::new();
        for info in model.checkpoint().tensors() {
            if let Some(&place) = self.of.get(&info.name) {
                // The second of a site's tensors finds the place empty.
                tensors.append(&mut self.new[place]);
            } else if outside.contains(info.name.as_str()) {
                tensors.push(Written { spec: info.spec(), origin: Origin::Copied });
            }
        }
        tensors
    }
}
