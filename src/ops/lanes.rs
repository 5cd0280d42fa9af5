//! Vectorisation of the CPU definitions: plain loops over fixed-width lane arrays, compiled once for
//! the baseline and once for AVX2, chosen at run time. No intrinsics and no `unsafe` here.
//!
//! A kernel is a struct whose [`Kernel::call`] is `#[inline(always)]`, so that it is compiled
//! inside the function that carries the target features. Lanes and the order of their sums are
//! spelled out, so the bits are the same for every instruction set.

use std::f32::consts::{LN_2, LOG2_E};

use pulp::Arch;
pub(super) use pulp::NullaryFnOnce as Kernel;
use rayon::prelude::*;

/// Lanes of one accumulator: two AVX2 registers, which measured best (more spill around `exp`).
pub(super) const LANES: usize = 16;

/// Elements one rayon task works on; below it a split costs more than it saves.
const TASK_ELEMENTS: usize = 16 * 1024;

/// Runs `kernel` with the widest vectors this machine has.
#[inline]
pub(super) fn run<K: Kernel>(kernel: K) -> K::Output {
    Arch::new().dispatch(kernel)
}

/// `f(x[i])` for every element, in parallel.
pub(super) fn map(x: &[f32], f: impl Fn(f32) -> f32 + Copy + Sync) -> Vec<f32> {
    let mut y = vec![0.0; x.len()];
    for_row_blocks(&mut y, 1, |first, y| run(Map { x: &x[first..][..y.len()], y, f }));
    y
}

/// `f(a[i], b[i])` for every element of two slices of one length, in parallel.
pub(super) fn zip(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32 + Copy + Sync) -> Vec<f32> {
    let mut y = vec![0.0; a.len()];
    for_row_blocks(&mut y, 1, |first, y| {
        run(Zip { a: &a[first..][..y.len()], b: &b[first..][..y.len()], y, f });
    });
    y
}

struct Map<'a, F> {
    x: &'a [f32],
    y: &'a mut [f32],
    f: F,
}

impl<F: Fn(f32) -> f32> Kernel for Map<'_, F> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for (y, &x) in self.y.iter_mut().zip(self.x) {
            *y = (self.f)(x);
        }
    }
}

struct Zip<'a, F> {
    a: &'a [f32],
    b: &'a [f32],
    y: &'a mut [f32],
    f: F,
}

impl<F: Fn(f32, f32) -> f32> Kernel for Zip<'_, F> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for ((y, &a), &b) in self.y.iter_mut().zip(self.a).zip(self.b) {
            *y = (self.f)(a, b);
        }
    }
}

/// Calls `work(first_row, rows)` on consecutive blocks of whole rows of `out`, in parallel.
///
/// Rows are independent, so where the blocks are cut changes no bit.
pub(super) fn for_row_blocks<T: Send>(
    out: &mut [T],
    width: usize,
    work: impl Fn(usize, &mut [T]) + Sync,
) {
    if out.is_empty() || width == 0 {
        return;
    }
    let rows = (TASK_ELEMENTS / width).max(1);
    if out.len() <= rows * width {
        work(0, out);
    } else {
        out.par_chunks_mut(rows * width)
            .enumerate()
            .for_each(|(block, out)| work(block * rows, out));
    }
}

