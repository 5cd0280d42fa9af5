//! Residual stacks: the four ops against their definitions in f64, at awkward sizes and every rank.

use std::ops::Range;

use bantam::ops;
use candle_core::{DType, Tensor};
use half::f16;

use super::numbers::*;

const RANKS: [usize; 8] = [1, 4, 8, 16, 24, 32, 63, 64];
const SHAPES: [(usize, usize); 8] =
    [(1, 1), (3, 7), (8, 8), (33, 9), (5, 129), (64, 256), (131, 67), (70, 1031)];

/// A stack with its values.
struct Stack {
    sizes: [usize; 4],
    signs: Tensor,
    u: Tensor,
    v: Tensor,
    plus: Vec<bool>,
    u_values: Vec<f64>,
    v_values: Vec<f64>,
}

impl Stack {
    fn random(random: &mut Random, levels: usize, (m, n): (usize, usize), k: usize) -> Self {
        let plus: Vec<bool> = (0..levels * m * n).map(|_| random.uniform() < 0.0).collect();
        let bytes: Vec<u8> = plus.chunks(n).flat_map(pack).collect();
        let mut factor = |rows: usize, columns: usize| {
            let values = random.vec(levels * rows * columns, 1.0);
            let t = tensor(&values, &[levels, rows, columns]).to_dtype(DType::F16).unwrap();
            (t, values.iter().map(|&v| f16::from_f32(v).to_f64()).collect())
        };
        let ((u, u_values), (v, v_values)) = (factor(m, k), factor(k, n));
        let shape = (levels, m, n.div_ceil(8));
        let signs = Tensor::from_vec(bytes, shape, &device()).unwrap();
        Self { sizes: [levels, m, n, k], signs, u, v, plus, u_values, v_values }
    }

    /// Row i of the matrix, exact.
    fn row(&self, i: usize) -> Vec<f64> {
        let [levels, m, n, k] = self.sizes;
        let mut row = vec![0.0; n];
        for level in 0..levels {
            let (u, at) = (&self.u_values[(level * m + i) * k..][..k], (level * m + i) * n);
            for (j, w) in row.iter_mut().enumerate() {
                let v = (0..k).map(|c| self.v_values[(level * k + c) * n + j]);
                let product: f64 = u.iter().zip(v).map(|(u, v)| u * v).sum();
                *w += if self.plus[at + j] { product } else { -product };
            }
        }
        row
    }
}

/// The first of eight in the most significant bit.
fn pack(row: &[bool]) -> Vec<u8> {
    let byte = |eight: &[bool]| (0..).zip(eight).map(|(i, &plus)| u8::from(plus) << (7 - i)).sum();
    row.chunks(8).map(byte).collect()
}

fn unpack(bytes: &[u8], n: usize) -> Vec<bool> {
    let rows = bytes.chunks(n.div_ceil(8));
    rows.flat_map(|row| (0..n).map(|j| row[j / 8] >> (7 - j % 8) & 1 == 1)).collect()
}

fn bytes(t: &Tensor) -> Vec<u8> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

/// `sketch` is that of these values by `omega`; on a GPU its operands are rounded to bf16.
fn assert_sketch(sketch: &Tensor, r: &[f32], omega: &[f32], (m, n, c): (usize, usize, usize)) {
    assert_eq!(sketch.dims(), [m, c]);
    // Twice the rounding of bf16.
    let relative = if ON_GPU { 8e-3 } else { 1e-6 };
    for (row, found) in r.chunks(n).zip(values(sketch).chunks(c)) {
        for (j, &found) in found.iter().enumerate() {
            let terms = || row.iter().zip(omega[j..].iter().step_by(c));
            let exact: f64 = terms().map(|(r, o)| f64::from(r.abs()) * f64::from(*o)).sum();
            let size: f64 = terms().map(|(r, o)| f64::from((r * o).abs())).sum();
            let error = (f64::from(found) - exact).abs();
            assert!(error <= relative * size, "{m}x{n}: column {j} errs by {error:e} of {size:e}");
        }
    }
}

#[test]
fn the_first_of_eight_signs_is_the_most_significant_bit() {
    let signs = |r: &[f32]| bytes(&ops::sign_pack(&tensor(r, &[1, r.len()]), None).unwrap().0);
    assert_eq!(signs(&[1.0, -1.0, -1.0, -1.0, -1.0, -1.0, -1.0, -1.0]), [0x80]);
    assert_eq!(signs(&[-1.0, -1.0, -1.0, -1.0, -1.0, -1.0, -1.0, 1e-30, -1.0, 1.0]), [1, 0x40]);
    // Zero counts as plus, whatever its sign; what is beyond the row is 0.
    assert_eq!(signs(&[0.0, -0.0, -1e-30]), [0xc0]);
}

