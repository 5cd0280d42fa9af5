//! A stack: a checkpoint whose linears are sums of levels, the levels of all of them in order of
//! priority, so that any prefix of it is a model.
//!
//! The order lists, level by level, the number of the linear (in layer order) that the level belongs to;
//! which level it is says how often that linear came before. A budget takes the longest prefix that
//! fits, so the levels of a smaller one are a prefix of those of a larger.

use std::collections::BTreeMap;

use super::declaration::wrong;
use super::site::Site;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};

/// A level of a linear of a stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Level {
    /// The linear's number, in layer order.
    pub site: usize,
    /// Which of its levels, from 0.
    pub level: usize,
}

/// The levels of a stack in order of priority.
///
/// ```
/// use bantam::arch::StackOrder;
///
/// let order = StackOrder::of_sites([0, 1, 0, 0]);
/// assert_eq!(order.prefix(3).counts(2), [2, 1]);
/// assert_eq!(order.needed(), 2); // without both first levels there is no model
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StackOrder {
    levels: Vec<Level>,
}

impl StackOrder {
    /// The order in which linears are named, each time with their next level.
    pub fn of_sites(sites: impl IntoIterator<Item = usize>) -> Self {
        let mut taken = BTreeMap::<usize, usize>::new();
        let next = |site| {
            let levels = taken.entry(site).or_default();
            *levels += 1;
            Level { site, level: *levels - 1 }
        };
        Self { levels: sites.into_iter().map(next).collect() }
    }

    /// The levels, most important first.
    pub fn levels(&self) -> &[Level] {
        &self.levels
    }

    /// The numbers of the linears in this order, as `config.json` has them.
    pub fn sites(&self) -> Vec<usize> {
        self.levels.iter().map(|level| level.site).collect()
    }

    /// The first `levels` of them.
    #[must_use]
    pub fn prefix(&self, levels: usize) -> Self {
        Self { levels: self.levels[..levels].to_vec() }
    }

    /// How many levels each of the first `sites` linears has.
    pub fn counts(&self, sites: usize) -> Vec<usize> {
        let mut counts = vec![0; sites];
        for level in &self.levels {
            counts[level.site] += 1;
        }
        counts
    }

    /// How many levels there are up to the last first one, without which there is no model.
    pub fn needed(&self) -> usize {
        self.levels.iter().rposition(|level| level.level == 0).map_or(0, |at| at + 1)
    }

    /// Bytes of the levels.
    pub fn bytes(&self, sites: &[Site]) -> u64 {
        self.levels.iter().map(|level| sites[level.site].stored_level_bytes()).sum()
    }

    /// Checks the order that `checkpoint` declares, whose sites are `sites`; `None` where it is no stack.
    ///
    /// # Errors
    /// [`Error::Config`] for an order that is missing, names what is not there, or has another number
    /// of levels of a linear than its storage declares.
    pub(super) fn declared(
        order: Option<&Vec<usize>>,
        checkpoint: &Checkpoint,
        sites: &[Site],
    ) -> Result<Option<Self>> {
        let is_stack = sites.iter().any(|site| site.storage.is_stack());
        let refuse = |expected: String, found: String| wrong(checkpoint, ".order", expected, found);
        let order = match (order, is_stack) {
            (None, false) => return Ok(None),
            (None, true) => return Err(refuse("the order of the levels".into(), "nothing".into())),
            (Some(order), _) => Self::of_sites(order.iter().copied()),
        };
        if let Some(level) = order.levels.iter().find(|level| level.site >= sites.len()) {
            return Err(refuse(format!("numbers below {}", sites.len()), level.site.to_string()));
        }
        for (site, found) in sites.iter().zip(order.counts(sites.len())) {
            let expected = site.storage.levels();
            if found != expected {
                let expected = format!("{expected} levels of `{}`, as it is declared", site.name);
                return Err(refuse(expected, found.to_string()));
            }
        }
        Ok(Some(order))
    }

    /// The longest prefix whose levels, with `fixed` bytes beside them, take at most `budget`.
    ///
    /// # Errors
    /// [`Error::BudgetTooSmall`] where the first level of every linear does not fit.
    pub fn prefix_of_bytes(&self, budget: u64, fixed: u64, sites: &[Site]) -> Result<Self> {
        let sizes: Vec<u64> = sites.iter().map(Site::stored_level_bytes).collect();
        let mut bytes = fixed;
        let fits = |level: &&Level| {
            bytes += sizes[level.site];
            bytes <= budget
        };
        let (taken, needed) = (self.levels.iter().take_while(fits).count(), self.needed());
        if fixed > budget || taken < needed {
            let smallest = fixed + self.prefix(needed).bytes(sites);
            return Err(Error::BudgetTooSmall { budget, smallest });
        }
        Ok(self.prefix(taken))
    }
}
