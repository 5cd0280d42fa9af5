//! The journal: lines of JSON that are only ever appended, so that a run killed at any moment leaves
//! whole lines and at most one torn one.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::stored::Record;
use crate::error::{Error, Result};
use crate::settings::Method;

pub(super) const JOURNAL_FILE: &str = "journal.jsonl";

/// One thing that was finished.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "finished", rename_all = "snake_case")]
pub(super) enum Line {
    /// The analysis of a site by a method.
    Site { site: String, method: Method, record: Record },
    /// All sites of a method.
    Complete { method: Method },
}

#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    /// Whether every line is to be on disk before the run goes on.
    durable: bool,
}

impl Journal {
    /// Opens the journal in `folder` and reads its lines. A torn last line is what a kill leaves: it
    /// is cut off, and what it was about is done again.
    pub(super) fn open(folder: &Path, durable: bool) -> Result<(Self, Vec<Line>)> {
        let path = folder.join(JOURNAL_FILE);
        let failed = |e| Error::io("open", &path, e);
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(failed)?;
        let mut text = Vec::new();
        file.read_to_end(&mut text).map_err(|e| Error::io("read", &path, e))?;
        let whole = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        let lines = text[..whole]
            .split(|&byte| byte == b'\n')
            .filter(|line| !line.is_empty())
            .enumerate()
            .map(|(at, line)| {
                serde_json::from_slice(line).map_err(|e| Error::InvalidFile {
                    file: path.clone(),
                    problem: format!("line {}: {e}", at + 1),
                    hint: Some("delete the job folder and measure again".into()),
                })
            })
            .collect::<Result<Vec<Line>>>()?;
        file.set_len(whole as u64).map_err(failed)?;
        file.seek(SeekFrom::End(0)).map_err(failed)?;
        Ok((Self { path, file, durable }, lines))
    }

    pub(super) fn append(&mut self, line: &Line) -> Result<()> {
        let failed = |e| Error::io("write", &self.path, e);
        let mut text = serde_json::to_vec(line).map_err(|e| Error::Bug(e.to_string()))?;
        text.push(b'\n');
        self.file.write_all(&text).map_err(failed)?;
        if self.durable {
            self.file.sync_data().map_err(failed)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failing test is to panic")]

    use super::*;

    #[test]
    fn a_torn_last_line_is_cut_off_and_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let site = |name: &str| Line::Site {
            site: name.into(),
            method: Method::LORD,
            record: Record::default(),
        };
        let (mut journal, lines) = Journal::open(folder.path(), true).unwrap();
        assert_eq!(lines, []);
        journal.append(&site("a")).unwrap();
        journal.append(&Line::Complete { method: Method::LORD }).unwrap();
        let file = folder.path().join(JOURNAL_FILE);
        let whole = std::fs::read(&file).unwrap();
        for torn in [1, 5, whole.len() / 2] {
            std::fs::write(&file, [&whole[..], &whole[..torn]].concat()).unwrap();
            let (mut journal, lines) = Journal::open(folder.path(), true).unwrap();
            assert_eq!(lines, [site("a"), Line::Complete { method: Method::LORD }]);
            journal.append(&site("b")).unwrap();
            assert_eq!(Journal::open(folder.path(), true).unwrap().1.len(), 3);
        }
        std::fs::write(&file, [b"{}\n", &whole[..]].concat()).unwrap();
        let refused = Journal::open(folder.path(), true).unwrap_err();
        assert!(refused.to_string().contains("line 1"), "{refused}");
    }
}
