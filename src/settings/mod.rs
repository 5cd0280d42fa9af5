//! How a model is to be compressed: everything that a user may ask for, said in one type.
//!
//! The command line fills it in, a plan records it, a job remembers the half of it that measuring depends
//! on, and a library user writes it down:
//!
//! ```
//! use bantam::settings::{Method, Rule, Settings};
//!
//! let settings = Settings { floor: 0.25, ..Settings::new(Rule::keep(0.6)) }.settled()?;
//! assert_eq!(settings.methods, [Method::LORD]);
//! // A published rule takes no gradients and decomposes as published.
//! let published = Settings::new(Rule::Uniform(0.8)).settled()?;
//! assert!(published.paper && !published.gradients);
//! # Ok::<(), bantam::Error>(())
//! ```

mod target;

pub use target::{Target, format_size, parse_size};

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// What a user asks for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// How choices are made.
    pub rule: Rule,
    /// The methods whose offers compete.
    #[serde(default = "Settings::default_methods")]
    pub methods: Vec<Method>,
    /// Ranks are multiples of this.
    #[serde(default = "Settings::default_rank_multiple")]
    pub rank_multiple: usize,
    /// No linear gets fewer than this fraction of the bytes that an even split would give it.
    #[serde(default = "Settings::default_floor")]
    pub floor: f64,
    /// Gradients of the loss weigh the outputs.
    #[serde(default = "Settings::default_gradients")]
    pub gradients: bool,
    /// Decompose as the papers do: gradients only price the offers.
    #[serde(default)]
    pub paper: bool,
    /// Multiply out again and write dense tensors.
    #[serde(default)]
    pub fold: bool,
    /// How stacks are made.
    #[serde(default)]
    pub stack: StackSettings,
}

/// How a stack is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StackSettings {
    /// Levels of every linear.
    pub levels: usize,
    /// Rank of the factors of a level.
    pub rank: usize,
    /// Decompose exactly, level by level.
    pub exact: bool,
    /// In which order the levels are written; unsaid, by priority where gradients tell what a level of
    /// one linear is worth against that of another, else level by level.
    pub order: Option<LevelOrder>,
}

/// In which order the levels of a stack are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LevelOrder {
    /// By expected loss saved per byte.
    Priority,
    /// Level by level, each by expected loss saved per byte (the published order, without its model
    /// evaluations): two linears never differ by more than one level.
    Average,
}

/// How the choices are made.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// The allocator fits the offers to a size.
    Target(Target),
    /// Every linear keeps the same fraction of its parameters.
    Uniform(f64),
    /// One threshold over the normalised singular values of all linears removes this fraction.
    Reduce(f64),
    /// Every linear gets all its levels: the size is chosen when the stack is read.
    Stack,
}

impl Rule {
    /// Fits the allocator to a fraction of the input's bytes.
    pub fn keep(fraction: f64) -> Self {
        Self::Target(Target::Keep(fraction))
    }

    /// Fits the allocator to so many bytes.
    pub fn budget(bytes: u64) -> Self {
        Self::Target(Target::Budget(bytes))
    }

    /// Whether it is a rule of the literature that chooses the ranks itself.
    fn is_published(self) -> bool {
        match self {
            Self::Uniform(_) | Self::Reduce(_) => true,
            Self::Target(_) | Self::Stack => false,
        }
    }
}

/// A compression method, by the name that a user types. What it does is known to
/// [`passes`](crate::passes).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Method(Cow<'static, str>);

impl Method {
    /// Atomic feature mimicking: principal directions of each linear's output (`LoRD`).
    pub const LORD: Self = Self::named("lord");
    /// Singular values of the weight alone (`WeLore`).
    pub const WELORE: Self = Self::named("welore");
    /// Residual levels of signs and factors (`BitStack`).
    pub const BITSTACK: Self = Self::named("bitstack");

