//! Stand-ins for `cuda` in a build without it: the same names, none of them ever reached, because no
//! tensor is on a device that cannot be opened.

#![expect(clippy::unused_self, reason = "the shape is that of `cuda`")]

use std::marker::PhantomData;

use candle_core::{CudaDevice, CudaStorage, DType, Error, Layout, Result, Shape};

use super::devices::CudaSystem;

#[derive(Clone, Copy)]
pub(in crate::ops) struct Grid;

impl Grid {
    pub(in crate::ops) fn elements(_: usize) -> Self {
        Self
    }

    pub(in crate::ops) fn threads_for(_: usize) -> Self {
        Self
    }

    pub(in crate::ops) fn warps_for(_: usize) -> Self {
        Self
    }

    pub(in crate::ops) fn rows_of(_: usize, _: usize) -> Self {
        Self
    }

    pub(in crate::ops) fn triangle(_: usize, _: usize) -> Self {
        Self
    }

    pub(in crate::ops) fn blocks(_: usize) -> Self {
        Self
    }

    #[must_use]
    pub(in crate::ops) fn threads(self, _: u32, _: u32) -> Self {
        self
    }

    #[must_use]
    pub(in crate::ops) fn shared(self, _: usize) -> Self {
        self
    }
}

pub(in crate::ops) struct Launch<'a>(PhantomData<&'a CudaStorage>);

impl Launch<'_> {
    pub(in crate::ops) fn new(_: &'static str, _: &CudaStorage) -> Self {
        Self(PhantomData)
    }

    pub(in crate::ops) fn of(_: &'static str, _: impl Into<String>, _: &CudaStorage) -> Self {
        Self(PhantomData)
    }

    pub(in crate::ops) fn read(self, _: &CudaStorage, _: &Layout) -> Result<Self> {
        Err(Error::NotCompiledWithCudaSupport)
    }

    pub(in crate::ops) fn read_or_null(self, _: Option<(&CudaStorage, &Layout)>) -> Result<Self> {
        Err(Error::NotCompiledWithCudaSupport)
    }

    pub(in crate::ops) fn update(self, _: &mut CudaStorage, _: &Layout) -> Result<Self> {
        Err(Error::NotCompiledWithCudaSupport)
    }

    pub(in crate::ops) fn output(self, _: DType, _: usize) -> Result<Self> {
        Err(Error::NotCompiledWithCudaSupport)
    }

    pub(in crate::ops) fn list(self, _: &[usize]) -> Result<Self> {
        Err(Error::NotCompiledWithCudaSupport)
    }

    #[must_use]
    pub(in crate::ops) fn int(self, _: usize) -> Self {
        self
    }

    #[must_use]
    pub(in crate::ops) fn float(self, _: f32) -> Self {
        self
    }

    #[must_use]
    pub(in crate::ops) fn double(self, _: f64) -> Self {
        self
    }

    pub(in crate::ops) fn run(self, _: Grid) -> Result<Outputs> {
        Err(Error::NotCompiledWithCudaSupport)
    }
}

pub(in crate::ops) struct Outputs;

impl Outputs {
    pub(in crate::ops) fn one(self) -> Result<CudaStorage> {
        Err(Error::NotCompiledWithCudaSupport)
    }

    pub(in crate::ops) fn many<const N: usize>(self) -> Result<[CudaStorage; N]> {
        Err(Error::NotCompiledWithCudaSupport)
    }
}

pub(in crate::ops) fn product_bf16(
    _: &CudaStorage,
    _: &Layout,
    _: &CudaStorage,
    _: &Layout,
    _: bool,
) -> Result<CudaStorage> {
    Err(Error::NotCompiledWithCudaSupport)
}

pub(in crate::ops) fn upload(_: &[u8], _: DType, _: &CudaDevice) -> Result<CudaStorage> {
    Err(Error::NotCompiledWithCudaSupport)
}

pub(in crate::ops) fn joined(_: &[(&CudaStorage, usize)]) -> Result<(CudaStorage, Shape)> {
    Err(Error::NotCompiledWithCudaSupport)
}

const NOT_BUILT: &str = "this bantam was built without CUDA (cargo build --features cuda)";

pub(in crate::ops) fn open() -> crate::Result<CudaDevice> {
    Err(crate::Error::NoGpu { why: NOT_BUILT.into() })
}

pub(in crate::ops) fn free_memory(_: &CudaDevice) -> crate::Result<u64> {
    Err(crate::Error::NoGpu { why: NOT_BUILT.into() })
}

pub(in crate::ops) fn system() -> CudaSystem {
    CudaSystem { problem: Some(NOT_BUILT.into()), ..CudaSystem::default() }
}