#[test]
fn sign_pack_packs_every_sign_and_sketches_magnitudes() {
    let mut random = Random(71);
    for (m, n) in SHAPES {
        let values = random.vec(m * n, 3.0);
        let r = tensor(&values, &[m, n]);
        let expected: Vec<bool> = values.iter().map(|&v| v >= 0.0).collect();
        let (signs, sketch) = ops::sign_pack(&r, None).unwrap();
        assert_eq!(signs.dims(), [1, m, n.div_ceil(8)]);
        assert!(sketch.is_none());
        assert_eq!(unpack(&bytes(&signs), n), expected, "{m}x{n}");
        assert_eq!(
            bytes(&signs),
            values
                .chunks(n)
                .flat_map(|row| { pack(&row.iter().map(|&v| v >= 0.0).collect::<Vec<_>>()) })
                .collect::<Vec<_>>()
        );
        for c in [1, 17, 32, 80] {
            let omega = random.vec(n * c, 1.0);
            let omega_there = tensor(&omega, &[n, c]);
            let (again, sketch) = ops::sign_pack(&shifted(&r), Some(&omega_there)).unwrap();
            assert_eq!(bytes(&again), bytes(&signs));
            assert_sketch(&sketch.unwrap(), &values, &omega, (m, n, c));
        }
    }
}

#[test]
fn take_level_takes_one_level_off_and_packs_what_is_left() {
    let mut random = Random(72);
    for (m, n) in SHAPES {
        for k in RANKS {
            let level = Stack::random(&mut random, 1, (m, n), k);
            let before = random.vec(m * n, 3.0);
            let c = k + 16;
            let omega = random.vec(n * c, 1.0);
            let r = tensor(&before, &[m, n]);
            let omega_there = tensor(&omega, &[n, c]);
            let (signs, sketch) =
                ops::take_level(&r, &level.signs, &level.u, &level.v, Some(&omega_there)).unwrap();
            let after = values(&r);
            for i in 0..m {
                let exact = level.row(i);
                for j in 0..n {
                    let exact = f64::from(before[i * n + j]) - exact[j];
                    let error = (f64::from(after[i * n + j]) - exact).abs();
                    assert!(error < 2e-6 * (3.0 + k as f64), "{m}x{n}, rank {k}: {error:e}");
                }
            }
            assert_eq!(signs.dims(), [1, m, n.div_ceil(8)]);
            let expected: Vec<bool> = after.iter().map(|&v| v >= 0.0).collect();
            assert_eq!(unpack(&bytes(&signs), n), expected, "{m}x{n}, rank {k}");
            assert_sketch(&sketch.unwrap(), &after, &omega, (m, n, c));
            // Without a sketch, and where operands begin in the middle of a storage.
            let again = shifted(&tensor(&before, &[m, n]));
            let [s, u, v] = [&level.signs, &level.u, &level.v].map(shifted);
            let (signs_again, none) = ops::take_level(&again, &s, &u, &v, None).unwrap();
            assert!(none.is_none());
            assert_same(&again, &r);
            if !ON_GPU {
                assert_eq!(bytes(&signs_again), bytes(&signs));
            }
        }
    }
}

#[test]
fn stack_matvec_is_the_product_with_the_sum_of_levels() {
    let mut random = Random(73);
    for (m, n) in SHAPES {
        for (k, levels) in RANKS.into_iter().zip([3, 1, 2, 4, 1, 2, 1, 3]) {
            let stack = Stack::random(&mut random, levels, (m, n), k);
            let x = random.vec(n, 2.0);
            let there = tensor(&x, &[1, n]);
            let y = ops::stack_matvec(&there, &stack.signs, &stack.u, &stack.v).unwrap();
            assert_eq!(y.dims(), [1, m]);
            let exact: Vec<f64> = (0..m)
                .map(|i| stack.row(i).iter().zip(&x).map(|(w, &x)| w * f64::from(x)).sum())
                .collect();
            // The terms of a sum are uniform: its size follows from their number.
            let size = ((levels * n * k) as f64).sqrt();
            let error = max_error(values(&y), &exact);
            let allowed = if ON_GPU { 1e-3 } else { 2e-6 } * size;
            assert!(error <= allowed, "{levels} x {m}x{n}, rank {k}: {error:e} of {size:e}");
            let [s, u, v] = [&stack.signs, &stack.u, &stack.v].map(shifted);
            assert_same(&ops::stack_matvec(&shifted(&there), &s, &u, &v).unwrap(), &y);
        }
    }
}

