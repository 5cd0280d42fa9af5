//! Where cargo keeps the sources of candle's kernels.
use std::env;
use std::path::PathBuf;
use std::process::Command;

/// The files that the emulation holds: those behind candle's plain tensor operations. Convolutions
/// and GGUF tensors are left out.
const FILES: &[&str] =
    &["affine", "binary", "cast", "fill", "indexing", "reduce", "sort", "ternary", "unary"];

pub fn sources() -> Vec<PathBuf> {
    let folder = package("candle-kernels").join("src");
    FILES.iter().map(|f| folder.join(f).with_extension("cu")).collect()
}

/// The folder of a package that the workspace depends on with all features on.
fn package(name: &str) -> PathBuf {
    let metadata = metadata(&["--offline"]).or_else(|_| metadata(&[]));
    let metadata = metadata.unwrap_or_else(|e| panic!("cargo metadata, to find {name}: {e}"));
    // One field of one package is wanted: no parser of JSON for that.
    let manifests =
        metadata.split("\"manifest_path\":\"").skip(1).filter_map(|m| m.split('"').next());
    let folders = manifests.filter_map(|m| PathBuf::from(m).parent().map(PathBuf::from));
    let prefix = format!("{name}-");
    let found = folders.into_iter().find(|f| {
        let folder = f.file_name().unwrap_or_default().to_string_lossy();
        folder.strip_prefix(&prefix).is_some_and(|v| v.starts_with(|c: char| c.is_ascii_digit()))
    });
    found.unwrap_or_else(|| panic!("cargo metadata does not list {name}"))
}

fn metadata(more: &[&str]) -> Result<String, String> {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo.args(["metadata", "--format-version", "1", "--all-features"]).args(more);
    if let Ok(target) = env::var("TARGET") {
        cargo.args(["--filter-platform", &target]);
    }
    let output = cargo.output().map_err(|e| e.to_string())?;
    if output.status.success() {
        String::from_utf8(output.stdout).map_err(|e| e.to_string())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}
