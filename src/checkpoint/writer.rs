//! Writes a model: one tensor after the other into shards, the index and the config last.
//!
//! ```text
//! create   checks the output's place, lays out all shards, makes a hidden folder beside the output
//! write    one tensor, in the order planned; never more of it in memory than the caller holds
//! finish   side files, manifest, index, config.json, fsync, rename
//! ```
//!
//! The same tensors, files and options give the same bytes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::config::Config;
use super::decode::first_non_finite;
use super::durable::{self, NewFile, write_whole};
use super::index;
use super::layout::{DataOrder, Layout, Slot};
use super::names::{CONFIG_FILE, INDEX_FILE, MANIFEST_FILE};
use super::reader::Checkpoint;
use super::staging::Staging;
use super::tensor::{TensorInfo, TensorSpec};
use crate::error::{Error, Result};

/// The options of writing a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriteOptions {
    /// The most bytes of tensor data in one shard, unless one tensor alone is larger.
    pub max_shard_size: u64,
    /// Whether a model at the output's place is replaced.
    pub overwrite: bool,
    /// The order of the data in each file.
    pub data_order: DataOrder,
}

impl Default for WriteOptions {
    /// Shards of 5 GB, which the Hub likes and transformers v4 writes; nothing is overwritten.
    fn default() -> Self {
        let data_order = DataOrder::default();
        Self { max_shard_size: 5_000_000_000, overwrite: false, data_order }
    }
}

/// A model that was written: its place and its size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenModel {
    /// The output folder, as asked for.
    pub path: PathBuf,
    /// The bytes of all tensors.
    pub weight_bytes: u64,
    /// The number of weight files.
    pub shards: usize,
}

/// A model being written. Dropped before [`finish`](Self::finish), it leaves nothing behind.
#[derive(Debug)]
pub struct ModelWriter {
    // First, so that it is closed before the folder it is in is removed.
    open: Option<NewFile>,
    staging: Staging,
    layout: Layout,
    next: usize,
    source_root: PathBuf,
    side_files: Vec<PathBuf>,
}

impl ModelWriter {
    /// Prepares to write `tensors`, in this order, to the folder `out`, with the side files of
    /// `source`. Folders above `out` are made.
    ///
    /// # Errors
    /// An output that is not empty without `overwrite`, is not a model with it, overlaps the input, or
    /// cannot be written to; side files that cannot be listed; a bug for tensors that cannot be laid
    /// out. After an error nothing was changed.
    pub fn create(
        out: &Path,
        source: &Checkpoint,
        tensors: Vec<TensorSpec>,
        options: &WriteOptions,
    ) -> Result<Self> {
        let layout = Layout::new(tensors, options.max_shard_size, options.data_order)?;
        let side_files = source.side_files()?;
        // The files as well as the folder: in the Hub's cache they are symlinks to elsewhere.
        let mut input = vec![source.root().to_owned(), source.root().join(CONFIG_FILE)];
        input.extend(source.files().map(Path::to_owned));
        input.extend(side_files.iter().cloned());
        let staging = Staging::create(out, &input, options.overwrite)?;
        let source_root = source.root().to_owned();
        Ok(Self { open: None, staging, layout, next: 0, source_root, side_files })
    }

