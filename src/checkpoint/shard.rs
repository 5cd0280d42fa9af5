//! One open weights file: its header at once, its data when somebody asks for them.
//!
//! The only `unsafe` of the module is here. The file stays open from the moment its header is read,
//! so that the data always belong to that header, even when the name gets another file.

#![allow(unsafe_code, reason = "memory maps; every block says why it is sound")]

use std::fs::File;
use std::io::{Read, Seek};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::OnceLock;

use memmap2::Mmap;
use sha2::{Digest, Sha256};

use super::file;
use super::header::{Header, HeaderTensor};
use super::names::file_name;
use crate::error::{Error, Result};

/// The most bytes that the system maps when one of them is touched and all are in memory: 2 MiB, as much
/// as one entry of a page table can map where the system keeps a file in pieces that large.
#[cfg(unix)]
const FAULT_AROUND: usize = 2 << 20;

/// Bytes that are read at a time where data only pass through; a multiple of every element's size.
const CHUNK_BYTES: u64 = 1 << 20;

/// An open `.safetensors` file.
#[derive(Debug)]
pub(super) struct Shard {
    /// The path it was found at; may be a symlink.
    pub(super) path: PathBuf,
    /// Its length in bytes.
    pub(super) length: u64,
    /// SHA-256 of length prefix and header.
    pub(super) header_digest: [u8; 32],
    file: File,
    map: OnceLock<Mmap>,
}

impl Shard {
    /// Opens the file, reads and checks its header, and touches no data.
    pub(super) fn open(path: PathBuf) -> Result<(Self, Vec<HeaderTensor>)> {
        let (mut file, length) = file::open(&path, "a weights file")?;
        let failed = |e| Error::io("read", &path, e);
        let (header, bytes) = match Header::read(&mut file, length).map_err(failed)? {
            Ok(valid) => valid,
            Err(problem) => {
                let mut start = Vec::new();
                file.rewind().map_err(failed)?;
                (&file).take(64).read_to_end(&mut start).map_err(failed)?;
                file::refuse_lfs_pointer(&path, &start)?;
                return Err(Error::header(&path, problem));
            }
        };
        let header_digest = Sha256::digest(bytes).into();
        let shard = Self { path, length, header_digest, file, map: OnceLock::new() };
        Ok((shard, header.tensors))
    }

    /// The bytes of the file at `range`, mapped, not read.
    pub(super) fn bytes(&self, range: &Range<u64>) -> Result<&[u8]> {
        let map = self.map()?;
        let in_map = usize::try_from(range.start).ok().zip(usize::try_from(range.end).ok());
        in_map
            .and_then(|(start, end)| map.get(start..end))
            .ok_or_else(|| Error::Bug(format!("{range:?} is not inside `{}`", self.path.display())))
    }

    /// Shows `look` the bytes at `range`, a chunk after the other, each with its place from the start of
    /// the range. They are read, not mapped, because bytes looked at once are not worth the pages.
    pub(super) fn each_chunk(
        &self,
        range: &Range<u64>,
        mut look: impl FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        self.require_length()?;
        let mut buffer = Vec::new();
        for start in range.clone().step_by(CHUNK_BYTES as usize) {
            let length = CHUNK_BYTES.min(range.end - start);
            buffer.resize(length as usize, 0);
            self.read_at(start, &mut buffer)?;
            look(start - range.start, &buffer)?;
        }
        Ok(())
    }

    /// Fills `buffer` with the bytes from `start` on, in whatever order others read.
    #[cfg(unix)]
    fn read_at(&self, start: u64, buffer: &mut [u8]) -> Result<()> {
        use std::os::unix::fs::FileExt;
        self.file.read_exact_at(buffer, start).or_else(|e| {
            self.require_length()?;
            Err(Error::io("read", &self.path, e))
        })
    }

    /// Fills `buffer` from the map, where the system cannot read at a place.
    #[cfg(not(unix))]
    fn read_at(&self, start: u64, buffer: &mut [u8]) -> Result<()> {
        buffer.copy_from_slice(self.bytes(&(start..start + buffer.len() as u64))?);
        Ok(())
    }

    /// Tells the system that the bytes at `range` will not be needed again soon, so that they no
    /// longer count as memory of this process. They stay readable.
    #[cfg(unix)]
    pub(super) fn release(&self, range: &Range<u64>) {
        let Some(map) = self.map.get() else { return };
        let in_map = usize::try_from(range.start).ok().zip(usize::try_from(range.end).ok());
        let Some((start, end)) = in_map.filter(|&(start, end)| start < end && end <= map.len())
        else {
            return;
        };
        // A page that is touched brings its neighbours with it, those released before among them.
        let (start, end) = (start.saturating_sub(FAULT_AROUND), end + FAULT_AROUND);
        let end = end.min(map.len());
        // SAFETY: the map is a read-only view of a file that nobody writes (see `map`), so pages that
        // are dropped come back from the file with the same bytes; references into it stay valid.
        let advised = unsafe {
            map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start)
        };
        // It is advice: a system that does not take it only holds the pages longer.
        drop(advised);
    }

    /// Nothing to advise where there is no `madvise`.
    #[cfg(not(unix))]
    pub(super) fn release(&self, _range: &Range<u64>) {}

    /// The map, made at first use.
    fn map(&self) -> Result<&Mmap> {
        if let Some(map) = self.map.get() {
            return Ok(map);
        }
        self.require_length()?;
        // SAFETY: the file is opened for reading only, and bantam never writes to its input. Another
        // program that changes it breaks the bytes under us, as for every program that maps files;
        // the length, whose change would be fatal, was checked a moment ago.
        let map = unsafe { Mmap::map(&self.file) };
        let map = map.map_err(|e| Error::io("map", &self.path, e))?;
        Ok(self.map.get_or_init(|| map))
    }

    /// Refuses a file that is no longer as long as its header says.
    fn require_length(&self) -> Result<()> {
        let found = self.file.metadata().map_err(|e| Error::io("read", &self.path, e))?.len();
        if found != self.length {
            return Err(Error::Changed { file: self.path.clone(), expected: self.length, found });
        }
        Ok(())
    }

    /// The file's name without its folder.
    pub(super) fn name(&self) -> String {
        file_name(&self.path)
    }
}
