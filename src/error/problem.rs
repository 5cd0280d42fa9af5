//! The faults of one header, index, config or output folder, each with what was expected and found.
//!
//! They say what is wrong, not where: [`Error`](super::Error) adds the file.

use std::path::PathBuf;

/// What is wrong with a safetensors header. Lengths and offsets are in bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderProblem {
    /// The file cannot hold the length prefix.
    #[error("expected at least 8 bytes of header length, found a file of {file} bytes")]
    NoLength {
        /// The file's length.
        file: u64,
    },
    /// The header claims to be longer than the format allows.
    #[error("expected a header of at most {limit} bytes, found a length of {length}")]
    TooLong {
        /// The header's length as claimed.
        length: u64,
        /// The format's limit.
        limit: u64,
    },
    /// The header claims to reach past the end of the file.
    #[error("the header claims {length} bytes, found a file of {file} bytes")]
    PastEnd {
        /// The header's length as claimed.
        length: u64,
        /// The file's length.
        file: u64,
    },
    /// The header does not begin as the format demands.
    #[error("expected the header to begin with `{{`, found {found}")]
    NoBrace {
        /// The first byte, or that there is none.
        found: String,
    },
    /// The header is not UTF-8.
    #[error("the header is not UTF-8 from its byte {at} on")]
    NotUtf8 {
        /// Offset within the header.
        at: usize,
    },
    /// The header is not JSON of the expected form.
    #[error("the header does not parse: {message}")]
    NotJson {
        /// The parser's words, with line and column, and the tensor where it is in one.
        message: String,
    },
    /// Two entries have one name.
    #[error("two entries are named `{name}`")]
    Duplicate {
        /// The name.
        name: String,
    },
    /// A dtype the format does not know.
    #[error("tensor `{tensor}` has the unknown dtype `{dtype}`")]
    UnknownDtype {
        /// The tensor.
        tensor: String,
        /// The dtype as written.
        dtype: String,
    },
    /// The shape stands for more than 2⁶⁴ bits.
    #[error("tensor `{tensor}` has the shape {shape:?}, which overflows")]
    ShapeOverflow {
        /// The tensor.
        tensor: String,
        /// The shape.
        shape: Vec<u64>,
    },
    /// Values smaller than a byte that do not fill whole bytes.
    #[error("tensor `{tensor}` takes {bits} bits, which do not fill whole bytes")]
    NotWholeBytes {
        /// The tensor.
        tensor: String,
        /// Elements times bits per element.
        bits: u64,
    },
    /// The offsets do not span what shape and dtype take.
    #[error(
        "tensor `{tensor}`: shape and dtype take {expected} bytes, data_offsets are {start}..{end}"
    )]
    WrongSpan {
        /// The tensor.
        tensor: String,
        /// Bytes by shape and dtype.
        expected: u64,
        /// First offset as written.
        start: u64,
        /// Second offset as written.
        end: u64,
    },
    /// A tensor does not begin where the one before it ends: a hole, or an overlap.
    #[error("tensor `{tensor}` should begin at data offset {expected}, found {found}")]
    NotContiguous {
        /// The tensor.
        tensor: String,
        /// Where the data before it end.
        expected: u64,
        /// Where it begins.
        found: u64,
    },
    /// The data do not end where the file does: it was cut short, or something follows.
    #[error("the header describes {expected} bytes of data, found {found}")]
    DataLength {
        /// Bytes the tensors take.
        expected: u64,
        /// Bytes that follow the header.
        found: u64,
    },
}

/// What is wrong with `model.safetensors.index.json`, or with the shards it names.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IndexProblem {
    /// Not JSON, or no `weight_map` from tensor names to file names.
    #[error("the index does not parse: {message}")]
    NotAnIndex {
        /// The parser's words, with line and column.
        message: String,
    },
    /// The weight map names one tensor twice.
    #[error("the weight map names tensor `{tensor}` twice")]
    Duplicate {
        /// The tensor.
        tensor: String,
    },
    /// A shard's name that is not a plain `*.safetensors` file name.
    #[error(
        "tensor `{tensor}` is mapped to `{shard}`, which is not a plain .safetensors file name"
    )]
    ShardName {
        /// The tensor.
        tensor: String,
        /// The shard as written.
        shard: String,
    },
    /// A shard is not there.
    #[error("the index names the shard `{shard}`, which does not exist")]
    ShardMissing {
        /// The shard.
        shard: String,
    },
    /// A tensor is not in the shard the index says it is in.
    #[error("the index maps tensor `{tensor}` to `{shard}`, which does not hold it")]
    TensorMissing {
        /// The tensor.
        tensor: String,
        /// The shard.
        shard: String,
    },
    /// A shard holds a tensor that the index does not name.
    #[error("`{shard}` holds tensor `{tensor}`, which the index does not name")]
    NotListed {
        /// The tensor.
        tensor: String,
        /// The shard.
        shard: String,
    },
    /// Two shards hold one tensor.
    #[error("tensor `{tensor}` is in `{first}` and in `{second}`")]
    InTwoShards {
        /// The tensor.
        tensor: String,
        /// The shard that comes first by name.
        first: String,
        /// The other.
        second: String,
    },
}

/// What is wrong with `config.json`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigProblem {
    /// Not UTF-8, or not JSON.
    #[error("not valid JSON: {message}")]
    NotJson {
        /// The parser's words, with line and column.
        message: String,
    },
    /// JSON, and not an object.
    #[error("expected a JSON object, found {found}")]
    NotAnObject {
        /// The kind found.
        found: String,
    },
    /// One key stands twice at the top level.
    #[error("the key `{key}` stands twice")]
    Duplicate {
        /// The key.
        key: String,
    },
    /// A value of the wrong kind, or none where one has to be.
    #[error("`{key}`: expected {expected}, found {found}")]
    Value {
        /// The key, dotted where nested.
        key: String,
        /// The kind that would have been accepted.
        expected: String,
        /// The value that stands there, shortened, or "nothing".
        found: String,
    },
}

/// Why an output folder is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OutputProblem {
    /// Something that is not a folder has that name.
    #[error("it exists and is not a folder")]
    NotAFolder,
    /// It holds something, and overwriting was not asked for.
    #[error("it exists and is not empty")]
    NotEmpty,
    /// Overwriting was asked for, and it does not look like a model.
    #[error("it is not a model that may be replaced: it lacks config.json or weights")]
    NotAModel,
    /// It is on another file system than the folder it is in, so nothing can be renamed to it.
    #[error("it is a mount point")]
    MountPoint,
    /// It is the input, lies inside it, or contains files of it.
    #[error("it overlaps the input `{input}`")]
    OverlapsInput {
        /// The input folder, or the file of it that would be lost.
        input: PathBuf,
    },
    /// The path has no last component that could be created.
    #[error("it does not name a folder")]
    NoName,
    /// The folder it is to stand in cannot be written to.
    #[error("`{parent}` cannot be written to: {reason}")]
    NotWritable {
        /// The parent folder.
        parent: PathBuf,
        /// The operating system's words.
        reason: String,
    },
}
