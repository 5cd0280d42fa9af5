//! Stands for `cuda` in a build without it, where no tensor can be on a GPU.

use candle_core::Tensor;

use super::{Eigh, Svd, Triangle};
use crate::error::{Error, Result};

fn absent<R>(subject: &str) -> Result<R> {
    Err(Error::Bug(format!("{subject} is on a GPU in a build without CUDA")))
}

pub(super) fn eigh(_: &Tensor, subject: &str) -> Result<Eigh> {
    absent(subject)
}

pub(super) fn eigvalsh(_: &Tensor, subject: &str) -> Result<Vec<f64>> {
    absent(subject)
}

pub(super) fn svd(_: &Tensor, subject: &str) -> Result<Svd> {
    absent(subject)
}

pub(super) fn singular_values(_: &Tensor, subject: &str) -> Result<Vec<f64>> {
    absent(subject)
}

pub(super) fn orthonormalise(_: &Tensor, subject: &str) -> Result<Tensor> {
    absent(subject)
}

pub(super) fn cholesky(_: &Tensor, subject: &str) -> Result<Tensor> {
    absent(subject)
}

pub(super) fn solve_triangular(
    _: &Tensor,
    _: &Tensor,
    _: Triangle,
    _: bool,
    subject: &str,
) -> Result<Tensor> {
    absent(subject)
}
