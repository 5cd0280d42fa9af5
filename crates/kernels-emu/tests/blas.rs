//! The emulated cuBLAS: products of every kind that is called, and triangular systems.
mod common;

use common::{Address, Driver, bf16, from_bf16, noise};
use std::ffi::c_void;

const F32: i32 = 0;
const F64: i32 = 1;
const BF16: i32 = 14;
const IN_F32: i32 = 68;
const IN_F64: i32 = 70;
const INVALID_VALUE: i32 = 7;

type Scalar = *const c_void;
type L = i64;

/// Rows, columns and place of the matrices, all column-major: A [m, k], B [k, n], C [m, n].
#[derive(Clone, Copy)]
struct Shape {
    m: i32,
    n: i32,
    k: i32,
    transposed: (bool, bool),
    count: i32,
}

impl Shape {
    fn steps(&self) -> [usize; 3] {
        let (m, n, k) = (self.m as usize, self.n as usize, self.k as usize);
        [m * k, k * n, m * n]
    }

    fn leading(&self) -> (i32, i32) {
        let (a, b) = self.transposed;
        ((if a { self.k } else { self.m }).max(1), (if b { self.n } else { self.k }).max(1))
    }

    fn gemm(&self, types: [i32; 3], at: [Address; 3], scale: [Scalar; 2], compute: i32) -> i32 {
        let f = function!(
            "libcublas.so.13",
            "cublasGemmStridedBatchedEx",
            fn(
                u64,
                i32,
                i32,
                i32,
                i32,
                i32,
                Scalar,
                u64,
                i32,
                i32,
                L,
                u64,
                i32,
                i32,
                L,
                Scalar,
                u64,
                i32,
                i32,
                L,
                i32,
                i32,
                i32,
            )
        );
        let (ta, tb) = (i32::from(self.transposed.0), i32::from(self.transposed.1));
        let ((lda, ldb), [sa, sb, sc]) = (self.leading(), self.steps().map(|s| s as i64));
        let [alpha, beta] = scale;
        // SAFETY: cuBLAS's interface.
        unsafe {
            f(
                0, ta, tb, self.m, self.n, self.k, alpha, at[0], types[0], lda, sa, at[1],
                types[1], ldb, sb, beta, at[2], types[2], self.m, sc, self.count, compute, -1,
            )
        }
    }

    /// The product of matrix `q` at (i, j).
    fn product(&self, a: &[f64], b: &[f64], q: usize, i: usize, j: usize) -> f64 {
        let [sa, sb, _] = self.steps();
        let (lda, ldb) = (self.leading().0 as usize, self.leading().1 as usize);
        let left =
            |l| if self.transposed.0 { a[q * sa + l + i * lda] } else { a[q * sa + i + l * lda] };
        let right =
            |l| if self.transposed.1 { b[q * sb + j + l * ldb] } else { b[q * sb + l + j * ldb] };
        (0..self.k as usize).map(|l| left(l) * right(l)).sum()
    }

    /// Whether c = alpha·A·B + beta·old within the tolerance, in all matrices.
    fn check(&self, a: &[f64], b: &[f64], old: &[f64], c: &[f64], scale: [f64; 2], tolerance: f64) {
        let (m, n) = (self.m as usize, self.n as usize);
        for q in 0..self.count as usize {
            for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
                let at = q * m * n + i + j * m;
                let kept = if scale[1] == 0. { 0. } else { scale[1] * old[at] };
                let want = scale[0] * self.product(a, b, q, i, j) + kept;
                assert!((c[at] - want).abs() < tolerance, "{q} {i} {j}: {} {want}", c[at]);
            }
        }
    }
}

fn wide(v: &[f32]) -> Vec<f64> {
    v.iter().map(|&v| f64::from(v)).collect()
}

fn shapes() -> impl Iterator<Item = Shape> {
    let sizes = [(1, 1, 1), (17, 5, 33), (64, 3, 8), (5, 70, 1), (16, 4, 0)];
    let flags = [(false, false), (true, false), (false, true), (true, true)];
    sizes
        .into_iter()
        .flat_map(move |(m, n, k)| flags.map(|transposed| Shape { m, n, k, transposed, count: 3 }))
}

#[test]
fn products_in_f32() {
    for shape in shapes() {
        let [sa, sb, sc] = shape.steps().map(|s| (s * 3).max(1));
        let (a, b, old) = (noise(sa, 1), noise(sb, 2), noise(sc, 3));
        let at = [Driver::upload(&a), Driver::upload(&b), Driver::upload(&old)];
        let (alpha, beta) = (1.5f32, -0.5f32);
        let scale = [(&raw const alpha).cast(), (&raw const beta).cast()];
        assert_eq!(shape.gemm([F32; 3], at, scale, IN_F32), 0);
        let c = wide(&Driver::read::<f32>(at[2], sc).unwrap());
        shape.check(&wide(&a), &wide(&b), &wide(&old), &c, [1.5, -0.5], 1e-5);
        at.into_iter().for_each(|p| Driver::free(p).unwrap());
    }
}

