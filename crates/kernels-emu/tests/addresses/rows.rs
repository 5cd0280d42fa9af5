//! Kernels that go over rows: normalisation, rotary embedding, loss, experts.
use kernels_emu::launch;

use crate::common::noise;
use crate::tensor::{BOTH, MANY, Side, Tensor};

const D: usize = 1024;
/// Rows at the end, as many as a block of eight warps takes.
const TAIL: usize = 8;
const ROWS: usize = MANY / D + TAIL;
const EPS: f64 = 1e-6;

/// Rows of a tensor, and the grid and last block of a kernel of which a block takes `each` rows.
fn extent(
    side: Side,
    huge: usize,
    small: usize,
    each: usize,
) -> (i64, [u32; 3], std::ops::Range<u64>) {
    let rows = if side == Side::Huge { huge } else { small };
    let blocks = (rows / each) as u64;
    (rows as i64, [blocks as u32, 1, 1], blocks - 1..blocks)
}

fn inputs<const N: usize>() -> [Tensor<f32>; N] {
    std::array::from_fn(|i| Tensor::noisy(ROWS * D, TAIL * D, 1 + i as u64))
}
fn output() -> Tensor<f32> {
    Tensor::new(ROWS * D, TAIL * D)
}

#[test]
fn norms() {
    let (weight, bias) = (noise(D, 8), noise(D, 9));
    let (w, b, d) = (weight.as_ptr(), bias.as_ptr(), D as i64);
    let ([mut x, mut dy], mut y) = (inputs(), [(); 4].map(|()| output()));
    for side in BOTH {
        let (rows, grid, run) = extent(side, ROWS, TAIL, 8);
        let (x, dy, block) = (x.at(side), dy.at(side), [256, 1, 1]);
        let [rms, rms_dx, layer, layer_dx] = std::array::from_fn(|i| y[i].at(side));
        launch!("rms_norm", grid, block, 0; blocks = run.clone(); x, w, rms, rows, d, EPS).unwrap();
        launch!("rms_norm_gradient", grid, block, 0; blocks = run.clone();
            x, w, dy, rms_dx, rows, d, EPS)
        .unwrap();
        launch!("layer_norm", grid, block, 0; blocks = run.clone(); x, w, b, layer, rows, d, EPS)
            .unwrap();
        launch!("layer_norm_gradient", grid, block, 0; blocks = run;
            x, w, dy, layer_dx, rows, d, EPS)
        .unwrap();
    }
    let names = ["rms_norm", "rms_norm_gradient", "layer_norm", "layer_norm_gradient"];
    y.iter_mut().zip(names).for_each(|(y, name)| y.agree(name));
}

#[test]
fn row_dots() {
    let ([mut a, mut b], mut y) = (inputs(), Tensor::<f32>::new(ROWS, TAIL));
    for side in BOTH {
        let (rows, grid, run) = extent(side, ROWS, TAIL, 8);
        launch!("row_dots", grid, [256, 1, 1], 0; blocks = run;
            a.at(side), b.at(side), y.at(side), rows, D as i64)
        .unwrap();
    }
    y.agree("row_dots");
}

/// One thread per row of four.
#[test]
fn renormalise() {
    const K: usize = 4;
    const TAIL: usize = 256;
    const ROWS: usize = MANY / K + TAIL;
    let mut x = [1, 2].map(|seed| Tensor::noisy(ROWS * K, TAIL * K, seed));
    let mut y = [(); 2].map(|()| Tensor::<f32>::new(ROWS * K, TAIL * K));
    for side in BOTH {
        let (rows, grid, run) = extent(side, ROWS, TAIL, 256);
        let ([x, dy], [y, dx]) = ([0, 1].map(|i| x[i].at(side)), [0, 1].map(|i| y[i].at(side)));
        let (block, k) = ([256, 1, 1], K as i64);
        launch!("renormalise", grid, block, 0; blocks = run.clone(); x, y, rows, k).unwrap();
        launch!("renormalise_gradient", grid, block, 0; blocks = run; x, y, dy, dx, rows, k)
            .unwrap();
    }
    y[0].agree("renormalise");
    y[1].agree("renormalise_gradient");
}

/// The vocabulary's last tile; one block per row.
#[test]
fn cross_entropy() {
    let targets: Vec<u32> = (0..TAIL as u32).map(|i| 5000 + i * 7).collect();
    let mut targets = Tensor::ending(ROWS, &targets);
    let [mut logits] = inputs();
    let mut dlogits = output();
    // Largest logit, sum and the target's logit of every row; where the last rows have theirs.
    let mut states = BOTH.map(|side| match side {
        Side::Huge => vec![0f64; 3 * ROWS],
        Side::Small => vec![0f64; 3 * TAIL],
    });
    let ends = |n: usize| [1, 2, 3].map(|part| part * n - TAIL..part * n);
    for (side, state) in BOTH.into_iter().zip(&mut states) {
        let (n, grid, run) = extent(side, ROWS, TAIL, 1);
        let run = run.end - TAIL as u64..run.end;
        state[ends(n as usize)[0].clone()].fill(f64::NEG_INFINITY);
        let (l, t, dl, state) =
            (logits.at(side), targets.at(side), dlogits.at(side), state.as_mut_ptr());
        let (block, w, first) = ([256, 1, 1], D as i64, 5000i64);
        launch!("cross_entropy_tile", grid, block, 0; blocks = run.clone();
            l, t, state, n, w, first)
        .unwrap();
        launch!("cross_entropy_tile_gradient", grid, block, 0; blocks = run;
            l, t, state.cast_const(), dl, n, w, first)
        .unwrap();
    }
    for (huge, small) in ends(ROWS).into_iter().zip(ends(TAIL)) {
        assert_eq!(states[0][huge], states[1][small]);
    }
    assert!(states[1].iter().all(|v| v.is_finite() && *v != 0.0));
    dlogits.agree("cross_entropy_tile_gradient");
}

