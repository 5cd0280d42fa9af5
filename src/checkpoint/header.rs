//! Safetensors headers: one is checked whole before anything is done with it, and written so that
//! the same tensors give the same bytes.
//!
//! ```text
//! n: u64 LE │ n bytes of JSON, padded with spaces │ data, without holes, to the end of the file
//!           { "__metadata__": {"format": "pt"},
//!             "name": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}, … }
//! ```
//!
//! Nothing here reads or writes tensor data.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::io::Read;
use std::ops::Range;

use safetensors::Dtype;
use serde::de::value::{Error as NameError, StrDeserializer};
use serde::de::{Deserialize, Deserializer, Error as _, IntoDeserializer, MapAccess, Visitor};

use super::tensor::{TensorSpec, bit_size};
use crate::error::HeaderProblem;

/// The longest header the format allows, in bytes.
pub const MAX_HEADER_BYTES: u64 = 100_000_000;

/// The length prefix, in bytes.
const PREFIX: usize = 8;

/// The one entry that is not a tensor.
const METADATA: &str = "__metadata__";

/// A valid header: its tensors lie in the file without holes, and end where the file ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The tensors in the order of their data.
    pub tensors: Vec<HeaderTensor>,
    /// `__metadata__`, empty where there is none.
    pub metadata: BTreeMap<String, String>,
    /// Start of the data, in bytes from the file's start.
    pub data_start: u64,
}

/// One tensor of a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderTensor {
    /// The tensor's name, unique in the file.
    pub name: String,
    /// The type of its elements.
    pub dtype: Dtype,
    /// Its extents, outermost first.
    pub shape: Vec<usize>,
    /// Range of its data, in bytes from the file's start.
    pub range: Range<u64>,
}

impl Header {
    /// Checks the header of a file of `file_bytes` bytes; `json` is the part after the length prefix.
    ///
    /// # Errors
    /// The first thing that is wrong with it.
    pub fn parse(json: &[u8], file_bytes: u64) -> Result<Self, HeaderProblem> {
        match json.first() {
            Some(b'{') => {}
            Some(&byte) => {
                return Err(HeaderProblem::NoBrace { found: format!("byte 0x{byte:02x}") });
            }
            None => return Err(HeaderProblem::NoBrace { found: "nothing".into() }),
        }
        let text = std::str::from_utf8(json)
            .map_err(|e| HeaderProblem::NotUtf8 { at: e.valid_up_to() })?;
        let Entries { metadata, mut tensors } = serde_json::from_str(text)
            .map_err(|e| HeaderProblem::NotJson { message: e.to_string() })?;

        let mut names = HashSet::with_capacity(tensors.len());
        if let Some((name, _)) = tensors.iter().find(|(name, _)| !names.insert(name.as_str())) {
            return Err(HeaderProblem::Duplicate { name: name.clone() });
        }
        if metadata.len() > 1 {
            return Err(HeaderProblem::Duplicate { name: METADATA.into() });
        }

        let data_start = (PREFIX + json.len()) as u64;
        let data_bytes = file_bytes
            .checked_sub(data_start)
            .ok_or(HeaderProblem::PastEnd { length: json.len() as u64, file: file_bytes })?;
        // Stable, so that empty tensors, which share an offset, stay in the order they are listed.
        tensors.sort_by_key(|(_, entry)| entry.data_offsets);
        let mut end = 0;
        let mut checked = Vec::with_capacity(tensors.len());
        for (name, entry) in tensors {
            let tensor = entry.check(name, end, data_start)?;
            end = tensor.range.end - data_start;
            checked.push(tensor);
        }
        if end != data_bytes {
            return Err(HeaderProblem::DataLength { expected: end, found: data_bytes });
        }
        let metadata = metadata.into_iter().next().unwrap_or_default();
        Ok(Self { tensors: checked, metadata, data_start })
    }

    /// Reads and checks the header of a file of `file_bytes` bytes from its start, and gives back
    /// the bytes it took from the file, prefix and all.
    ///
    /// # Errors
    /// The outer error is the reader's; the inner one says what is wrong with the header.
    pub fn read(
        reader: &mut impl Read,
        file_bytes: u64,
    ) -> std::io::Result<Result<(Self, Vec<u8>), HeaderProblem>> {
        let Some(rest) = file_bytes.checked_sub(PREFIX as u64) else {
            return Ok(Err(HeaderProblem::NoLength { file: file_bytes }));
        };
        let mut prefix = [0; PREFIX];
        reader.read_exact(&mut prefix)?;
        let length = u64::from_le_bytes(prefix);
        // The limit first: a length that is nonsense is not an allocation, nor "past the end".
        if length > MAX_HEADER_BYTES {
            return Ok(Err(HeaderProblem::TooLong { length, limit: MAX_HEADER_BYTES }));
        }
        if length > rest {
            return Ok(Err(HeaderProblem::PastEnd { length, file: file_bytes }));
        }
        let mut bytes = prefix.to_vec();
        reader.take(length).read_to_end(&mut bytes)?;
        let json = &bytes[prefix.len()..];
        if json.len() as u64 != length {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Self::parse(json, file_bytes).map(|header| (header, bytes)))
    }
}

