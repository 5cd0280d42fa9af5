//! `bantam inspect --system`: what this machine has to compute with.

use super::console::Console;
use crate::error::{Error, Result};
use crate::ops::{CudaSystem, cuda_system};
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
    let mut text = format!("CPU         {threads} threads\n");
    if !system.built_in {
        return text + "CUDA        not in this build (cargo build --features cuda)\n";
    }
    let driver = system.driver.as_deref().unwrap_or("none");
    text += &format!("CUDA driver {driver}\n");
    for library in &system.libraries {
        let found = library.path.as_ref().map(|path| path.display().to_string());
        let found = found.as_deref().unwrap_or("not found");
        text += &format!("            {:<18} {found}\n", library.file);
    }
    for gpu in &system.devices {
        text += &format!(
            "GPU         {}, compute capability {}, {} of memory, {} free\n",
            gpu.name,
            gpu.compute_capability,
            format_size(gpu.memory),
            format_size(gpu.free)
        );
    }
    if let Some(problem) = &system.problem {
        text += &format!("GPU         none: {problem}\n");
    }
    text
}
