//! With the `cuda` feature: compiles `kernels/*.cu` and embeds the result, where there is an nvcc.
//! The sources are embedded in any case, for NVRTC to compile on the machine that runs them.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// Machine code for these, and PTX of the last for what comes after them.
const ARCHITECTURES: [&str; 3] = ["80", "89", "90"];

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    println!("cargo:rerun-if-changed=kernels");
    println!("cargo:rerun-if-env-changed=CUDA_HOME");
    let out = PathBuf::from(env::var("OUT_DIR").expect("cargo sets OUT_DIR"));
    let home = env::var_os("CUDA_HOME").unwrap_or_else(|| "/usr/local/cuda".into());
    let nvcc = Path::new(&home).join("bin/nvcc");
    if nvcc.exists() {
        // A toolkit that goes is a change. One that comes is seen by scripts/cuda-toolkit.sh: to
        // watch what does not exist is to build anew every time.
        println!("cargo:rerun-if-changed={}", nvcc.display());
    }

    let mut table = String::new();
    for file in sources() {
        let name = file.file_stem().and_then(|stem| stem.to_str()).expect("kernels have names");
        let binary = out.join(format!("{name}.fatbin"));
        if nvcc.exists() {
            compile(&nvcc, &file, &binary);
        } else {
            fs::write(&binary, "").expect("OUT_DIR can be written to");
        }
        let source = out.join(format!("{name}.cu"));
        fs::write(&source, inlined(&file)).expect("OUT_DIR can be written to");
        let (source, binary) = (source.display(), binary.display());
        writeln!(
            table,
            "Module {{\n    name: \"{name}\",\n    source: include_str!(\"{source}\"),\n    \
             binary: include_bytes!(\"{binary}\"),\n}},"
        )
        .expect("writing to a String cannot fail");
    }
    fs::write(out.join("kernels.rs"), format!("static MODULES: &[Module] = &[\n{table}];\n"))
        .expect("OUT_DIR can be written to");
}

fn sources() -> Vec<PathBuf> {
    let entries = fs::read_dir("kernels").expect("kernels/ lies beside build.rs");
    let paths = entries.map(|entry| entry.expect("kernels/ can be listed").path());
    let mut files: Vec<_> = paths.filter(|p| p.extension().is_some_and(|e| e == "cu")).collect();
    files.sort();
    files
}

fn compile(nvcc: &Path, file: &Path, binary: &Path) {
    let mut command = Command::new(nvcc);
    command.args(["-fatbin", "-std=c++17", "-O3"]);
    for arch in ARCHITECTURES {
        command.arg(format!("-gencode=arch=compute_{arch},code=sm_{arch}"));
    }
    let last = ARCHITECTURES[ARCHITECTURES.len() - 1];
    command.arg(format!("-gencode=arch=compute_{last},code=compute_{last}"));
    let status = command.arg("-o").arg(binary).arg(file).status().expect("nvcc can be run");
    assert!(status.success(), "nvcc failed on {}", file.display());
}

/// The source with our own headers in their places: NVRTC is given one text. A header that was
/// included before is left out, as its `#pragma once` says.
fn inlined(file: &Path) -> String {
    fn inline(file: &Path, seen: &mut Vec<PathBuf>) -> String {
        if seen.iter().any(|path| path == file) {
            return String::new();
        }
        seen.push(file.to_owned());
        let text = fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        let line = |line: &str| {
            let header = line.strip_prefix("#include \"").and_then(|rest| rest.strip_suffix('"'));
            match header {
                Some(header) => inline(&file.with_file_name(header), seen),
                None if line == "#pragma once" => String::new(),
                None => format!("{line}\n"),
            }
        };
        text.lines().map(line).collect()
    }
    inline(file, &mut Vec::new())
}