/// The bytes of a file that stand before the data of these tensors, in the order given: the length,
/// the JSON with `{"format": "pt"}` first, and spaces up to a multiple of 8 bytes.
///
/// # Errors
/// A name given twice or reserved, a size that overflows or does not fill whole bytes, or a header
/// beyond [`MAX_HEADER_BYTES`].
pub fn encode<'a>(
    tensors: impl IntoIterator<Item = &'a TensorSpec>,
) -> Result<Vec<u8>, HeaderProblem> {
    let mut entries = vec![format!(r#""{METADATA}":{{"format":"pt"}}"#)];
    let mut names = HashSet::from([METADATA]);
    let mut start = 0_u64;
    for tensor in tensors {
        if !names.insert(&tensor.name) {
            return Err(HeaderProblem::Duplicate { name: tensor.name.clone() });
        }
        let shape: Vec<u64> = tensor.shape.iter().map(|&extent| extent as u64).collect();
        let end = start.checked_add(byte_size(&tensor.name, tensor.dtype, &shape)?);
        let end = end.ok_or_else(|| HeaderProblem::ShapeOverflow {
            tensor: tensor.name.clone(),
            shape: shape.clone(),
        })?;
        // JSON strings and arrays of numbers, exactly as serde_json writes them.
        let name = serde_json::Value::from(tensor.name.as_str());
        let (dtype, shape) = (tensor.dtype, serde_json::Value::from(shape));
        entries.push(format!(
            r#"{name}:{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{start},{end}]}}"#
        ));
        start = end;
    }
    let mut json = format!("{{{}}}", entries.join(","));
    let padded = json.len().next_multiple_of(PREFIX);
    if padded as u64 > MAX_HEADER_BYTES {
        return Err(HeaderProblem::TooLong { length: padded as u64, limit: MAX_HEADER_BYTES });
    }
    json.extend(std::iter::repeat_n(' ', padded - json.len()));
    let mut bytes = (padded as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(json.as_bytes());
    Ok(bytes)
}

/// The bytes a tensor's data take.
fn byte_size(name: &str, dtype: Dtype, shape: &[u64]) -> Result<u64, HeaderProblem> {
    let bits = bit_size(dtype, shape.iter().copied()).ok_or_else(|| {
        HeaderProblem::ShapeOverflow { tensor: name.to_owned(), shape: shape.to_vec() }
    })?;
    if bits % 8 != 0 {
        return Err(HeaderProblem::NotWholeBytes { tensor: name.to_owned(), bits });
    }
    Ok(bits / 8)
}

/// A tensor as written in the JSON.
#[derive(serde::Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl Entry {
    /// Checks the entry of tensor `name`, which has to begin at `begin` in the data section; the section
    /// begins at `base` in the file.
    fn check(self, name: String, begin: u64, base: u64) -> Result<HeaderTensor, HeaderProblem> {
        let Self { dtype, shape, data_offsets: (start, end) } = self;
        let by_name: StrDeserializer<'_, NameError> = dtype.as_str().into_deserializer();
        let Ok(dtype) = Dtype::deserialize(by_name) else {
            return Err(HeaderProblem::UnknownDtype { tensor: name, dtype });
        };
        let expected = byte_size(&name, dtype, &shape)?;
        if end.checked_sub(start) != Some(expected) {
            return Err(HeaderProblem::WrongSpan { tensor: name, expected, start, end });
        }
        if start != begin {
            return Err(HeaderProblem::NotContiguous {
                tensor: name,
                expected: begin,
                found: start,
            });
        }
        let overflow = |name| HeaderProblem::ShapeOverflow { tensor: name, shape: shape.clone() };
        let Some(in_file) = base.checked_add(end) else { return Err(overflow(name)) };
        let extents = shape.iter().map(|&extent| usize::try_from(extent));
        let Ok(extents) = extents.collect() else { return Err(overflow(name)) };
        Ok(HeaderTensor { name, dtype, shape: extents, range: base + start..in_file })
    }
}

/// The JSON object with its entries in order and duplicates kept, so that they can be refused.
#[derive(Default)]
struct Entries {
    metadata: Vec<BTreeMap<String, String>>,
    tensors: Vec<(String, Entry)>,
}

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(EntriesVisitor)
    }
}

struct EntriesVisitor;

impl<'de> Visitor<'de> for EntriesVisitor {
    type Value = Entries;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
        let mut entries = Entries::default();
        while let Some(name) = map.next_key::<String>()? {
            let in_entry = |e| A::Error::custom(format_args!("`{name}`: {e}"));
            if name == METADATA {
                entries.metadata.push(map.next_value().map_err(in_entry)?);
            } else {
                let entry = map.next_value().map_err(in_entry)?;
                entries.tensors.push((name, entry));
            }
        }
        Ok(entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_header_reads_back_in_order() {
        let specs = [
            TensorSpec::new("z", Dtype::BF16, [2, 3]),
            TensorSpec::new("empty", Dtype::F32, [0, 4]),
            TensorSpec::new("a \"quoted\" é", Dtype::I64, []),
        ];
        let bytes = encode(&specs).unwrap();
        assert_eq!(bytes.len() % 8, 0);
        let file_bytes = bytes.len() as u64 + 20;
        let (header, taken) = Header::read(&mut bytes.as_slice(), file_bytes).unwrap().unwrap();
        assert_eq!(taken, bytes);
        assert_eq!(header.metadata, BTreeMap::from([("format".into(), "pt".into())]));
        let read: Vec<_> = header
            .tensors
            .iter()
            .map(|t| TensorSpec::new(&t.name, t.dtype, t.shape.clone()))
            .collect();
        assert_eq!(read, specs);
        assert_eq!(header.tensors[2].range, header.data_start + 12..header.data_start + 20);
    }

    #[test]
    fn names_are_unique_and_not_reserved() {
        let twice = TensorSpec::new("a", Dtype::U8, [1]);
        assert!(matches!(encode([&twice, &twice]), Err(HeaderProblem::Duplicate { .. })));
        let reserved = TensorSpec::new(METADATA, Dtype::U8, [1]);
        assert!(matches!(encode([&reserved]), Err(HeaderProblem::Duplicate { .. })));
    }
}
