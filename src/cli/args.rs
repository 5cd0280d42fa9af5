//! Arguments that several verbs share, and what they resolve to.

use std::ops::{Bound, RangeBounds};
use std::path::PathBuf;

use clap::Args;

use super::console::Console;
use crate::arch::Model;
use crate::checkpoint::{HubEnv, resolve};
use crate::error::Result;
use crate::measure::{Cut, DEFAULT_WINDOWS, Draw, TextWindows};
use crate::settings::parse_size;

/// The input model.
#[derive(Debug, Args)]
pub(super) struct ModelArg {
    /// Model folder, or `org/name[@revision]` in the local Hugging Face cache.
    #[arg(id = "MODEL", value_name = "MODEL")]
    model: String,
}

/// How much of a stack is read.
#[derive(Debug, Args)]
pub(super) struct PrefixArgs {
    /// Of a stack, read only what fits these bytes: 1.2GiB, 800MB.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(super) budget: Option<u64>,
}

impl PrefixArgs {
    /// The model, cut to the budget where one is named.
    pub(super) fn open(&self, model: &ModelArg) -> Result<Model> {
        let model = model.open()?;
        match self.budget {
            Some(budget) => model.prefix(budget),
            None => Ok(model),
        }
    }
}

impl ModelArg {
    pub(super) fn open(&self) -> Result<Model> {
        let environment = HubEnv::from_lookup(|key| std::env::var_os(key));
        Model::open(&resolve(&self.model, &environment)?)
    }
}

/// What the model is measured on.
#[derive(Debug, Args)]
pub(super) struct CalibrationArgs {
    /// Calibration text: plain UTF-8, or .jsonl with a `text` field per line.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    text: Vec<PathBuf>,

    /// Windows of text to read.
    #[arg(long, value_name = "N", default_value_t = DEFAULT_WINDOWS as u32, value_parser = clap::value_parser!(u32).range(1..))]
    windows: u32,

    /// Tokens of a window [default: 2048, or what the model takes].
    #[arg(long, value_name = "L", value_parser = clap::value_parser!(u32).range(2..))]
    window: Option<u32>,

    /// Activations that stay in memory while gradients are taken; more goes to the job folder.
    #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = size)]
    pub(super) activation_memory: u64,

    /// Draw the windows at random with this seed, not from the start of the text.
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
}

impl CalibrationArgs {
    /// How the text is cut.
    pub(super) fn cut(&self) -> Cut {
        Cut {
            length: self.window.map(|length| length as usize),
            windows: Some(self.windows as usize),
            draw: self.seed.map_or(Draw::FromStart, |seed| Draw::Random { seed }),
        }
    }

    pub(super) fn given(&self) -> bool {
        !self.text.is_empty()
    }

    /// Reads and tokenises the text, where there is any.
    pub(super) fn windows(&self, model: &Model) -> Result<Option<TextWindows>> {
        let read = || TextWindows::read(model, &self.text, self.cut());
        self.given().then(read).transpose()
    }

    /// As [`windows`](Self::windows), and warns where they are too little to calibrate on.
    pub(super) fn read(&self, model: &Model, console: &Console) -> Result<Option<TextWindows>> {
        let Some(text) = self.windows(model)? else { return Ok(None) };
        let tokens = text.windows().ids().len();
        let in_blocks = model.sites().iter().filter(|site| site.layer.is_some());
        let widest = in_blocks.map(|site| site.in_features).max().unwrap_or(0);
        if tokens < widest {
            console.note(&format!(
                "warning: {tokens} calibration tokens show less than all of the {widest} directions of \
                 the widest linear; give more --text or --windows"
            ));
        }
        Ok(Some(text))
    }
}

/// Report as one JSON object on stdout.
#[derive(Debug, Args)]
pub(super) struct ReportArgs {
    /// Print one JSON object.
    #[arg(long)]
    pub(super) json: bool,
}

/// A size for clap.
pub(super) fn size(text: &str) -> std::result::Result<u64, String> {
    parse_size(text).map_err(|e| match e.hint() {
        Some(hint) => format!("{e}; {hint}"),
        None => e.to_string(),
    })
}

/// A fraction above zero for clap.
pub(super) fn fraction(text: &str) -> std::result::Result<f64, String> {
    let above_zero = (Bound::Excluded(0.0), Bound::Included(1.0));
    number(text, above_zero, "a fraction above 0 and up to 1, such as 0.6")
}

/// A fraction that may be zero for clap.
pub(super) fn fraction_or_zero(text: &str) -> std::result::Result<f64, String> {
    number(text, 0.0..=1.0, "a fraction from 0 to 1")
}

/// A number in a range for clap.
pub(super) fn number(
    text: &str,
    range: impl RangeBounds<f64>,
    expected: &str,
) -> std::result::Result<f64, String> {
    let parsed = text.parse().ok().filter(|value| range.contains(value));
    parsed.ok_or_else(|| format!("expected {expected}"))
}
