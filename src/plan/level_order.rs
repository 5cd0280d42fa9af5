//! The order of a stack's levels: by expected loss saved per byte, from the losses that were measured,
//! or level by level as published.
//!
//! Every linear's first level comes first, in layer order: without it there is no model. After that the
//! level that saves most per byte is next. Within a linear levels stay in order; a later one that saves
//! more than the one before it shares what both save with it, as on a convex hull.

use super::plan_file::PlannedStack;
use crate::settings::LevelOrder;

/// The levels of one linear.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LevelLosses {
    /// The linear's number.
    pub(crate) site: usize,
    /// Expected loss with one level, with two and so on.
    pub(crate) losses: Vec<f64>,
    /// Bytes of each level.
    pub(crate) bytes: u64,
}

/// The levels of `linears`, most important first.
pub(crate) fn order_levels(linears: &[LevelLosses], order: LevelOrder) -> PlannedStack {
    // What each level after the first saves per byte.
    let priorities: Vec<Vec<f64>> = linears
        .iter()
        .map(|linear| {
            let saved = shared_savings(&linear.losses).into_iter();
            saved.map(|saved| saved / linear.bytes.max(1) as f64).collect()
        })
        .collect();
    // The loss of a linear without its first level is not known and not asked for: there is no model
    // then. Until all are there the expected loss is that of the first levels together.
    let with_levels = linears.iter().filter(|linear| !linear.losses.is_empty());
    let mut total: f64 = with_levels.clone().map(|linear| linear.losses[0]).sum();
    let mut sequence: Vec<usize> = with_levels.map(|linear| linear.site).collect();
    let mut expected = vec![total; sequence.len()];
    let mut taken: Vec<usize> = linears.iter().map(|l| l.losses.len().min(1)).collect();
    loop {
        let unfinished = (0..linears.len()).filter(|&l| taken[l] < linears[l].losses.len());
        let open: Vec<usize> = unfinished.collect();
        let Some(fewest) = open.iter().map(|&linear| taken[linear]).min() else { break };
        let next = |linear: &usize| priorities[*linear][taken[*linear] - 1];
        let allowed = open.iter().copied().filter(|&linear| match order {
            LevelOrder::Priority => true,
            LevelOrder::Average => taken[linear] == fewest,
        });
        // Of equals the first.
        let best =
            allowed.reduce(|best, linear| if next(&linear) > next(&best) { linear } else { best });
        let Some(best) = best else { break };
        let LevelLosses { site, losses, .. } = &linears[best];
        total += losses[taken[best]] - losses[taken[best] - 1];
        taken[best] += 1;
        sequence.push(*site);
        expected.push(total);
    }
    PlannedStack { order: sequence, losses: expected }
}

/// What each level after the first saves, where a level that saves more than the one before it shares
/// the sum with it: the sequence never rises.
fn shared_savings(losses: &[f64]) -> Vec<f64> {
    // Runs of levels: what they save on average, and how many they are.
    let mut runs: Vec<(f64, usize)> = Vec::new();
    for pair in losses.windows(2) {
        let mut run = (pair[0] - pair[1], 1);
        while let Some(before) = runs.last().copied().filter(|before| before.0 < run.0) {
            let count = before.1 + run.1;
            run = ((before.0 * before.1 as f64 + run.0 * run.1 as f64) / count as f64, count);
            runs.pop();
        }
        runs.push(run);
    }
    runs.into_iter().flat_map(|(saved, count)| vec![saved; count]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn levels(site: usize, bytes: u64, losses: &[f64]) -> LevelLosses {
        LevelLosses { site, losses: losses.to_vec(), bytes }
    }

    #[test]
    fn first_levels_come_first_and_then_what_saves_most_per_byte() {
        let linears = [
            levels(0, 10, &[5.0, 4.0, 3.9]),
            levels(1, 1, &[8.0, 7.5, 7.4]),
            levels(2, 10, &[1.0, 0.2]),
        ];
        let found = order_levels(&linears, LevelOrder::Priority);
        // Saved per byte: 0.1, 0.01; 0.5, 0.1; 0.08.
        assert_eq!(found.order, [0, 1, 2, 1, 0, 1, 2, 0]);
        let expected = [14.0, 14.0, 14.0, 13.5, 12.5, 12.4, 11.6, 11.5];
        for (found, expected) in found.losses.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-12, "{found} {expected}");
        }
        let found = order_levels(&linears, LevelOrder::Average);
        assert_eq!(found.order, [0, 1, 2, 1, 0, 2, 1, 0]);
    }

    #[test]
    fn a_level_that_saves_more_than_the_one_before_it_lifts_both() {
        assert_eq!(shared_savings(&[10.0, 9.0, 6.0, 5.5]), [2.0, 2.0, 0.5]);
        assert_eq!(shared_savings(&[4.0, 4.0, 4.0]), [0.0, 0.0]);
        assert_eq!(shared_savings(&[4.0]), [0.0; 0]);
        // Worth nothing at first and much at last.
        let linears = [levels(0, 1, &[10.0, 9.9, 1.0]), levels(1, 1, &[10.0, 7.0, 6.0])];
        assert_eq!(order_levels(&linears, LevelOrder::Priority).order, [0, 1, 0, 0, 1, 1]);
    }
}
