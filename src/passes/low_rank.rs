//! Code shared by the low-rank methods: the ranks that are worth offering, the losses of truncation,
//! and the offers that follow.

use candle_core::Tensor;

use super::Analysis;
use crate::arch::{Site, Storage};
use crate::error::Result;
use crate::plan::Offer;

/// The rank that keeps the fraction `kept` of the parameters of `[m, n]`:
/// `⌊kept · m n / (m + n)⌋`, at least one, rounded down to a multiple. `None` where its factors
/// would not be smaller than the matrix.
pub fn uniform_rank(m: usize, n: usize, kept: f64, multiple: usize) -> Option<usize> {
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rank is a small positive number"
    )]
    let rank = (kept * (m * n) as f64 / (m + n) as f64).floor() as usize;
    let rank = (rank / multiple * multiple).max(multiple);
    (rank <= Site::break_even_of([m, n])).then_some(rank)
}

/// The ranks a site may be given: multiples of `multiple` whose factors are smaller than the weight as
/// it is stored now.
pub(super) fn ranks(site: &Site, multiple: usize) -> impl Iterator<Item = usize> {
    let largest = match site.storage {
        Storage::Dense => site.break_even(),
        Storage::LowRank { rank } => rank.saturating_sub(1),
        // What is cut to a size already is not decomposed again.
        Storage::Stack { .. } => 0,
    };
    (1..=largest / multiple).map(move |i| i * multiple)
}

/// Whether any rank can be offered for the site.
pub(super) fn can_shrink(site: &Site, multiple: usize) -> bool {
    let in_reach = !site.role.is_expert() && !site.role.is_vocabulary();
    in_reach && ranks(site, multiple).next().is_some()
}

/// The loss that dropping all directions adds to the measured one, as a share of the loss of dropping
/// everything; an offer that drops a part adds that part of it. Few tokens leave directions along which
/// nothing was measured, and dropping them is not free. A billionth is far below any real loss, and
/// enough that of two offers that seem to lose nothing the larger wins.
const UNSEEN: f64 = 1e-9;

/// One offer per rank, from the `losses` of an analysis: the loss of keeping only the first `r`
/// components, for every `r` from 0. Without an analysis they are assumed.
pub(super) fn offers(
    site: &Site,
    analysis: Option<&Analysis>,
    multiple: usize,
) -> Result<Vec<Offer>> {
    let losses = match analysis {
        Some(analysis) => analysis.numbers("losses")?,
        None => assumed_losses(site),
    };
    let everything = losses.first().copied().unwrap_or(0.0);
    let offer = |rank: usize| {
        let dropped = 1.0 - rank as f64 / site.stored_rank() as f64;
        let unseen = UNSEEN * everything * dropped.max(0.0);
        let lost = losses.get(rank).copied().unwrap_or(0.0) + unseen;
        Offer::of(site, Storage::LowRank { rank }, lost)
    };
    Ok(ranks(site, multiple).map(offer).collect())
}

/// `factor · Σ_{i>=r} energies[i]` for every `r` from 0 to all.
pub(super) fn tails(energies: &[f64], factor: f64) -> Vec<f64> {
    let mut tails = vec![0.0; energies.len() + 1];
    for (i, energy) in energies.iter().enumerate().rev() {
        tails[i] = tails[i + 1] + factor * energy;
    }
    tails
}

/// [`tails`] as shares of their sum, times `weight`; zero where there is no energy.
pub(super) fn tail_shares(energies: &[f64], weight: f64) -> Vec<f64> {
    let total: f64 = energies.iter().sum();
    tails(energies, if total > 0.0 { weight / total } else { 0.0 })
}

/// The losses of truncation where components are correlated. The output is `y = U c` with columns `U`
/// `[m, k]`; keeping the first `r` leaves out `δy = Σ_{i>=r} u_i c_i`, which with `d [m]` the second
/// moment of the loss's gradient at each output costs, in nats per token,
///
/// ```text
/// ½ Σ_o d_o E[δy_o²] = ½ Σ_{i,j>=r} (Uᵀ diag(d) U)_ij E[c_i c_j]
/// ```
///
/// `second [k, k]` f64 is `E[c cᵀ]`. One number for every `r` from 0 to `k`.
pub(super) fn truncation_losses(u: &Tensor, second: &Tensor, d: &[f64]) -> Result<Vec<f64>> {
    let weights = Tensor::from_slice(d, (d.len(), 1), u.device())?;
    let metric = u.t()?.matmul(&u.broadcast_mul(&weights)?)?;
    let terms = (metric * second)?.to_vec2::<f64>()?;
    let mut losses = vec![0.0; terms.len() + 1];
    for r in (0..terms.len()).rev() {
        // Row and column r join the part that is left out; the matrix is symmetric.
        let row: f64 = terms[r][r + 1..].iter().sum();
        losses[r] = losses[r + 1] + 0.5 * terms[r][r] + row;
    }
    // The form is positive semidefinite: below zero there is only rounding.
    Ok(losses.into_iter().map(|loss| loss.max(0.0)).collect())
}

/// The losses taken for granted where nothing was measured: component `i` of `k` carries
/// `(1 - i/k)⁴`. Only its shape matters: convex, so that a plan from headers spreads the budget
/// evenly over sites of one shape.
fn assumed_losses(site: &Site) -> Vec<f64> {
    let k = site.stored_rank();
    let share = |i: usize| 1.0 - i as f64 / k as f64;
    let energies: Vec<f64> = (0..k).map(|i| share(i).powi(4)).collect();
    tail_shares(&energies, site.parameters(Storage::Dense) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uniform_ranks_are_those_of_the_literature() {
        // ⌊0.8 · 4096² / 8192⌋ and the Llama-2 MLP shape, from the table of break-even ranks.
        assert_eq!(uniform_rank(4096, 4096, 0.8, 1), Some(1638));
        assert_eq!(uniform_rank(4096, 4096, 0.8, 128), Some(1536));
        assert_eq!(uniform_rank(11008, 4096, 0.8, 1), Some(2388));
        assert_eq!(uniform_rank(256, 688, 0.4, 1), Some(74));
        // Keeping everything, or rounding up past the break-even, stays dense.
        assert_eq!(uniform_rank(256, 256, 1.0, 1), None);
        assert_eq!(uniform_rank(12, 12, 0.5, 8), None);
    }
}
