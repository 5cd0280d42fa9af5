//! Kernels that go over elements, 4 to a thread, 1024 to a block.
use kernels_emu::launch;

use crate::tensor::{BOTH, MANY, Side, Tensor};

/// One block's worth of elements at the end, then three that are no whole quad.
const REST: usize = 1024 + 3;

/// Elements, grid, and the blocks that run: the last for the last quads, the first for the rest.
fn extent(side: Side, rest: usize) -> (i64, [u32; 3], [std::ops::Range<u64>; 2]) {
    let n = rest + if side == Side::Huge { MANY } else { 0 };
    let blocks = (n / 1024) as u32;
    let last = u64::from(blocks) - 1;
    (n as i64, [blocks, 1, 1], [0..1, last..last + 1])
}

#[test]
fn of_one_tensor() {
    for name in ["gelu_erf", "gelu_tanh"] {
        let (mut x, mut y) =
            (Tensor::noisy(MANY + REST, REST, 1), Tensor::<f32>::new(MANY + REST, REST));
        for side in BOTH {
            let (n, grid, runs) = extent(side, REST);
            for run in runs {
                launch!(name, grid, [256, 1, 1], 0; blocks = run; x.at(side), y.at(side), n)
                    .unwrap();
            }
        }
        y.agree(name);
    }
}

#[test]
fn of_two_tensors() {
    let names = ["add", "silu_mul", "gelu_erf_mul", "gelu_tanh_mul"];
    for name in names.into_iter().chain(["gelu_erf_slope_mul", "gelu_tanh_slope_mul"]) {
        let mut x = [1, 2].map(|seed| Tensor::noisy(MANY + REST, REST, seed));
        let mut y = Tensor::<f32>::new(MANY + REST, REST);
        for side in BOTH {
            let (n, grid, runs) = extent(side, REST);
            let [a, b] = [x[0].at(side), x[1].at(side)];
            for run in runs {
                launch!(name, grid, [256, 1, 1], 0; blocks = run; a, b, y.at(side), n).unwrap();
            }
        }
        y.agree(name);
    }
}

#[test]
fn soft_cap() {
    let mut x = [1, 2].map(|seed| Tensor::noisy(MANY + REST, REST, seed));
    let mut y = [(); 2].map(|()| Tensor::<f32>::new(MANY + REST, REST));
    for side in BOTH {
        let (n, grid, runs) = extent(side, REST);
        let [a, b, out, dx] = [x[0].at(side), x[1].at(side), y[0].at(side), y[1].at(side)];
        for run in runs {
            launch!("soft_cap", grid, [256, 1, 1], 0; blocks = run.clone(); a, out, n, 0.3f32)
                .unwrap();
            launch!("soft_cap_gradient", grid, [256, 1, 1], 0; blocks = run; a, b, dx, n, 0.3f32)
                .unwrap();
        }
    }
    y[0].agree("soft_cap");
    y[1].agree("soft_cap_gradient");
}

/// Both gradients are in one tensor, of twice as many elements.
#[test]
fn silu_mul_gradient() {
    const REST: usize = 1024;
    let mut x = [1, 2, 3].map(|seed| Tensor::noisy(MANY + REST, REST, seed));
    let mut both = Tensor::<f32>::new(2 * (MANY + REST), REST);
    let mut small = vec![0f32; 2 * REST];
    for side in BOTH {
        let (n, grid, [_, run]) = extent(side, REST);
        let [gate, up, dy] = [0, 1, 2].map(|i| x[i].at(side));
        let out = if side == Side::Huge { both.at(side) } else { small.as_mut_ptr() };
        launch!("silu_mul_gradient", grid, [256, 1, 1], 0; blocks = run; gate, up, dy, out, n)
            .unwrap();
    }
    assert_eq!(both.end(), &small[REST..]);
    // SAFETY: the tensor has twice as many elements.
    let first = unsafe { std::slice::from_raw_parts(both.at(Side::Huge).add(MANY), REST) };
    assert_eq!(first, &small[..REST]);
}

#[test]
fn to_bf16() {
    let (mut x, mut y) =
        (Tensor::noisy(MANY + REST, REST, 1), Tensor::<u16>::new(MANY + REST, REST));
    for side in BOTH {
        let (n, grid, runs) = extent(side, REST);
        for run in runs {
            launch!("to_bf16", grid, [256, 1, 1], 0; blocks = run; x.at(side), y.at(side), n)
                .unwrap();
        }
    }
    y.agree("to_bf16");
}

#[test]
fn add_bias() {
    const M: usize = 1024;
    let bias = crate::common::noise(M, 2);
    let mut y = Tensor::noisy(MANY + M, M, 1);
    let before = y.end().to_vec();
    for side in BOTH {
        let (n, grid, [_, run]) = extent(side, M);
        let (rows, m) = (n / M as i64, M as i64);
        launch!("add_bias", grid, [256, 1, 1], 0; blocks = run; y.at(side), bias.as_ptr(), rows, m)
            .unwrap();
    }
    y.agree("add_bias");
    assert_ne!(y.end(), before);
}
