//! Model names and the local Hub cache, with its links.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a failing test is to panic")]

#[path = "support/checkpoints.rs"]
mod support;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use bantam::checkpoint::{Checkpoint, HubEnv, resolve};
use bantam::error::Error;
use safetensors::Dtype;
use serde_json::json;
use support::{safetensors_file, write_checkpoint};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A cache with `org/name` at one commit, as `hf download` leaves it.
fn cache(root: &Path) -> HubEnv {
    let model = root.join("hub/models--org--name");
    let snapshot = model.join("snapshots").join(COMMIT);
    for folder in [&model.join("blobs"), &model.join("refs/refs/pr"), &snapshot] {
        fs::create_dir_all(folder).unwrap();
    }
    fs::write(model.join("refs/main"), COMMIT).unwrap();
    fs::write(model.join("refs/refs/pr/1"), format!("{COMMIT}\n")).unwrap();
    fs::write(model.join("refs/gone"), "f".repeat(40)).unwrap();
    let weights = safetensors_file(&[("w", Dtype::U8, &[3], b"abc")]);
    let files = [
        ("config.json", "1a", b"{}".to_vec()),
        ("model.safetensors", "2b", weights),
        ("tokenizer.json", "3c", b"[]".to_vec()),
    ];
    for (name, etag, bytes) in files {
        fs::write(model.join("blobs").join(etag), bytes).unwrap();
        symlink(format!("../../blobs/{etag}"), snapshot.join(name)).unwrap();
    }
    HubEnv { hf_home: Some(root.to_owned()), ..HubEnv::default() }
}

#[test]
fn a_cached_model_is_found_by_name_branch_and_commit() {
    let root = tempfile::tempdir().unwrap();
    let env = cache(root.path());
    let snapshot = root.path().join("hub/models--org--name/snapshots").join(COMMIT);
    for model in ["org/name", "org/name@main", "org/name@refs/pr/1", &format!("org/name@{COMMIT}")]
    {
        assert_eq!(resolve(model, &env).unwrap(), snapshot, "{model}");
    }
    let checkpoint = Checkpoint::open(&snapshot).unwrap();
    assert_eq!(checkpoint.bytes(checkpoint.require("w").unwrap()).unwrap(), b"abc");
    assert_eq!(checkpoint.side_files().unwrap(), [snapshot.join("tokenizer.json")]);
}

#[test]
fn what_is_not_cached_says_where_it_was_looked_for() {
    let root = tempfile::tempdir().unwrap();
    let env = cache(root.path());
    let hub = root.path().join("hub");
    let looked_for = |model: &str| -> PathBuf {
        match resolve(model, &env) {
            Err(Error::NotInHubCache { looked_for, .. }) => {
                looked_for.strip_prefix(&hub).unwrap().to_owned()
            }
            other => panic!("{model}: {other:?}"),
        }
    };
    assert_eq!(looked_for("org/other"), Path::new("models--org--other"));
    assert_eq!(looked_for("gpt2"), Path::new("models--gpt2"));
    assert_eq!(looked_for("org/name@v2"), Path::new("models--org--name/refs/v2"));
    let gone = Path::new("models--org--name/snapshots").join("f".repeat(40));
    assert_eq!(looked_for("org/name@gone"), gone);
    let error = resolve("org/other@v2", &env).unwrap_err();
    assert_eq!(
        error.hint().unwrap().to_string(),
        "run `hf download org/other --revision v2`, or give a folder"
    );
}

#[test]
fn folders_win_and_paths_are_not_names() {
    let root = tempfile::tempdir().unwrap();
    let env = cache(root.path());
    let folder = root.path().join("here@v1");
    write_checkpoint(&folder, &json!({}), &[]);
    assert_eq!(resolve(folder.to_str().unwrap(), &env).unwrap(), folder);
    let file = folder.join("model.safetensors");
    let error = resolve(file.to_str().unwrap(), &env).unwrap_err();
    assert!(matches!(error, Error::NotAFolder { .. }), "{error}");
    for path in ["./org/name", "/org/name", "a/b/c", "org/name@../../x", "org/name@"] {
        let error = resolve(path, &env).unwrap_err();
        assert!(matches!(error, Error::Missing { .. }), "{path}: {error}");
    }
}
