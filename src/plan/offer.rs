//! One choice for one unit, and which choices are worth considering.

use serde::{Deserialize, Serialize};

use crate::arch::Storage;

/// A choice that a pass makes for a unit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Offer {
    /// How each of the unit's sites would be stored, in their order.
    pub storages: Vec<Storage>,
    /// Bytes of all the unit's tensors then.
    pub bytes: u64,
    /// What it would cost; comparable across units and methods, additive.
    pub expected_loss: f64,
}

/// Indices of the offers on the lower convex hull of `(bytes, expected loss)`, by bytes ascending,
/// from the cheapest on: each step along it buys less loss per byte than the one before.
///
/// `offers` are sorted by bytes; of equal bytes the first of least loss counts.
pub fn efficient(offers: &[Offer]) -> Vec<usize> {
    let mut hull: Vec<usize> = Vec::new();
    for (index, offer) in offers.iter().enumerate() {
        let Some(&last) = hull.last() else {
            hull.push(index);
            continue;
        };
        if offer.expected_loss >= offers[last].expected_loss {
            continue;
        }
        if offer.bytes == offers[last].bytes {
            hull.pop();
        }
        while let [.., a, b] = hull[..] {
            if gain(&offers[a], &offers[b]) <= gain(&offers[b], offer) {
                hull.pop();
            } else {
                break;
            }
        }
        hull.push(index);
    }
    hull
}

/// Loss saved per byte by going from `from` to `to`.
pub(super) fn gain(from: &Offer, to: &Offer) -> f64 {
    (from.expected_loss - to.expected_loss) / (to.bytes - from.bytes) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offers(points: &[(u64, f64)]) -> Vec<Offer> {
        points
            .iter()
            .map(|&(bytes, expected_loss)| Offer { storages: Vec::new(), bytes, expected_loss })
            .collect()
    }

    #[test]
    fn the_hull_leaves_out_what_a_mixture_of_neighbours_beats() {
        let points = offers(&[(10, 9.0), (20, 8.5), (30, 3.0), (40, 2.5), (50, 0.5), (60, 0.5)]);
        assert_eq!(efficient(&points), [0, 2, 4]);
        assert_eq!(efficient(&offers(&[(5, 1.0)])), [0]);
        assert_eq!(efficient(&offers(&[(5, 2.0), (5, 1.0), (9, 0.0)])), [1, 2]);
        assert!(efficient(&[]).is_empty());
    }
}
