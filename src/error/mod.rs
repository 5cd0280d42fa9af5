//! What can go wrong, said so that a person can act on it.
//!
//! Every error names the file or tensor it is about, states what was expected and what was found,
//! maps to one exit code, and may carry one hint. What can be wrong with one header, index, config or
//! output folder has an enum of its own, and what to do about it too ([`Remedy`]).
//!
//! ```
//! use bantam::arch::Model;
//! use bantam::error::ExitCode;
//!
//! let error = Model::open("nowhere".as_ref()).unwrap_err();
//! assert_eq!(error.exit_code(), ExitCode::InvalidInput);
//! assert_eq!(error.to_string(), "`nowhere` does not exist; expected a model folder");
//! assert!(error.hint().is_some());
//! ```

mod advice;
mod problem;
mod remedy;

pub use problem::{ConfigProblem, HeaderProblem, IndexProblem, OutputProblem};
pub use remedy::Remedy;

use std::path::{Path, PathBuf};

use safetensors::Dtype;

/// The crate's result type.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// How a run ended, as the shell sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// What is asked for makes no sense.
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
    NonFiniteTensor {
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
        hint: Option<Remedy>,
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
        /// The linear or matrix.
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
        /// Bytes of the smallest choice of every linear, and all that is not compressed.
        smallest: u64,
    },

    /// What is asked for makes no sense together.
    #[error("{message}")]
    Usage {
        /// What is wrong.
        message: String,
        /// What to ask for instead.
        hint: Option<Remedy>,
    },

    /// A text, token or plan file cannot be used.
    #[error("`{file}`: {problem}")]
    InvalidFile {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        problem: String,
        /// What to do about it.
        hint: Option<Remedy>,
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

/// What [`Error::NoWeights`] says where no weight file of any kind was found.
pub(crate) const NO_WEIGHTS: &str = "no weights";

impl Error {
    /// A [`Error::Usage`] with a hint.
    pub fn usage(message: impl Into<String>, hint: impl Into<Remedy>) -> Self {
        Self::Usage { message: message.into(), hint: Some(hint.into()) }
    }

    /// The same where not a user but `file` asks for what makes no sense.
    #[must_use]
    pub fn in_file(self, file: &Path) -> Self {
        match self {
            Self::Usage { message: problem, hint } => {
                Self::InvalidFile { file: file.to_owned(), problem, hint }
            }
            other => other,
        }
    }

    /// A [`Error::Io`] for `path`.
    pub fn io(action: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }

    /// A value of a config that cannot be used; `key` is dotted where nested.
    pub(crate) fn config(
        file: &Path,
        key: &str,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> Self {
        let (key, expected, found) = (key.to_owned(), expected.into(), found.into());
        let problem = ConfigProblem::Value { key, expected, found };
        Self::Config { file: file.to_owned(), problem }
    }

    /// The error as candle carries it through an operation of ours; [`From<candle_core::Error>`] gives it
    /// back as it was.
    pub(crate) fn through_candle(self) -> candle_core::Error {
        let context = "an operation of bantam".to_owned();
        candle_core::Error::WrappedContext { wrapped: Box::new(self), context }
    }

    pub(crate) fn header(file: &Path, problem: HeaderProblem) -> Self {
        Self::Header { file: file.to_owned(), problem }
    }

    pub(crate) fn output(path: &Path, problem: OutputProblem) -> Self {
        Self::Output { path: path.to_owned(), problem }
    }
}

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        use candle_core::Error as Candle;
        match error {
            Candle::WrappedContext { wrapped, context } => match wrapped.downcast::<Self>() {
                Ok(ours) => *ours,
                Err(wrapped) => Self::Tensor(Candle::WrappedContext { wrapped, context }),
            },
            Candle::WithBacktrace { inner, .. } | Candle::Context { inner, .. } => {
                Self::from(*inner)
            }
            other => {
                let text = other.to_string();
                match text.contains("OUT_OF_MEMORY") {
                    // Where in our code it happened is of no use to who reads this.
                    true => {
                        Self::OutOfDeviceMemory(text.lines().next().unwrap_or_default().to_owned())
                    }
                    false => Self::Tensor(other),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_went_through_candle_comes_back_as_it_was() {
        let sent = || Error::Interrupted.through_candle();
        assert!(matches!(Error::from(sent()), Error::Interrupted));
        assert!(matches!(Error::from(sent().bt()), Error::Interrupted));
        assert!(matches!(Error::from(sent().context("backward")), Error::Interrupted));
        let other = candle_core::Error::Msg("shape".into());
        assert!(matches!(Error::from(other), Error::Tensor(_)));
    }
}
