//! Compiles the project's kernels (kernels/*.cu), candle's and the faulty ones of the tests as C++
//! against include/cuda_emu.h, and links them into an emulated libcuda.so.1. It lies in one folder
//! with the other emulated libraries.
use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

mod candle;
mod scan;

/// The emulated libraries and the files of driver/ that each is made of. One without files is left
/// empty, so that a program still finds it.
const LIBRARIES: &[(&str, &[&str])] = &[
    ("libcuda.so.1", &["fake_cuda.cpp", "fake_memory.cpp", "fake_kernels.cpp"]),
    ("libcublas.so.13", &["fake_blas.cpp", "fake_gemm.cpp"]),
    ("libcublasLt.so.13", &[]),
    ("libcurand.so.10", &["fake_rand.cpp"]),
    ("libcusolver.so.12", &["fake_solver.cpp"]),
    ("libcusparse.so.12", &[]),
    ("libnvrtc.so.13", &["fake_nvrtc.cpp"]),
];

fn main() {
    let here = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    let out = PathBuf::from(variable("OUT_DIR"));
    let kernels = here.join("../../kernels");
    for watched in ["build", "src", "include", "driver", "tests-kernels"] {
        println!("cargo:rerun-if-changed={watched}");
    }
    println!("cargo:rerun-if-changed={}", kernels.display());
    println!("cargo:rerun-if-changed={}", here.join("../../Cargo.lock").display());

    let compiler = Compiler::new(&here, &kernels);
    let mut sources = sources_in(&kernels);
    sources.extend(sources_in(&here.join("tests-kernels")));
    let of_candle = candle::sources();
    let names = (sources.iter().map(|s| (s, false))).chain(of_candle.iter().map(|s| (s, true)));
    let wrappers = in_parallel(names.collect(), |(source, is_candles)| {
        scan::wrap(&compiler, source, *is_candles, &out)
    });
    let table = scan::table(&wrappers, &out);

    let mut units: Vec<PathBuf> = wrappers.into_iter().map(|w| w.file).collect();
    units.push(table);
    let mut objects = in_parallel(units, |unit| compiler.compile(unit, &out, &[]));
    // A fiber that ends never leaves its first functions: a sanitizer would find their frames, and
    // not the stack free, when the next one starts on it.
    let scheduler =
        ["block.cpp", "collectives.cpp", "launch.cpp"].map(|f| here.join("src").join(f));
    objects.extend(scheduler.map(|unit| compiler.compile(&unit, &out, &["-fno-sanitize=all"])));

    let driver = out.join("driver");
    fs::create_dir_all(&driver).unwrap_or_else(|e| panic!("{}: {e}", driver.display()));
    for (soname, files) in LIBRARIES {
        let present: Vec<_> = files.iter().map(|f| here.join("driver").join(f)).collect();
        let present = present.into_iter().filter(|f| f.exists()).collect();
        let mut parts = in_parallel(present, |unit| compiler.compile(unit, &out, &[]));
        if *soname == "libcuda.so.1" {
            parts.extend(objects.iter().cloned());
        }
        compiler.link(&driver.join(soname), soname, &parts);
    }
    println!("cargo:rustc-env=EMU_DRIVER={}", driver.display());
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("cargo sets {name} for build scripts"))
}

/// The .cu files of a folder, in order.
fn sources_in(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut files: Vec<_> = entries.flatten().map(|e| e.path()).collect();
    files.retain(|p| p.extension() == Some(OsStr::new("cu")));
    files.sort();
    files
}

/// Calls `work` on every item, on as many threads as cargo allows; the results are in order.
fn in_parallel<T: Sync, R: Send>(items: Vec<T>, work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let jobs = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let next = AtomicUsize::new(0);
    let results = Mutex::new((0..items.len()).map(|_| None).collect::<Vec<_>>());
    thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some((i, item)) =
                    items.iter().enumerate().nth(next.fetch_add(1, Ordering::Relaxed))
                {
                    let result = work(item);
                    results.lock().expect("a job has failed")[i] = Some(result);
                }
            });
        }
    });
    let results = results.into_inner().expect("a job has failed");
    results.into_iter().map(|r| r.expect("every item is taken")).collect()
}

/// The C++ compiler with the flags that all files share. `CXX` and `CXXFLAGS` are respected.
struct Compiler {
    tool: cc::Tool,
}

impl Compiler {
    fn new(here: &Path, kernels: &Path) -> Self {
        let mut build = cc::Build::new();
        build.cpp(true).std("c++17").opt_level(2).pic(true).warnings(false);
        build.include(here.join("include")).include(here.join("driver")).include(kernels);
        // Kernels stay private to each library: their names may be those of functions elsewhere.
        build.flag("-fvisibility=hidden").flag("-g1");
        // Kernels look at memory as values of another type, as nvcc lets them.
        build
            .flag("-fno-strict-aliasing")
            .flag("-fno-math-errno")
            .flag_if_supported("-fno-extern-tls-init");
        if variable("CARGO_CFG_TARGET_ARCH") == "x86_64" {
            // Products and sums contract to a fused multiply-add, as nvcc does.
            build.flag("-mavx2").flag("-mfma");
        }
        Self { tool: build.get_compiler() }
    }

    fn compile(&self, unit: &Path, out: &Path, flags: &[&str]) -> PathBuf {
        let name = unit.file_name().expect("a file has a name");
        let object = out.join(name).with_extension("o");
        let mut command = self.tool.to_command();
        command.args(flags).arg("-c").arg(unit).arg("-o").arg(&object);
        run(&mut command);
        object
    }

    /// The text of a file after the preprocessor, with the words that mark kernels left in.
    fn preprocess(&self, unit: &Path) -> String {
        let mut command = self.tool.to_command();
        command.args(["-E", "-P", "-DEMU_SCAN"]).arg(unit);
        String::from_utf8_lossy(&run(&mut command)).into_owned()
    }

    fn link(&self, library: &Path, soname: &str, objects: &[PathBuf]) {
        let mut command = self.tool.to_command();
        command.args(["-shared", "-x", "none"]).arg(format!("-Wl,-soname,{soname}"));
        command.arg("-o").arg(library).args(objects);
        if objects.is_empty() {
            command.args(["-x", "c++", "/dev/null"]);
        }
        run(&mut command);
    }
}

/// Runs a command to its end and returns what it printed.
fn run(command: &mut Command) -> Vec<u8> {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let line = words.collect::<Vec<_>>().join(OsStr::new(" ")).to_string_lossy().into_owned();
    let output = command.output().unwrap_or_else(|e| panic!("{line}: {e}"));
    if !output.status.success() {
        panic!("{line} failed:\n{}", String::from_utf8_lossy(&output.stderr));
    }
    output.stdout
}
