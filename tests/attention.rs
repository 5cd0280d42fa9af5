//! `causal_attention` against its definition in f64, at sizes around its tile of 64 queries.

use bantam::ops::causal_attention;
use candle_core::{Device, Tensor};

/// Numbers in (-2, 2) that repeat with the seed.
fn random(shape: &[usize], seed: u64) -> Tensor {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / 4_194_304.0 - 2.0
    };
    let values: Vec<f32> = (0..shape.iter().product::<usize>()).map(|_| next()).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

fn values(t: &Tensor) -> Vec<f64> {
    t.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f64::from).collect()
}

/// One call: `[batch, heads, kv_heads, queries, keys, head_dim]`, first position, window.
struct Case {
    sizes: [usize; 6],
    window: Option<usize>,
}

impl Case {
    fn operands(&self) -> [Tensor; 3] {
        let [b, h, g, tq, tk, d] = self.sizes;
        [random(&[b, h, tq, d], 1), random(&[b, g, tk, d], 2), random(&[b, g, tk, d], 3)]
    }

    fn first(&self) -> usize {
        self.sizes[4] - self.sizes[3]
    }

    fn ours(&self) -> Vec<f64> {
        let [q, k, v] = self.operands();
        values(&causal_attention(&q, &k, &v, 0.37, self.first(), self.window).unwrap())
    }

    /// The definition.
    fn defined(&self) -> Vec<f64> {
        let [b, heads, g, tq, tk, d] = self.sizes;
        let [q, k, v] = self.operands().map(|t| values(&t));
        let mut y = vec![0.0; b * tq * heads * d];
        for (text, head, i) in
            (0..b).flat_map(|t| (0..heads).flat_map(move |h| (0..tq).map(move |i| (t, h, i))))
        {
            let p = self.first() + i;
            let group = text * g + head / (heads / g);
            let query = &q[((text * heads + head) * tq + i) * d..][..d];
            let visible: Vec<usize> =
                (0..tk).filter(|&j| j <= p && self.window.is_none_or(|w| p - j < w)).collect();
            let score = |&j: &usize| {
                let key = &k[(group * tk + j) * d..][..d];
                f64::from(0.37_f32) * query.iter().zip(key).map(|(a, b)| a * b).sum::<f64>()
            };
            let scores: Vec<f64> = visible.iter().map(score).collect();
            let max = scores.iter().copied().fold(f64::MIN, f64::max);
            let total: f64 = scores.iter().map(|s| (s - max).exp()).sum();
            for (j, s) in visible.iter().zip(&scores) {
                let row = &v[(group * tk + j) * d..][..d];
                for (c, value) in row.iter().enumerate() {
                    y[((text * tq + i) * heads + head) * d + c] += (s - max).exp() / total * value;
                }
            }
        }
        y
    }
}

fn cases() -> Vec<Case> {
    let sizes = [
        [1, 1, 1, 1, 1, 2],
        [2, 4, 2, 63, 63, 5],
        [1, 6, 2, 64, 64, 12],
        [2, 2, 1, 65, 65, 8],
        [1, 3, 3, 131, 131, 7],
        // Continuing from a cache: one query, and a chunk, after earlier keys.
        [1, 4, 2, 1, 77, 16],
        [2, 4, 1, 67, 150, 6],
    ];
    let windows = [None, Some(1), Some(7), Some(64), Some(1000)];
    sizes.iter().flat_map(|&sizes| windows.map(|window| Case { sizes, window })).collect()
}

#[test]
fn it_is_its_definition() {
    for case in cases() {
        let (ours, defined) = (case.ours(), case.defined());
        assert_eq!(ours.len(), defined.len());
        for (index, (a, b)) in ours.iter().zip(&defined).enumerate() {
            // A weighted mean of values below 2, from scores below 0.37 · 4 · 16: f32 keeps six digits.
            assert!((a - b).abs() < 2e-6, "{:?} {:?} at {index}: {a} {b}", case.sizes, case.window);
        }
    }
}

#[test]
fn one_thread_or_two_give_the_same_bits() {
    let with = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| cases().iter().map(Case::ours).collect::<Vec<_>>())
    };
    assert_eq!(with(1), with(2));
}

#[test]
fn queries_beyond_the_keys_are_refused() {
    let [q, k, v] = Case { sizes: [1, 2, 1, 4, 4, 2], window: None }.operands();
    assert!(causal_attention(&q, &k, &v, 1.0, 1, None).is_err());
    assert!(causal_attention(&q, &k, &v, 1.0, 0, Some(0)).is_err());
    assert!(causal_attention(&k, &q, &q, 1.0, 0, None).is_err());
}
