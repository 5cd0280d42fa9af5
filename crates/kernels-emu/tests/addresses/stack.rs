//! Residual stacks: signs beyond 2^32 bytes, of a matrix of 2^35 elements or of four levels.
use kernels_emu::launch;

use crate::common::noise;
use crate::tensor::{BOTH, Side, Tensor};

const LEVELS: usize = 4;
/// Bytes of a row of signs, eight columns to each.
const BYTES: usize = 1024;

/// f16 of numbers that `noise` makes, cut off.
fn halves(count: usize, seed: u64) -> Vec<u16> {
    let half = |x: f32| {
        let (bits, sign) = (x.to_bits() & 0x7fff_ffff, x.to_bits() >> 16 & 0x8000);
        let small = bits < 113 << 23;
        if small { 0 } else { (sign | (bits - (112 << 23)) >> 13) as u16 }
    };
    noise(count, seed).into_iter().map(half).collect()
}

fn bytes(count: usize, seed: u64) -> Vec<u8> {
    noise(count, seed).into_iter().map(|x| (x * 256.0) as i32 as u8).collect()
}

/// One level after the other, each with a tail of `values` at its end.
fn levels<T: Copy + Default + PartialEq + std::fmt::Debug>(
    each: usize,
    values: &[Vec<T>],
) -> Tensor<T> {
    let mut tensor = Tensor::ending(values.len() * each, &values.concat());
    // `ending` has put all of them at the end of the last level.
    tensor.end().fill(T::default());
    for (level, values) in values.iter().enumerate() {
        // SAFETY: the end of a level, within the tensor.
        let end = unsafe { tensor.at(Side::Huge).add((level + 1) * each - values.len()) };
        // SAFETY: as many elements as the level's tail has, which nothing else uses.
        unsafe { std::slice::from_raw_parts_mut(end, values.len()) }.copy_from_slice(values);
    }
    tensor
}

/// The last 64 rows of a residual: its block of them alone, sketched and not split.
fn residual(kernel: &'static str, columns: usize, k: usize, c: usize) {
    const TAIL: usize = 64;
    const ROWS: usize = (1 << 22) + TAIL;
    let mut r = Tensor::noisy(ROWS * columns, TAIL * columns, 1);
    let mut signs = Tensor::ending(ROWS * BYTES, &bytes(TAIL * BYTES, 2));
    let mut u = Tensor::ending(ROWS * k, &halves(TAIL * k, 3));
    let mut next = Tensor::<u8>::new(ROWS * BYTES, TAIL * BYTES);
    let mut sketch = Tensor::<f32>::new(ROWS * c, TAIL * c);
    let (v, omega) = (halves(k * columns, 4), noise(columns * c, 5));
    let (v, omega, none) = (v.as_ptr(), omega.as_ptr(), std::ptr::null_mut::<f32>());
    for side in BOTH {
        let rows = if side == Side::Huge { ROWS } else { TAIL };
        let last = (rows / TAIL) as u64 - 1;
        let (grid, block, run) = ([last as u32 + 1, 1, 1], [256, 1, 1], last..last + 1);
        let (r, next, sketch) = (r.at(side), next.at(side), sketch.at(side));
        let (m, n, c) = (rows as i64, columns as i64, c as i64);
        if kernel == "sign_pack" {
            launch!(kernel, grid, block, 0; blocks = run; r, omega, next, sketch, none, m, n, c)
                .unwrap();
        } else {
            let (signs, u, k) = (signs.at(side), u.at(side), k as i64);
            launch!(kernel, grid, block, 0; blocks = run;
                r, signs, u, v, omega, next, sketch, none, m, n, k, c)
            .unwrap();
        }
    }
    next.agree(kernel);
    sketch.agree(kernel);
    r.agree(kernel);
}

#[test]
fn residuals() {
    for (kernel, k, c) in [("sign_pack", 1, 32), ("take_level_16", 16, 32), ("take_level", 17, 40)]
    {
        // Whole tiles, and columns one by one.
        residual(kernel, 8 * BYTES, k, c);
        residual(kernel, 8 * BYTES - 1, k, c);
    }
}