/// `e^x` to 1e-7 relative.
///
/// `x = n ln 2 + r` with `|r| <= ln 2 / 2`; `e^r = 1 + r + r^2 P(r)` with P the minimax polynomial
/// of degree 4 (3e-9 relative), evaluated as a tree because the chain of operations, not their
/// number, bounds the loop; `2^n` is written into the exponent. Exact at 0; 0 below -86.99 (left
/// out are the last octave of the normal numbers and the subnormal ones) and at -inf; +inf above
/// 88.73; NaN stays NaN. On a machine without fused multiply-add it is computed in software, slowly
/// and to the same bits.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    /// Adding it leaves the nearest integer in the low bits of the mantissa.
    const ROUND: f32 = 12_582_912.0;
    /// `ln 2` less its f32.
    const LN_2_REST: f32 = -1.904_654_3e-9;

    // The ends of the range give exactly 0 and exactly infinity below; comparisons let NaN through.
    let x = if x < -87.3 { -87.3 } else { x };
    let x = if x > 89.0 { 89.0 } else { x };
    let shifted = x.mul_add(LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN_2_REST, n.mul_add(-LN_2, x));
    let r2 = r * r;
    let p01 = r.mul_add(0.166_665_2, 0.499_999_93);
    let p23 = r.mul_add(8.368_745e-3, 0.041_668_39);
    let p = r2.mul_add(r2.mul_add(1.381_454e-3, p23), p01);
    let e = r2.mul_add(p, r) + 1.0;
    // 2^(n - 1), then times 2: n reaches 128, one more than an exponent holds; n = -126 makes it 0.
    let half_scale = f32::from_bits(shifted.to_bits().wrapping_add(126) << 23);
    e * half_scale * 2.0
}

/// `tanh x` to 5e-7 relative.
///
/// `(e^2x - 1) / (e^2x + 1)`, but for small `x`, where that loses digits, the odd series to `x⁹`.
#[inline(always)]
pub(super) fn tanh(x: f32) -> f32 {
    let x2 = x * x;
    let tail = x2.mul_add(62.0 / 2835.0, -17.0 / 315.0);
    let near = x * x2.mul_add(x2.mul_add(x2.mul_add(tail, 2.0 / 15.0), -1.0 / 3.0), 1.0);
    // 2 / (1 + e^2x) is 0 and 2 at the ends, and never the ratio of two infinities.
    let far = 1.0 - 2.0 / (1.0 + exp(2.0 * x));
    if x.abs() < 0.3 { near } else { far }
}

/// The largest element; -inf for an empty slice. NaN is passed over.
#[inline(always)]
pub(super) fn max(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, tail) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane = larger(v, *lane);
        }
    }
    lanes.iter().chain(tail).fold(f32::NEG_INFINITY, |m, &v| larger(v, m))
}

/// The larger of two; `b` where `a` is NaN.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// [`dot`] on its own.
pub(super) struct Dot<'a> {
    pub(super) a: &'a [f32],
    pub(super) b: &'a [f32],
}

impl Kernel for Dot<'_> {
    type Output = f64;

    #[inline(always)]
    fn call(self) -> f64 {
        dot(self.a, self.b)
    }
}

