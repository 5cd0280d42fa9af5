//! Small models to run the program on, and their tensors, read and written without its code.
//!
//! A test takes this in with `#[path = "support/models.rs"] mod models;`, after `cli`.

#![allow(dead_code, reason = "every test takes what it needs")]
#![allow(clippy::unwrap_used, reason = "a failing test is to panic")]

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value, json};

use super::cli::{fixture, names, read_json};

/// A tensor.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Weight {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) data: Vec<u8>,
}

impl Weight {
    /// The values of an F32 or BF16 tensor.
    pub(crate) fn values(&self) -> Vec<f64> {
        match self.dtype {
            Dtype::F32 => {
                let (chunks, []) = self.data.as_chunks() else { panic!("cut elements") };
                chunks.iter().map(|&c| f64::from(f32::from_le_bytes(c))).collect()
            }
            Dtype::BF16 => {
                let (chunks, []) = self.data.as_chunks() else { panic!("cut elements") };
                let bits = chunks.iter().map(|&c| u32::from(u16::from_le_bytes(c)) << 16);
                bits.map(|bits| f64::from(f32::from_bits(bits))).collect()
            }
            other => panic!("{other} is not read here"),
        }
    }

    /// Overwrites one element of an F32 tensor, counted from the end where negative.
    pub(crate) fn plant(&mut self, index: isize, value: f32) {
        assert_eq!(self.dtype, Dtype::F32);
        let count = isize::try_from(self.data.len() / 4).unwrap();
        let at = usize::try_from(index.rem_euclid(count)).unwrap() * 4;
        self.data[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
}

/// All tensors of a model folder.
pub(crate) fn weights(folder: &Path) -> BTreeMap<String, Weight> {
    let mut all = BTreeMap::new();
    for name in shard_names(folder) {
        let bytes = fs::read(folder.join(&name)).unwrap();
        for (name, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
            let weight = Weight {
                dtype: view.dtype(),
                shape: view.shape().to_vec(),
                data: view.data().to_vec(),
            };
            assert!(all.insert(name.clone(), weight).is_none(), "`{name}` is there twice");
        }
    }
    all
}

/// The bytes of all tensors of a model folder.
pub(crate) fn weight_bytes(folder: &Path) -> u64 {
    weights(folder).values().map(|weight| weight.data.len() as u64).sum()
}

/// The weight files of a model folder.
pub(crate) fn shard_names(folder: &Path) -> Vec<String> {
    let shard = |name: &String| name.starts_with("model") && name.ends_with(".safetensors");
    names(folder).into_iter().filter(shard).collect()
}

/// Writes tensors as `model.safetensors`.
pub(crate) fn write_weights(folder: &Path, weights: &BTreeMap<String, Weight>) {
    let view = |w: &Weight| (w.dtype, w.shape.clone(), w.data.clone());
    let owned: Vec<_> = weights.iter().map(|(name, w)| (name, view(w))).collect();
    let views = owned.iter().map(|(name, (dtype, shape, data))| {
        (name.as_str(), TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    let file = folder.join("model.safetensors");
    safetensors::serialize_to_file(views, None, &file).unwrap();
}

/// Changes the tensors of a model that is one file.
pub(crate) fn edit_weights(folder: &Path, edit: impl FnOnce(&mut BTreeMap<String, Weight>)) {
    let mut all = weights(folder);
    edit(&mut all);
    write_weights(folder, &all);
}

/// Changes keys of `config.json`; `null` removes.
pub(crate) fn edit_config(folder: &Path, changes: &Value) {
    let file = folder.join("config.json");
    let mut config: Map<String, Value> = serde_json::from_value(read_json(&file)).unwrap();
    for (key, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => drop(config.shift_remove(key)),
            value => drop(config.insert(key.clone(), value.clone())),
        }
    }
    fs::write(file, format!("{:#}", Value::from(config))).unwrap();
}

/// Copies the files of a folder.
pub(crate) fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for name in names(from) {
        fs::copy(from.join(&name), to.join(&name)).unwrap();
    }
}

/// A golden model, some 100 KB of random weights, with a tokenizer of its vocabulary.
pub(crate) fn tiny(name: &str, root: &Path) -> PathBuf {
    let folder = root.join(name);
    copy_folder(&fixture("golden").join(name), &folder);
    let vocab: usize =
        read_json(&folder.join("config.json"))["vocab_size"].as_u64().unwrap().try_into().unwrap();
    let mut words: Map<String, Value> =
        (0..vocab - 1).map(|id| (format!("w{id}"), json!(id))).collect();
    words.insert("<unk>".into(), json!(vocab - 1));
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": null, "pre_tokenizer": { "type": "WhitespaceSplit" },
        "post_processor": null, "decoder": null,
        "model": { "type": "WordLevel", "vocab": words, "unk_token": "<unk>" },
    });
    fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    folder
}

/// A text of two thousand words that every tiny model has in its vocabulary.
pub(crate) fn tiny_text(root: &Path) -> PathBuf {
    let mut state = 1_u64;
    let text = (0..2000).fold(String::new(), |mut text, _| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        write!(text, "w{} ", (state >> 33) % 96).unwrap();
        text
    });
    let file = root.join("words.txt");
    fs::write(&file, text).unwrap();
    file
}

/// The first two layers of pycode-llama: trained weights in BF16, and a third of the work.
pub(crate) fn two_layers(root: &Path) -> PathBuf {
    let folder = root.join("two-layers");
    copy_folder(&fixture("pycode-llama"), &folder);
    edit_config(&folder, &json!({ "num_hidden_layers": 2 }));
    edit_weights(&folder, |weights| {
        let above = |name: &str| (2..6).any(|layer| name.contains(&format!(".layers.{layer}.")));
        weights.retain(|name, _| !above(name));
    });
    folder
}

/// A tiny model, a text for it, and a folder `made` for what is made of them.
pub(crate) struct Desk {
    pub(crate) root: tempfile::TempDir,
    pub(crate) model: PathBuf,
    pub(crate) text: PathBuf,
}

impl Desk {
    pub(crate) fn with(model: &str) -> Self {
        let root = tempfile::tempdir().unwrap();
        let (model, text) = (tiny(model, root.path()), tiny_text(root.path()));
        fs::create_dir(root.path().join("made")).unwrap();
        Self { root, model, text }
    }

    pub(crate) fn made(&self) -> PathBuf {
        self.root.path().join("made")
    }
}
