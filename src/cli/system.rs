//! `bantam inspect --system`: what this machine has to compute with.

use super::console::Console;
use super::report::Lines;
use crate::error::{Error, Result};
use crate::ops::{CudaSystem, Gpu, cuda_system};
use crate::settings::format_size;

pub(super) fn run(json: bool, console: &Console) -> Result<()> {
    let system = cuda_system();
    let threads = rayon::current_num_threads();
    if json {
        let mut value = serde_json::to_value(&system).map_err(|e| Error::Bug(e.to_string()))?;
        value["cpu_threads"] = threads.into();
        return console.json(&value);
    }
    console.data(&as_text(&system, threads))
}

fn as_text(system: &CudaSystem, threads: usize) -> String {
    let mut lines = Lines::default();
    lines.add("CPU", format_args!("{threads} threads"));
    if !system.built_in {
        lines.add("CUDA", "not in this build (cargo build --features cuda)");
        return lines.text;
    }
    lines.add("CUDA driver", system.driver.as_deref().unwrap_or("none"));
    for library in &system.libraries {
        let found = library.path.as_ref().map(|path| path.display().to_string());
        let found = found.as_deref().unwrap_or("not found");
        lines.add("", format_args!("{:<18} {found}", library.file));
    }
    for Gpu { name, compute_capability, memory, free } in &system.devices {
        let [memory, free] = [*memory, *free].map(format_size);
        let capability = format_args!("compute capability {compute_capability}");
        lines.add("GPU", format_args!("{name}, {capability}, {memory} of memory, {free} free"));
    }
    if let Some(problem) = &system.problem {
        lines.add("GPU", format_args!("none: {problem}"));
    }
    lines.text
}
