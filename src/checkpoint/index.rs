//! `model.safetensors.index.json`: the shard that holds each tensor.
//!
//! Reading checks the form; whether shards and index agree is checked where both are open. Writing
//! sorts the keys, as transformers does.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::json;

use super::file;
use crate::error::IndexProblem;
use crate::error::{Error, Result};

/// Reads an index: tensor name to shard name, in the order of the tensors' names.
pub(super) fn read(path: &Path) -> Result<BTreeMap<String, String>> {
    let bytes = file::read(path, "an index of shards")?;
    parse(&bytes).map_err(|problem| Error::Index { file: path.to_owned(), problem })
}

/// The text of an index; `weight_bytes` is the sum of the tensors' bytes, as transformers counts.
pub(super) fn render(weight_map: &BTreeMap<&str, &str>, weight_bytes: u64) -> String {
    let index = json!({ "metadata": { "total_size": weight_bytes }, "weight_map": weight_map });
    format!("{index:#}\n")
}

fn parse(bytes: &[u8]) -> Result<BTreeMap<String, String>, IndexProblem> {
    let index: IndexFile = serde_json::from_slice(bytes)
        .map_err(|e| IndexProblem::NotAnIndex { message: e.to_string() })?;
    let mut map = BTreeMap::new();
    for (tensor, shard) in index.weight_map.0 {
        // A shard is a file beside the index: a path could lead anywhere.
        let plain = Path::new(&shard).file_name().is_some_and(|name| name == shard.as_str());
        if !plain || !shard.ends_with(".safetensors") || shard.contains('\\') {
            return Err(IndexProblem::ShardName { tensor, shard });
        }
        if map.insert(tensor.clone(), shard).is_some() {
            return Err(IndexProblem::Duplicate { tensor });
        }
    }
    Ok(map)
}

#[derive(serde::Deserialize)]
struct IndexFile {
    weight_map: Pairs,
}

/// An object of strings with duplicates kept, so that they can be refused.
struct Pairs(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(PairsVisitor)
    }
}

struct PairsVisitor;

impl<'de> Visitor<'de> for PairsVisitor {
    type Value = Pairs;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object from tensor names to file names")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
        let mut pairs = Vec::new();
        while let Some(pair) = map.next_entry()? {
            pairs.push(pair);
        }
        Ok(Pairs(pairs))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rendered_index_parses() {
        let map = BTreeMap::from([("b", "2.safetensors"), ("a", "1.safetensors")]);
        let text = render(&map, 12);
        assert_eq!(
            text,
            "{\n  \"metadata\": {\n    \"total_size\": 12\n  },\n  \"weight_map\": {\n    \
             \"a\": \"1.safetensors\",\n    \"b\": \"2.safetensors\"\n  }\n}\n"
        );
        assert_eq!(parse(text.as_bytes()).unwrap().len(), 2);
    }

    #[test]
    fn shards_are_plain_file_names() {
        for shard in ["../x.safetensors", "/x.safetensors", "a/x.safetensors", "x.bin", "..", ""] {
            let text = json!({ "weight_map": { "t": shard } }).to_string();
            let problem = parse(text.as_bytes()).unwrap_err();
            assert!(matches!(problem, IndexProblem::ShardName { .. }), "{shard}: {problem}");
        }
    }

    #[test]
    fn duplicates_and_other_forms_are_refused() {
        let twice = br#"{"weight_map": {"t": "a.safetensors", "t": "b.safetensors"}}"#;
        assert!(matches!(parse(twice), Err(IndexProblem::Duplicate { .. })));
        for text in ["", "[]", "{}", r#"{"weight_map": {"t": 3}}"#, r#"{"weight_map": []}"#] {
            let problem = parse(text.as_bytes()).unwrap_err();
            assert!(matches!(problem, IndexProblem::NotAnIndex { .. }), "{text}: {problem}");
        }
    }
}
