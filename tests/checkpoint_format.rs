//! What opening a checkpoint accepts, what it refuses, and by which name.

#![allow(clippy::unwrap_used, reason = "a failing test is to panic")]

#[path = "support/checkpoints.rs"]
mod support;

use std::fs;

use bantam::checkpoint::header::{Header, encode};
use bantam::checkpoint::{Checkpoint, TensorSpec};
use bantam::error::{Error, HeaderProblem, IndexProblem};
use proptest::prelude::*;
use safetensors::tensor::{SafeTensors, TensorView};
use safetensors::{Dtype, serialize};
use serde_json::json;
use support::{f32_bytes, file_with_header, safetensors_file, write_checkpoint, write_sharded};

const DTYPES: [Dtype; 10] = [
    Dtype::BOOL,
    Dtype::U8,
    Dtype::F8_E4M3,
    Dtype::F4,
    Dtype::I16,
    Dtype::F16,
    Dtype::BF16,
    Dtype::F32,
    Dtype::I64,
    Dtype::C64,
];

/// Tensors of any dtype and shape, with data that follow from a seed.
fn tensors() -> impl Strategy<Value = Vec<(TensorSpec, Vec<u8>)>> {
    let shape = prop::collection::vec(0_usize..5, 0..4);
    let one = (0..DTYPES.len(), shape, any::<u8>()).prop_map(|(dtype, mut shape, seed)| {
        if DTYPES[dtype] == Dtype::F4 {
            shape.push(2);
        }
        let spec = TensorSpec::new("", DTYPES[dtype], shape);
        let bytes = (0..spec.bytes()).map(|i| seed.wrapping_add(i.to_le_bytes()[0])).collect();
        (spec, bytes)
    });
    let names = prop::collection::hash_set("[a-z\"\\\\é.0-9]{1,12}", 0..8);
    (names, prop::collection::vec(one, 8)).prop_map(|(names, tensors)| {
        let pairs = names.into_iter().zip(tensors);
        pairs.map(|(name, (spec, bytes))| (TensorSpec { name, ..spec }, bytes)).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    #[test]
    fn theirs_reads_what_ours_writes(tensors in tensors()) {
        let mut file = encode(tensors.iter().map(|(spec, _)| spec)).unwrap();
        prop_assert!(file.len().is_multiple_of(8));
        file.extend(tensors.iter().flat_map(|(_, bytes)| bytes));
        let theirs = SafeTensors::deserialize(&file).unwrap();
        prop_assert_eq!(theirs.len(), tensors.len());
        for (spec, bytes) in &tensors {
            let view = theirs.tensor(&spec.name).unwrap();
            prop_assert_eq!(view.dtype(), spec.dtype);
            prop_assert_eq!(view.shape(), spec.shape.as_slice());
            prop_assert_eq!(view.data(), bytes.as_slice());
        }
        let (ours, _) = Header::read(&mut file.as_slice(), file.len() as u64).unwrap().unwrap();
        let read = ours.tensors.iter().map(|t| TensorSpec::new(&t.name, t.dtype, t.shape.clone()));
        prop_assert!(read.eq(tensors.iter().map(|(spec, _)| spec.clone())));
    }

    #[test]
    fn ours_reads_what_theirs_writes(tensors in tensors()) {
        let views = tensors.iter().map(|(spec, bytes)| {
            (&spec.name, TensorView::new(spec.dtype, spec.shape.clone(), bytes).unwrap())
        });
        let file = serialize(views, None).unwrap();
        let (ours, _) = Header::read(&mut file.as_slice(), file.len() as u64).unwrap().unwrap();
        prop_assert_eq!(ours.tensors.len(), tensors.len());
        for (spec, bytes) in &tensors {
            let tensor = ours.tensors.iter().find(|t| t.name == spec.name).unwrap();
            prop_assert_eq!((tensor.dtype, &tensor.shape), (spec.dtype, &spec.shape));
            let range = usize::try_from(tensor.range.start).unwrap()..usize::try_from(tensor.range.end).unwrap();
            prop_assert_eq!(&file[range], bytes.as_slice());
        }
    }
}

fn small_file() -> Vec<u8> {
    safetensors_file(&[
        ("w", Dtype::F32, &[2, 2], &f32_bytes(&[1.0, 2.0, 3.0, 4.0])),
        ("none", Dtype::BF16, &[0], &[]),
        ("b", Dtype::I64, &[], &7_i64.to_le_bytes()),
    ])
}

/// Every header that one wrong byte can make is refused, or consistent, and fine for theirs too.
#[test]
fn any_changed_header_byte_is_refused_or_harmless() {
    let good = small_file();
    let header_end = good.len() - 24;
    let mut harmless = 0;
    for at in 0..header_end {
        for value in 0..=u8::MAX {
            let mut file = good.clone();
            file[at] = value;
            let Ok((header, _)) = Header::read(&mut file.as_slice(), file.len() as u64).unwrap()
            else {
                continue;
            };
            harmless += 1;
            let mut end = header.data_start;
            for tensor in &header.tensors {
                assert_eq!(tensor.range.start, end);
                end = tensor.range.end;
                let spec = TensorSpec::new("", tensor.dtype, tensor.shape.clone());
                assert_eq!(spec.bytes(), tensor.range.end - tensor.range.start);
            }
            assert_eq!(end, file.len() as u64);
            assert!(SafeTensors::deserialize(&file).is_ok(), "byte {at} = {value:#x}");
        }
    }
    // The file itself, once for every byte, and letters of names.
    assert!(harmless > header_end, "only {harmless} of so many headers are accepted");
}

#[test]
fn every_truncation_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let good = small_file();
    write_checkpoint(folder.path(), &json!({}), &[]);
    let file = folder.path().join("model.safetensors");
    for length in 0..good.len() {
        fs::write(&file, &good[..length]).unwrap();
        let error = Checkpoint::open(folder.path()).unwrap_err();
        assert!(matches!(error, Error::Header { .. }), "{length}: {error}");
    }
    fs::write(&file, [&good[..], b"x"].concat()).unwrap();
    let error = Checkpoint::open(folder.path()).unwrap_err();
    let problem = HeaderProblem::DataLength { expected: 24, found: 25 };
    assert!(matches!(error, Error::Header { problem: p, .. } if p == problem));
}

type Check = fn(&HeaderProblem) -> bool;

#[test]
fn every_header_problem_has_its_name() {
    use HeaderProblem as P;
    let entry = |dtype: &str, shape: &str, offsets: &str| {
        format!(r#"{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}"#)
    };
    let u8s = |offsets: &str, count: usize| entry("U8", &format!("[{count}]"), offsets);
    let (first, second) = (u8s("[0,4]", 4), u8s("[4,8]", 4));
    let two = |a: &str, b: &str| format!(r#"{{"a":{a},"b":{b}}}"#);
    let one = |a: &str| format!(r#"{{"a":{a}}}"#);
    let table: Vec<(String, Check)> = vec![
        (String::new(), |p| matches!(p, P::NoBrace { .. })),
        (" {}".into(), |p| matches!(p, P::NoBrace { .. })),
        ("{\"a\": }".into(), |p| matches!(p, P::NotJson { .. })),
        ("{} {}".into(), |p| matches!(p, P::NotJson { .. })),
        (
            one(r#"{"dtype":"U8","shape":[8]}"#),
            |p| matches!(p, P::NotJson { message } if message.contains("`a`")),
        ),
        (one(&entry("U8", "[-8]", "[0,8]")), |p| matches!(p, P::NotJson { .. })),
        (one(&entry("U8", "[8.0]", "[0,8]")), |p| matches!(p, P::NotJson { .. })),
        (one(&entry("U8", "[8]", "[0,8,9]")), |p| matches!(p, P::NotJson { .. })),
        (one(&entry("U8", "[8]", r#"[0,8],"dtype":"I8""#)), |p| matches!(p, P::NotJson { .. })),
        (
            r#"{"__metadata__":{"format":1}}"#.into(),
            |p| matches!(p, P::NotJson { message } if message.contains("__metadata__")),
        ),
        (r#"{"__metadata__":{},"__metadata__":{}}"#.into(), |p| matches!(p, P::Duplicate { .. })),
        (
            format!(r#"{{"a":{first},"a":{second}}}"#),
            |p| matches!(p, P::Duplicate { name } if name == "a"),
        ),
        (format!(r#"{{"a":{first},"\u0061":{second}}}"#), |p| matches!(p, P::Duplicate { .. })),
        (
            one(&entry("Q4", "[8]", "[0,8]")),
            |p| matches!(p, P::UnknownDtype { dtype, .. } if dtype == "Q4"),
        ),
        (one(&entry("u8", "[8]", "[0,8]")), |p| matches!(p, P::UnknownDtype { .. })),
        (one(&entry("F32", "[9223372036854775807,9]", "[0,8]")), |p| {
            matches!(p, P::ShapeOverflow { .. })
        }),
        (one(&entry("F32", "[18446744073709551615]", "[0,8]")), |p| {
            matches!(p, P::ShapeOverflow { .. })
        }),
        (one(&entry("F4", "[3]", "[0,2]")), |p| matches!(p, P::NotWholeBytes { bits: 12, .. })),
        (one(&entry("F32", "[3]", "[0,8]")), |p| matches!(p, P::WrongSpan { expected: 12, .. })),
        (one(&u8s("[8,0]", 8)), |p| matches!(p, P::WrongSpan { start: 8, end: 0, .. })),
        (two(&first, &u8s("[5,8]", 3)), |p| {
            matches!(p, P::NotContiguous { expected: 4, found: 5, .. })
        }),
        (two(&first, &u8s("[3,8]", 5)), |p| {
            matches!(p, P::NotContiguous { expected: 4, found: 3, .. })
        }),
        (one(&u8s("[1,8]", 7)), |p| matches!(p, P::NotContiguous { expected: 0, .. })),
        (one(&u8s("[18446744073709551608,18446744073709551615]", 7)), |p| {
            matches!(p, P::NotContiguous { .. })
        }),
        (one(&u8s("[0,18446744073709551615]", 4)), |p| matches!(p, P::WrongSpan { .. })),
        (one(&u8s("[0,7]", 7)), |p| matches!(p, P::DataLength { expected: 7, found: 8 })),
        (one(&u8s("[0,9]", 9)), |p| matches!(p, P::DataLength { expected: 9, found: 8 })),
        ("{}".into(), |p| matches!(p, P::DataLength { expected: 0, found: 8 })),
    ];
    let problem =
        |file: &[u8]| Header::read(&mut &file[..], file.len() as u64).unwrap().unwrap_err();
    for (header, is_expected) in table {
        let found = problem(&file_with_header(&header, &[0; 8]));
        assert!(is_expected(&found), "{header}: {found:?}");
    }
    assert!(matches!(problem(&[0; 7]), P::NoLength { file: 7 }));
    assert!(matches!(problem(&[0; 8]), P::NoBrace { .. }));
    assert!(matches!(problem(&9_u64.to_le_bytes()), P::PastEnd { length: 9, file: 8 }));
    assert!(matches!(problem(&u64::MAX.to_le_bytes()), P::TooLong { length: u64::MAX, .. }));
    assert!(matches!(problem(&100_000_001_u64.to_le_bytes()), P::TooLong { .. }));
    let not_utf8 = [&3_u64.to_le_bytes()[..], b"{\xff}"].concat();
    assert!(matches!(problem(&not_utf8), P::NotUtf8 { at: 1 }));
    // Empty tensors share an offset with a neighbour, wherever they are listed.
    let empty = format!(r#"{{"a":{first},"e":{},"b":{second}}}"#, u8s("[4,4]", 0));
    let file = file_with_header(&empty, &[0; 8]);
    assert!(Header::read(&mut &file[..], file.len() as u64).unwrap().is_ok());
}

#[test]
fn every_index_problem_has_its_name() {
    use IndexProblem as P;
    let bytes = [0; 4];
    let tensor = |name| (name, Dtype::U8, &[4_usize][..], &bytes[..]);
    let (one, two) = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors");
    let problem = |second: &'static str, index: &str| {
        let folder = tempfile::tempdir().unwrap();
        write_sharded(folder.path(), &json!({}), &[&[tensor("a")], &[tensor(second)]]);
        fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
        match Checkpoint::open(folder.path()) {
            Err(Error::Index { problem, .. }) => problem,
            other => panic!("{other:?}"),
        }
    };
    let map = |pairs: &[(&str, &str)]| {
        let map: serde_json::Map<_, _> =
            pairs.iter().map(|&(tensor, shard)| (tensor.into(), shard.into())).collect();
        json!({ "weight_map": map }).to_string()
    };
    assert!(matches!(problem("b", "{}"), P::NotAnIndex { .. }));
    assert!(matches!(problem("b", &map(&[("a", "../x.safetensors")])), P::ShardName { .. }));
    let missing = map(&[("a", one), ("b", two), ("c", "model-00003.safetensors")]);
    assert!(
        matches!(problem("b", &missing), P::ShardMissing { shard } if shard == "model-00003.safetensors")
    );
    let lacking = map(&[("a", one), ("b", two), ("c", two)]);
    assert!(matches!(problem("b", &lacking), P::TensorMissing { tensor, .. } if tensor == "c"));
    let swapped = map(&[("a", two), ("b", one)]);
    assert!(matches!(problem("b", &swapped), P::TensorMissing { tensor, .. } if tensor == "a"));
    let unnamed = map(&[("a", one), ("x", two)]);
    assert!(matches!(problem("b", &unnamed), P::TensorMissing { .. }));
    let twice = map(&[("a", one), ("b", two)]);
    assert!(
        matches!(problem("a", &twice), P::InTwoShards { first, second, .. } if first == one && second == two)
    );

    let folder = tempfile::tempdir().unwrap();
    write_sharded(folder.path(), &json!({}), &[&[tensor("a"), tensor("b")]]);
    let index = map(&[("a", "model-00001-of-00001.safetensors")]);
    fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
    let error = Checkpoint::open(folder.path()).unwrap_err();
    assert!(
        matches!(&error, Error::Index { problem: P::NotListed { tensor, .. }, .. } if tensor == "b")
    );
}
