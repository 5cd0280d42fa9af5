//! Random tensors, their values, and what tests of the arithmetic say about them.
//!
//! A test takes this in with `#[path = "support/numbers.rs"] mod numbers;`.

#![allow(dead_code, reason = "every test takes what it needs")]
#![allow(clippy::unwrap_used, reason = "a failing test is to panic")]

use bantam::error::Error;
use candle_core::{DType, Device, Tensor};

/// Whether this is the suite that runs on a GPU: `tests/cuda.rs` takes in what others are made of.
pub(crate) const ON_GPU: bool = matches!(env!("CARGO_CRATE_NAME").as_bytes(), b"cuda");

/// Where the tensors of a test are.
pub(crate) fn device() -> Device {
    static DEVICE: std::sync::OnceLock<Device> = std::sync::OnceLock::new();
    let open = || match ON_GPU {
        true => bantam::ops::gpu().expect("a GPU, or scripts/emulate.sh"),
        false => Device::Cpu,
    };
    DEVICE.get_or_init(open).clone()
}

/// SplitMix64; the same numbers on every machine.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in (-1, 1).
    pub(crate) fn uniform(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    }

    pub(crate) fn vec(&mut self, n: usize, scale: f32) -> Vec<f32> {
        (0..n).map(|_| scale * self.uniform()).collect()
    }
}

pub(crate) fn tensor(values: &[f32], shape: &[usize]) -> Tensor {
    Tensor::from_slice(values, shape, &device()).unwrap()
}

pub(crate) fn values(t: &Tensor) -> Vec<f32> {
    assert!(t.is_contiguous());
    t.flatten_all().unwrap().to_vec1().unwrap()
}

pub(crate) fn bits(t: &Tensor) -> Vec<u32> {
    values(t).into_iter().map(f32::to_bits).collect()
}

/// The same values, to the bit. On a GPU the order of sums within a row follows its alignment, and few
/// ulps with it.
#[track_caller]
pub(crate) fn assert_same(found: &Tensor, expected: &Tensor) {
    if !ON_GPU {
        assert!(bits(found) == bits(expected), "other bits");
        return;
    }
    let exact: Vec<f64> = values(expected).into_iter().map(f64::from).collect();
    let range = largest(&exact);
    let error = max_error(values(found), &exact);
    assert!(error <= 2e-6 * range, "off by {error:e} of {range:e}");
}

/// The largest error; infinite where any is no number, which a maximum would pass over.
pub(crate) fn max_error(found: impl IntoIterator<Item = f32>, exact: &[f64]) -> f64 {
    let errors = found.into_iter().zip(exact).map(|(f, e)| (f64::from(f) - e).abs());
    errors.map(|e| if e.is_nan() { f64::INFINITY } else { e }).fold(0.0, f64::max)
}

/// The largest absolute value.
pub(crate) fn largest(exact: &[f64]) -> f64 {
    exact.iter().fold(0.0_f64, |m, v| m.max(v.abs()))
}

/// `found` errs at most twice as much as `plain`, or a few ulps of the largest value.
#[track_caller]
pub(crate) fn assert_as_good_as_plain(found: &[f32], plain: &[f32], exact: &[f64], what: &str) {
    assert_within(found, plain, exact, 2e-7 * largest(exact), what);
}

/// `found` errs at most twice as much as `plain`, and `floor`.
#[track_caller]
pub(crate) fn assert_within(found: &[f32], plain: &[f32], exact: &[f64], floor: f64, what: &str) {
    assert_eq!(found.len(), exact.len(), "{what}");
    assert_eq!(plain.len(), exact.len(), "{what}");
    assert!(found.iter().all(|v| v.is_finite()), "{what}");
    let error = max_error(found.iter().copied(), exact);
    let allowed = 2.0 * max_error(plain.iter().copied(), exact) + floor;
    assert!(error <= allowed, "{what}: error {error:e}, allowed {allowed:e}");
}

/// The same tensor, starting in the middle of a larger storage.
pub(crate) fn shifted(t: &Tensor) -> Tensor {
    let padding = Tensor::ones(3, t.dtype(), t.device()).unwrap();
    let flat = t.flatten_all().unwrap();
    let long = Tensor::cat(&[&padding, &flat, &padding], 0).unwrap();
    let view = long.narrow(0, 3, flat.elem_count()).unwrap().reshape(t.shape()).unwrap();
    assert!(view.is_contiguous() && view.layout().start_offset() == 3);
    view
}

pub(crate) fn on_threads<R: Send>(threads: usize, work: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(work)
}

/// The same result on one thread and on several.
#[track_caller]
pub(crate) fn assert_same_on_threads<R: PartialEq + Send>(work: impl Fn() -> R + Sync) {
    let one = on_threads(1, &work);
    for threads in [2, 5] {
        assert!(one == on_threads(threads, &work), "1 and {threads} threads differ");
    }
}

pub(crate) fn assert_refused<T: std::fmt::Debug>(result: Result<T, Error>, parts: &[&str]) {
    let message = match result {
        Err(Error::Bug(message)) => message,
        other => panic!("expected a refusal, found {other:?}"),
    };
    for part in parts {
        assert!(message.contains(part), "{message:?} does not say {part:?}");
    }
}

pub(crate) fn zeros(shape: &[usize]) -> Tensor {
    Tensor::zeros(shape, DType::F64, &device()).unwrap()
}

pub(crate) fn values_f64(t: &Tensor) -> Vec<f64> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

pub(crate) fn to_f64(t: &Tensor) -> Tensor {
    t.to_dtype(DType::F64).unwrap()
}

pub(crate) trait Flat {
    fn i_flat(&self) -> Tensor;
}

impl Flat for Tensor {
    fn i_flat(&self) -> Tensor {
        self.flatten_all().unwrap()
    }
}