/// A stack of which each level ends in these rows.
struct Stack {
    signs: Tensor<u8>,
    u: Tensor<u16>,
    v: Vec<u16>,
}

impl Stack {
    fn new(rows: usize, tail: usize, columns: usize, k: usize) -> Self {
        let level = |level: usize| level as u64 + 1;
        let signs: Vec<_> = (0..LEVELS).map(|l| bytes(tail * BYTES, level(l))).collect();
        let u: Vec<_> = (0..LEVELS).map(|l| halves(tail * k, 10 + level(l))).collect();
        let v = halves(LEVELS * k * columns, 20);
        Self { signs: levels(rows * BYTES, &signs), u: levels(rows * k, &u), v }
    }
}

/// The last tile of 128 rows, of a matrix of more than 2^32 elements too.
#[test]
fn rebuilt_rows() {
    const TAIL: usize = 128;
    const ROWS: usize = (1 << 20) + TAIL;
    const K: usize = 16;
    for columns in [8 * BYTES, 8 * BYTES - 1] {
        let mut stack = Stack::new(ROWS, TAIL, columns, K);
        let scale = noise(columns, 6);
        let mut wide = Tensor::<f32>::new(ROWS * columns, TAIL * columns);
        let mut narrow = Tensor::<u16>::new(ROWS * columns, TAIL * columns);
        for side in BOTH {
            let m = if side == Side::Huge { ROWS } else { TAIL };
            let across = columns.div_ceil(64);
            let tiles = (m / TAIL * across) as u64;
            let (grid, block, run) =
                ([tiles as u32, 1, 1], [256, 1, 1], tiles - across as u64..tiles);
            let (signs, u, v) = (stack.signs.at(side), stack.u.at(side), stack.v.as_ptr());
            let scale = scale.as_ptr();
            let [l, m, n, k] = [LEVELS, m, columns, K].map(|size| size as i64);
            launch!("stack_rebuild_f32", grid, block, 0; blocks = run.clone();
                signs, u, v, scale, wide.at(side), l, m, n, k, 0i64, m)
            .unwrap();
            launch!("stack_rebuild_bf16", grid, block, 0; blocks = run;
                signs, u, v, scale, narrow.at(side), l, m, n, k, 0i64, m)
            .unwrap();
        }
        wide.agree("stack_rebuild_f32");
        narrow.agree("stack_rebuild_bf16");
    }
}

/// The last 512 rows: of every part of the columns and levels the last block.
#[test]
fn stack_matvec() {
    const TAIL: usize = 512;
    const ROWS: usize = (1 << 20) + TAIL;
    const K: usize = 24;
    const GROUPS: usize = 3;
    for columns in [8 * BYTES, 8 * BYTES - 1] {
        let mut stack = Stack::new(ROWS, TAIL, columns, K);
        let x = noise(columns, 7);
        let mut y = Tensor::<f32>::new(ROWS, TAIL);
        let parts = columns.div_ceil(512) * GROUPS;
        let mut scratch = Tensor::<f32>::new(parts * ROWS, TAIL);
        for side in BOTH {
            let m = if side == Side::Huge { ROWS } else { TAIL };
            let tiles = (m / TAIL) as u64;
            let (signs, u, v) = (stack.signs.at(side), stack.u.at(side), stack.v.as_ptr());
            // The twin of the scratch is too small: what parts add is kept in the huge one for both.
            let (x, y, scratch) = (x.as_ptr(), y.at(side), scratch.at(Side::Huge));
            let [l, m, n, k] = [LEVELS, m, columns, K].map(|size| size as i64);
            for part in 0..parts as u64 {
                let last = part * tiles + tiles - 1;
                let grid = [(tiles * parts as u64) as u32, 1, 1];
                launch!("stack_matvec", grid, [256, 1, 1], 0; blocks = last..last + 1;
                    x, signs, u, v, y, scratch, l, m, n, k)
                .unwrap();
            }
        }
        y.agree("stack_matvec");
    }
}
