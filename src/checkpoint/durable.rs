//! New files that are on the disk when the call that completes them returns.
//!
//! All writing of the module goes through here. Files are only ever created, never opened, so a file
//! that exists cannot be damaged.

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::thread::{Builder, JoinHandle};

use crate::error::{Error, Result};

/// Bytes after which the disk is set to work, so that the end is not one long wait for it.
const AHEAD: u64 = if cfg!(test) { 1 << 10 } else { 128 << 20 };

/// A file being written.
#[derive(Debug)]
pub(super) struct NewFile {
    path: PathBuf,
    file: BufWriter<File>,
    position: u64,
    /// Bytes written since the disk was last set to work.
    waiting: u64,
    at_work: Option<JoinHandle<io::Result<()>>>,
}

impl NewFile {
    /// Creates a file that must not exist yet.
    pub(super) fn create(path: PathBuf) -> Result<Self> {
        match File::create_new(&path) {
            Ok(file) => {
                let file = BufWriter::with_capacity(1 << 20, file);
                Ok(Self { path, file, position: 0, waiting: 0, at_work: None })
            }
            Err(e) => Err(Error::io("create", &path, e)),
        }
    }

    /// Writes `bytes` at `position`, counted from the file's start.
    pub(super) fn write_at(&mut self, position: u64, bytes: &[u8]) -> Result<()> {
        let written = if position == self.position {
            self.file.write_all(bytes)
        } else {
            self.file.seek(SeekFrom::Start(position)).and_then(|_| self.file.write_all(bytes))
        };
        let written = written.and_then(|()| {
            self.position = position + bytes.len() as u64;
            self.waiting += bytes.len() as u64;
            if self.waiting < AHEAD { Ok(()) } else { self.write_ahead() }
        });
        written.map_err(|e| Error::io("write", &self.path, e))
    }

    /// Starts a thread that brings the bytes written so far to the disk, unless one is still at it.
    fn write_ahead(&mut self) -> io::Result<()> {
        if self.at_work.as_ref().is_some_and(|thread| !thread.is_finished()) {
            return Ok(());
        }
        self.wait()?;
        let file = self.file.get_ref().try_clone()?;
        // Where no thread is to be had, there is only more to wait for in the end.
        self.at_work = Builder::new().spawn(move || file.sync_data()).ok();
        self.waiting = 0;
        Ok(())
    }

    /// Waits for that thread and returns its error. The system tells an error of the disk to the first
    /// caller only, so it must not be lost.
    fn wait(&mut self) -> io::Result<()> {
        let panicked = |_| Err(io::Error::other("the thread that syncs panicked"));
        self.at_work.take().map_or(Ok(()), |thread| thread.join().unwrap_or_else(panicked))
    }

    /// Brings everything to the disk.
    pub(super) fn close(mut self) -> Result<()> {
        let closed = self.file.flush().and_then(|()| self.wait());
        let closed = closed.and_then(|()| self.file.get_ref().sync_all());
        closed.map_err(|e| Error::io("write", &self.path, e))
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        // An error is on its way, or an interrupt, and the folder goes next; where an open file keeps a
        // folder from being removed, that is worth the wait.
        if cfg!(windows) {
            let _ = self.wait();
        }
    }
}

/// Writes a small file.
pub(super) fn write_whole(path: PathBuf, bytes: &[u8]) -> Result<()> {
    let mut file = NewFile::create(path)?;
    file.write_at(0, bytes)?;
    file.close()
}

/// Copies a file's content, through symlinks. Permissions stay behind: in the Hub's cache files are
/// often read-only, and a copy is the user's own.
pub(super) fn copy(from: &Path, to: PathBuf) -> Result<()> {
    let mut source = File::open(from).map_err(|e| Error::io("open", from, e))?;
    let mut file = NewFile::create(to)?;
    io::copy(&mut source, &mut file.file).map_err(|e| Error::io("copy", from, e))?;
    file.close()
}

/// Brings a folder's entries to the disk, where the system and the file system can.
pub(super) fn sync_folder(folder: &Path) {
    if cfg!(unix) {
        // Some file systems refuse this; the rename is as safe there as it can be.
        let _ = File::open(folder).and_then(|folder| folder.sync_all());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_while_the_disk_is_at_work_is_all_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let mut file = NewFile::create(path.clone()).unwrap();
        let pieces: Vec<Vec<u8>> = (0..200_usize).map(|i| vec![i as u8; 37 * i]).collect();
        // The second half first, so that the file is sought in.
        let half: usize = pieces[..100].iter().map(Vec::len).sum();
        for (from, pieces) in [(half, &pieces[100..]), (0, &pieces[..100])] {
            let mut position = from as u64;
            for piece in pieces {
                file.write_at(position, piece).unwrap();
                position += piece.len() as u64;
            }
        }
        assert!(file.at_work.is_some(), "the disk was not set to work");
        file.close().unwrap();
        assert!(std::fs::read(path).unwrap() == pieces.concat());
    }
}
