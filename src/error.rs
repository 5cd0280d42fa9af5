//! What can go wrong, said so that a person can act on it.
//!
//! Every error names the file or tensor it is about, states what was expected and what was found,
//! maps to one exit code, and may carry one hint. Modules with their own vocabulary
//! ([`CheckpointError`]) keep their own enum; it nests here.

use std::path::{Path, PathBuf};

use crate::checkpoint::CheckpointError;

/// The crate's result type.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// How a run ended, as the shell sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// The command line asks for something that makes no sense.
    Usage = 2,
    /// The input is missing, malformed or corrupt.
    InvalidInput = 3,
    /// It does not fit: plan infeasible, out of memory, disk full.
    DoesNotFit = 4,
    /// An architecture or feature that is not supported.
    Unsupported = 5,
    /// A computation produced a value that is not finite, or did not converge.
    Numerical = 6,
    /// A bug in bantam.
    Bug = 70,
    /// Stopped by the user.
    Interrupted = 130,
}

/// Everything that can end a run early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The checkpoint's files are missing, malformed or could not be written.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),

    /// `config.json` holds a value that cannot be used.
    #[error("`{file}`: `{key}` is {found}, expected {expected}")]
    Config {
        /// The file.
        file: PathBuf,
        /// The key, dotted where nested.
        key: String,
        /// What would have been accepted.
        expected: String,
        /// What stands there.
        found: String,
    },

    /// The model's family is not one that bantam knows.
    #[error("model family `{found}` is not supported; supported: {supported}")]
    UnsupportedFamily {
        /// `model_type` as found.
        found: String,
        /// The list of families.
        supported: String,
    },

    /// A feature of a supported family that is not built.
    #[error("{what} is not supported")]
    Unsupported {
        /// The feature, with the value that asks for it.
        what: String,
        /// What to do instead.
        hint: Option<String>,
    },

    /// A tensor's shape or dtype contradicts `config.json` or the plan.
    #[error("tensor `{tensor}` in `{file}`: expected {expected}, found {found}")]
    TensorMismatch {
        /// The tensor.
        tensor: String,
        /// The checkpoint or shard.
        file: PathBuf,
        /// Shape and dtype expected.
        expected: String,
        /// Shape and dtype found.
        found: String,
    },

    /// A tensor or activation holds NaN or infinity.
    #[error("{what} holds a value that is not finite ({detail})")]
    NonFinite {
        /// The tensor, or the layer's activation.
        what: String,
        /// Position or count.
        detail: String,
    },

    /// A decomposition did not converge.
    #[error("{what} did not converge for {subject}")]
    NoConvergence {
        /// The decomposition.
        what: &'static str,
        /// The unit or matrix.
        subject: String,
    },

    /// A matrix that needs a Cholesky factor has none in floating point.
    #[error(
        "{subject} is not positive definite: its leading minor of order {minor} is not positive"
    )]
    NotPositiveDefinite {
        /// The matrix.
        subject: String,
        /// The order of the first leading minor that fails, from 1.
        minor: usize,
    },

    /// The budget is below the smallest model the methods can make.
    #[error("a budget of {budget} bytes is below the smallest possible model, {smallest} bytes")]
    BudgetTooSmall {
        /// Bytes asked for.
        budget: u64,
        /// Bytes of the smallest choice of every unit, and all that is not compressed.
        smallest: u64,
    },

    /// The command line asks for something that makes no sense together.
    #[error("{message}")]
    Usage {
        /// What is wrong.
        message: String,
        /// What to type instead.
        hint: Option<String>,
    },

    /// A text, token or plan file cannot be used.
    #[error("`{file}`: {problem}")]
    InvalidFile {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// What to do about it.
        hint: Option<String>,
    },

    /// The operating system refused a file operation.
    #[error("could not {action} `{path}`: {source}")]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },

    /// The written output differs from the plan.
    #[error("verification of `{file}` failed: {problem}")]
    Verification {
        /// The output folder.
        file: PathBuf,
        /// The first difference.
        problem: String,
    },

    /// The user asked to stop.
    #[error("interrupted; no model was left behind")]
    Interrupted,

    /// A GPU was asked for and cannot be used.
    #[error("cannot compute on a GPU: {why}")]
    NoGpu {
        /// What is missing.
        why: String,
    },

    /// What is asked for needs more device memory than there is, or than it may take.
    #[error("{what} needs {needed} bytes of device memory, {available} may be used")]
    DeviceMemory {
        /// What was to be held there.
        what: String,
        /// Bytes of it.
        needed: u64,
        /// Bytes free, or allowed.
        available: u64,
    },

    /// The GPU ran out of memory.
    #[error("the GPU is out of memory: {0}")]
    OutOfDeviceMemory(String),

    /// The tensor engine refused an operation: shapes were validated before, so this is a bug.
    #[error("tensor engine: {0}")]
    Tensor(candle_core::Error),

    /// A broken invariant.
    #[error("internal error: {0}")]
    Bug(String),
}

