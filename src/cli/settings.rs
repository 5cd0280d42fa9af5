//! What the output is to be, as it is typed, and the [`Settings`] that it means.

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum};

use super::args::{fraction, fraction_or_zero, size};
use crate::error::{Error, Remedy, Result};
use crate::passes;
use crate::settings::{LevelOrder, Method, Rule, Settings, StackSettings, Target};

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
    fn rule(&self) -> Option<Rule> {
        let target = |target| Rule::Target(target);
        let size = self.budget.map(Target::Budget).or(self.keep.map(Target::Keep)).map(target);
        size.or(self.uniform.map(Rule::Uniform)).or(self.reduce.map(Rule::Reduce))
    }
}

/// Which methods, and how. A plan says all of it already, so that any of these conflicts with `--plan`.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag")]
pub(super) struct SettingsArgs {
    /// Compression method; several compete for one budget.
    #[arg(
        long,
        value_name = "METHOD",
        value_parser = methods(),
        default_values_t = Settings::default_methods()
    )]
    method: Vec<Method>,

    /// Ranks are multiples of this.
    #[arg(
        long,
        value_name = "N",
        default_value_t = Settings::default_rank_multiple(),
        value_parser = up_to(Settings::MOST_RANK_MULTIPLE)
    )]
    rank_multiple: usize,

    /// No linear gets fewer than this fraction of the bytes an even split would give it.
    #[arg(
        long,
        value_name = "FRACTION",
        default_value_t = Settings::default_floor(),
        value_parser = fraction_or_zero
    )]
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

    /// Levels of every linear of a stack (bitstack).
    #[arg(
        long,
        value_name = "N",
        default_value_t = StackSettings::default().levels,
        value_parser = up_to(Settings::MOST_LEVELS)
    )]
    levels: usize,

    /// Rank of the factors of a stack's levels (bitstack).
    #[arg(
        long,
        value_name = "K",
        default_value_t = StackSettings::default().rank,
        value_parser = up_to(Settings::MOST_LEVEL_RANK)
    )]
    rank: usize,

    /// In which order a stack's levels stand (bitstack) [default: priority, or average without gradients].
    #[arg(long, value_enum, value_name = "ORDER")]
    order: Option<OrderName>,

    /// Decompose a stack's levels exactly: a hundred times slower, and hardly better (bitstack).
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

impl SettingsArgs {
    /// What was asked for; a stack needs no size.
    ///
    /// # Errors
    /// [`Error::Usage`] where no size is named.
    pub(super) fn settings(&self, target: Option<&TargetArgs>) -> Result<Settings> {
        let rule = match target.and_then(TargetArgs::rule) {
            Some(rule) => rule,
            None if self.method.iter().all(makes_stacks) => Rule::Stack,
            None => {
                return Err(Error::usage("no size is named", Remedy::NameSize));
            }
        };
        Ok(Settings {
            rule,
            methods: self.method.clone(),
            rank_multiple: self.rank_multiple,
            floor: self.floor,
            gradients: !self.no_gradients,
            paper: self.paper,
            fold: self.fold,
            stack: StackSettings {
                levels: self.levels,
                rank: self.rank,
                exact: self.exact_svd,
                order: self.order.map(|order| match order {
                    OrderName::Priority => LevelOrder::Priority,
                    OrderName::Average => LevelOrder::Average,
                }),
            },
        })
    }
}

/// Whether a method needs no size.
fn makes_stacks(method: &Method) -> bool {
    passes::ALL.iter().any(|entry| entry.stacks && entry.name == method.as_str())
}

/// The methods that come with bantam, by name.
fn methods() -> impl TypedValueParser<Value = Method> {
    let value = |entry: &passes::Entry| PossibleValue::new(entry.name).help(entry.about);
    PossibleValuesParser::new(passes::ALL.iter().map(value)).map(Method::from)
}

/// A count from 1 to `most`.
fn up_to(most: usize) -> impl TypedValueParser<Value = usize> {
    clap::value_parser!(u64).range(1..=most as u64).map(|count| count as usize)
}