/// [b, t, h, d] with two positions at the end; small: b = 1, t = 2.
#[test]
fn rotary_embedding() {
    const H: usize = 4;
    const W: usize = 512;
    const BATCHES: usize = MANY / (2 * H * D) + 1;
    let (cos, sin, weight) = (noise(2 * W, 5), noise(2 * W, 6), noise(D, 7));
    let (cos, sin, weight) = (cos.as_ptr(), sin.as_ptr(), weight.as_ptr());
    let tensor = || Tensor::<f32>::new(BATCHES * 2 * H * D, 2 * H * D);
    let (mut x, mut y) =
        (Tensor::noisy(BATCHES * 2 * H * D, 2 * H * D, 1), [(); 4].map(|()| tensor()));
    for side in BOTH {
        let b = if side == Side::Huge { BATCHES } else { 1 };
        let (b, t, h, d, w) = (b as i64, 2i64, H as i64, D as i64, W as i64);
        let x = x.at(side);
        let [a, back, normed, heads] = std::array::from_fn(|i| y[i].at(side));
        let block = [256, 1, 1];
        // The last batch: 8 rows of heads, in blocks of 1024 pairs, of 8 rows, of 1024 elements.
        let batches = b as u32;
        let last = |each: u32| ([batches * each, 1, 1], u64::from(batches * each - each)..u64::MAX);
        let (grid, run) = last(4);
        launch!("rope", grid, block, 0; blocks = run.clone(); x, cos, sin, a, b, t, h, d, w)
            .unwrap();
        launch!("rope_back", grid, block, 0; blocks = run; x, cos, sin, back, b, h, t, d, w)
            .unwrap();
        let (grid, run) = last(1);
        launch!("norm_rope", grid, block, 0; blocks = run;
            x, weight, cos, sin, normed, b, t, h, d, w, EPS)
        .unwrap();
        let (grid, run) = last(8);
        launch!("heads_first", grid, block, 0; blocks = run; x, heads, b, t, h, d).unwrap();
    }
    let names = ["rope", "rope_back", "norm_rope", "heads_first"];
    y.iter_mut().zip(names).for_each(|(y, name)| y.agree(name));
}

/// The last four tokens, each with two experts.
#[test]
fn experts() {
    const K: usize = 2;
    const TOKENS: usize = ROWS / K;
    let first = |side| if side == Side::Huge { (ROWS - TAIL) as i64 } else { 0 };
    // Rows of a tail, as a permutation of itself; the index tensors differ between the two sides.
    let places = [5i64, 0, 3, 6, 1, 7, 2, 4];
    let ascending = [1i64, 0, 2, 3, 4, 5, 6, 7];
    let source: Vec<i64> =
        (0..8).map(|p| places.iter().position(|&q| q == p).unwrap() as i64).collect();
    let [mut x] = inputs();
    let mut dy = Tensor::noisy(TOKENS * D, TAIL / K * D, 3);
    let mut weights = Tensor::noisy(ROWS, TAIL, 4);
    let (mut y, mut dx) = (Tensor::<f32>::new(TOKENS * D, TAIL / K * D), output());
    let mut dweights = Tensor::<f32>::new(ROWS, TAIL);
    for side in BOTH {
        let index = |values: &[i64]| {
            let values: Vec<_> = values.iter().map(|v| v + first(side)).collect();
            Tensor::ending(if side == Side::Huge { ROWS } else { TAIL }, &values)
        };
        let (mut places, mut order, mut source) =
            (index(&places), index(&ascending), index(&source));
        let [places, order, source] =
            [&mut places, &mut order, &mut source].map(|t| t.at(Side::Huge));
        let (x, dy, weights, y) = (x.at(side), dy.at(side), weights.at(side), y.at(side));
        let (block, k, d) = ([256, 1, 1], K as i64, D as i64);
        let (t, grid, run) = extent(side, TOKENS, TAIL / K, 1);
        let run = run.end - (TAIL / K) as u64..run.end;
        launch!("mix_rows", grid, block, 0; blocks = run; x, weights, places, order, y, t, k, d)
            .unwrap();
        let (n, grid, run) = extent(side, ROWS, TAIL, 1);
        let run = run.end - TAIL as u64..run.end;
        launch!("mix_rows_gradient_rows", grid, block, 0; blocks = run;
            weights, dy, source, dx.at(side), n, k, d)
        .unwrap();
        let (n, grid, run) = extent(side, ROWS, TAIL, 8);
        launch!("mix_rows_gradient_weights", grid, block, 0; blocks = run;
            x, dy, places, dweights.at(side), n, k, d)
        .unwrap();
    }
    y.agree("mix_rows");
    dx.agree("mix_rows_gradient_rows");
    dweights.agree("mix_rows_gradient_weights");
}