impl Error {
    /// A [`Error::Usage`] with a hint.
    pub fn usage(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Usage { message: message.into(), hint: Some(hint.into()) }
    }

    /// A [`Error::Io`] for `path`.
    pub fn io(action: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }

    /// The exit code this error ends the program with.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Checkpoint(e) => e.exit_code(),
            Self::Usage { .. } => ExitCode::Usage,
            Self::Config { .. } | Self::TensorMismatch { .. } | Self::InvalidFile { .. } => {
                ExitCode::InvalidInput
            }
            Self::UnsupportedFamily { .. } | Self::Unsupported { .. } | Self::NoGpu { .. } => {
                ExitCode::Unsupported
            }
            Self::NonFinite { .. }
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
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Checkpoint(e) => e.hint(),
            Self::Usage { hint, .. }
            | Self::InvalidFile { hint, .. }
            | Self::Unsupported { hint, .. } => hint.clone(),
            Self::UnsupportedFamily { .. } => {
                Some("`model_type` in config.json names the family".into())
            }
            Self::TensorMismatch { .. } => {
                Some("config.json and the weights may come from different models".into())
            }
            Self::NonFinite { .. } => Some(
                "the checkpoint may be damaged; download it again and compare checksums".into(),
            ),
            Self::NotPositiveDefinite { .. } => Some(
                "a moment of fewer tokens than it has dimensions is singular; use more text".into(),
            ),
            Self::BudgetTooSmall { smallest, .. } => {
                Some(format!("use `--budget {smallest}` or more"))
            }
            Self::NoGpu { .. } => Some(
                "`bantam inspect --system` shows what was found; `--compute cpu` needs no GPU"
                    .into(),
            ),
            Self::DeviceMemory { .. } => {
                Some("use a smaller --window, a larger --device-memory or `--compute cpu`".into())
            }
            Self::OutOfDeviceMemory(_) => Some(
                "others may be using the GPU: name with --device-memory what bantam may take"
                    .into(),
            ),
            Self::Io { source, .. } if io_exit_code(source) == ExitCode::DoesNotFit => {
                Some("free some space, or write to another disk with -o".into())
            }
            Self::Tensor(_) | Self::Bug(_) | Self::Verification { .. } => {
                Some("this is a bug in bantam; please report it with the command line".into())
            }
            _ => None,
        }
    }
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        let text = error.to_string();
        match text.contains("OUT_OF_MEMORY") {
            // Where in our code it happened is of no use to who reads this.
            true => Self::OutOfDeviceMemory(text.lines().next().unwrap_or_default().to_owned()),
            false => Self::Tensor(error),
        }
    }
}

/// Disk full is "does not fit"; everything else the system refuses is about the input or output path.
pub(crate) fn io_exit_code(error: &std::io::Error) -> ExitCode {
    match error.kind() {
        std::io::ErrorKind::StorageFull
        | std::io::ErrorKind::QuotaExceeded
        | std::io::ErrorKind::FileTooLarge => ExitCode::DoesNotFit,
        _ => ExitCode::InvalidInput,
    }
}
