//! Values and gradients of ops against those of the same formula in plain f64 tensors.
//!
//! A test takes this in with `#[path = "support/slopes.rs"] mod slopes;`, after `numbers`.

#![allow(clippy::unwrap_used, reason = "a failing test is to panic")]

use bantam::{error, ops};
use candle_core::{DType, Tensor, Var};

use super::numbers::*;

pub(crate) type Op<'a> = &'a (dyn Fn(&[Tensor]) -> error::Result<Tensor> + Sync);
pub(crate) type Formula<'a> = &'a dyn Fn(&[Tensor]) -> candle_core::Result<Tensor>;

/// The op's value at `inputs`, which is that of `plain`.
#[track_caller]
pub(crate) fn assert_value(
    what: &str,
    inputs: &[Tensor],
    op: Op<'_>,
    plain: Formula<'_>,
) -> Tensor {
    let y = op(inputs).unwrap();
    let exact: Vec<Tensor> = inputs.iter().map(to_f64).collect();
    let exact = values_f64(&plain(&exact).unwrap());
    assert_as_good_as_plain(&values(&y), &values(&plain(inputs).unwrap()), &exact, what);
    y
}

/// The op's gradients at `inputs` are those of `plain`: off by twice what plain f32 is off by, or by a
/// few ulps of the largest.
#[track_caller]
pub(crate) fn assert_slopes(what: &str, inputs: &[Tensor], op: Op<'_>, plain: Formula<'_>) {
    let terms = Terms { active: inputs.len(), dy: (98, 1.5), share: 2e-7, least: 0.0 };
    terms.assert(what, inputs, op, plain);
}

/// The op gives its first `active` inputs the gradients of `plain`, where these are small to a few ulps
/// of what came in. The rest of the inputs get none.
#[track_caller]
pub(crate) fn assert_slopes_of_first(
    active: usize,
    what: &str,
    inputs: &[Tensor],
    op: Op<'_>,
    plain: Formula<'_>,
) {
    let terms = Terms { active, dy: (77, 1.0), share: 3e-7, least: 1.0 };
    terms.assert(what, inputs, op, plain);
}

/// Gradients of `Σ dy y` by plain tensor operations in `dtype`.
pub(crate) fn plain_slopes(
    inputs: &[Tensor],
    dy: &Tensor,
    dtype: DType,
    y: Formula<'_>,
) -> Vec<Tensor> {
    let vars = as_vars(inputs, dtype);
    let y = y(&tensors(&vars)).unwrap();
    let loss = (y * dy.to_dtype(dtype).unwrap()).unwrap().sum_all().unwrap();
    let gradients = loss.backward().unwrap();
    vars.iter().map(|var| gradients.get(var).unwrap().flatten_all().unwrap()).collect()
}

fn as_vars(inputs: &[Tensor], dtype: DType) -> Vec<Var> {
    inputs.iter().map(|x| Var::from_tensor(&x.to_dtype(dtype).unwrap()).unwrap()).collect()
}

fn tensors(vars: &[Var]) -> Vec<Tensor> {
    vars.iter().map(|var| var.as_tensor().clone()).collect()
}

/// How gradients are taken, and how far off they may be.
struct Terms {
    /// How many of the inputs get one.
    active: usize,
    /// The gradient that comes in: where its numbers start, and their scale.
    dy: (u64, f32),
    /// What is allowed in any case: this share of the largest gradient, or of `least`.
    share: f64,
    least: f64,
}

impl Terms {
    /// The gradients that the op gives its inputs, and the one that came in.
    fn slopes(&self, inputs: &[Tensor], op: Op<'_>) -> (Vec<Option<Tensor>>, Tensor) {
        let vars = as_vars(inputs, DType::F32);
        let y = op(&tensors(&vars)).unwrap();
        let (seed, scale) = self.dy;
        let dy = tensor(&Random(seed).vec(y.elem_count(), scale), y.dims());
        let gradients = ops::upstream(&y, &dy).unwrap().backward().unwrap();
        (vars.iter().map(|var| gradients.get(var).cloned()).collect(), dy)
    }

    #[track_caller]
    fn assert(&self, what: &str, inputs: &[Tensor], op: Op<'_>, plain: Formula<'_>) {
        let (found, dy) = self.slopes(inputs, op);
        let exact = plain_slopes(inputs, &dy, DType::F64, plain);
        let rounded = plain_slopes(inputs, &dy, DType::F32, plain);
        for (index, found) in found.iter().enumerate() {
            let what = format!("{what}, operand {index}");
            assert_eq!(found.is_some(), index < self.active, "{what}: a gradient or none");
            let Some(found) = found else { continue };
            assert_eq!(found.dims(), inputs[index].dims(), "{what}");
            let exact = values_f64(&exact[index]);
            let floor = self.share * largest(&exact).max(self.least);
            assert_within(&values(found), &values(&rounded[index]), &exact, floor, &what);
        }
        let bits = |slopes: &[Option<Tensor>]| -> Vec<Vec<u32>> {
            slopes.iter().flatten().map(bits).collect()
        };
        for threads in [1, 3] {
            let again = on_threads(threads, || self.slopes(inputs, op).0);
            assert!(bits(&found) == bits(&again), "{what}: {threads} threads give other bits");
        }
    }
}
