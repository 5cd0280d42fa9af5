//! New files that are on the disk when the call that completes them returns.
//!
//! All writing of the module goes through here. A file is only ever created, never opened: what
//! exists cannot be damaged.

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::error::CheckpointError;

/// A file being written.
#[derive(Debug)]
pub(super) struct NewFile {
    path: PathBuf,
    file: BufWriter<File>,
    position: u64,
}

impl NewFile {
    /// Creates a file that must not exist yet.
    pub(super) fn create(path: PathBuf) -> Result<Self, CheckpointError> {
        match File::create_new(&path) {
            Ok(file) => {
                Ok(Self { path, file: BufWriter::with_capacity(1 << 20, file), position: 0 })
            }
            Err(e) => Err(CheckpointError::io("create", &path, e)),
        }
    }

    /// Writes `bytes` at `position`, counted from the file's start.
    pub(super) fn write_at(&mut self, position: u64, bytes: &[u8]) -> Result<(), CheckpointError> {
        let written = if position == self.position {
            self.file.write_all(bytes)
        } else {
            self.file.seek(SeekFrom::Start(position)).and_then(|_| self.file.write_all(bytes))
        };
        written.map_err(|e| CheckpointError::io("write", &self.path, e))?;
        self.position = position + bytes.len() as u64;
        Ok(())
    }

    /// Brings everything to the disk.
    pub(super) fn close(mut self) -> Result<(), CheckpointError> {
        let closed = self.file.flush().and_then(|()| self.file.get_ref().sync_all());
        closed.map_err(|e| CheckpointError::io("write", &self.path, e))
    }
}

/// Writes a small file.
pub(super) fn write_whole(path: PathBuf, bytes: &[u8]) -> Result<(), CheckpointError> {
    let mut file = NewFile::create(path)?;
    file.write_at(0, bytes)?;
    file.close()
}

/// Copies a file's content, through symlinks. Permissions stay behind: in the Hub's cache files are
/// often read-only, and a copy is the user's own.
pub(super) fn copy(from: &Path, to: PathBuf) -> Result<(), CheckpointError> {
    let mut source = File::open(from).map_err(|e| CheckpointError::io("open", from, e))?;
    let mut file = NewFile::create(to)?;
    io::copy(&mut source, &mut file.file).map_err(|e| CheckpointError::io("copy", from, e))?;
    file.close()
}

/// Brings a folder's entries to the disk, where the system and the file system can.
pub(super) fn sync_folder(folder: &Path) {
    if cfg!(unix) {
        // Some file systems refuse this; the rename is as safe there as it can be.
        let _ = File::open(folder).and_then(|folder| folder.sync_all());
    }
}
