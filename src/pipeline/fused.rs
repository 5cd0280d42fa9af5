//! What apply does with fused tensors: rows taken out of those that are dissolved, and parts put
//! together again where the output is folded.

use std::collections::HashMap;

use candle_core::Tensor;

use crate::arch::{Part, Site, Storage, Unit};
use crate::error::{Error, Result};
use crate::plan::{PlannedUnit, choices, fused_output, groups};

/// The last component of a tensor's name.
const SUFFIXES: [&str; 2] = ["weight", "bias"];

/// Tensors of the output that are neither one site's nor the same as in the input.
#[derive(Debug, Default)]
pub(super) struct FusedTensors {
    /// Dense parts of dissolved modules, by the name of the new tensor.
    taken_out: HashMap<String, (Part, &'static str)>,
    /// Fused tensors of which at least one part is made anew or read from tensors of its own.
    put_together: HashMap<String, (Vec<Site>, &'static str)>,
}

impl FusedTensors {
    /// Those that the plan of `units` asks for.
    pub(super) fn of(units: &[Unit], planned: &[PlannedUnit], fold: bool) -> Self {
        let mut found = Self::default();
        for group in groups(&choices(units, planned)) {
            let dense = |storage: &Storage| *storage == Storage::Dense;
            let Some(output) = fused_output(group, fold) else {
                let dense = group.iter().filter(|(_, storage)| dense(storage));
                for (site, part) in dense.filter_map(|(site, _)| Some((site, site.fused()?))) {
                    for suffix in SUFFIXES {
                        let name = format!("{}.{suffix}", site.name);
                        found.taken_out.insert(name, (part.clone(), suffix));
                    }
                }
                continue;
            };
            if group.iter().all(|(site, storage)| site.fused().is_some() && dense(storage)) {
                continue;
            }
            let sites: Vec<Site> = group.iter().map(|(site, _)| (*site).clone()).collect();
            for suffix in SUFFIXES {
                let name = format!("{}.{suffix}", output.module);
                found.put_together.insert(name, (sites.clone(), suffix));
            }
        }
        found
    }

    /// The rows that tensor `name` consists of, where they are taken out of a fused tensor.
    pub(super) fn taken_out(&self, name: &str) -> Option<(&Part, &'static str)> {
        self.taken_out.get(name).map(|(part, suffix)| (part, *suffix))
    }

    /// The sites whose tensors make up the fused tensor `name`, where it is made anew.
    pub(super) fn put_together(&self, name: &str) -> Option<(Vec<Site>, &'static str)> {
        self.put_together.get(name).cloned()
    }
}

/// The parts' values, `[out, in]` or `[out]` each, in the rows of the module that holds them all.
pub(super) fn joined(parts: &[(&Site, Tensor)]) -> Result<Tensor> {
    // Blocks in the order of the rows: where each starts, and the rows of the part it is.
    let mut blocks = Vec::new();
    for (site, values) in parts {
        let part = site
            .part
            .as_ref()
            .ok_or_else(|| Error::Bug(format!("`{}` is not a part of anything", site.name)))?;
        let mut row = 0;
        for block in part.rows.blocks(1) {
            blocks.push((block.start, values.narrow(0, row, block.len())?));
            row += block.len();
        }
    }
    blocks.sort_by_key(|(start, _)| *start);
    let blocks: Vec<Tensor> = blocks.into_iter().map(|(_, block)| block).collect();
    Ok(Tensor::cat(&blocks, 0)?)
}