#[test]
fn products_in_f64() {
    for shape in shapes() {
        let [sa, sb, sc] = shape.steps().map(|s| (s * 3).max(1));
        let (a, b, old) = (wide(&noise(sa, 1)), wide(&noise(sb, 2)), wide(&noise(sc, 3)));
        let at = [Driver::upload(&a), Driver::upload(&b), Driver::upload(&old)];
        let (alpha, beta) = (2f64, 1f64);
        let scale = [(&raw const alpha).cast(), (&raw const beta).cast()];
        assert_eq!(shape.gemm([F64; 3], at, scale, IN_F64), 0);
        let c = Driver::read::<f64>(at[2], sc).unwrap();
        shape.check(&a, &b, &old, &c, [2., 1.], 1e-13);
        at.into_iter().for_each(|p| Driver::free(p).unwrap());
    }
}

/// bf16 in; the result in f32 is that of f32 sums, and where beta is 0 the old NaN is not read.
#[test]
fn products_of_bf16() {
    let shape = Shape { m: 20, n: 9, k: 40, transposed: (true, false), count: 2 };
    let [sa, sb, sc] = shape.steps().map(|s| s * 2);
    let narrow = |v: Vec<f32>| v.into_iter().map(bf16).collect::<Vec<_>>();
    let back = |v: &[u16]| v.iter().map(|&v| f64::from(from_bf16(v))).collect::<Vec<_>>();
    let (a, b) = (narrow(noise(sa, 1)), narrow(noise(sb, 2)));
    let (one, zero) = (1f32, 0f32);
    let scale = [(&raw const one).cast(), (&raw const zero).cast()];
    let [at_a, at_b] = [Driver::upload(&a), Driver::upload(&b)];

    let at_c = Driver::alloc(sc * 4).unwrap();
    assert_eq!(shape.gemm([BF16, BF16, F32], [at_a, at_b, at_c], scale, IN_F32), 0);
    let c = wide(&Driver::read::<f32>(at_c, sc).unwrap());
    shape.check(&back(&a), &back(&b), &[], &c, [1., 0.], 1e-5);
    assert_eq!(shape.gemm([BF16; 3], [at_a, at_b, at_c], scale, IN_F32), 0);
    let c = back(&Driver::read::<u16>(at_c, sc).unwrap());
    shape.check(&back(&a), &back(&b), &[], &c, [1., 0.], 1e-2);
}

#[test]
fn operands_that_leave_their_memory_are_refused() {
    let shape = Shape { m: 4, n: 4, k: 4, transposed: (false, false), count: 1 };
    let (one, zero) = (1f32, 0f32);
    let scale = [(&raw const one).cast(), (&raw const zero).cast()];
    let at = [64, 64, 60].map(|bytes| Driver::alloc(bytes).unwrap());
    assert_eq!(shape.gemm([F32; 3], at, scale, IN_F32), INVALID_VALUE);
}

#[test]
fn triangular_systems() {
    let solve = function!(
        "libcublas.so.13",
        "cublasDtrsm_v2",
        fn(u64, i32, i32, i32, i32, i32, i32, *const f64, u64, i32, u64, i32)
    );
    let (m, n, alpha) = (5usize, 3usize, 2f64);
    for case in 0..16 {
        let [right, upper, transposed, unit] = [8, 4, 2, 1].map(|bit| case & bit != 0);
        let order = if right { n } else { m };
        let mut a = wide(&noise(order * order, 1));
        for i in 0..order {
            a[i + i * order] += 2.;
        }
        // The triangle that is read; the other one must not matter.
        let entry = |i: usize, j: usize| match (i == j, (i < j) == upper) {
            (true, _) => {
                if unit {
                    1.
                } else {
                    a[i + i * order]
                }
            }
            (false, true) => a[i + j * order],
            (false, false) => 0.,
        };
        let op = |i, j| if transposed { entry(j, i) } else { entry(i, j) };
        let b = wide(&noise(m * n, 2));
        let (at_a, at_b) = (Driver::upload(&a), Driver::upload(&b));
        let flag = i32::from;
        // SAFETY: cuBLAS's interface.
        let status = unsafe {
            solve(
                0,
                flag(right),
                flag(upper),
                flag(transposed),
                flag(unit),
                m as i32,
                n as i32,
                &raw const alpha,
                at_a,
                order as i32,
                at_b,
                m as i32,
            )
        };
        assert_eq!(status, 0);
        let x = Driver::read::<f64>(at_b, m * n).unwrap();
        for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
            let got: f64 = match right {
                false => (0..m).map(|l| op(i, l) * x[l + j * m]).sum(),
                true => (0..n).map(|l| x[i + l * m] * op(l, j)).sum(),
            };
            assert!((got - alpha * b[i + j * m]).abs() < 1e-12, "case {case}");
        }
    }
}
