//! The tensors of one analysis in a file: written whole, read one by one, each against its hash.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::atomic;
use crate::checkpoint::{Dtype, TensorFile};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::passes::{Analysis, Repairs, TensorSource};

/// What the journal says of an analysis.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Numbers that were mended.
    pub(super) repairs: Repairs,
    /// The options of the method that it was made with.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub(super) options: Value,
    /// sha256 of each tensor's bytes, in hex.
    pub(super) sha256: BTreeMap<String, String>,
}

/// Writes the tensors of `analysis` to `file`, which appears whole or not at all.
pub(super) fn write(
    file: &Path,
    analysis: &Analysis,
    options: Value,
    durable: bool,
) -> Result<Record> {
    let mut sha256 = BTreeMap::new();
    let tensors: BTreeMap<&str, &Tensor> = analysis.tensors().collect();
    let bytes = safetensors::serialize(tensors, None)
        .map_err(|e| Error::Bug(format!("an analysis for `{}`: {e}", file.display())))?;
    let written = SafeTensors::deserialize(&bytes).map_err(|e| Error::Bug(e.to_string()))?;
    for (name, view) in written.iter() {
        sha256.insert(name.to_owned(), digest(view.data()));
    }
    atomic::write(file, &bytes, durable)?;
    Ok(Record { repairs: analysis.repairs, options, sha256 })
}

fn digest(bytes: &[u8]) -> String {
    let mut digest = Digest::default();
    digest.update(bytes);
    digest.hex()
}

/// The tensors of an analysis file.
#[derive(Debug)]
pub(super) struct StoredTensors {
    file: PathBuf,
    record: Record,
    device: Device,
}

impl StoredTensors {
    pub(super) fn new(file: PathBuf, record: Record, device: Device) -> Self {
        Self { file, record, device }
    }

    fn damaged(&self, problem: impl Into<String>) -> Error {
        Error::InvalidFile {
            file: self.file.clone(),
            problem: problem.into(),
            hint: Some("delete the job folder and measure again".into()),
        }
    }

    /// dtype, shape and bytes of tensor `name`.
    fn bytes(&self, name: &str) -> Result<(Dtype, Vec<usize>, Vec<u8>)> {
        let damaged = |error: Error| match error {
            Error::Header { problem, .. } => self.damaged(problem.to_string()),
            other => other,
        };
        let file = TensorFile::open(&self.file).map_err(damaged)?;
        let missing = || self.damaged(format!("tensor `{name}` is not in it"));
        let info = file.get(name).ok_or_else(missing)?;
        Ok((info.dtype, info.shape.clone(), file.read(info)?))
    }
}

impl TensorSource for StoredTensors {
    fn has(&self, name: &str) -> bool {
        self.record.sha256.contains_key(name)
    }

    fn tensor(&self, name: &str) -> Result<Option<Tensor>> {
        let Some(expected) = self.record.sha256.get(name) else { return Ok(None) };
        let (dtype, shape, bytes) = self.bytes(name)?;
        if digest(&bytes) != *expected {
            return Err(
                self.damaged(format!("tensor `{name}` has other bytes than the journal recorded"))
            );
        }
        let dtype = match dtype {
            Dtype::F32 => DType::F32,
            Dtype::F64 => DType::F64,
            Dtype::F16 => DType::F16,
            Dtype::U8 => DType::U8,
            other => return Err(self.damaged(format!("tensor `{name}` is {other:?}"))),
        };
        Ok(Some(Tensor::from_raw_buffer(&bytes, dtype, &shape, &self.device)?))
    }
}