    /// Makes every check that [`create`](Self::create) makes, and leaves nothing behind.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn check(
        out: &Path,
        source: &Checkpoint,
        tensors: Vec<TensorSpec>,
        options: &WriteOptions,
    ) -> Result<()> {
        Self::create(out, source, tensors, options).map(drop)
    }

    /// The tensor that has to be written next; `None` when all are written.
    #[must_use]
    pub fn expected(&self) -> Option<&TensorSpec> {
        self.layout.tensors.get(self.next)
    }

    /// Writes the data of the next tensor, which has to be `name`.
    ///
    /// # Errors
    /// A value that is not finite, a full disk; a bug for another name or size than planned.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.write_parts(name, [bytes])
    }

    /// As [`write`](Self::write), with the data in parts of whole elements: rows that were kept, or
    /// the experts of a fused tensor.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn write_parts<'a>(
        &mut self,
        name: &str,
        parts: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<()> {
        let mut pending = self.begin(name)?;
        for part in parts {
            self.append(&mut pending, name, part)?;
        }
        self.end(&pending)
    }

    /// Copies a tensor of `source` as it is, a MiB at a time.
    ///
    /// # Errors
    /// As [`write`](Self::write), and the errors of reading.
    pub fn copy(&mut self, source: &Checkpoint, tensor: &TensorInfo) -> Result<()> {
        self.copy_as(&tensor.name, source, tensor)
    }

    /// As [`copy`](Self::copy), under another name: an expert that gets another number. A value that
    /// is not finite is reported under the name it has in the source.
    ///
    /// # Errors
    /// As [`copy`](Self::copy).
    pub fn copy_as(&mut self, name: &str, source: &Checkpoint, tensor: &TensorInfo) -> Result<()> {
        let pending = self.begin(name)?;
        self.carry(pending, source, tensor)
    }

    /// As [`copy`](Self::copy), for a tensor that nothing computes with, such as the minus infinity
    /// of a mask: its values need not be finite.
    ///
    /// # Errors
    /// As [`copy`](Self::copy), but for the values.
    pub fn copy_unread(&mut self, source: &Checkpoint, tensor: &TensorInfo) -> Result<()> {
        let pending = Pending { checked: false, ..self.begin(&tensor.name)? };
        self.carry(pending, source, tensor)
    }

    fn carry(
        &mut self,
        mut pending: Pending,
        source: &Checkpoint,
        tensor: &TensorInfo,
    ) -> Result<()> {
        let spec = &pending.spec;
        if (spec.dtype, &spec.shape) != (tensor.dtype, &tensor.shape) {
            return Err(Error::Bug(format!(
                "tensor `{}` is planned as {} {:?} and copied from {} {:?}",
                spec.name, spec.dtype, spec.shape, tensor.dtype, tensor.shape
            )));
        }
        let shard = source.shard_of(tensor)?;
        shard
            .each_chunk(&tensor.range, |_, bytes| self.append(&mut pending, &tensor.name, bytes))?;
        self.end(&pending)
    }

    /// Completes the model and puts it in its place: `config`, and `manifest` as `bantam.json`.
    ///
    /// # Errors
    /// The errors of [`seal`](Self::seal) and [`SealedModel::publish`].
    pub fn finish(self, config: &Config, manifest: &Value) -> Result<WrittenModel> {
        self.seal(config, manifest)?.publish()
    }

    /// Completes the model except for `config`, without which no program takes it for a model, and
    /// leaves it in the hidden folder to be checked before it is published.
    ///
    /// # Errors
    /// A full disk; a bug if tensors are still to be written.
    pub fn seal(self, config: &Config, manifest: &Value) -> Result<SealedModel> {
        if let Some(tensor) = self.expected() {
            let (left, first) = (self.layout.tensors.len() - self.next, &tensor.name);
            return Err(Error::Bug(format!(
                "{left} planned tensors were not written, the first is `{first}`"
            )));
        }
        let folder = self.staging.path();
        self.copy_side_files()?;
        write_whole(folder.join(MANIFEST_FILE), format!("{manifest:#}\n").as_bytes())?;
        self.write_index()?;
        Ok(SealedModel {
            staging: self.staging,
            config: config.clone(),
            weight_bytes: self.layout.weight_bytes(),
            shards: self.layout.shards.len(),
        })
    }

    /// The next tensor, which has to be `name`, with its file open.
    fn begin(&mut self, name: &str) -> Result<Pending> {
        let Some(spec) = self.expected().filter(|tensor| tensor.name == name) else {
            let expected = self.expected().map_or("no tensor", |tensor| &tensor.name);
            let message = format!("tensor `{name}` came where `{expected}` was planned");
            return Err(Error::Bug(message));
        };
        let (spec, place) = (spec.clone(), self.layout.places[self.next].clone());
        let shard = &self.layout.shards[place.shard];
        if self.open.is_none() {
            let mut file = NewFile::create(self.staging.path().join(&shard.name))?;
            file.write_at(0, &shard.header)?;
            self.open = Some(file);
        }
        Ok(Pending { spec, place, written: 0, checked: true })
    }

    /// Appends `bytes` to the data of the tensor; errors name it `label`.
    fn append(&mut self, pending: &mut Pending, label: &str, bytes: &[u8]) -> Result<()> {
        let Pending { spec, place, written, checked } = pending;
        let after = *written + bytes.len() as u64;
        if after > spec.bytes() {
            return Err(wrong_size(spec, after));
        }
        let bits = spec.dtype.bitsize() as u64;
        if bits >= 8 && !(bytes.len() as u64).is_multiple_of(bits / 8) {
            let message = format!("tensor `{}`: a part ends inside an element", spec.name);
            return Err(Error::Bug(message));
        }
        if *checked && let Some(at) = first_non_finite(spec.dtype, bytes) {
            let index = *written / (bits / 8) + at as u64;
            return Err(Error::NonFiniteTensor { tensor: label.to_owned(), index });
        }
        if let Some(file) = &mut self.open {
            file.write_at(place.range.start + *written, bytes)?;
        }
        *written = after;
        Ok(())
    }

    /// Completes the tensor, and its file if it is the file's last.
    fn end(&mut self, pending: &Pending) -> Result<()> {
        if pending.written != pending.spec.bytes() {
            return Err(wrong_size(&pending.spec, pending.written));
        }
        self.next += 1;
        if self.next == self.layout.shards[pending.place.shard].tensors.end
            && let Some(file) = self.open.take()
        {
            // Shard by shard, so that the disk keeps up and the end is not one long wait.
            file.close()?;
        }
        Ok(())
    }

    fn copy_side_files(&self) -> Result<()> {
        for from in &self.side_files {
            // `side_files` lists what is below the root, by paths that begin with it.
            let below = from.strip_prefix(&self.source_root).unwrap_or(from);
            let to = self.staging.path().join(below);
            if let Some(folder) = to.parent() {
                std::fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
            }
            durable::copy(from, to)?;
        }
        Ok(())
    }

    /// The index, where there is more than one file to find a tensor in.
    fn write_index(&self) -> Result<()> {
        let Layout { tensors, places, shards } = &self.layout;
        if shards.len() == 1 {
            return Ok(());
        }
        let files = places.iter().map(|place| shards[place.shard].name.as_str());
        let map: BTreeMap<_, _> = tensors.iter().map(|t| t.name.as_str()).zip(files).collect();
        let text = index::render(&map, self.layout.weight_bytes());
        write_whole(self.staging.path().join(INDEX_FILE), text.as_bytes())
    }
}

/// A model that is written and not yet in its place. Dropped, it leaves nothing behind.
#[derive(Debug)]
pub struct SealedModel {
    staging: Staging,
    config: Config,
    weight_bytes: u64,
    shards: usize,
}

impl SealedModel {
    /// Opens the written model, as readers will find it.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn reopen(&self) -> Result<Checkpoint> {
        Checkpoint::open_with(self.staging.path(), self.config.clone())
    }

    /// Writes the config and puts the model in its place.
    ///
    /// # Errors
    /// A full disk, an output that appeared meanwhile.
    pub fn publish(self) -> Result<WrittenModel> {
        write_whole(self.staging.path().join(CONFIG_FILE), self.config.text().as_bytes())?;
        let path = self.staging.publish()?;
        Ok(WrittenModel { path, weight_bytes: self.weight_bytes, shards: self.shards })
    }
}

/// The tensor that is being written.
struct Pending {
    spec: TensorSpec,
    place: Slot,
    written: u64,
    /// Its values have to be finite.
    checked: bool,
}

fn wrong_size(spec: &TensorSpec, found: u64) -> Error {
    let (name, expected) = (&spec.name, spec.bytes());
    Error::Bug(format!("tensor `{name}`: {expected} bytes were planned, {found} came"))
}
