//! What an open checkpoint tells, and how a folder that is none is refused.

#![allow(clippy::unwrap_used, reason = "a failing test is to panic")]

#[path = "support/checkpoints.rs"]
mod support;

use std::fs;
use std::io::Write;
use std::path::Path;

use bantam::checkpoint::header::encode;
use bantam::checkpoint::{Checkpoint, TensorSpec};
use bantam::error::{ConfigProblem, Error};
use safetensors::Dtype;
use serde_json::json;
use support::{f32_bytes, write_checkpoint, write_sharded};

#[test]
fn a_sharded_checkpoint_opens_in_file_order() {
    let folder = tempfile::tempdir().unwrap();
    let (x, y) = (f32_bytes(&[1.0, 2.0]), f32_bytes(&[3.0]));
    let first: &[support::Tensor<'_>] = &[("z", Dtype::F32, &[2], &x), ("a", Dtype::F32, &[], &y)];
    write_sharded(
        folder.path(),
        &json!({ "model_type": "t" }),
        &[first, &[("m", Dtype::U8, &[3], b"abc")]],
    );
    // The index comes first: a stray single file beside it is not read.
    fs::write(folder.path().join("model.safetensors"), "nonsense").unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let names: Vec<_> = checkpoint.tensors().map(|t| t.name.as_str()).collect();
    assert_eq!(names, ["z", "a", "m"]);
    assert_eq!(checkpoint.weight_bytes(), 15);
    assert_eq!(checkpoint.config().require_str("model_type").unwrap(), "t");
    for (name, bytes) in [("z", &x[..]), ("a", &y), ("m", b"abc")] {
        let tensor = checkpoint.require(name).unwrap();
        assert_eq!(checkpoint.bytes(tensor).unwrap(), bytes);
        checkpoint.release(tensor);
        assert_eq!(checkpoint.bytes(tensor).unwrap(), bytes);
    }
    let shard = checkpoint.file_of(checkpoint.require("m").unwrap());
    assert_eq!(shard, folder.path().join("model-00002-of-00002.safetensors"));
    assert!(matches!(
        checkpoint.require("q"),
        Err(Error::NoSuchTensor { tensor, .. }) if tensor == "q"
    ));
}

#[test]
fn what_is_no_checkpoint_is_refused_by_name() {
    let root = tempfile::tempdir().unwrap();
    let open = |name: &str| Checkpoint::open(&root.path().join(name)).unwrap_err();
    let file = |path: &str, text: &str| {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1234\n";

    assert!(matches!(open("nowhere"), Error::Missing { .. }));
    file("file", "");
    assert!(matches!(open("file"), Error::NotAFolder { .. }));
    fs::create_dir(root.path().join("empty")).unwrap();
    assert!(matches!(open("empty"), Error::Missing { path, .. } if path.ends_with("config.json")));

    for (weights, advice) in [
        ("pytorch_model.bin", "convert it to safetensors"),
        ("model-00001-of-00002.safetensors", "model.safetensors.index.json"),
        ("x.gguf", "GGUF"),
        ("notes.txt", "download the .safetensors"),
    ] {
        file(&format!("{weights}.d/config.json"), "{}");
        file(&format!("{weights}.d/{weights}"), "");
        let error = open(&format!("{weights}.d"));
        assert!(matches!(error, Error::NoWeights { .. }), "{error}");
        assert!(
            error.hint().unwrap().to_string().contains(advice),
            "{weights}: {:?}",
            error.hint()
        );
    }

    for (folder, config) in [("config", pointer), ("weights", "{}")] {
        file(&format!("lfs-{folder}/config.json"), config);
        file(&format!("lfs-{folder}/model.safetensors"), pointer);
        let error = open(&format!("lfs-{folder}"));
        assert!(matches!(error, Error::LfsPointer { .. }), "{error}");
        assert!(error.hint().unwrap().to_string().contains("git lfs pull"));
    }

    file("list/config.json", "[]");
    assert!(matches!(
        open("list"),
        Error::Config { problem: ConfigProblem::NotAnObject { .. }, .. }
    ));
    fs::create_dir_all(root.path().join("odd/model.safetensors")).unwrap();
    file("odd/config.json", "{}");
    assert!(
        matches!(open("odd"), Error::Missing { path, .. } if path.ends_with("model.safetensors"))
    );
}

/// A file of 8 GiB without data on the disk: opening it could not read it and be done.
#[test]
fn opening_touches_headers_only() {
    let folder = tempfile::tempdir().unwrap();
    write_checkpoint(folder.path(), &json!({}), &[]);
    let header = encode(&[TensorSpec::new("w", Dtype::F16, [1 << 22, 1 << 10])]).unwrap();
    let length = header.len() as u64 + (1 << 33);
    let path = folder.path().join("model.safetensors");
    fs::write(&path, header).unwrap();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(length).unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(checkpoint.weight_bytes(), 1 << 33);
}

#[test]
fn a_file_that_changes_its_length_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    write_checkpoint(folder.path(), &json!({}), &[("w", Dtype::U8, &[4], b"data")]);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let path = folder.path().join("model.safetensors");
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(10).unwrap();
    let error = checkpoint.bytes(checkpoint.require("w").unwrap()).unwrap_err();
    assert!(matches!(error, Error::Changed { found: 10, .. }), "{error}");

    // Where data pass through as where they are mapped, and where more is there as where less is.
    write_checkpoint(folder.path(), &json!({}), &[("w", Dtype::F32, &[1], &[0; 4])]);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"more").unwrap();
    let error = checkpoint.require_finite(checkpoint.require("w").unwrap()).unwrap_err();
    assert!(matches!(error, Error::Changed { .. }), "{error}");
}

