//! The names of a checkpoint's files, and which of them hold weights.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The config.
pub(super) const CONFIG_FILE: &str = "config.json";

/// The weights of a model that is not sharded.
pub(super) const SINGLE_FILE: &str = "model.safetensors";

/// The index: the shard that holds each tensor.
pub(super) const INDEX_FILE: &str = "model.safetensors.index.json";

/// The manifest beside written weights: version, command, plan and figures of the run, as JSON.
pub const MANIFEST_FILE: &str = "bantam.json";

/// Endings of files that hold weights, in any framework's format.
const WEIGHT_ENDINGS: [&str; 15] = [
    "safetensors",
    "bin",
    "pth",
    "pt",
    "ckpt",
    "gguf",
    "ggml",
    "h5",
    "msgpack",
    "onnx",
    "onnx_data",
    "ot",
    "npz",
    "tflite",
    "pdparams",
];

/// The last component of `path`, as far as it is text.
pub(super) fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The names of the files in `folder` that hold weights, in any format, sorted.
pub(super) fn weight_files(folder: &Path) -> Result<Vec<String>> {
    let files = list(folder)?;
    let mut names: Vec<String> =
        files.iter().map(|path| file_name(path)).filter(|name| is_weights(name)).collect();
    names.sort();
    Ok(names)
}

/// Whether a file of this name holds weights, in any framework's format.
pub(super) fn is_weights(name: &str) -> bool {
    let ending = Path::new(name).extension().and_then(|ending| ending.to_str());
    ending.is_some_and(|ending| WEIGHT_ENDINGS.contains(&ending.to_ascii_lowercase().as_str()))
}

/// The regular files of a folder, through symlinks.
pub(super) fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let failed = |e| Error::io("list", folder, e);
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let metadata = path.metadata().map_err(|e| Error::io("read", &path, e))?;
        if metadata.is_file() {
            files.push(path);
        }
    }
    Ok(files)
}
