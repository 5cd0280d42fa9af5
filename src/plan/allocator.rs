//! The one allocator: which offer of every unit, so that the bytes fit and the loss is least.
//!
//! Expected losses add up, so this is a multiple-choice knapsack. Walking the convex hulls of all
//! units in order of loss saved per byte solves its linear relaxation exactly; what the last step
//! that no longer fits leaves over is then spent on the best single steps that do fit. The result
//! is within the gain of one such step of the optimum.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use super::offer::{Price, efficient, slope};
use crate::error::{Error, Result};

/// What the allocator decided.
#[derive(Debug, Clone, PartialEq)]
pub struct Allocation {
    /// Index of the offer taken, per unit.
    pub chosen: Vec<usize>,
    /// Bytes of all units.
    pub bytes: u64,
    /// Sum of expected losses.
    pub expected_loss: f64,
}

/// A step from one hull point of a unit to the next.
#[derive(Debug)]
struct Step {
    slope: f64,
    unit: usize,
    hull_position: usize,
}

impl Ord for Step {
    fn cmp(&self, other: &Self) -> Ordering {
        // Equal slopes go to the earlier unit, so that the result does not depend on the heap.
        self.slope.total_cmp(&other.slope).then(other.unit.cmp(&self.unit))
    }
}

impl PartialOrd for Step {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Step {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Step {}

/// Picks one offer per unit with at most `budget` bytes in all. `units[i]` holds the prices of unit
/// `i` sorted by bytes; `floors[i]` is the fewest bytes it may get, waived where no offer has as
/// many or where the floors together do not fit.
///
/// ```
/// use bantam::plan::{Price, allocate};
///
/// let price = |bytes, expected_loss| Price { bytes, expected_loss };
/// let units = [vec![price(10, 1.0), price(20, 0.0)], vec![price(10, 5.0), price(20, 0.0)]];
/// // One step fits: the one that saves more.
/// assert_eq!(allocate(&units, &[0, 0], 35)?.chosen, [0, 1]);
/// # Ok::<(), bantam::Error>(())
/// ```
///
/// # Errors
/// [`Error::BudgetTooSmall`] where even the cheapest offers exceed the budget (`smallest` counts
/// units only); [`Error::Bug`] for a unit without offers.
pub fn allocate(units: &[Vec<Price>], floors: &[u64], budget: u64) -> Result<Allocation> {
    if let Some(empty) = units.iter().position(Vec::is_empty) {
        return Err(Error::Bug(format!("unit {empty} has no offers")));
    }
    let cheapest: u64 = units.iter().map(|offers| offers[0].bytes).sum();
    if cheapest > budget {
        return Err(Error::BudgetTooSmall { budget, smallest: cheapest });
    }
    let at_floor = |(offers, &floor): (&Vec<Price>, &u64)| {
        let position = offers.partition_point(|offer| offer.bytes < floor);
        if position < offers.len() { position } else { 0 }
    };
    let mut first: Vec<usize> = units.iter().zip(floors).map(at_floor).collect();
    let total = |first: &[usize]| units.iter().zip(first).map(|(o, &i)| o[i].bytes).sum::<u64>();
    if total(&first) > budget {
        first.fill(0);
    }

    let hulls: Vec<Vec<usize>> = units
        .iter()
        .zip(&first)
        .map(|(offers, &first)| efficient(&offers[first..]).iter().map(|i| i + first).collect())
        .collect();
    let mut chosen: Vec<usize> = hulls.iter().map(|hull| hull[0]).collect();
    let mut left = budget - total(&chosen);
    let step = |unit: usize, hull_position: usize| {
        let hull = &hulls[unit];
        let to = *hull.get(hull_position + 1)?;
        let slope = slope(&units[unit][hull[hull_position]], &units[unit][to]);
        Some(Step { slope, unit, hull_position })
    };
    let mut heap: BinaryHeap<Step> = (0..units.len()).filter_map(|unit| step(unit, 0)).collect();
    while let Some(Step { unit, hull_position, .. }) = heap.pop() {
        let (offers, to) = (&units[unit], hulls[unit][hull_position + 1]);
        let cost = offers[to].bytes - offers[chosen[unit]].bytes;
        // A unit whose next step is too large waits for the remainder; cheaper steps may still fit.
        if cost <= left {
            left -= cost;
            chosen[unit] = to;
            heap.extend(step(unit, hull_position + 1));
        }
    }
    spend_remainder(units, &mut chosen, left);

    let taken = || units.iter().zip(&chosen).map(|(offers, &index)| &offers[index]);
    Ok(Allocation {
        bytes: taken().map(|offer| offer.bytes).sum(),
        expected_loss: taken().map(|offer| offer.expected_loss).sum(),
        chosen,
    })
}

/// Takes, as long as there is one, the offer off the hull or on it that fits what is left and saves
/// the most loss.
fn spend_remainder(units: &[Vec<Price>], chosen: &mut [usize], mut left: u64) {
    loop {
        let mut best: Option<(f64, usize, usize)> = None;
        for (unit, offers) in units.iter().enumerate() {
            let now = &offers[chosen[unit]];
            let affordable = offers.iter().enumerate().skip(chosen[unit] + 1);
            for (index, offer) in affordable.take_while(|(_, o)| o.bytes - now.bytes <= left) {
                let saved = now.expected_loss - offer.expected_loss;
                if saved > 0.0 && best.is_none_or(|(most, ..)| saved > most) {
                    best = Some((saved, unit, index));
                }
            }
        }
        let Some((_, unit, index)) = best else { return };
        left -= units[unit][index].bytes - units[unit][chosen[unit]].bytes;
        chosen[unit] = index;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::split_mix;

    /// Offers of random sizes and falling, not necessarily convex, losses; the stored form last.
    fn random_unit(state: &mut u64) -> Vec<Price> {
        let count = 1 + split_mix(state) % 5;
        let (mut bytes, mut loss) = (0, 0.0);
        let mut offers: Vec<Price> = (0..count)
            .map(|_| {
                bytes += 1 + split_mix(state) % 40;
                let offer = Price { bytes, expected_loss: loss };
                loss += 1.0 + (split_mix(state) % 1000) as f64;
                offer
            })
            .collect();
        let losses: Vec<f64> = offers.iter().rev().map(|o| o.expected_loss).collect();
        for (offer, loss) in offers.iter_mut().zip(losses) {
            offer.expected_loss = loss;
        }
        offers
    }

    /// The least loss within the budget, by dynamic programming over every byte.
    fn optimum(units: &[Vec<Price>], budget: u64) -> Option<f64> {
        let mut best = vec![Some(0.0); budget as usize + 1];
        for offers in units {
            best = (0..=budget)
                .map(|bytes| {
                    let reach = |o: &Price| {
                        let rest = best[bytes.checked_sub(o.bytes)? as usize]?;
                        Some(rest + o.expected_loss)
                    };
                    offers.iter().filter_map(reach).min_by(f64::total_cmp)
                })
                .collect();
        }
        best[budget as usize]
    }

    #[test]
    fn it_fits_the_budget_and_is_within_one_step_of_the_optimum() {
        let mut state = 1;
        let (mut exact, mut cases) = (0, 0);
        for _ in 0..300 {
            let units: Vec<_> =
                (0..=split_mix(&mut state) % 6).map(|_| random_unit(&mut state)).collect();
            let smallest: u64 = units.iter().map(|o| o[0].bytes).sum();
            let largest: u64 = units.iter().filter_map(|o| o.last()).map(|o| o.bytes).sum();
            let budget = smallest + split_mix(&mut state) % (largest - smallest + 5);
            let found = allocate(&units, &vec![0; units.len()], budget).expect("a feasible budget");
            let taken = || units.iter().zip(&found.chosen).map(|(o, &i)| &o[i]);
            assert_eq!(found.bytes, taken().map(|o| o.bytes).sum::<u64>());
            assert!(found.bytes <= budget);
            let best = optimum(&units, budget).expect("a feasible budget");
            let step = |offers: &Vec<Price>| offers[0].expected_loss;
            let largest_step = units.iter().map(step).fold(0.0, f64::max);
            assert!(found.expected_loss >= best - 1e-9);
            assert!(found.expected_loss <= best + largest_step + 1e-9, "{found:?} {best}");
            // Nothing that still fits would lower the loss.
            for (offers, &index) in units.iter().zip(&found.chosen) {
                let left = budget - found.bytes;
                let better = |o: &Price| {
                    o.expected_loss < offers[index].expected_loss
                        && o.bytes <= offers[index].bytes + left
                };
                assert!(!offers[index..].iter().any(better));
            }
            cases += 1;
            exact += u32::from(found.expected_loss <= best + 1e-9);
        }
        assert!(exact * 10 > cases * 7, "only {exact} of {cases} are optimal");
    }

    #[test]
    fn the_smallest_budget_is_met_and_one_byte_less_is_refused() {
        let mut state = 9;
        let units: Vec<_> = (0..4).map(|_| random_unit(&mut state)).collect();
        let smallest: u64 = units.iter().map(|o| o[0].bytes).sum();
        assert_eq!(allocate(&units, &[0; 4], smallest).expect("it fits").bytes, smallest);
        let refused = allocate(&units, &[0; 4], smallest - 1);
        assert!(matches!(refused, Err(Error::BudgetTooSmall { smallest: s, .. }) if s == smallest));
    }

    #[test]
    fn floors_hold_where_they_fit_together_and_are_waived_where_not() {
        let offer = |bytes, expected_loss| Price { bytes, expected_loss };
        // The second unit loses so little that without a floor it would get nothing.
        let units = vec![
            vec![offer(10, 100.0), offer(20, 50.0), offer(30, 0.0)],
            vec![offer(10, 1.0), offer(20, 0.5), offer(30, 0.0)],
        ];
        let bytes = |floors: &[u64], budget| {
            let found = allocate(&units, floors, budget).expect("a feasible budget");
            [0, 1].map(|unit| units[unit][found.chosen[unit]].bytes)
        };
        assert_eq!(bytes(&[0, 0], 40), [30, 10]);
        assert_eq!(bytes(&[15, 15], 40), [20, 20]);
        assert_eq!(bytes(&[25, 25], 40), [30, 10]);
    }
}
