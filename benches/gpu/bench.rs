//! What every measurement uses: the device, a clock that waits for it, random operands.

use std::time::Instant;

use bantam::error::Result;
use candle_core::{DType, Device, Shape, Tensor};

use crate::report::{Figure, Report};
use crate::sizes::Sizes;

/// Seconds that a round should take at least, so that starting and waiting do not count.
const ROUND: f64 = 0.02;

/// Calls of a round at most.
const MOST_CALLS: usize = 500;

/// Seconds that work is repeated before it counts, for clocks to rise.
const WARM_UP: f64 = 0.05;

/// Seconds of a call that is long.
const LONG: f64 = 0.5;

/// A device under measurement.
pub(crate) struct Bench {
    pub(crate) device: Device,
    pub(crate) sizes: Sizes,
    pub(crate) report: Report,
    rounds: usize,
}

impl Bench {
    pub(crate) fn new(device: Device, sizes: Sizes, rounds: usize) -> Self {
        Self { device, sizes, report: Report::default(), rounds }
    }

    /// Seconds of one call of `work`, which is told how many calls came before: the mean of the
    /// best round. Of what takes long there are two rounds of one call, and nothing to warm up.
    pub(crate) fn seconds<T>(&self, mut work: impl FnMut(usize) -> Result<T>) -> Result<f64> {
        let mut calls = 0;
        let mut round = |count: usize| -> Result<f64> {
            let started = Instant::now();
            for _ in 0..count {
                let _made = work(calls)?;
                calls += 1;
            }
            self.device.synchronize()?;
            Ok(started.elapsed().as_secs_f64() / count as f64)
        };
        // The first call loads the kernel.
        round(1)?;
        if self.rounds == 1 {
            return round(1);
        }
        let once = round(1)?;
        if once > LONG {
            return Ok(once.min(round(1)?));
        }
        let calls_of = |seconds: f64| ((seconds / once).ceil() as usize).clamp(1, MOST_CALLS);
        round(calls_of(WARM_UP))?;
        let mut best = f64::INFINITY;
        for _ in 0..self.rounds {
            best = best.min(round(calls_of(ROUND))?);
        }
        Ok(best)
    }

    /// Measures `work` that does `operations`, and reports TFLOP/s against the figure `limit`.
    pub(crate) fn operations<T>(
        &mut self,
        name: &str,
        operations: f64,
        limit: Option<&str>,
        note: String,
        work: impl FnMut(usize) -> Result<T>,
    ) -> Result<()> {
        let value = operations / self.seconds(work)? / 1e12;
        self.rate(name, value, "TFLOP/s", limit, note);
        Ok(())
    }

    /// Measures `work` that has to move `bytes`, and reports GB/s against those of a copy.
    pub(crate) fn bytes<T>(
        &mut self,
        name: &str,
        bytes: f64,
        note: String,
        work: impl FnMut(usize) -> Result<T>,
    ) -> Result<()> {
        let value = bytes / self.seconds(work)? / 1e9;
        self.rate(name, value, "GB/s", Some("copy"), note);
        Ok(())
    }

    fn rate(
        &mut self,
        name: &str,
        value: f64,
        unit: &'static str,
        limit: Option<&str>,
        note: String,
    ) {
        let limit = limit.and_then(|name| self.report.value(name));
        self.report.add(name, Figure { value, unit, limit, note });
    }

    /// Measures `work` in seconds, and notes the GFLOP/s of `operations`.
    pub(crate) fn time<T>(
        &mut self,
        name: &str,
        operations: f64,
        note: &str,
        work: impl FnMut(usize) -> Result<T>,
    ) -> Result<()> {
        let value = self.seconds(work)?;
        let note = format!("{note}, {:.0} GFLOP/s", operations / value / 1e9);
        self.report.add(name, Figure { value, unit: "s", limit: None, note });
        Ok(())
    }

    /// Standard normal numbers in f32.
    pub(crate) fn random(&self, shape: impl Into<Shape>) -> Result<Tensor> {
        Ok(Tensor::randn(0.0_f32, 1.0, shape, &self.device)?)
    }

    /// The same in another type.
    pub(crate) fn random_as(&self, dtype: DType, shape: impl Into<Shape>) -> Result<Tensor> {
        Ok(self.random(shape)?.to_dtype(dtype)?)
    }
}
