//! Arguments that several verbs share, and what they resolve to.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::console::Console;
use crate::arch::SourceModel;
use crate::checkpoint::{HubEnv, resolve};
use crate::error::{Error, Result};
use crate::measure::{DEFAULT_WINDOWS, Draw, MeasureOptions, Text, Tokenizer, Windows};
use crate::passes::{Method, Pass, PassOptions, StackOptions};
use crate::pipeline::{CalibrationText, Request};
use crate::plan::{BlockOrder, Rule, Target, parse_size};

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
    pub(super) fn open(&self, model: &ModelArg) -> Result<SourceModel> {
        let model = model.open()?;
        match self.budget {
            Some(budget) => model.within(budget),
            None => Ok(model),
        }
    }
}

impl ModelArg {
    pub(super) fn open(&self) -> Result<SourceModel> {
        let environment = HubEnv::from_lookup(|key| std::env::var_os(key));
        SourceModel::open(&resolve(&self.model, &environment)?)
    }
}

/// How large the output may be: exactly one of these.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub(super) struct TargetArgs {
    /// Bytes of all weights of the output: 5.5GiB, 800MB, 123456.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    budget: Option<u64>,

    /// The same as a fraction of the input's bytes.
    #[arg(long, value_name = "FRACTION", value_parser = fraction, allow_negative_numbers = true)]
    keep: Option<f64>,

    /// Every linear keeps this fraction of its parameters, as published: no allocation, no gradients.
    #[arg(long, value_name = "FRACTION", value_parser = fraction, allow_negative_numbers = true)]
    uniform: Option<f64>,

    /// Fraction of all singular values to drop, by one threshold (welore's published rule).
    #[arg(long, value_name = "FRACTION", value_parser = fraction, allow_negative_numbers = true)]
    reduce: Option<f64>,
}

impl TargetArgs {
    /// Whether a published rule chooses the ranks, and with it the decompositions are those published.
    fn is_published(&self) -> bool {
        self.uniform.is_some() || self.reduce.is_some()
    }

    fn rule(&self, methods: &[MethodName]) -> Result<Rule> {
        match (self.budget, self.keep, self.uniform, self.reduce) {
            (Some(bytes), ..) => Ok(Rule::Target(Target::Budget(bytes))),
            (_, Some(kept), ..) => Ok(Rule::Target(Target::Keep(kept))),
            (_, _, Some(kept), _) => Ok(Rule::Uniform(kept)),
            (_, _, _, Some(reduce)) if methods == [MethodName::Welore] => Ok(Rule::Reduce(reduce)),
            (_, _, _, Some(_)) => Err(Error::usage(
                "--reduce thresholds singular values of the weights",
                "add --method welore, or name a size with --keep or --budget",
            )),
            _ => Err(Error::usage("no size is named", "add --budget SIZE or --keep FRACTION")),
        }
    }
}

/// Which method, and how.
#[derive(Debug, Args)]
pub(super) struct MethodArgs {
    /// Compression method; several compete for one budget.
    #[arg(long, value_enum, value_name = "METHOD", default_value = "lord")]
    method: Vec<MethodName>,

    /// Ranks are multiples of this.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=4096))]
    rank_multiple: u32,

    /// No linear gets fewer than this fraction of the bytes an even split would give it.
    #[arg(long, value_name = "FRACTION", default_value_t = 0.5, value_parser = fraction_or_zero)]
    floor: f64,

    /// Decompose as the methods were published; gradients only price the offers.
    #[arg(long)]
    paper: bool,

    /// Take no gradients: every channel of a layer counts the same. Faster, and less exact.
    #[arg(long)]
    no_gradients: bool,

    /// Multiply factors out again and write dense tensors, which load anywhere but save nothing.
    #[arg(long)]
    fold: bool,

    #[command(flatten)]
    stack: StackArgs,
}

/// How a stack is made.
#[derive(Debug, Args)]
struct StackArgs {
    /// Blocks of every linear of a stack (bitstack).
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=32))]
    levels: u32,

    /// Rank of the factors of a stack's blocks (bitstack).
    #[arg(long, value_name = "K", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=64))]
    rank: u32,

    /// In which order a stack's blocks stand (bitstack) [default: priority, or average without gradients].
    #[arg(long, value_enum, value_name = "ORDER")]
    order: Option<OrderName>,

    /// Decompose a stack's blocks exactly: a hundred times slower, and hardly better (bitstack).
    #[arg(long)]
    exact_svd: bool,
}

/// Orders as typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OrderName {
    /// By expected loss saved per byte.
    Priority,
    /// Level by level, as published.
    Average,
}

/// The methods as typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum MethodName {
    /// Principal directions of each linear's outputs (needs --text).
    Lord,
    /// Singular values of the weights alone.
    Welore,
    /// Residual blocks: a file of which any prefix is a model (needs --text; a size is not named).
    Bitstack,
}

impl MethodName {
    fn method(self) -> Method {
        match self {
            Self::Lord => Method::Lord,
            Self::Welore => Method::Welore,
            Self::Bitstack => Method::Bitstack,
        }
    }
}

