//! One choice for one site, and which choices are worth considering.

use serde::{Deserialize, Serialize};

use crate::arch::{Site, Storage};

/// What a choice costs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Price {
    /// Bytes of all tensors of the site then.
    pub bytes: u64,
    /// The loss that is expected of it; comparable across sites and methods, additive.
    pub expected_loss: f64,
}

/// A choice that a pass makes for a site.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Offer {
    /// How the site would be stored.
    pub storage: Storage,
    /// What that costs.
    #[serde(flatten)]
    pub price: Price,
}

impl Offer {
    /// `storage` for `site`, at this expected loss.
    pub fn of(site: &Site, storage: Storage, expected_loss: f64) -> Self {
        Self { storage, price: Price { bytes: site.bytes(storage), expected_loss } }
    }
}

/// Indices of the prices on the lower convex hull of `(bytes, expected loss)`, by bytes ascending,
/// from the cheapest on: each step along it buys less loss per byte than the one before.
///
/// `prices` are sorted by bytes; of equal bytes the first of least loss counts.
pub fn efficient(prices: &[Price]) -> Vec<usize> {
    let mut hull: Vec<usize> = Vec::new();
    for (index, price) in prices.iter().enumerate() {
        let Some(&last) = hull.last() else {
            hull.push(index);
            continue;
        };
        if price.expected_loss >= prices[last].expected_loss {
            continue;
        }
        if price.bytes == prices[last].bytes {
            hull.pop();
        }
        while let [.., a, b] = hull[..] {
            if slope(&prices[a], &prices[b]) <= slope(&prices[b], price) {
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
pub(super) fn slope(from: &Price, to: &Price) -> f64 {
    (from.expected_loss - to.expected_loss) / (to.bytes - from.bytes) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prices(points: &[(u64, f64)]) -> Vec<Price> {
        points.iter().map(|&(bytes, expected_loss)| Price { bytes, expected_loss }).collect()
    }

    #[test]
    fn the_hull_leaves_out_what_a_mixture_of_neighbours_beats() {
        let points = prices(&[(10, 9.0), (20, 8.5), (30, 3.0), (40, 2.5), (50, 0.5), (60, 0.5)]);
        assert_eq!(efficient(&points), [0, 2, 4]);
        assert_eq!(efficient(&prices(&[(5, 1.0)])), [0]);
        assert_eq!(efficient(&prices(&[(5, 2.0), (5, 1.0), (9, 0.0)])), [1, 2]);
        assert!(efficient(&[]).is_empty());
    }
}
