//! The most device memory that a pass over one block takes, against what the forecast allows it.
//!
//! The pass is told to take no more than its forecast, so that the residual stream goes to the host
//! between blocks, and a thread beside it asks the driver what is left.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bantam::arch::Model;
use bantam::error::Result;
use bantam::measure::{Compute, Footprint, LayerStats, Stream, Wanted};
use bantam::ops;
use bantam::passes::{Pass, Weights};
use bantam::progress::Silent;
use candle_core::Device;

use crate::bench::Bench;
use crate::block::{lord, measured, random_windows};
use crate::report::Figure;

/// Between two looks.
const PAUSE: Duration = Duration::from_micros(500);

pub(crate) fn measure(bench: &mut Bench, folder: &Path) -> Result<()> {
    let model = Model::open(folder)?;
    let windows = random_windows(bench, &model)?;
    let length = windows.length();
    let taken = measured(&model);
    let on = |memory| Compute::on(&bench.device, memory, &model, length, &taken);
    let chunk = on(u64::MAX)?.chunk_tokens(length);
    let forecast = Footprint::on_gpu(&model, chunk, &taken).peak;
    let place = on(forecast)?;

    let system = ops::cuda_system();
    let all = system.devices.first().map_or(0, |gpu| gpu.memory);
    let idle = all - left(&bench.device)?;
    let sites: Vec<_> = model.layer_sites(0).collect();
    let (measuring, stats) = watched(&bench.device, || {
        let mut stream = Stream::new(&model, &windows, &place)?;
        let wanted = Wanted { moments: &sites, shares: true };
        let mut moments = LayerStats::new(&sites, wanted, place.device())?;
        stream.advance(&mut moments, &Silent)?;
        moments.finish(&sites, None)
    })?;
    let (analysing, ()) = watched(&bench.device, || {
        let (pass, weights) = (lord(), Weights::new(model.checkpoint(), place.device()));
        for site in sites.iter().filter(|site| pass.takes(site)) {
            if let Some(stats) = stats.get(&site.name) {
                pass.analyse(site, &weights, Some(stats))?;
            }
        }
        Ok(())
    })?;
    let mut bytes = |name, least: u64, note: &str| {
        let (value, limit) = ((all - least) as f64, Some(forecast as f64));
        bench.report.add(name, Figure { value, unit: "B", limit, note: note.to_owned() });
    };
    let note = format!("{chunk} tokens at a time; {idle} of it before, by the driver and others");
    bytes("memory_measuring", measuring, &note);
    bytes("memory_analysing", analysing, "decompositions of all linears, one by one");
    Ok(())
}

/// What `work` makes, and the least free memory seen while it ran.
fn watched<T>(device: &Device, work: impl FnOnce() -> Result<T>) -> Result<(u64, T)> {
    let (least, done) = (AtomicU64::new(left(device)?), AtomicBool::new(false));
    let made = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                // A look that fails says nothing; the next one may.
                if let Ok(free) = left(device) {
                    least.fetch_min(free, Ordering::Relaxed);
                }
                std::thread::sleep(PAUSE);
            }
        });
        let made = work().and_then(|made| Ok(device.synchronize().map(|()| made)?));
        done.store(true, Ordering::Relaxed);
        made
    })?;
    least.fetch_min(left(device)?, Ordering::Relaxed);
    Ok((least.into_inner(), made))
}

fn left(device: &Device) -> Result<u64> {
    Ok(ops::free_memory(device)?.unwrap_or(0))
}