#[test]
fn a_tensor_of_another_checkpoint_is_a_bug() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write_checkpoint(one.path(), &json!({}), &[("w", Dtype::U8, &[4], b"data")]);
    write_checkpoint(two.path(), &json!({}), &[("w", Dtype::U8, &[3], b"dat")]);
    let (one, two) = (Checkpoint::open(one.path()).unwrap(), Checkpoint::open(two.path()).unwrap());
    assert!(matches!(one.bytes(two.require("w").unwrap()), Err(Error::Bug(_))));
}

#[test]
fn the_fingerprint_follows_the_content_and_not_the_place() {
    let root = tempfile::tempdir().unwrap();
    let print = |name: &str, config: serde_json::Value, last: f32| {
        let folder = root.path().join(name);
        let norm = f32_bytes(&[1.0, last]);
        write_checkpoint(&folder, &config, &[("norm", Dtype::F32, &[2], &norm)]);
        Checkpoint::open(&folder).unwrap().fingerprint().unwrap()
    };
    let base = print("a", json!({ "x": 1 }), 2.0);
    assert_eq!(base.len(), 64);
    assert_eq!(base, print("b", json!({ "x": 1 }), 2.0));
    assert_ne!(base, print("c", json!({ "x": 2 }), 2.0));
    assert_ne!(base, print("d", json!({ "x": 1 }), 2.5));
}

#[test]
fn side_files_are_all_that_is_not_weights() {
    let folder = tempfile::tempdir().unwrap();
    write_checkpoint(folder.path(), &json!({}), &[]);
    for name in [
        "tokenizer.json",
        "LICENSE",
        "modeling_custom.py",
        "README.md",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        ".gitattributes",
        "bantam.json",
        "additional_chat_templates/tool.jinja",
        "onnx/model.json",
        "original/params.json",
    ] {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, name).unwrap();
    }
    let files = Checkpoint::open(folder.path()).unwrap().side_files().unwrap();
    let below: Vec<&Path> = files.iter().map(|f| f.strip_prefix(folder.path()).unwrap()).collect();
    let expected = [
        "LICENSE",
        "README.md",
        "additional_chat_templates/tool.jinja",
        "modeling_custom.py",
        "tokenizer.json",
    ];
    assert_eq!(below, expected.map(Path::new));
}
