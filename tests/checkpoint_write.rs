//! What writing a model leaves on the disk: the whole of it, or nothing.

#![allow(clippy::unwrap_used, reason = "a failing test is to panic")]

#[path = "support/checkpoints.rs"]
mod support;

use std::fs;
use std::path::{Path, PathBuf};

use bantam::checkpoint::{
    Checkpoint, DataOrder, ModelWriter, TensorInfo, TensorSpec, WriteOptions, WrittenModel,
};
use bantam::error::{Error, OutputProblem, Result};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use support::{contents, f32_bytes, names, write_checkpoint, write_sharded};

/// Tensors of every odd kind: scalars, empty ones, bytes, booleans, eight-bit floats.
fn write_source(folder: &Path) {
    let floats = f32_bytes(&[1.5, -2.0, 0.0, 3.0e-39, 5.0, 6.0]);
    let longs: Vec<u8> = (0..40_u8).map(|i| 255 - i).collect();
    write_checkpoint(
        folder,
        &json!({ "model_type": "llama", "tie_word_embeddings": true }),
        &[
            ("embed.weight", Dtype::F32, &[2, 3], &floats),
            ("scalar", Dtype::F16, &[], &[0x00, 0x3c]),
            ("ids", Dtype::I64, &[1, 5], &longs),
            ("empty", Dtype::BF16, &[4, 0], &[]),
            ("mask", Dtype::BOOL, &[3], &[1, 0, 1]),
            ("quant", Dtype::F8_E4M3, &[2, 2], &[0x7f, 0xff, 1, 2]),
            ("norm", Dtype::BF16, &[3], &[0x80, 0x3f, 0x00, 0x40, 0x40, 0x40]),
            ("bytes", Dtype::U8, &[5], b"abcde"),
        ],
    );
    fs::write(folder.join("tokenizer.json"), "{\"é\": 1}").unwrap();
    fs::write(folder.join("pytorch_model.bin"), "stale").unwrap();
    fs::write(folder.join("README.md"), "card\r\n").unwrap();
    fs::create_dir(folder.join("additional_chat_templates")).unwrap();
    fs::write(folder.join("additional_chat_templates/tool.jinja"), "{{ x }}").unwrap();
}

fn source(root: &Path) -> Checkpoint {
    write_source(&root.join("in"));
    Checkpoint::open(&root.join("in")).unwrap()
}

fn specs(source: &Checkpoint) -> Vec<TensorSpec> {
    source.tensors().map(TensorInfo::spec).collect()
}

fn shards_of(max_shard_size: u64) -> WriteOptions {
    WriteOptions { max_shard_size, ..WriteOptions::default() }
}

fn overwriting() -> WriteOptions {
    WriteOptions { overwrite: true, ..WriteOptions::default() }
}

/// Copies every tensor of `source` to `out`.
fn copy_all(source: &Checkpoint, out: &Path, options: &WriteOptions) -> Result<WrittenModel> {
    let mut writer = ModelWriter::create(out, source, specs(source), options)?;
    for tensor in source.tensors() {
        writer.copy(source, tensor)?;
    }
    writer.finish(source.config(), &json!({ "version": "0" }))
}

fn assert_same_tensors(one: &Checkpoint, two: &Checkpoint) {
    assert_eq!(one.tensors().len(), two.tensors().len());
    for tensor in one.tensors() {
        let copy = two.require(&tensor.name).unwrap();
        assert_eq!(copy.spec(), tensor.spec());
        assert_eq!(one.bytes(tensor).unwrap(), two.bytes(copy).unwrap(), "{}", tensor.name);
    }
}

