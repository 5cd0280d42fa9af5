//! The one allocator: which offer of every unit, so that the bytes fit and the loss is least.
//!
//! Expected losses add up, so this is a multiple-choice knapsack. Walking the convex hulls of all
//! units in order of loss saved per byte solves its linear relaxation exactly; what the last step
//! that no longer fits leaves over is then spent on the best single steps that do fit. The result
//! is within one step of the optimum, and a larger budget never buys less.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use super::offer::{Offer, efficient, gain};
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
    gain: f64,
    unit: usize,
    hull_position: usize,
}

impl Ord for Step {
    fn cmp(&self, other: &Self) -> Ordering {
        // Equal gains go to the earlier unit, so that the result does not depend on the heap.
        self.gain.total_cmp(&other.gain).then(other.unit.cmp(&self.unit))
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

/// Picks one offer per unit with at most `budget` bytes in all. `units[i]` holds the offers of unit
/// `i` sorted by bytes; `floors[i]` is the fewest bytes it may get, waived where no offer has as
/// many or where the floors together do not fit.
///
/// # Errors
/// [`Error::BudgetTooSmall`] where even the cheapest offers exceed the budget (`smallest` counts
/// units only); [`Error::Bug`] for a unit without offers.
pub fn allocate(units: &[Vec<Offer>], floors: &[u64], budget: u64) -> Result<Allocation> {
    if let Some(empty) = units.iter().position(Vec::is_empty) {
        return Err(Error::Bug(format!("unit {empty} has no offers")));
    }
    let cheapest: u64 = units.iter().map(|offers| offers[0].bytes).sum();
    if cheapest > budget {
        return Err(Error::BudgetTooSmall { budget, smallest: cheapest });
    }
    let at_floor = |(offers, &floor): (&Vec<Offer>, &u64)| {
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
        let gain = gain(&units[unit][hull[hull_position]], &units[unit][to]);
        Some(Step { gain, unit, hull_position })
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
fn spend_remainder(units: &[Vec<Offer>], chosen: &mut [usize], mut left: u64) {
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
