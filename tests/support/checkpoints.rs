//! Small checkpoints in temporary folders, written without the code under test.
//!
//! A test takes this in with `#[path = "support/checkpoints.rs"] mod support;` or through a
//! `support/mod.rs`.

#![allow(dead_code, reason = "every test takes what it needs")]
#![allow(clippy::unwrap_used, reason = "a failing test is to panic")]

use std::fs;
use std::path::Path;

use safetensors::Dtype;
use serde_json::{Map, Value, json};

/// A tensor: name, dtype, shape, data.
pub(crate) type Tensor<'a> = (&'a str, Dtype, &'a [usize], &'a [u8]);

/// The bytes of a safetensors file that holds these tensors, in this order.
pub(crate) fn safetensors_file(tensors: &[Tensor<'_>]) -> Vec<u8> {
    let mut header = Map::from_iter([("__metadata__".to_owned(), json!({ "format": "pt" }))]);
    let mut data = Vec::new();
    for (name, dtype, shape, bytes) in tensors {
        let start = data.len();
        data.extend_from_slice(bytes);
        let entry = json!({ "dtype": dtype.to_string(), "shape": shape, "data_offsets": [start, data.len()] });
        header.insert((*name).to_owned(), entry);
    }
    file_with_header(&Value::from(header).to_string(), &data)
}

/// A file that begins like a safetensors file, whatever its header says.
pub(crate) fn file_with_header(header: &str, data: &[u8]) -> Vec<u8> {
    let length = header.len() as u64;
    [&length.to_le_bytes(), header.as_bytes(), data].concat()
}

/// Writes `config.json` and `model.safetensors` into `folder`, which is made if need be.
pub(crate) fn write_checkpoint(folder: &Path, config: &Value, tensors: &[Tensor<'_>]) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("config.json"), format!("{config:#}\n")).unwrap();
    fs::write(folder.join("model.safetensors"), safetensors_file(tensors)).unwrap();
}

/// Writes `config.json`, one file per shard, and the index that belongs to them.
pub(crate) fn write_sharded(folder: &Path, config: &Value, shards: &[&[Tensor<'_>]]) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("config.json"), format!("{config:#}\n")).unwrap();
    let mut weight_map = Map::new();
    for (i, tensors) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", i + 1, shards.len());
        fs::write(folder.join(&name), safetensors_file(tensors)).unwrap();
        weight_map.extend(tensors.iter().map(|t| (t.0.to_owned(), Value::from(name.clone()))));
    }
    let index = json!({ "metadata": { "total_size": 0 }, "weight_map": weight_map });
    fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

/// The little-endian bytes of these values.
pub(crate) fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// The names in a folder, sorted.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Names and contents of the files in a folder, sorted by name.
pub(crate) fn contents(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let files = names(folder).into_iter().filter(|name| folder.join(name).is_file());
    files.map(|name| (name.clone(), fs::read(folder.join(name)).unwrap())).collect()
}
