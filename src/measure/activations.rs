//! The residual stream at every place between blocks, kept for the way back.
//!
//! In memory up to a limit, beyond it in a file: raw little-endian f32, place after place, chunk after
//! chunk. The places reached last are the ones in memory, as they are wanted first.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use candle_core::{Device, Tensor};

use crate::error::{Error, Result};
use crate::lock::lock;

/// Values that are converted to bytes or back at a time.
const PIECE: usize = 16 * 1024;

/// Room for the activations that do not fit on the device.
#[derive(Debug, Clone)]
pub struct Spill {
    /// Bytes of them that stay in memory.
    pub memory: u64,
    /// Folder on whose disk an unnamed file takes the other activations, if there are any.
    pub folder: PathBuf,
}

/// A slot `[rows, width]` f32 for every chunk of the tokens at every place between blocks. A slot
/// holds the block's input on the way there and the gradient at it on the way back.
#[derive(Debug)]
pub struct Activations {
    /// Rows of each chunk.
    rows: Vec<usize>,
    width: usize,
    device: Device,
    /// Slots of place 0, then of place 1; those in the file stay empty.
    slots: Vec<Mutex<Option<Tensor>>>,
    /// Number of slots in the file: the first ones.
    spilled: usize,
    /// Index of the first slot that stays on the device; all after it do too.
    on_device: usize,
    spill: Option<SpillFile>,
}

impl Activations {
    /// Empty slots for chunks of `rows` rows at `places` places; tensors come back on `device`, which
    /// keeps `resident` bytes of them.
    ///
    /// # Errors
    /// [`Error::Io`] where a file is needed and cannot be made.
    pub fn new(
        places: usize,
        rows: Vec<usize>,
        width: usize,
        spill: &Spill,
        device: &Device,
        resident: u64,
    ) -> Result<Self> {
        let count = places * rows.len();
        let largest = rows.iter().max().map_or(0, |rows| (rows * width * size_of::<f32>()) as u64);
        let fitting = |bytes: u64, most: usize| {
            let slots = bytes.checked_div(largest).map_or(most as u64, |slots| slots);
            usize::try_from(slots).map_or(most, |slots| slots.min(most))
        };
        // The places reached last are wanted first: those stay nearest.
        let on_device = if device.is_cpu() { 0 } else { fitting(resident, count) };
        let held = fitting(spill.memory, count - on_device);
        let spilled = count - on_device - held;
        let on_device = count - on_device;
        let spill = (spilled > 0).then(|| SpillFile::new(&spill.folder)).transpose()?;
        let slots = (0..count).map(|_| Mutex::new(None)).collect();
        Ok(Self { rows, width, device: device.clone(), slots, spilled, on_device, spill })
    }

    /// Bytes that slots for `tokens` rows of `width` at `places` places take, wherever they are.
    pub fn bytes_for(places: usize, tokens: usize, width: usize) -> u64 {
        (places * tokens * width * size_of::<f32>()) as u64
    }

    /// Chunks at each place.
    pub fn chunks(&self) -> usize {
        self.rows.len()
    }

    /// Fills a slot with `x [rows, width]`, whatever was in it.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file.
    pub fn put(&self, place: usize, chunk: usize, x: &Tensor) -> Result<()> {
        if x.dims() != [self.rows[chunk], self.width] {
            let slot = [self.rows[chunk], self.width];
            return Err(Error::Bug(format!("{:?} put into a slot of {slot:?}", x.dims())));
        }
        let x = x.detach();
        let stays = place * self.rows.len() + chunk >= self.on_device;
        let x = if stays { x } else { x.to_device(&Device::Cpu)? };
        if let Some((spill, at)) = self.in_file(place, chunk) {
            return spill.write(at, &x.flatten_all()?.to_vec1::<f32>()?);
        }
        *lock(self.slot(place, chunk)) = Some(x);
        Ok(())
    }

    /// Returns the tensor in a slot, on the device.
    ///
    /// # Errors
    /// [`Error::Io`] naming the file; an empty slot is a bug of the caller.
    pub fn get(&self, place: usize, chunk: usize) -> Result<Tensor> {
        let x = match self.in_file(place, chunk) {
            Some((spill, at)) => {
                let (rows, width) = (self.rows[chunk], self.width);
                Tensor::from_vec(spill.read(at, rows * width)?, (rows, width), &Device::Cpu)?
            }
            None => lock(self.slot(place, chunk)).clone().ok_or_else(|| {
                Error::Bug(format!("chunk {chunk} at place {place} was asked for and is not kept"))
            })?,
        };
        Ok(x.to_device(&self.device)?)
    }

    /// Returns the tensor in a slot, as [`get`](Self::get), and frees its memory.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn take(&self, place: usize, chunk: usize) -> Result<Tensor> {
        let x = self.get(place, chunk)?;
        *lock(self.slot(place, chunk)) = None;
        Ok(x)
    }

    fn slot(&self, place: usize, chunk: usize) -> &Mutex<Option<Tensor>> {
        &self.slots[place * self.rows.len() + chunk]
    }

    /// The file, and where in it the slot begins, for slots that are there.
    fn in_file(&self, place: usize, chunk: usize) -> Option<(&SpillFile, u64)> {
        let spill = self.spill.as_ref()?;
        let all: usize = self.rows.iter().sum();
        let before: usize = self.rows[..chunk].iter().sum();
        let at = ((place * all + before) * self.width * size_of::<f32>()) as u64;
        (place * self.rows.len() + chunk < self.spilled).then_some((spill, at))
    }
}

