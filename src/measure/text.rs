//! Text files to token ids.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::arch::Model;
use crate::digest::Digest;
use crate::error::{Error, Remedy, Result};

/// Text as read, and what identifies it.
#[derive(Debug)]
pub struct Text {
    /// The characters, files joined in the order given.
    pub content: String,
    /// sha256 of the bytes of all files in that order, in hex.
    pub sha256: String,
}

impl Text {
    /// Reads plain text, or, from files ending in `.jsonl`, the `text` field of every line,
    /// documents joined by blank lines.
    ///
    /// # Errors
    /// A file that cannot be read, is not UTF-8, is empty, or has a line without a `text` string.
    pub fn read(files: &[PathBuf]) -> Result<Self> {
        let mut hash = Digest::default();
        let mut parts = Vec::new();
        for file in files {
            let bytes = std::fs::read(file).map_err(|e| Error::io("read", file, e))?;
            hash.update(&bytes);
            let text = String::from_utf8(bytes).map_err(|e| {
                invalid(file, format!("not UTF-8 at byte {}", e.utf8_error().valid_up_to()))
            })?;
            if text.trim().is_empty() {
                return Err(invalid(file, "holds no text".into()));
            }
            let jsonl = file.extension().is_some_and(|e| e.eq_ignore_ascii_case("jsonl"));
            parts.push(if jsonl { documents(file, &text)?.join("\n\n") } else { text });
        }
        Ok(Self { content: parts.join("\n\n"), sha256: hash.hex() })
    }
}

fn documents(file: &Path, text: &str) -> Result<Vec<String>> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(index, line)| {
            let value: Value = serde_json::from_str(line)
                .map_err(|e| invalid(file, format!("line {}: {e}", index + 1)))?;
            value.get("text").and_then(Value::as_str).map(str::to_owned).ok_or_else(|| {
                invalid(
                    file,
                    format!("line {}: expected an object with a string `text`", index + 1),
                )
            })
        })
        .collect()
}

fn invalid(file: &Path, problem: String) -> Error {
    let hint = Some(Remedy::TextFormat);
    Error::InvalidFile { file: file.to_owned(), problem, hint }
}

/// Refuses ids from `file` that are not below `vocab`.
pub(super) fn check_vocabulary(ids: &[u32], vocab: usize, file: &Path) -> Result<()> {
    match ids.iter().find(|&&id| id as usize >= vocab) {
        None => Ok(()),
        Some(id) => Err(Error::InvalidFile {
            file: file.to_owned(),
            problem: format!("token id {id} is outside the model's vocabulary of {vocab}"),
            hint: Some("it belongs to another model".into()),
        }),
    }
}

/// The model's own tokenizer, from its `tokenizer.json`.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    file: PathBuf,
    /// Rows of the model's embedding.
    vocab: usize,
}

impl Tokenizer {
    /// Reads `tokenizer.json` beside the weights of `model`.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] where there is none or it is malformed.
    pub fn open(model: &Model) -> Result<Self> {
        let file = model.checkpoint().root().join("tokenizer.json");
        if !file.is_file() {
            return Err(Error::InvalidFile {
                file,
                problem: "there is no tokenizer beside the weights".into(),
                hint: Some(Remedy::GiveTokenizer),
            });
        }
        match tokenizers::Tokenizer::from_file(&file) {
            Ok(inner) => Ok(Self { inner, file, vocab: model.spec().vocab }),
            Err(e) => Err(Error::InvalidFile { file, problem: e.to_string(), hint: None }),
        }
    }

    /// Token ids of `text`; `special` adds what the tokenizer puts around a prompt.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] if the tokenizer fails on the text, or gives an id that the model does
    /// not have.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, special).map_err(|e| self.failed(&e))?;
        check_vocabulary(encoding.get_ids(), self.vocab, &self.file)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of `ids`, special tokens left out.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] if an id is unknown to the tokenizer.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.inner.decode(ids, true).map_err(|e| self.failed(&e))
    }

    fn failed(&self, error: &tokenizers::Error) -> Error {
        Error::InvalidFile { file: self.file.clone(), problem: error.to_string(), hint: None }
    }
}
