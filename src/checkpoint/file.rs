//! Opens the files of a checkpoint, and says plainly when one is not there or not the file itself.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::error::{Error, Result};

/// The first bytes of a Git LFS pointer.
const LFS_START: &[u8] = b"version https://git-lfs";

/// Opens a regular file for reading, through symlinks, and gives its length in bytes.
pub(super) fn open(path: &Path, what: &'static str) -> Result<(File, u64)> {
    // Asked before opening: opening a named pipe would wait for its other end.
    let metadata = std::fs::metadata(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Error::Missing { path: path.to_owned(), what },
        _ => Error::io("read", path, e),
    })?;
    if !metadata.is_file() {
        return Err(Error::Missing { path: path.to_owned(), what });
    }
    let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
    Ok((file, metadata.len()))
}

/// Reads a small file whole.
pub(super) fn read(path: &Path, what: &'static str) -> Result<Vec<u8>> {
    let (mut file, length) = open(path, what)?;
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
    file.read_to_end(&mut bytes).map_err(|e| Error::io("read", path, e))?;
    refuse_lfs_pointer(path, &bytes)?;
    Ok(bytes)
}

/// Refuses a file whose first bytes `start` are those of a Git LFS pointer.
pub(super) fn refuse_lfs_pointer(path: &Path, start: &[u8]) -> Result<()> {
    if start.starts_with(LFS_START) {
        return Err(Error::LfsPointer { file: path.to_owned() });
    }
    Ok(())
}
