//! What each error means to the shell, and one line of advice where there is any.

use std::io;
use std::path::Path;

use super::{Error, ExitCode, IndexProblem, NO_WEIGHTS, OutputProblem, Remedy};

impl Error {
    /// The exit code this error ends the program with.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Usage { .. } | Self::Output { .. } => ExitCode::Usage,
            Self::Missing { .. }
            | Self::NotAFolder { .. }
            | Self::NoWeights { .. }
            | Self::LfsPointer { .. }
            | Self::NotInHubCache { .. }
            | Self::Header { .. }
            | Self::Index { .. }
            | Self::Config { .. }
            | Self::Changed { .. }
            | Self::NoSuchTensor { .. }
            | Self::TensorMismatch { .. }
            | Self::InvalidFile { .. } => ExitCode::InvalidInput,
            Self::UnsupportedFamily { .. }
            | Self::Unsupported { .. }
            | Self::NotComputable { .. }
            | Self::NoGpu { .. } => ExitCode::Unsupported,
            Self::NonFinite { .. }
            | Self::NonFiniteTensor { .. }
            | Self::NoConvergence { .. }
            | Self::NotPositiveDefinite { .. } => ExitCode::Numerical,
            Self::BudgetTooSmall { .. }
            | Self::DeviceMemory { .. }
            | Self::OutOfDeviceMemory(_) => ExitCode::DoesNotFit,
            Self::Io { source, .. } => io_exit_code(source),
            Self::Interrupted => ExitCode::Interrupted,
            Self::Verification { .. } | Self::Tensor(_) | Self::Bug(_) => ExitCode::Bug,
        }
    }

    /// One line of advice, where there is any.
    pub fn hint(&self) -> Option<Remedy> {
        Some(match self {
            Self::Usage { hint, .. }
            | Self::InvalidFile { hint, .. }
            | Self::Unsupported { hint, .. } => return hint.clone(),
            Self::Missing { .. } | Self::NotAFolder { .. } => {
                "give the folder that holds config.json and the .safetensors files".into()
            }
            Self::NoWeights { found, .. } => no_weights_hint(found).into(),
            Self::LfsPointer { .. } => {
                "fetch the file itself: run `git lfs pull` in that folder".into()
            }
            Self::NotInHubCache { model, .. } => not_cached_hint(model).into(),
            Self::Header { .. } | Self::NonFiniteTensor { .. } => {
                "the file may be damaged or cut short; download it again and compare checksums"
                    .into()
            }
            Self::Index { problem: IndexProblem::ShardMissing { shard }, .. } => {
                format!("download `{shard}` from where the other shards come from").into()
            }
            Self::Index { .. } => {
                "the index and the shards may come from different downloads; download them again"
                    .into()
            }
            Self::Changed { .. } => "do not write to the input while bantam reads it".into(),
            Self::NotComputable { .. } => {
                "bantam compresses unquantised weights; give the model in F32, F16 or BF16".into()
            }
            Self::Output { problem, .. } => match problem {
                OutputProblem::NotEmpty => Remedy::OtherFolderOrReplace,
                OutputProblem::NotAFolder | OutputProblem::NotAModel | OutputProblem::NoName => {
                    Remedy::OtherFolder
                }
                OutputProblem::MountPoint => Remedy::FolderInside,
                OutputProblem::OverlapsInput { .. } => Remedy::FolderOutsideInput,
                OutputProblem::NotWritable { .. } => return None,
            },
            Self::UnsupportedFamily { .. } => "`model_type` in config.json names the family".into(),
            Self::TensorMismatch { .. } => {
                "config.json and the weights may come from different models".into()
            }
            Self::NonFinite { .. } => {
                "the checkpoint may be damaged; download it again and compare checksums".into()
            }
            Self::NotPositiveDefinite { .. } => {
                "a moment of fewer tokens than it has dimensions is singular; use more text".into()
            }
            Self::BudgetTooSmall { smallest, .. } => Remedy::LargerBudget(*smallest),
            Self::NoGpu { .. } => Remedy::InspectSystem,
            Self::DeviceMemory { .. } => Remedy::LessDeviceMemory,
            Self::OutOfDeviceMemory(_) => Remedy::LimitDeviceMemory,
            Self::Io { source, .. } if io_exit_code(source) == ExitCode::DoesNotFit => {
                Remedy::FreeSpace
            }
            Self::Tensor(_) | Self::Bug(_) | Self::Verification { .. } => {
                "this is a bug in bantam; please report it with the command line".into()
            }
            Self::Io { .. }
            | Self::Config { .. }
            | Self::NoSuchTensor { .. }
            | Self::NoConvergence { .. }
            | Self::Interrupted => return None,
        })
    }
}

/// Disk full is "does not fit"; everything else the system refuses is about the input or output path.
fn io_exit_code(error: &io::Error) -> ExitCode {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            ExitCode::DoesNotFit
        }
        _ => ExitCode::InvalidInput,
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

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::HeaderProblem;
    use super::*;

    #[test]
    fn exit_codes_follow_the_kind() {
        let full = Error::io("write", Path::new("x"), io::ErrorKind::StorageFull.into());
        assert_eq!(full.exit_code(), ExitCode::DoesNotFit);
        let bad = Error::header(Path::new("x"), HeaderProblem::NoLength { file: 3 });
        assert_eq!(bad.exit_code(), ExitCode::InvalidInput);
        let nan = Error::NonFiniteTensor { tensor: "w".into(), index: 7 };
        assert_eq!(nan.exit_code(), ExitCode::Numerical);
        let out = Error::output(Path::new("o"), OutputProblem::NotEmpty);
        assert_eq!(out.exit_code(), ExitCode::Usage);
        assert_eq!(Error::Bug(String::new()).exit_code(), ExitCode::Bug);
    }

    #[test]
    fn hints_say_what_to_do() {
        let folder = PathBuf::from("m");
        let bin = Error::NoWeights { folder, found: "pytorch_model.bin".into() };
        assert!(bin.hint().is_some_and(|h| h.to_string().contains("convert it to safetensors")));
        let hub = Error::NotInHubCache { model: "a/b@v1".into(), looked_for: "/c".into() };
        assert!(
            hub.hint().is_some_and(|h| h.to_string().contains("hf download a/b --revision v1"))
        );
    }
}
