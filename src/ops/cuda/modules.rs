//! The compiled kernels: embedded where the build had an nvcc, else compiled by NVRTC on first use and
//! kept in the user's cache folder.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex};

use candle_core::cuda_backend::WrapErr;
use candle_core::cuda_backend::cudarc::driver::{CudaContext, CudaFunction, CudaModule};
use candle_core::cuda_backend::cudarc::nvrtc::{CompileOptions, Ptx, compile_ptx_with_opts};
use candle_core::{CudaDevice, Error, Result};

use crate::digest::Digest;
use crate::lock::lock;
use crate::ops::devices::kernel_cache;

/// Dynamic shared memory a kernel may use without asking for more.
pub(super) const SHARED_WITHOUT_ASKING: u32 = 48 * 1024;

/// A file of `kernels/`.
struct Module {
    name: &'static str,
    /// Our headers are in their places.
    source: &'static str,
    /// A fatbin; empty where the build had no nvcc.
    binary: &'static [u8],
}

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// Modules and functions that were loaded, by context and name.
#[derive(Default)]
struct Loaded {
    modules: HashMap<(usize, String), Arc<CudaModule>>,
    functions: HashMap<(usize, String), CudaFunction>,
}

/// Kernel `kernel` of `kernels/<module>.cu` on `device`.
pub(super) fn function(device: &CudaDevice, module: &str, kernel: &str) -> Result<CudaFunction> {
    static LOADED: Mutex<Option<Loaded>> = Mutex::new(None);
    let stream = device.cuda_stream();
    let context = stream.context();
    // Modules kept below keep their context alive, so no other context gets its address.
    let at = Arc::as_ptr(context) as usize;
    let mut loaded = lock(&LOADED);
    let Loaded { modules, functions } = loaded.get_or_insert_default();
    let key = (at, format!("{module}/{kernel}"));
    if let Some(function) = functions.get(&key) {
        return Ok(function.clone());
    }
    let image = match modules.entry((at, module.to_owned())) {
        Entry::Occupied(entry) => entry.into_mut(),
        Entry::Vacant(entry) => entry.insert(load(context, module)?),
    };
    let function = image.load_function(kernel).w()?;
    functions.insert(key, function.clone());
    Ok(function)
}

fn load(context: &Arc<CudaContext>, name: &str) -> Result<Arc<CudaModule>> {
    let module = MODULES
        .iter()
        .find(|module| module.name == name)
        .ok_or_else(|| Error::Msg(format!("there is no kernels/{name}.cu")))?;
    let image = match module.binary {
        [] => compiled(context, module)?,
        binary => Ptx::from_binary(binary.to_vec()),
    };
    context.load_module(image).w()
}

/// PTX of `module` for the device at hand, from the cache where it is there.
fn compiled(context: &CudaContext, module: &Module) -> Result<Ptx> {
    let (major, minor) = context.compute_capability().w()?;
    let arch = format!("compute_{major}{minor}");
    let mut hash = Digest::default();
    hash.update(module.source.as_bytes());
    hash.update(arch.as_bytes());
    // What compiles for a device that is emulated makes nothing for a real one.
    hash.update(context.name().w()?.as_bytes());
    let cache = kernel_cache();
    let file = cache.map(|dir| dir.join(format!("{}-{}.ptx", module.name, hash.hex())));
    if let Some(ptx) = file.as_ref().and_then(|file| std::fs::read_to_string(file).ok()) {
        return Ok(Ptx::from_src(ptx));
    }
    let ptx = compile_ptx_with_opts(module.source, options(&arch))
        .map_err(|e| Error::Msg(format!("NVRTC refused kernels/{}.cu: {e:?}", module.name)))?;
    // The cache saves a second next time; whether it can be written is not this run's concern.
    if let (Some(folder), Some(file)) = (cache, file) {
        let temporary = file.with_extension(std::process::id().to_string());
        let _ = std::fs::create_dir_all(folder)
            .and_then(|()| std::fs::write(&temporary, ptx.to_src()))
            .and_then(|()| std::fs::rename(&temporary, &file));
    }
    Ok(ptx)
}

/// cudarc knows its own list of architectures as constants only, so the option is given as text.
fn options(arch: &str) -> CompileOptions {
    let roots = cuda_lazy::folders().iter().filter_map(|folder| folder.parent());
    let headers = roots.map(|root| root.join("include")).find(|d| d.join("cuda_bf16.h").exists());
    CompileOptions {
        include_paths: headers.iter().map(|folder| folder.display().to_string()).collect(),
        options: vec![format!("--gpu-architecture={arch}"), "--std=c++17".into()],
        ..CompileOptions::default()
    }
}
