//! Attention over so many sequences that queries, keys and values come to more than 2^32 elements.
use kernels_emu::launch;

use crate::tensor::{BOTH, MANY, Side, Tensor};

const D: usize = 128;
const HEADS: usize = 8;
const KV: usize = 4;
const TQ: usize = 4;
const TK: usize = 8;
const BATCHES: usize = MANY / (KV * TK * D) + 1;

fn tensor(of_one: usize) -> Tensor<f32> {
    Tensor::new(BATCHES * of_one, of_one)
}
fn noisy(of_one: usize, seed: u64) -> Tensor<f32> {
    Tensor::noisy(BATCHES * of_one, of_one, seed)
}

/// The blocks of the last sequence, if each has `blocks` of them.
fn last(side: Side, blocks: usize) -> (i64, [u32; 3], std::ops::Range<u64>) {
    let b = if side == Side::Huge { BATCHES } else { 1 };
    (b as i64, [(b * blocks) as u32, 1, 1], ((b - 1) * blocks) as u64..u64::MAX)
}

#[test]
fn attention() {
    let kernels = [("causal_attention_128", 128, 84992), ("causal_attention_bf16_128", 256, 34816)];
    for (name, threads, shared) in kernels {
        let (mut q, mut k, mut v) =
            (noisy(HEADS * TQ * D, 1), noisy(KV * TK * D, 2), noisy(KV * TK * D, 3));
        let mut y = tensor(HEADS * TQ * D);
        for side in BOTH {
            let (b, grid, run) = last(side, HEADS);
            let (q, k, v, y) = (q.at(side), k.at(side), v.at(side), y.at(side));
            launch!(name, grid, [threads, 1, 1], shared; blocks = run; q, k, v, y, b,
                HEADS as i64, KV as i64, TQ as i64, TK as i64, D as i64, 4i64, 0i64, 0.1f32, 0f32)
            .unwrap();
        }
        y.agree(name);
    }
}

#[test]
fn gradients() {
    let [mut q, mut dy] = [1, 2].map(|seed| noisy(HEADS * TQ * D, seed));
    let [mut k, mut v] = [3, 4].map(|seed| noisy(KV * TK * D, seed));
    let (mut dq, mut stats) = (tensor(HEADS * TQ * D), tensor(HEADS * TQ * 3));
    let (mut dk, mut dv) = (tensor(KV * TK * D), tensor(KV * TK * D));
    for side in BOTH {
        let (q, k, v, dy) = (q.at(side), k.at(side), v.at(side), dy.at(side));
        let (stats, block) = (stats.at(side), [128, 1, 1]);
        let (b, grid, run) = last(side, HEADS);
        launch!("causal_attention_dq_128", grid, block, 93696; blocks = run;
            q, k, v, dy, dq.at(side), stats, b,
            HEADS as i64, KV as i64, TQ as i64, TK as i64, D as i64, 4i64, 0i64, 0.1f32, 0f32)
        .unwrap();
        let (b, grid, run) = last(side, KV);
        launch!("causal_attention_dkv_128", grid, block, 72192; blocks = run;
            q, k, v, dy, stats, dk.at(side), dv.at(side), b,
            HEADS as i64, KV as i64, TQ as i64, TK as i64, D as i64, 4i64, 0i64, 0.1f32, 0f32)
        .unwrap();
    }
    dq.agree("causal_attention_dq");
    stats.agree("causal_attention_dq: stats");
    dk.agree("causal_attention_dkv: dk");
    dv.agree("causal_attention_dkv: dv");
}