/// The sum of `a b`, in f32 lanes, the lanes in f64 and in order.
#[inline(always)]
pub(super) fn dot(a: &[f32], b: &[f32]) -> f64 {
    let mut sums = [0.0; LANES];
    let (a, a_tail) = a.as_chunks::<LANES>();
    let (b, b_tail) = b.as_chunks::<LANES>();
    for (a, b) in a.iter().zip(b) {
        for ((sum, &a), &b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    let tail = a_tail.iter().zip(b_tail).map(|(&a, &b)| f64::from(a * b));
    total(&sums) + tail.sum::<f64>()
}

/// The sum of `term(i, x[i])`, in f32 lanes, the lanes in f64.
#[inline(always)]
pub(super) fn sum_by(x: &[f32], term: impl Fn(usize, f32) -> f32) -> f64 {
    let mut sums = [0.0; LANES];
    let (chunks, tail) = x.as_chunks::<LANES>();
    for (c, chunk) in chunks.iter().enumerate() {
        for (i, (sum, &v)) in sums.iter_mut().zip(chunk).enumerate() {
            *sum += term(c * LANES + i, v);
        }
    }
    let start = x.len() - tail.len();
    let rest = (start..).zip(tail).map(|(i, &v)| f64::from(term(i, v)));
    total(&sums) + rest.sum::<f64>()
}

/// The sum of the lanes, in f64 and in order.
#[inline(always)]
pub(super) fn total(lanes: &[f32; LANES]) -> f64 {
    lanes.iter().map(|&v| f64::from(v)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Exp<'a>(&'a mut [f32]);

    impl Kernel for Exp<'_> {
        type Output = ();

        #[inline(always)]
        fn call(self) {
            for x in self.0 {
                *x = exp(*x);
            }
        }
    }

    fn vectorised_exp(x: &[f32]) -> Vec<f32> {
        let mut y = x.to_vec();
        run(Exp(&mut y));
        y
    }

    #[test]
    fn exp_is_accurate_to_1e_7_over_its_range() {
        let steps = 400_000;
        let x: Vec<f32> =
            (0..=steps).map(|i| -86.98 + (88.72 + 86.98) * (i as f32 / steps as f32)).collect();
        for (x, y) in x.iter().zip(vectorised_exp(&x)) {
            let exact = f64::from(*x).exp();
            let error = (f64::from(y) - exact).abs() / exact;
            assert!(error < 1.2e-7, "e^{x} = {y}, relative error {error:e}");
        }
    }

    #[test]
    fn exp_is_exact_at_zero_and_near_it() {
        for x in [0.0, -0.0, 1e-38, -1e-38, f32::from_bits(1)] {
            assert_eq!(vectorised_exp(&[x]), [1.0], "e^{x}");
        }
        assert_eq!(vectorised_exp(&[1e-6]), [1.000_001]);
    }

    #[test]
    fn exp_ends_in_zero_and_infinity() {
        let zero = [-87.0, -88.0, -104.0, -1e4, -3e38, f32::MIN, f32::NEG_INFINITY];
        for x in zero {
            let y = vectorised_exp(&[x])[0];
            assert!(y == 0.0 && y.is_sign_positive(), "e^{x} = {y}");
        }
        for x in [88.73, 89.0, 100.0, 1e4, f32::MAX, f32::INFINITY] {
            assert_eq!(vectorised_exp(&[x]), [f32::INFINITY], "e^{x}");
        }
        assert!(vectorised_exp(&[f32::NAN])[0].is_nan());
    }

    #[test]
    fn exp_gives_the_same_bits_with_and_without_vectors() {
        let x: Vec<f32> = (0..1003).map(|i| (i as f32 - 500.0) * 0.173).collect();
        let scalar: Vec<f32> = x.iter().map(|&x| exp(x)).collect();
        assert_eq!(vectorised_exp(&x), scalar);
    }

    #[test]
    fn tanh_is_accurate_and_ends_in_one() {
        for i in -40_000..=40_000_i32 {
            let x = i as f32 / 2000.0;
            let exact = f64::from(x).tanh();
            let error = (f64::from(tanh(x)) - exact).abs();
            assert!(error <= 5e-7 * exact.abs(), "tanh {x} = {}, off by {error:e}", tanh(x));
        }
        let ends = [-1e9, f32::NEG_INFINITY, 1e9, f32::INFINITY].map(|x| tanh(x).to_bits());
        assert_eq!(ends, [-1.0_f32, -1.0, 1.0, 1.0].map(f32::to_bits));
        assert!(tanh(f32::NAN).is_nan());
    }

    #[test]
    fn row_blocks_cover_every_row_once() {
        for (rows, width) in
            [(1, 1), (3, 5), (7, TASK_ELEMENTS), (5, TASK_ELEMENTS + 1), (40_000, 3)]
        {
            let mut out = vec![0_u32; rows * width];
            for_row_blocks(&mut out, width, |first, block| {
                assert_eq!(block.len() % width, 0);
                for (row, out) in (first..).zip(block.chunks_mut(width)) {
                    for v in out.iter_mut() {
                        *v += row as u32 + 1;
                    }
                }
            });
            let expected = (0..rows * width).map(|i| (i / width) as u32 + 1);
            assert!(out.into_iter().eq(expected), "{rows} rows of {width}");
        }
    }
}
