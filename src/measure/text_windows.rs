//! A text cut into windows of the model's tokens, and what identifies it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::text::{Text, Tokenizer};
use super::windows::{Draw, Windows};
use crate::arch::Model;
use crate::error::{Error, Remedy, Result};

/// Windows of calibration text that are read unless told otherwise.
pub const DEFAULT_WINDOWS: usize = 128;

/// How a text is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Tokens of a window; unsaid, 2048 or what the model takes.
    pub length: Option<usize>,
    /// Windows at the most; unsaid, as many as the text has.
    pub windows: Option<usize>,
    /// Which ones.
    pub draw: Draw,
}

impl Default for Cut {
    /// The first 128 windows, as for calibration.
    fn default() -> Self {
        Self { length: None, windows: Some(DEFAULT_WINDOWS), draw: Draw::FromStart }
    }
}

impl Cut {
    /// Tokens of a window.
    ///
    /// # Errors
    /// [`Error::Usage`] beyond what the model was made for.
    pub fn length(&self, model: &Model) -> Result<usize> {
        let limit = model.spec().max_positions;
        match self.length {
            None => Ok(model.spec().default_window()),
            Some(length) if length <= limit => Ok(length),
            Some(length) => Err(Error::usage(
                format!("a window of {length} tokens is more than the model's {limit} positions"),
                Remedy::ShorterWindow(limit),
            )),
        }
    }
}

/// The identity of the windows that were measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Calibration {
    /// Hash of the text files.
    pub text_sha256: String,
    /// Windows read.
    pub windows: usize,
    /// Tokens of each.
    pub window: usize,
    /// Hash of the token windows.
    pub windows_sha256: String,
}

/// Windows of a text.
#[derive(Debug, Clone)]
pub struct TextWindows {
    windows: Windows,
    record: Calibration,
    text_bytes: usize,
}

impl TextWindows {
    /// Reads and joins `files`, tokenises them without special tokens and cuts windows.
    ///
    /// # Errors
    /// As [`Text::read`], [`Tokenizer::encode`] and [`Windows::cut`]; a window that is too long for the
    /// model.
    pub fn read(model: &Model, files: &[PathBuf], cut: Cut) -> Result<Self> {
        let length = cut.length(model)?;
        let text = Text::read(files)?;
        let tokens = Tokenizer::open(model)?.encode(&text.content, false)?;
        let windows = Windows::cut(&tokens, length, cut.windows, cut.draw)?;
        Ok(Self::of(windows, text.sha256, text.content.len()))
    }

    /// Windows of a text whose files have this hash and so many bytes.
    pub fn of(windows: Windows, text_sha256: String, text_bytes: usize) -> Self {
        let record = Calibration {
            text_sha256,
            windows: windows.count(),
            window: windows.length(),
            windows_sha256: windows.sha256(),
        };
        Self { windows, record, text_bytes }
    }

    /// The tokens.
    pub fn windows(&self) -> &Windows {
        &self.windows
    }

    /// What identifies them.
    pub fn record(&self) -> &Calibration {
        &self.record
    }

    /// Bytes of the text, of which the windows may be a part.
    pub fn text_bytes(&self) -> usize {
        self.text_bytes
    }
}