#[test]
fn stack_rebuild_is_the_sum_of_levels() {
    let mut random = Random(74);
    for (m, n) in SHAPES {
        for (k, levels) in RANKS.into_iter().zip([3, 1, 2, 4, 1, 2, 1, 3]) {
            let stack = Stack::random(&mut random, levels, (m, n), k);
            let scale = random.vec(n, 1.0).into_iter().map(|v| v + 1.5).collect::<Vec<_>>();
            let scale_there = tensor(&scale, &[n]);
            let parts = [0..m, m / 3..m / 3 + 1, m / 2..m];
            for (rows, scaled) in parts.into_iter().zip([false, true, true]) {
                let exact: Vec<f64> = rows
                    .clone()
                    .flat_map(|i| {
                        let scale = scale.iter().map(|&s| if scaled { f64::from(s) } else { 1.0 });
                        stack.row(i).into_iter().zip(scale).map(|(w, s)| w * s).collect::<Vec<_>>()
                    })
                    .collect();
                let scale = scaled.then_some(&scale_there);
                let rebuild = |rows: Range<usize>, dtype| {
                    ops::stack_rebuild(&stack.signs, &stack.u, &stack.v, scale, rows, dtype)
                        .unwrap()
                };
                let w = rebuild(rows.clone(), DType::F32);
                assert_eq!(w.dims(), [rows.len(), n]);
                let error = max_error(values(&w), &exact);
                let allowed = 2e-6 * ((levels * k) as f64).sqrt() * 2.5;
                assert!(error <= allowed, "{levels} x {m}x{n}, rank {k}: {error:e}");
                let rounded = rebuild(rows, DType::BF16);
                assert_eq!(rounded.dtype(), DType::BF16);
                let expected = w.to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap();
                let rounded = values(&rounded.to_dtype(DType::F32).unwrap());
                assert_eq!(rounded, values(&expected), "{levels} x {m}x{n}, rank {k}");
            }
        }
    }
}

#[test]
fn stacks_do_not_depend_on_the_number_of_threads() {
    if ON_GPU {
        return;
    }
    let mut random = Random(75);
    let stack = Stack::random(&mut random, 2, (517, 1031), 24);
    let (x, r) = (random.vec(1031, 1.0), random.vec(517 * 1031, 1.0));
    let omega = tensor(&random.vec(1031 * 40, 1.0), &[1031, 40]);
    let one = |t: &Tensor| t.narrow(0, 0, 1).unwrap().contiguous().unwrap();
    assert_same_on_threads(|| {
        let r = tensor(&r, &[517, 1031]);
        let (s, u, v) = (&stack.signs, &stack.u, &stack.v);
        let first = ops::sign_pack(&r, Some(&omega)).unwrap();
        let next = ops::take_level(&r, &one(s), &one(u), &one(v), Some(&omega)).unwrap();
        let y = ops::stack_matvec(&tensor(&x, &[1, 1031]), s, u, v).unwrap();
        let w = ops::stack_rebuild(s, u, v, None, 3..510, DType::F32).unwrap();
        let packed = [bytes(&first.0), bytes(&next.0)];
        (packed, [first.1.unwrap(), next.1.unwrap(), r, y, w].map(|t| bits(&t)))
    });
}

#[test]
fn what_is_no_stack_is_refused() {
    let mut random = Random(76);
    let (s, r) = (Stack::random(&mut random, 2, (6, 20), 4), tensor(&[1.0; 120], &[6, 20]));
    let x = tensor(&[1.0; 20], &[1, 20]);
    let f32s = s.u.to_dtype(DType::F32).unwrap();
    assert_refused(ops::stack_matvec(&x, &s.signs, &f32s, &s.v), &["stack_matvec", "u is F32"]);
    assert_refused(ops::stack_matvec(&x, &s.signs, &s.v, &s.v), &["stack_matvec", "v has shape"]);
    let short = tensor(&[1.0; 19], &[1, 19]);
    assert_refused(ops::stack_matvec(&short, &s.signs, &s.u, &s.v), &["x has shape"]);
    let half = s.signs.narrow(2, 0, 2).unwrap();
    assert_refused(ops::stack_matvec(&x, &half, &s.u, &s.v), &["contiguous"]);
    let half = half.contiguous().unwrap();
    assert_refused(ops::stack_matvec(&x, &half, &s.u, &s.v), &["signs has shape"]);
    let rebuild = |rows, dtype| {
        ops::stack_rebuild(&s.signs, &s.u, &s.v, Some(&tensor(&[1.0; 20], &[20])), rows, dtype)
    };
    assert_refused(rebuild(0..7, DType::F32), &["stack_rebuild", "rows 0..7 of 6"]);
    assert_refused(rebuild(3..3, DType::F32), &["rows 3..3"]);
    assert_refused(rebuild(0..6, DType::F16), &["F16"]);
    assert_refused(
        ops::take_level(&r, &s.signs, &s.u, &s.v, None),
        &["take_level", "signs has shape"],
    );
    let omega = tensor(&[1.0; 19], &[19, 1]);
    assert_refused(ops::sign_pack(&r, Some(&omega)), &["sign_pack", "omega has shape"]);
    let wide = tensor(&[1.0; 20 * 81], &[20, 81]);
    assert_refused(ops::sign_pack(&r, Some(&wide)), &["81 columns"]);
    assert_refused(ops::sign_pack(&tensor(&[], &[0, 3]), None), &["r has shape [0, 3]"]);
    let large = Stack::random(&mut random, 1, (2, 2), 65);
    let x = tensor(&[1.0; 2], &[1, 2]);
    assert_refused(ops::stack_matvec(&x, &large.signs, &large.u, &large.v), &["rank 65"]);
}
