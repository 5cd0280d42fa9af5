//! Everything that can be wrong with a checkpoint, or with the place where one is to be written.
//!
//! One variant per kind of fault, each naming the file or tensor; the long families (header, index,
//! config, output) have their own enum in `problem.rs`. Exit codes and hints are decided here.

use std::io;
use std::path::{Path, PathBuf};

use safetensors::Dtype;

use super::problem::{ConfigProblem, HeaderProblem, IndexProblem, OutputProblem};
use crate::error::{ExitCode, io_exit_code};

/// Why a checkpoint could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// A file or folder that has to be there is not.
    #[error("`{path}` does not exist; expected {what}")]
    Missing {
        /// The path.
        path: PathBuf,
        /// What it should have been.
        what: &'static str,
    },

    /// The path exists and is not a folder.
    #[error("`{path}` is not a folder; expected a model folder with config.json and safetensors")]
    NotAFolder {
        /// The path.
        path: PathBuf,
    },

    /// The folder has no safetensors weights.
    #[error(
        "`{folder}` has neither model.safetensors nor model.safetensors.index.json; found {found}"
    )]
    NoWeights {
        /// The folder.
        folder: PathBuf,
        /// The weight file that was found instead, or "no weights".
        found: String,
    },

    /// A Git LFS pointer stands where the file itself should be.
    #[error("`{file}` is a Git LFS pointer, not the file itself")]
    LfsPointer {
        /// The file.
        file: PathBuf,
    },

    /// A name that is neither a folder nor a complete entry of the local Hub cache.
    #[error("`{model}` is neither a folder nor in the local Hub cache; looked for `{looked_for}`")]
    NotInHubCache {
        /// The model as asked for.
        model: String,
        /// The first path of the cache that is not there.
        looked_for: PathBuf,
    },

    /// The operating system refused a file operation.
    #[error("could not {action} `{path}`: {source}")]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },

    /// A safetensors file whose header is not valid, or does not describe the file.
    #[error("`{file}` is not a valid safetensors file: {problem}")]
    Header {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        problem: HeaderProblem,
    },

    /// An index that is not valid, or does not describe the shards.
    #[error("`{file}`: {problem}")]
    Index {
        /// The index file.
        file: PathBuf,
        /// What is wrong.
        problem: IndexProblem,
    },

    /// A `config.json` that is not valid, or holds a value of the wrong kind.
    #[error("`{file}`: {problem}")]
    Config {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        problem: ConfigProblem,
    },

    /// A weights file changed its length while it was in use.
    #[error("`{file}` changed while it was in use: expected {expected} bytes, found {found}")]
    Changed {
        /// The file.
        file: PathBuf,
        /// Its length when the checkpoint was opened.
        expected: u64,
        /// Its length now.
        found: u64,
    },

    /// A tensor that has to be there is not.
    #[error("`{folder}` has no tensor `{tensor}`")]
    NoSuchTensor {
        /// The checkpoint.
        folder: PathBuf,
        /// The tensor.
        tensor: String,
    },

    /// A tensor that bantam cannot compute with.
    #[error("tensor `{tensor}`: expected F32, F16 or BF16, found {dtype}")]
    NotComputable {
        /// The tensor.
        tensor: String,
        /// Its dtype.
        dtype: Dtype,
    },

    /// A tensor holds NaN or infinity, or a value its dtype cannot hold.
    #[error("tensor `{tensor}` holds a value that is not finite, at flat index {index}")]
    NonFinite {
        /// The tensor.
        tensor: String,
        /// Flat (row-major) index of the first such value.
        index: u64,
    },

    /// The output folder is refused.
    #[error("cannot write to `{path}`: {problem}")]
    Output {
        /// The output folder as asked for.
        path: PathBuf,
        /// Why it is refused.
        problem: OutputProblem,
    },

    /// A caller broke the contract of this module.
    #[error("internal error: {0}")]
    Bug(String),
}

