//! An open checkpoint: names, shapes and places of its tensors at once, their data when asked for.
//!
//! Opening reads `config.json`, the index where there is one, and the headers: milliseconds for any
//! size, and no weights. Everything is checked here, so that later code can trust it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use super::config::Config;
use super::decode::{first_non_finite, is_checked};
use super::index;
use super::names::{CONFIG_FILE, INDEX_FILE, SINGLE_FILE, file_name, weight_files};
use super::shard::Shard;
use super::tensor::TensorInfo;
use crate::error::IndexProblem;
use crate::error::{Error, NO_WEIGHTS, Result};

/// A checkpoint in Hugging Face layout, open for reading. bantam never writes into it.
#[derive(Debug)]
pub struct Checkpoint {
    root: PathBuf,
    config: Config,
    shards: Vec<Shard>,
    tensors: Vec<TensorInfo>,
    by_name: HashMap<String, usize>,
}

impl Checkpoint {
    /// Opens the folder `path`: `config.json`, and `model.safetensors.index.json` with its shards,
    /// or else `model.safetensors`.
    ///
    /// # Errors
    /// A file that is missing, a header that is not valid, or an index that does not agree with the
    /// shards, tensor by tensor.
    pub fn open(path: &Path) -> Result<Self> {
        match std::fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => return Err(Error::NotAFolder { path: path.to_owned() }),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let what = "a model folder";
                return Err(Error::Missing { path: path.to_owned(), what });
            }
            Err(e) => return Err(Error::io("read", path, e)),
        }
        Self::open_with(path, Config::read(&path.join(CONFIG_FILE))?)
    }

    /// As [`open`](Self::open), for a folder whose config is not written yet.
    pub(super) fn open_with(path: &Path, config: Config) -> Result<Self> {
        let index_file = path.join(INDEX_FILE);
        if index_file.try_exists().map_err(|e| Error::io("read", &index_file, e))? {
            let weight_map = index::read(&index_file)?;
            let in_index = |problem| Error::Index { file: index_file.clone(), problem };
            // A set: the shards in the order of their names.
            let names: BTreeSet<&String> = weight_map.values().collect();
            if let Some(shard) = names.iter().find(|name| !path.join(name).is_file()) {
                return Err(in_index(IndexProblem::ShardMissing { shard: (*shard).clone() }));
            }
            let files = names.into_iter().map(|name| path.join(name));
            let checkpoint = Self::assemble(path, config, files)?;
            checkpoint.agree_with(&weight_map).map_err(in_index)?;
            return Ok(checkpoint);
        }
        let single = path.join(SINGLE_FILE);
        if !single.try_exists().map_err(|e| Error::io("read", &single, e))? {
            let found = weight_files(path)?.into_iter().next();
            let found = found.unwrap_or_else(|| NO_WEIGHTS.into());
            return Err(Error::NoWeights { folder: path.to_owned(), found });
        }
        Self::assemble(path, config, [single])
    }

    /// The folder it was opened from.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Its `config.json`.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Its tensors in the order of the files: shards by name, then by place.
    #[must_use]
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &TensorInfo> {
        self.tensors.iter()
    }

    /// The tensor of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).map(|&at| &self.tensors[at])
    }

    /// The tensor of this name, which has to be there.
    ///
    /// # Errors
    /// [`Error::NoSuchTensor`].
    pub fn require(&self, name: &str) -> Result<&TensorInfo> {
        self.get(name).ok_or_else(|| Error::NoSuchTensor {
            folder: self.root.clone(),
            tensor: name.to_owned(),
        })
    }

    /// The bytes of all its tensors.
    #[must_use]
    pub fn weight_bytes(&self) -> u64 {
        self.tensors.iter().map(TensorInfo::bytes).sum()
    }

    /// The data of one of its tensors, mapped from the file: pages are read as they are touched.
    ///
    /// # Errors
    /// A file that changed its length, or cannot be mapped; a bug if the tensor is not from here.
    pub fn bytes(&self, tensor: &TensorInfo) -> Result<&[u8]> {
        self.shard_of(tensor)?.bytes(&tensor.range)
    }

    /// Checks that every value of a tensor is finite, holding a MiB of it in memory at a time.
    ///
    /// # Errors
    /// [`Error::NonFiniteTensor`] with the first place; the errors of [`bytes`](Self::bytes).
    pub fn require_finite(&self, tensor: &TensorInfo) -> Result<()> {
        let (shard, bits) = (self.shard_of(tensor)?, tensor.dtype.bitsize() as u64);
        if !is_checked(tensor.dtype) {
            return Ok(());
        }
        shard.each_chunk(&tensor.range, |start, bytes| {
            let Some(at) = first_non_finite(tensor.dtype, bytes) else { return Ok(()) };
            let index = start * 8 / bits + at as u64;
            Err(Error::NonFiniteTensor { tensor: tensor.name.clone(), index })
        })
    }

    /// Tells the system that a tensor's data will not be needed again soon, so that its mapped pages
    /// no longer count as memory of this process. The data stay readable, and slices of them valid.
    pub fn release(&self, tensor: &TensorInfo) {
        if let Ok(shard) = self.shard_of(tensor) {
            shard.release(&tensor.range);
        }
    }

    /// The file that holds a tensor; the folder, for a tensor that is not from here.
    #[must_use]
    pub fn file_of(&self, tensor: &TensorInfo) -> &Path {
        self.shards.get(tensor.shard).map_or(&self.root, |shard| &shard.path)
    }

    /// The weight files, in the order of their names.
    #[must_use]
    pub fn files(&self) -> impl ExactSizeIterator<Item = &Path> {
        self.shards.iter().map(|shard| shard.path.as_path())
    }

    pub(super) fn shards(&self) -> &[Shard] {
        &self.shards
    }

    pub(super) fn shard_of(&self, tensor: &TensorInfo) -> Result<&Shard> {
        if self.get(&tensor.name) != Some(tensor) {
            let (name, root) = (&tensor.name, self.root.display());
            return Err(Error::Bug(format!("tensor `{name}` is not of `{root}`")));
        }
        Ok(&self.shards[tensor.shard])
    }

    /// Opens the shards and gathers their tensors; one tensor in two of them is an error.
    fn assemble(
        root: &Path,
        config: Config,
        files: impl IntoIterator<Item = PathBuf>,
    ) -> Result<Self> {
        let (root, by_name) = (root.to_owned(), HashMap::new());
        let mut all = Self { root, config, shards: Vec::new(), tensors: Vec::new(), by_name };
        for file in files {
            let (shard, tensors) = Shard::open(file)?;
            for tensor in tensors {
                let at = all.tensors.len();
                if let Some(first) = all.by_name.insert(tensor.name.clone(), at) {
                    let problem = IndexProblem::InTwoShards {
                        first: file_name(all.file_of(&all.tensors[first])),
                        second: shard.name(),
                        tensor: tensor.name,
                    };
                    return Err(Error::Index { file: all.root.join(INDEX_FILE), problem });
                }
                all.tensors.push(TensorInfo {
                    name: tensor.name,
                    dtype: tensor.dtype,
                    shape: tensor.shape,
                    shard: all.shards.len(),
                    range: tensor.range,
                });
            }
            all.shards.push(shard);
        }
        Ok(all)
    }

    /// Checks that the index maps every tensor to the shard that holds it, and names no other.
    fn agree_with(&self, weight_map: &BTreeMap<String, String>) -> Result<(), IndexProblem> {
        for (tensor, shard) in weight_map {
            let holds =
                self.get(tensor).is_some_and(|info| self.shards[info.shard].name() == *shard);
            if !holds {
                let (tensor, shard) = (tensor.clone(), shard.clone());
                return Err(IndexProblem::TensorMissing { tensor, shard });
            }
        }
        match self.tensors.iter().find(|info| !weight_map.contains_key(&info.name)) {
            None => Ok(()),
            Some(info) => Err(IndexProblem::NotListed {
                tensor: info.name.clone(),
                shard: self.shards[info.shard].name(),
            }),
        }
    }
}