fn refused(result: Result<ModelWriter>) -> OutputProblem {
    match result {
        Err(Error::Output { problem, .. }) => problem,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_model_in_one_file_comes_back_byte_for_byte() {
    let root = tempfile::tempdir().unwrap();
    let source = source(root.path());
    let before = contents(source.root());
    let out = root.path().join("out");
    let written = copy_all(&source, &out, &WriteOptions::default()).unwrap();
    let expected = WrittenModel { path: out.clone(), weight_bytes: 84, shards: 1 };
    assert_eq!(written, expected);
    let expected = [
        "README.md",
        "additional_chat_templates",
        "bantam.json",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ];
    assert_eq!(names(&out), expected);
    for same in
        ["README.md", "config.json", "tokenizer.json", "additional_chat_templates/tool.jinja"]
    {
        let (original, copy) = (source.root().join(same), out.join(same));
        assert_eq!(fs::read(copy).unwrap(), fs::read(original).unwrap(), "{same}");
    }
    let manifest = fs::read_to_string(out.join("bantam.json")).unwrap();
    assert_eq!(manifest, "{\n  \"version\": \"0\"\n}\n");
    assert_same_tensors(&source, &Checkpoint::open(&out).unwrap());
    assert_eq!(contents(source.root()), before);
    assert_eq!(names(root.path()), ["in", "out"]);

    let file = fs::read(out.join("model.safetensors")).unwrap();
    let theirs = SafeTensors::deserialize(&file).unwrap();
    for tensor in source.tensors() {
        assert_eq!(theirs.tensor(&tensor.name).unwrap().data(), source.bytes(tensor).unwrap());
    }
    let (_, metadata) = SafeTensors::read_metadata(&file).unwrap();
    let metadata: Vec<_> = metadata.metadata().as_ref().unwrap().iter().collect();
    assert_eq!(metadata, [(&"format".to_owned(), &"pt".to_owned())]);
}

#[test]
fn shards_are_filled_in_order_and_indexed() {
    let root = tempfile::tempdir().unwrap();
    let source = source(root.path());
    let out = root.path().join("out");
    // Sizes 24, 2, 40, 0, 3, 4, 6, 5: the third is alone though larger than a shard.
    let written = copy_all(&source, &out, &shards_of(26)).unwrap();
    assert_eq!((written.shards, written.weight_bytes), (3, 84));
    let index: Value =
        serde_json::from_slice(&fs::read(out.join("model.safetensors.index.json")).unwrap())
            .unwrap();
    let shard = |i: usize| format!("model-{i:05}-of-00003.safetensors");
    let expected = json!({
        "metadata": { "total_size": 84 },
        "weight_map": {
            "bytes": shard(3), "embed.weight": shard(1), "empty": shard(3), "ids": shard(2),
            "mask": shard(3), "norm": shard(3), "quant": shard(3), "scalar": shard(1),
        }
    });
    assert_eq!(index, expected);
    // Also the order of the keys: sorted.
    assert_eq!(index.to_string(), expected.to_string());
    assert_same_tensors(&source, &Checkpoint::open(&out).unwrap());

    // A sharded source, its stale index and shard names left behind.
    let again = root.path().join("again");
    let sharded = Checkpoint::open(&out).unwrap();
    copy_all(&sharded, &again, &WriteOptions::default()).unwrap();
    assert!(!again.join("model.safetensors.index.json").exists());
    assert_same_tensors(&source, &Checkpoint::open(&again).unwrap());
}

#[test]
fn the_same_inputs_give_the_same_bytes() {
    let root = tempfile::tempdir().unwrap();
    let source = source(root.path());
    let (one, two) = (root.path().join("one"), root.path().join("two"));
    for out in [&one, &two] {
        copy_all(&source, out, &shards_of(30)).unwrap();
    }
    assert_eq!(contents(&one), contents(&two));
}

#[test]
fn data_stand_in_the_order_asked_for() {
    let root = tempfile::tempdir().unwrap();
    let source = source(root.path());
    let order = |name: &str, data_order| {
        let out = root.path().join(name);
        copy_all(&source, &out, &WriteOptions { data_order, ..WriteOptions::default() }).unwrap();
        let written = Checkpoint::open(&out).unwrap();
        written.tensors().map(|tensor| tensor.name.clone()).collect::<Vec<_>>()
    };
    let given: Vec<_> = source.tensors().map(|tensor| tensor.name.clone()).collect();
    assert_eq!(order("given", DataOrder::AsGiven), given);
    // `ids` would begin at byte 26, and I64 has to begin at a multiple of 8.
    let aligned = ["ids", "embed.weight", "scalar", "empty", "norm", "mask", "quant", "bytes"];
    assert_eq!(order("aligned", DataOrder::Aligned), aligned);
}

#[test]
fn nothing_is_left_of_a_writer_that_does_not_finish() {
    let root = tempfile::tempdir().unwrap();
    let source = source(root.path());
    let out = root.path().join("new/out");
    let mut writer = ModelWriter::create(&out, &source, specs(&source), &shards_of(30)).unwrap();
    let hidden = root.path().join("new");
    for tensor in source.tensors() {
        writer.copy(&source, tensor).unwrap();
        // What is there so far is no model, and is not named like the output.
        let [folder] = names(&hidden).try_into().unwrap();
        assert!(folder.starts_with(".out.bantam-partial-"), "{folder}");
        assert!(names(&hidden.join(folder)).iter().all(|name| name.ends_with(".safetensors")));
    }
    drop(writer);
    assert_eq!(names(root.path()), ["in"]);
}

#[test]
fn tensors_come_as_planned_or_it_is_a_bug() {
    let root = tempfile::tempdir().unwrap();
    let source = source(root.path());
    let out = root.path().join("out");
    let plan = vec![
        TensorSpec::new("a", Dtype::F32, [2]),
        TensorSpec::new("b", Dtype::BF16, [3]),
        TensorSpec::new("ids", Dtype::I64, [5]),
    ];
    let create =
        || ModelWriter::create(&out, &source, plan.clone(), &WriteOptions::default()).unwrap();
    let bug = |result: Result<()>, says: &str| match result {
        Err(Error::Bug(message)) => assert!(message.contains(says), "{message}"),
        other => panic!("{other:?}"),
    };
    let mut writer = create();
    assert_eq!(writer.expected().unwrap().name, "a");
    bug(writer.write("b", &[0; 6]), "tensor `b` came where `a` was planned");
    bug(writer.write("a", &[0; 9]), "8 bytes were planned, 9 came");
    bug(writer.write("a", &[0; 4]), "8 bytes were planned, 4 came");
    bug(writer.write_parts("a", [&[0; 3][..], &[0; 5]]), "inside an element");
    bug(writer.copy_as("a", &source, source.require("scalar").unwrap()), "is planned as F32 [2]");
    writer.write("a", &[0; 8]).unwrap();
    writer.write_parts("b", [&[0; 2][..], &[], &[0; 4]]).unwrap();
    // The shape is part of the plan, not only the size.
    bug(writer.copy(&source, source.require("ids").unwrap()), "[5] and copied from I64 [1, 5]");
    writer.write("ids", &[0; 40]).unwrap();
    assert!(writer.expected().is_none());
    bug(writer.write("ids", &[0; 40]), "`no tensor` was planned");
    let written = writer.finish(source.config(), &json!({})).unwrap();
    assert_eq!(written.weight_bytes, 54);

    let unfinished = ModelWriter::create(&out, &source, plan.clone(), &overwriting()).unwrap();
    bug(
        unfinished.finish(source.config(), &json!({})).map(drop),
        "3 planned tensors were not written",
    );
    assert_eq!(names(root.path()), ["in", "out"]);
}

#[test]
fn copies_and_parts_take_new_names() {
    let root = tempfile::tempdir().unwrap();
    let source = source(root.path());
    let out = root.path().join("out");
    let plan = vec![
        TensorSpec::new("experts.0", Dtype::BF16, [3]),
        TensorSpec::new("rows", Dtype::F32, [1, 3]),
    ];
    let mut writer = ModelWriter::create(&out, &source, plan, &WriteOptions::default()).unwrap();
    let norm = source.require("norm").unwrap();
    writer.copy_as("experts.0", &source, norm).unwrap();
    let rows = source.bytes(source.require("embed.weight").unwrap()).unwrap();
    writer.write_parts("rows", rows[12..].chunks(4)).unwrap();
    let mut config = source.config().clone();
    config.set("bantam", json!({ "experts": 1 }));
    writer.finish(&config, &json!({})).unwrap();
    let written = Checkpoint::open(&out).unwrap();
    let data = |name| written.bytes(written.require(name).unwrap()).unwrap();
    assert_eq!(data("experts.0"), source.bytes(norm).unwrap());
    assert_eq!(data("rows"), &rows[12..]);
    assert_eq!(written.config().usize("bantam.experts").unwrap(), Some(1));
    assert_eq!(written.config().bool("tie_word_embeddings").unwrap(), Some(true));
}

#[test]
fn values_that_are_not_finite_are_not_written() {
    let root = tempfile::tempdir().unwrap();
    let input = root.path().join("in");
    // More than one chunk of copying, with the bad value in the second.
    let mut values = vec![1.0; (8 << 20) / 4 + 100];
    values[(8 << 20) / 4 + 7] = f32::INFINITY;
    let bytes = f32_bytes(&values);
    write_sharded(&input, &json!({}), &[&[("big", Dtype::F32, &[values.len()], &bytes)]]);
    let source = Checkpoint::open(&input).unwrap();
    let out = root.path().join("out");
    let error = copy_all(&source, &out, &WriteOptions::default()).unwrap_err();
    let at = (8 << 20) / 4 + 7;
    assert!(
        matches!(&error, Error::NonFiniteTensor { tensor, index } if tensor == "big" && *index == at),
        "{error}"
    );
    let plan = vec![TensorSpec::new("h", Dtype::F16, [2])];
    let mut writer = ModelWriter::create(&out, &source, plan, &WriteOptions::default()).unwrap();
    let error = writer.write("h", &[0, 0x3c, 0, 0x7c]).unwrap_err();
    assert!(matches!(error, Error::NonFiniteTensor { index: 1, .. }), "{error}");
    drop(writer);
    assert_eq!(names(root.path()), ["in"]);
}

#[test]
fn an_output_that_holds_something_is_replaced_only_if_it_is_a_model() {
    let root = tempfile::tempdir().unwrap();
    let source = source(root.path());
    let out = root.path().join("out");
    let create =
        |options: WriteOptions| ModelWriter::create(&out, &source, specs(&source), &options);

    fs::create_dir(&out).unwrap();
    copy_all(&source, &out, &WriteOptions::default()).unwrap();
    assert_eq!(refused(create(WriteOptions::default())), OutputProblem::NotEmpty);

    fs::write(out.join("left-over.txt"), "").unwrap();
    drop(create(overwriting()).unwrap());
    assert!(out.join("left-over.txt").exists(), "nothing happens before the end");
    copy_all(&source, &out, &overwriting()).unwrap();
    assert!(!out.join("left-over.txt").exists());
    assert_same_tensors(&source, &Checkpoint::open(&out).unwrap());

    fs::remove_file(out.join("config.json")).unwrap();
    assert_eq!(refused(create(overwriting())), OutputProblem::NotAModel);
    fs::remove_dir_all(&out).unwrap();
    // A project with a config.json is not a model either.
    fs::create_dir(&out).unwrap();
    fs::write(out.join("config.json"), "{}").unwrap();
    fs::write(out.join("index.js"), "").unwrap();
    assert_eq!(refused(create(overwriting())), OutputProblem::NotAModel);
    assert_eq!(names(root.path()), ["in", "out"]);
}

#[test]
fn the_output_keeps_away_from_the_input() {
    let root = tempfile::tempdir().unwrap();
    let input = root.path().join("models/in");
    fs::create_dir(root.path().join("models")).unwrap();
    write_source(&input);
    let source = Checkpoint::open(&input).unwrap();
    let before = contents(&input);
    let outs: [PathBuf; 5] = [
        input.clone(),
        input.join("out"),
        input.join("../in/new/out"),
        root.path().join("models"),
        root.path().to_owned(),
    ];
    for out in outs {
        let problem = refused(ModelWriter::create(&out, &source, specs(&source), &overwriting()));
        assert!(matches!(problem, OutputProblem::OverlapsInput { .. }), "{out:?}: {problem}");
    }
    assert_eq!(contents(&input), before);
    // A neighbour whose name begins alike is not inside.
    copy_all(&source, &root.path().join("models/in2"), &WriteOptions::default()).unwrap();
}

#[cfg(unix)]
#[test]
fn links_do_not_hide_the_input() {
    use std::os::unix::fs::symlink;
    let root = tempfile::tempdir().unwrap();
    let real = root.path().join("real");
    write_source(&real);
    // A folder of links, as the Hub's cache makes them; the output would be where they lead.
    let input = root.path().join("in");
    fs::create_dir(&input).unwrap();
    for name in ["config.json", "model.safetensors"] {
        symlink(real.join(name), input.join(name)).unwrap();
    }
    symlink(&input, root.path().join("alias")).unwrap();
    symlink(root.path().join("nowhere"), root.path().join("dangling")).unwrap();
    let source = Checkpoint::open(&input).unwrap();
    let create = |name: &str| {
        ModelWriter::create(&root.path().join(name), &source, specs(&source), &overwriting())
    };
    for name in ["real", "alias", "alias/out"] {
        let problem = refused(create(name));
        assert!(matches!(problem, OutputProblem::OverlapsInput { .. }), "{name}: {problem}");
    }
    assert_eq!(refused(create("dangling")), OutputProblem::NotAFolder);
    assert_eq!(names(&real).len(), 6);

    // An output that is a link to a folder stays a link.
    fs::create_dir(root.path().join("disk")).unwrap();
    symlink(root.path().join("disk"), root.path().join("out")).unwrap();
    copy_all(&source, &root.path().join("out"), &WriteOptions::default()).unwrap();
    assert!(root.path().join("out").is_symlink());
    assert_same_tensors(&source, &Checkpoint::open(&root.path().join("disk")).unwrap());
}

#[cfg(unix)]
#[test]
fn the_output_is_as_readable_as_any_new_folder() {
    use std::os::unix::fs::PermissionsExt;
    let root = tempfile::tempdir().unwrap();
    let source = source(root.path());
    let out = root.path().join("out");
    copy_all(&source, &out, &WriteOptions::default()).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&out), mode(source.root()));
}