    /// A method of this name.
    pub const fn named(name: &'static str) -> Self {
        Self(Cow::Borrowed(name))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<String> for Method {
    fn from(name: String) -> Self {
        Self(Cow::Owned(name))
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl Default for StackSettings {
    fn default() -> Self {
        Self { levels: 8, rank: 16, exact: false, order: None }
    }
}

impl Settings {
    /// The most a rank may be a multiple of.
    pub const MOST_RANK_MULTIPLE: usize = 4096;
    /// The most levels of a stack.
    pub const MOST_LEVELS: usize = 32;
    /// The largest rank of a level.
    pub const MOST_LEVEL_RANK: usize = 64;

    /// The defaults under `rule`.
    pub fn new(rule: Rule) -> Self {
        Self {
            rule,
            methods: Self::default_methods(),
            rank_multiple: Self::default_rank_multiple(),
            floor: Self::default_floor(),
            gradients: Self::default_gradients(),
            paper: false,
            fold: false,
            stack: StackSettings::default(),
        }
    }

    /// The methods, unless one is named.
    pub fn default_methods() -> Vec<Method> {
        vec![Method::LORD]
    }

    /// The multiple of ranks, unless one is named.
    pub const fn default_rank_multiple() -> usize {
        8
    }

    /// The least fraction of an even split, unless one is named.
    pub const fn default_floor() -> f64 {
        0.5
    }

    const fn default_gradients() -> bool {
        true
    }

    /// Settles what follows from something else, and refuses what makes no sense.
    ///
    /// # Errors
    /// [`Error::Usage`] naming the setting, what it allows and what it was given.
    pub fn settled(mut self) -> Result<Self> {
        let mut seen = Vec::new();
        self.methods.retain(|method| {
            let new = !seen.contains(method);
            seen.push(method.clone());
            new
        });
        if self.methods.is_empty() {
            return Err(Error::usage("no method is named", "name one, such as `lord`"));
        }
        let fraction = |what: &str, value: f64, from_zero: bool| {
            let valid = value <= 1.0 && if from_zero { value >= 0.0 } else { value > 0.0 };
            let least = if from_zero { "from 0 to 1" } else { "above 0 and up to 1" };
            refuse_unless(valid, what, &format!("a fraction {least}"), &value)
        };
        match self.rule {
            Rule::Target(Target::Keep(value)) => fraction("keep", value, false)?,
            Rule::Uniform(value) => fraction("uniform", value, false)?,
            Rule::Reduce(value) => fraction("reduce", value, false)?,
            Rule::Target(Target::Budget(_)) | Rule::Stack => {}
        }
        fraction("floor", self.floor, true)?;
        let count = |what: &str, value: usize, most: usize| {
            refuse_unless((1..=most).contains(&value), what, &format!("1 to {most}"), &value)
        };
        count("rank_multiple", self.rank_multiple, Self::MOST_RANK_MULTIPLE)?;
        count("stack.levels", self.stack.levels, Self::MOST_LEVELS)?;
        count("stack.rank", self.stack.rank, Self::MOST_LEVEL_RANK)?;
        if self.rule.is_published() {
            (self.gradients, self.paper) = (false, true);
        }
        let order = if self.gradients { LevelOrder::Priority } else { LevelOrder::Average };
        self.stack.order.get_or_insert(order);
        Ok(self)
    }

    /// The half that measuring and analysing depend on.
    pub fn measuring(&self) -> Measuring {
        Measuring { gradients: self.gradients, paper: self.paper }
    }

    /// The order of a stack's levels.
    pub fn level_order(&self) -> LevelOrder {
        self.stack.order.unwrap_or(LevelOrder::Priority)
    }
}

fn refuse_unless(valid: bool, what: &str, expected: &str, found: &dyn fmt::Display) -> Result<()> {
    match valid {
        true => Ok(()),
        false => {
            Err(Error::usage(format!("`{what}` is {found}"), format!("`{what}` takes {expected}")))
        }
    }
}

/// How measuring and analysing are asked for: what a job is of no use without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measuring {
    /// Whether gradients of the loss weigh the outputs.
    pub gradients: bool,
    /// Whether decompositions are those of the papers, not weighted by gradients.
    pub paper: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        let default = || Settings::new(Rule::keep(0.5));
        let stack = |stack: StackSettings| Settings { stack, ..default() };
        let cases = [
            ("keep", Settings::new(Rule::keep(0.0))),
            ("keep", Settings::new(Rule::keep(f64::NAN))),
            ("uniform", Settings::new(Rule::Uniform(1.5))),
            ("reduce", Settings::new(Rule::Reduce(-0.1))),
            ("floor", Settings { floor: 1.1, ..default() }),
            ("rank_multiple", Settings { rank_multiple: 0, ..default() }),
            ("stack.levels", stack(StackSettings { levels: 33, ..StackSettings::default() })),
            ("stack.rank", stack(StackSettings { rank: 0, ..StackSettings::default() })),
            ("method", Settings { methods: vec![], ..default() }),
        ];
        for (name, settings) in cases {
            let error = settings.settled().expect_err(name);
            assert!(matches!(error, Error::Usage { .. }) && error.to_string().contains(name));
        }
    }

    #[test]
    fn settled_settings_are_read_back_as_they_were_written() {
        let methods = vec![Method::BITSTACK, Method::LORD, Method::BITSTACK];
        let settings = Settings { methods, gradients: false, ..Settings::new(Rule::budget(7)) };
        let settled = settings.settled().unwrap();
        assert_eq!(settled.methods, [Method::BITSTACK, Method::LORD]);
        assert_eq!(settled.stack.order, Some(LevelOrder::Average));
        let text = serde_json::to_string(&settled).unwrap();
        assert_eq!(serde_json::from_str::<Settings>(&text).unwrap(), settled);
        assert_eq!(settled.clone().settled().unwrap(), settled);
        let short = r#"{ "rule": { "target": { "keep": 0.5 } } }"#;
        let default = Settings::new(Rule::keep(0.5));
        assert_eq!(serde_json::from_str::<Settings>(short).unwrap(), default);
        assert!(serde_json::from_str::<Settings>(r#"{ "rule": "stack", "flor": 0 }"#).is_err());
    }
}