/// A file for values, gone with the process however that ends.
#[derive(Debug)]
struct SpillFile {
    file: Mutex<File>,
    /// The folder it takes its room in.
    folder: PathBuf,
}

impl SpillFile {
    fn new(folder: &Path) -> Result<Self> {
        let file =
            tempfile::tempfile_in(folder).map_err(|e| Error::io("create a file in", folder, e))?;
        Ok(Self { file: Mutex::new(file), folder: folder.to_owned() })
    }

    fn write(&self, at: u64, values: &[f32]) -> Result<()> {
        write_values(&mut lock(&self.file), at, values)
            .map_err(|e| Error::io("put activations aside in", &self.folder, e))
    }

    fn read(&self, at: u64, count: usize) -> Result<Vec<f32>> {
        read_values(&mut lock(&self.file), at, count)
            .map_err(|e| Error::io("read activations put aside in", &self.folder, e))
    }
}

fn write_values(file: &mut File, at: u64, values: &[f32]) -> io::Result<()> {
    file.seek(SeekFrom::Start(at))?;
    for piece in values.chunks(PIECE) {
        let bytes: Vec<u8> = piece.iter().flat_map(|value| value.to_le_bytes()).collect();
        file.write_all(&bytes)?;
    }
    Ok(())
}

fn read_values(file: &mut File, at: u64, count: usize) -> io::Result<Vec<f32>> {
    file.seek(SeekFrom::Start(at))?;
    let mut values = Vec::with_capacity(count);
    let mut bytes = vec![0; PIECE.min(count) * size_of::<f32>()];
    while values.len() < count {
        let piece = &mut bytes[..PIECE.min(count - values.len()) * size_of::<f32>()];
        file.read_exact(piece)?;
        values.extend(piece.as_chunks().0.iter().map(|&value| f32::from_le_bytes(value)));
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(first: f32, rows: usize) -> Result<Tensor> {
        let values: Vec<f32> = (0..rows * 3).map(|i| first + i as f32).collect();
        Ok(Tensor::from_vec(values, (rows, 3), &Device::Cpu)?)
    }

    /// Fills slots of which `memory` bytes are held and reads them again.
    fn round_trip(memory: u64, folder: &Path) -> Result<()> {
        let keep = Spill { memory, folder: folder.to_owned() };
        let kept = Activations::new(3, vec![4, 4, 1], 3, &keep, &Device::Cpu, 0)?;
        let slots = || (0..3).flat_map(|place| (0..3).map(move |chunk| (place, chunk)));
        let value = |place, chunk| rows((place * 100 + chunk * 20) as f32, [4, 4, 1][chunk]);
        for (place, chunk) in slots() {
            kept.put(place, chunk, &value(place, chunk)?)?;
        }
        kept.put(1, 1, &rows(-7.5, 4)?)?;
        for (place, chunk) in slots() {
            let expected =
                if (place, chunk) == (1, 1) { rows(-7.5, 4)? } else { value(place, chunk)? };
            let found = kept.take(place, chunk)?;
            assert_eq!(found.to_vec2::<f32>()?, expected.to_vec2::<f32>()?, "{place} {chunk}");
        }
        assert!(kept.put(0, 2, &rows(0.0, 4)?).is_err(), "a shape that does not fit");
        Ok(())
    }

    #[test]
    fn slots_come_back_as_they_were_from_memory_and_from_the_file() -> Result<()> {
        let folder = tempfile::tempdir().map_err(|e| Error::io("make", Path::new("folder"), e))?;
        // Chunks are 48 bytes: none, four, and all of nine slots in memory.
        for memory in [0, 4 * 48 + 47, 9 * 48, u64::MAX] {
            round_trip(memory, folder.path())?;
            let left = std::fs::read_dir(folder.path()).map_or(0, Iterator::count);
            assert_eq!(left, 0, "files left behind");
        }
        Ok(())
    }

    #[test]
    fn a_slot_that_was_taken_and_a_folder_that_is_not_there_are_refused() -> Result<()> {
        let keep = Spill { memory: u64::MAX, folder: "/nonexistent/folder".into() };
        let kept = Activations::new(1, vec![2], 3, &keep, &Device::Cpu, 0)?;
        kept.put(0, 0, &rows(1.0, 2)?)?;
        kept.take(0, 0)?;
        assert!(matches!(kept.take(0, 0), Err(Error::Bug(_))));
        let keep = Spill { memory: 0, ..keep };
        match Activations::new(1, vec![2], 3, &keep, &Device::Cpu, 0) {
            Err(Error::Io { path, .. }) => assert_eq!(path, keep.folder),
            other => panic!("{other:?}"),
        }
        Ok(())
    }
}