impl MethodArgs {
    pub(super) fn passes(&self, target: Option<&TargetArgs>) -> Vec<Box<dyn Pass>> {
        let mut methods: Vec<Method> = self.method.iter().map(|name| name.method()).collect();
        methods.sort_unstable();
        methods.dedup();
        let options = PassOptions {
            rank_multiple: self.rank_multiple as usize,
            paper: self.measure_options(target).paper,
            stack: StackOptions {
                levels: self.stack.levels as usize,
                rank: self.stack.rank as usize,
                exact: self.stack.exact_svd,
            },
        };
        passes(&methods, options)
    }

    pub(super) fn measure_options(&self, target: Option<&TargetArgs>) -> MeasureOptions {
        let published = target.is_some_and(TargetArgs::is_published);
        MeasureOptions {
            gradients: !self.no_gradients && !published,
            paper: self.paper || published,
        }
    }

    /// What to plan; a stack needs no size.
    pub(super) fn request(&self, target: Option<&TargetArgs>) -> Result<Request> {
        let rule = match target {
            Some(target) => target.rule(&self.method)?,
            None if self.method == [MethodName::Bitstack] => Rule::Stack,
            None => {
                return Err(Error::usage(
                    "no size is named",
                    "add --budget SIZE, --keep FRACTION, --uniform FRACTION or --plan FILE",
                ));
            }
        };
        Ok(Request {
            rule,
            rank_multiple: self.rank_multiple as usize,
            floor: self.floor,
            fold: self.fold,
            order: match self.stack.order {
                Some(OrderName::Priority) => BlockOrder::Priority,
                // Of what is measured only gradients tell what a level of one linear is worth against that
                // of another.
                None if self.measure_options(target).gradients => BlockOrder::Priority,
                Some(OrderName::Average) | None => BlockOrder::Average,
            },
        })
    }
}

/// The passes for `methods`.
pub(super) fn passes(methods: &[Method], options: PassOptions) -> Vec<Box<dyn Pass>> {
    methods.iter().map(|method| method.pass(options)).collect()
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
    /// Windows asked for, and tokens of each.
    pub(super) fn shape(&self, model: &SourceModel) -> Result<(usize, usize)> {
        Ok((self.windows as usize, window_length(self.window, model)?))
    }

    pub(super) fn given(&self) -> bool {
        !self.text.is_empty()
    }

    /// Reads and tokenises the text, where there is any.
    pub(super) fn windows(&self, model: &SourceModel) -> Result<Option<CalibrationText>> {
        if !self.given() {
            return Ok(None);
        }
        let draw = self.seed.map_or(Draw::FromStart, |seed| Draw::Random { seed });
        let length = window_length(self.window, model)?;
        let windows =
            windows_of_text(model, &self.text, length, Some(self.windows as usize), draw)?;
        Ok(Some(windows))
    }

    /// As [`windows`](Self::windows), and warns where they are too little to calibrate on.
    pub(super) fn read(
        &self,
        model: &SourceModel,
        console: &Console,
    ) -> Result<Option<CalibrationText>> {
        let Some(text) = self.windows(model)? else { return Ok(None) };
        let tokens = text.windows.ids().len();
        let widest = model.sites.iter().map(|site| site.in_features).max().unwrap_or(0);
        if tokens < widest {
            console.note(&format!(
                "warning: {tokens} calibration tokens show less than all of the {widest} directions of \
                 the widest linear; give more --text or --windows"
            ));
        }
        Ok(Some(text))
    }
}

/// The window length asked for, or the default; refused beyond what the model was made for.
pub(super) fn window_length(asked: Option<u32>, model: &SourceModel) -> Result<usize> {
    let limit = model.spec.max_positions;
    match asked.map(|length| length as usize) {
        None => Ok(model.spec.default_window()),
        Some(length) if length <= limit => Ok(length),
        Some(length) => Err(Error::usage(
            format!("a window of {length} tokens is more than the model's {limit} positions"),
            format!("use --window {limit} or less"),
        )),
    }
}

/// Tokenises `files` without special tokens and cuts windows.
pub(super) fn windows_of_text(
    model: &SourceModel,
    files: &[PathBuf],
    length: usize,
    limit: Option<usize>,
    draw: Draw,
) -> Result<CalibrationText> {
    let text = Text::read(files)?;
    let tokens = Tokenizer::open(model)?.encode(&text.content, false)?;
    Ok(CalibrationText {
        windows: Windows::cut(&tokens, length, limit, draw)?,
        text_sha256: text.sha256,
        text_bytes: text.content.len(),
    })
}

/// Report as one JSON object on stdout.
#[derive(Debug, Args)]
pub(super) struct ReportArgs {
    /// Print one JSON object.
    #[arg(long)]
    pub(super) json: bool,
}

/// Bytes of activations that stay in memory unless told otherwise.
pub(super) const ACTIVATION_MEMORY: u64 = 1 << 30;

/// A size for clap.
pub(super) fn size(text: &str) -> std::result::Result<u64, String> {
    parse_size(text).map_err(|e| match e.hint() {
        Some(hint) => format!("{e}; {hint}"),
        None => e.to_string(),
    })
}

/// A fraction above zero for clap.
pub(super) fn fraction(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value > 0.0 && value <= 1.0 => Ok(value),
        _ => Err("expected a fraction above 0 and up to 1, such as 0.6".into()),
    }
}

fn fraction_or_zero(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if (0.0..=1.0).contains(&value) => Ok(value),
        _ => Err("expected a fraction from 0 to 1".into()),
    }
}