impl CheckpointError {
    /// The exit code this error ends the program with.
    #[must_use]
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Io { source, .. } => io_exit_code(source),
            Self::NonFinite { .. } => ExitCode::Numerical,
            Self::Output { .. } => ExitCode::Usage,
            Self::NotComputable { .. } => ExitCode::Unsupported,
            Self::Bug(_) => ExitCode::Bug,
            _ => ExitCode::InvalidInput,
        }
    }

    /// One line of advice, where there is any.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Missing { .. } | Self::NotAFolder { .. } => {
                "give the folder that holds config.json and the .safetensors files".into()
            }
            Self::NoWeights { found, .. } => no_weights_hint(found),
            Self::LfsPointer { .. } => {
                "fetch the file itself: run `git lfs pull` in that folder".into()
            }
            Self::NotInHubCache { model, .. } => not_cached_hint(model),
            Self::Header { .. } | Self::NonFinite { .. } => {
                "the file may be damaged or cut short; download it again and compare checksums"
                    .into()
            }
            Self::Index { problem: IndexProblem::ShardMissing { shard }, .. } => {
                format!("download `{shard}` from where the other shards come from")
            }
            Self::Index { .. } => {
                "the index and the shards may come from different downloads; download them again"
                    .into()
            }
            Self::Changed { .. } => "do not write to the input while bantam reads it".into(),
            Self::NotComputable { .. } => {
                "bantam compresses unquantised weights; give the model in F32, F16 or BF16".into()
            }
            Self::Output { problem, .. } => output_hint(problem)?,
            Self::Io { source, .. } if io_exit_code(source) == ExitCode::DoesNotFit => {
                "free some space, or write to another disk with -o".into()
            }
            Self::Bug(_) => {
                "this is a bug in bantam; please report it with the command line".into()
            }
            Self::Io { .. } | Self::Config { .. } | Self::NoSuchTensor { .. } => return None,
        })
    }

    pub(super) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }

    pub(super) fn header(file: &Path, problem: HeaderProblem) -> Self {
        Self::Header { file: file.to_owned(), problem }
    }

    pub(super) fn output(path: &Path, problem: OutputProblem) -> Self {
        Self::Output { path: path.to_owned(), problem }
    }
}

fn no_weights_hint(found: &str) -> String {
    let named = |extension: &str| Path::new(found).extension().is_some_and(|e| e == extension);
    if named("safetensors") {
        "this looks like a part of a sharded model; download model.safetensors.index.json".into()
    } else if named("gguf") {
        "GGUF is an output of other tools; give the safetensors checkpoint it was made from".into()
    } else if found == NO_WEIGHTS {
        "download the .safetensors files of the model into that folder".into()
    } else {
        "convert it to safetensors first: load it in transformers, then `save_pretrained` it".into()
    }
}

fn not_cached_hint(model: &str) -> String {
    match model.split_once('@') {
        Some((name, revision)) => {
            format!("run `hf download {name} --revision {revision}`, or give a folder")
        }
        None => format!("run `hf download {model}`, or give a folder"),
    }
}

fn output_hint(problem: &OutputProblem) -> Option<String> {
    match problem {
        OutputProblem::NotEmpty => Some("choose another folder, or pass --overwrite".into()),
        OutputProblem::NotAFolder | OutputProblem::NotAModel | OutputProblem::NoName => {
            Some("choose another folder with -o".into())
        }
        OutputProblem::MountPoint => Some("choose a folder inside it with -o".into()),
        OutputProblem::OverlapsInput { .. } => {
            Some("bantam never writes into its input; choose a folder outside it with -o".into())
        }
        OutputProblem::NotWritable { .. } => None,
    }
}

/// What [`CheckpointError::NoWeights`] says where no weight file of any kind was found.
pub(super) const NO_WEIGHTS: &str = "no weights";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_follow_the_kind() {
        let full = CheckpointError::io("write", Path::new("x"), io::ErrorKind::StorageFull.into());
        assert_eq!(full.exit_code(), ExitCode::DoesNotFit);
        let bad = CheckpointError::header(Path::new("x"), HeaderProblem::NoLength { file: 3 });
        assert_eq!(bad.exit_code(), ExitCode::InvalidInput);
        let nan = CheckpointError::NonFinite { tensor: "w".into(), index: 7 };
        assert_eq!(nan.exit_code(), ExitCode::Numerical);
        let out = CheckpointError::output(Path::new("o"), OutputProblem::NotEmpty);
        assert_eq!(out.exit_code(), ExitCode::Usage);
        assert_eq!(CheckpointError::Bug(String::new()).exit_code(), ExitCode::Bug);
    }

    #[test]
    fn hints_say_what_to_do() {
        let folder = PathBuf::from("m");
        let bin = CheckpointError::NoWeights { folder, found: "pytorch_model.bin".into() };
        assert!(bin.hint().is_some_and(|h| h.contains("convert it to safetensors")));
        let hub =
            CheckpointError::NotInHubCache { model: "a/b@v1".into(), looked_for: "/c".into() };
        assert!(hub.hint().is_some_and(|h| h.contains("hf download a/b --revision v1")));
    }
}
