//! A stack: a checkpoint whose linears are sums of residual blocks, the blocks in order of priority,
//! so that any prefix of it is a model.
//!
//! `config.json["bantam"]["order"]` lists, block by block, the number of the linear (in layer order)
//! that the block belongs to; its level is how often that linear came before. A budget takes the
//! longest prefix that fits, so the blocks of a smaller one are a prefix of those of a larger.

use std::collections::BTreeMap;

use super::site::{Site, Storage};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};

/// The key of the order in `config.json["bantam"]`.
pub(crate) const ORDER_KEY: &str = "order";

/// A block of a stack: a level of a linear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StackBlock {
    /// The linear's number, in layer order.
    pub site: usize,
    /// Its level, from 0.
    pub level: usize,
}

/// The blocks of a stack in order of priority.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StackOrder {
    blocks: Vec<StackBlock>,
}

impl StackOrder {
    /// The order in which linears are named, each time with their next level.
    pub fn of_sites(sites: impl IntoIterator<Item = usize>) -> Self {
        let mut levels = BTreeMap::<usize, usize>::new();
        let block = |site| {
            let level = levels.entry(site).or_default();
            *level += 1;
            StackBlock { site, level: *level - 1 }
        };
        Self { blocks: sites.into_iter().map(block).collect() }
    }

    /// The blocks, most important first.
    pub fn blocks(&self) -> &[StackBlock] {
        &self.blocks
    }

    /// The numbers of the linears in this order, as `config.json` has them.
    pub fn sites(&self) -> Vec<usize> {
        self.blocks.iter().map(|block| block.site).collect()
    }

    /// The first `blocks` of them.
    #[must_use]
    pub fn prefix(&self, blocks: usize) -> Self {
        Self { blocks: self.blocks[..blocks].to_vec() }
    }

    /// Blocks of each of the `sites` linears.
    pub fn levels(&self, sites: usize) -> Vec<usize> {
        let mut levels = vec![0; sites];
        for block in &self.blocks {
            levels[block.site] += 1;
        }
        levels
    }

    /// How many blocks there are up to the last first level, without which there is no model.
    pub fn needed(&self) -> usize {
        self.blocks.iter().rposition(|block| block.level == 0).map_or(0, |at| at + 1)
    }

    /// Bytes of the blocks.
    pub fn bytes(&self, sites: &[Site]) -> u64 {
        self.blocks.iter().map(|block| sites[block.site].block_bytes()).sum()
    }

    /// Reads the order of `checkpoint`, whose linears are `sites`; `None` where it is no stack.
    ///
    /// # Errors
    /// [`Error::Config`] for a table that is malformed, names what is not there, or has another number
    /// of blocks of a linear than its storage declares.
    pub(super) fn read(checkpoint: &Checkpoint, sites: &[Site]) -> Result<Option<Self>> {
        let declared = sites.iter().any(|site| matches!(site.storage, Storage::Stack { .. }));
        let refuse = |expected: String, found: String| Error::Config {
            file: checkpoint.root().join("config.json"),
            key: format!("bantam.{ORDER_KEY}"),
            expected,
            found,
        };
        let table = checkpoint.config().get("bantam").and_then(|bantam| bantam.get(ORDER_KEY));
        let table = match (table, declared) {
            (None, false) => return Ok(None),
            (None, true) => return Err(refuse("the order of the blocks".into(), "nothing".into())),
            (Some(table), _) => table,
        };
        let numbers: Vec<usize> = serde_json::from_value(table.clone())
            .map_err(|e| refuse("a list of numbers of linears".into(), e.to_string()))?;
        let order = Self::of_sites(numbers);
        let mut found = vec![0; sites.len()];
        for block in &order.blocks {
            *found.get_mut(block.site).ok_or_else(|| {
                refuse(format!("numbers below {}", sites.len()), block.site.to_string())
            })? += 1;
        }
        for (site, found) in sites.iter().zip(found) {
            let expected = match site.storage {
                Storage::Stack { levels, .. } => levels,
                Storage::Dense | Storage::LowRank { .. } => 0,
            };
            if found != expected {
                let name = &site.name;
                let expected = format!("{expected} blocks of `{name}`, as it is declared");
                return Err(refuse(expected, found.to_string()));
            }
        }
        Ok(Some(order))
    }

    /// The longest prefix whose blocks, with `fixed` bytes beside them, take at most `budget`.
    ///
    /// # Errors
    /// [`Error::BudgetTooSmall`] where the first level of every linear does not fit.
    pub fn within(&self, budget: u64, fixed: u64, sites: &[Site]) -> Result<Self> {
        let sizes: Vec<u64> = sites.iter().map(Site::block_bytes).collect();
        let mut bytes = fixed;
        let fits = |block: &&StackBlock| {
            bytes += sizes[block.site];
            bytes <= budget
        };
        let (taken, needed) = (self.blocks.iter().take_while(fits).count(), self.needed());
        if fixed > budget || taken < needed {
            let smallest = fixed + self.prefix(needed).bytes(sites);
            return Err(Error::BudgetTooSmall { budget, smallest });
        }
        Ok(self.prefix(taken))
    }
}
