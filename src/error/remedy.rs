//! What to do about an error, in the engine's terms. Whoever shows it to a user says with which option:
//! the command line does so in one place.

use std::fmt;

/// One line of advice.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Remedy {
    /// Advice that is the same for everybody.
    Advice(String),
    /// Give calibration text.
    GiveText,
    /// Give more text, or shorter windows.
    GiveMoreText,
    /// Give the text that the plan was measured on.
    GiveSameText,
    /// Give text in a format that is read.
    TextFormat,
    /// Give token ids in the format that is read.
    IdsFormat,
    /// Give the model's tokenizer, or token ids.
    GiveTokenizer,
    /// Use windows of at most so many tokens.
    ShorterWindow(usize),
    /// Use a budget of at least so many bytes.
    LargerBudget(u64),
    /// Name a size.
    NameSize,
    /// Measure before the plan is drawn.
    Measure,
    /// Use this method.
    UseMethod(String),
    /// Make a stack of the model.
    MakeStack,
    /// Cut the stack to a size.
    CutStack,
    /// Draw a plan.
    DrawPlan,
    /// Continue the run that was stopped.
    Resume,
    /// Keep what is measured in another job.
    OtherJob,
    /// Name a folder for the job that is new, or that a run made.
    NewJob,
    /// Continue where the run that was stopped computed: on a GPU, or else on the CPU.
    ComputeOn {
        /// On a GPU.
        gpu: bool,
    },
    /// See what was found of CUDA, or compute on the CPU.
    InspectSystem,
    /// Take less of a device's memory, or allow more.
    LessDeviceMemory,
    /// Limit what is taken of a device that others use.
    LimitDeviceMemory,
    /// Write to another folder, or replace what is there.
    OtherFolderOrReplace,
    /// Write to another folder.
    OtherFolder,
    /// Write to a folder inside the one that was named.
    FolderInside,
    /// Write to a folder outside the input.
    FolderOutsideInput,
    /// Free space on the disk.
    FreeSpace,
}

impl From<&str> for Remedy {
    fn from(advice: &str) -> Self {
        Self::Advice(advice.to_owned())
    }
}

impl From<String> for Remedy {
    fn from(advice: String) -> Self {
        Self::Advice(advice)
    }
}

/// In words that name no option.
impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = match self {
            Self::Advice(advice) => advice,
            Self::ShorterWindow(most) => return write!(f, "use windows of {most} tokens or less"),
            Self::LargerBudget(least) => return write!(f, "use a budget of {least} bytes or more"),
            Self::UseMethod(method) => return write!(f, "use method `{method}`, or name a size"),
            Self::GiveText => "give calibration text",
            Self::GiveMoreText => "give more text or shorter windows",
            Self::GiveSameText => "give the text and windows of the plan, or draw the plan again",
            Self::TextFormat => "a text is plain UTF-8, or .jsonl with a `text` field per line",
            Self::IdsFormat => "ids are `input_ids` i64 [windows, length] in a safetensors file",
            Self::GiveTokenizer => "copy tokenizer.json into the folder, or give token ids",
            Self::NameSize => "name a budget, a fraction to keep, or a rule",
            Self::Measure => "measure first",
            Self::MakeStack => "compress it with method `bitstack`",
            Self::CutStack => "cut it to a size",
            Self::DrawPlan => "write a plan first",
            Self::Resume => "resume it, or name another job folder",
            Self::OtherJob => "name another job folder, or delete this one",
            Self::NewJob => "name a new folder, or one that an earlier run made",
            Self::ComputeOn { gpu: true } => "continue on a GPU, or name another job folder",
            Self::ComputeOn { gpu: false } => "continue on the CPU, or name another job folder",
            Self::InspectSystem => "compute on the CPU, which needs no GPU",
            Self::LessDeviceMemory => "use shorter windows or more device memory, or the CPU",
            Self::LimitDeviceMemory => "others may be using the GPU: limit what is taken of it",
            Self::OtherFolderOrReplace => "choose another folder, or have it replaced",
            Self::OtherFolder => "choose another folder",
            Self::FolderInside => "choose a folder inside it",
            Self::FolderOutsideInput => "the input is never written to; choose a folder outside it",
            Self::FreeSpace => "free some space, or write to another disk",
        };
        f.write_str(words)
    }
}
