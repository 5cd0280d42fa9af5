//! The tensors of one analysis in a file: written whole, read one by one, each against its hash.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use safetensors::tensor::Metadata;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};

use crate::atomic;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::passes::{Analysis, Repairs, TensorSource};

/// Headers longer than this are damage: an analysis has a handful of tensors.
const LONGEST_HEADER: u64 = 1 << 20;

/// What the journal says of an analysis.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Numbers that were mended.
    pub(super) repairs: Repairs,
    /// sha256 of each tensor's bytes, in hex.
    pub(super) sha256: BTreeMap<String, String>,
}

/// Writes the tensors of `analysis` to `file`, which appears whole or not at all.
pub(super) fn write(file: &Path, analysis: &Analysis, durable: bool) -> Result<Record> {
    let mut sha256 = BTreeMap::new();
    let tensors: BTreeMap<&str, &Tensor> = analysis.tensors().collect();
    let bytes = safetensors::serialize(tensors, None)
        .map_err(|e| Error::Bug(format!("an analysis for `{}`: {e}", file.display())))?;
    let written = SafeTensors::deserialize(&bytes).map_err(|e| Error::Bug(e.to_string()))?;
    for (name, view) in written.iter() {
        sha256.insert(name.to_owned(), digest(view.data()));
    }
    atomic::write(file, &bytes, durable)?;
    Ok(Record { repairs: analysis.repairs, sha256 })
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
        let failed = |e| Error::io("read", &self.file, e);
        let mut file = File::open(&self.file).map_err(failed)?;
        let mut length = [0; 8];
        file.read_exact(&mut length).map_err(failed)?;
        let length = u64::from_le_bytes(length);
        if length > LONGEST_HEADER {
            return Err(self.damaged(format!("its header claims {length} bytes")));
        }
        let mut header = Vec::new();
        Read::by_ref(&mut file).take(length).read_to_end(&mut header).map_err(failed)?;
        let metadata: Metadata =
            serde_json::from_slice(&header).map_err(|e| self.damaged(e.to_string()))?;
        let info = metadata
            .info(name)
            .ok_or_else(|| self.damaged(format!("tensor `{name}` is not in it")))?;
        let (start, end) = info.data_offsets;
        file.seek(SeekFrom::Start(8 + length + start as u64)).map_err(failed)?;
        let mut bytes = Vec::new();
        file.take((end - start) as u64).read_to_end(&mut bytes).map_err(failed)?;
        Ok((info.dtype, info.shape.clone(), bytes))
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
