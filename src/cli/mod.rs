//! The command line: the only place that prints, reads the environment, or knows clap and indicatif.
//!
//! stdout is data, stderr is talk. One file per verb; [`run`] parses, dispatches and turns an error
//! into a message, a hint and an exit code.

mod advice;
mod args;
mod completions;
mod compress;
mod compute;
mod console;
mod demo;
mod eval;
mod fit;
mod generate;
mod inspect;
mod job;
mod plan;
mod plot;
mod report;
mod settings;
mod sweep;
mod system;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::error::{Error, Result};
use crate::ops;
use console::Console;

/// Fits a language-model checkpoint into the memory of the device that has to run it.
#[derive(Debug, Parser)]
#[command(name = "bantam", version, propagate_version = true, max_term_width = 100)]
#[command(after_help = "\
Exit codes: 0 done, 2 usage, 3 input invalid or corrupt, 4 does not fit, 5 not supported,
6 numerical failure, 70 a bug, 130 interrupted.")]
pub(crate) struct Cli {
    #[command(subcommand)]
    verb: Verb,

    /// Say nothing but data and errors.
    #[arg(short, long, global = true, conflicts_with = "verbose", display_order = 900)]
    quiet: bool,

    /// Say more about what is done.
    #[arg(short, long, global = true, display_order = 901)]
    verbose: bool,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Demo(demo::Args),
    Inspect(inspect::Args),
    Plan(plan::Args),
    Compress(compress::Args),
    Fit(fit::Args),
    Eval(eval::Args),
    Generate(generate::Args),
    Completions(completions::Args),
}

/// Parses the command line and runs the verb.
#[must_use]
pub fn run() -> ExitCode {
    let cli = Cli::parse();
    let console = Console::new(cli.quiet, cli.verbose);
    if let Some(cache) = cache_folder() {
        ops::cache_kernels_in(cache.join("bantam/kernels"));
    }
    match console.watch_interrupts().and_then(|()| dispatch(&cli.verb, &console)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            console.error(&error);
            ExitCode::from(error.exit_code() as u8)
        }
    }
}

/// The folder of the user's caches.
fn cache_folder() -> Option<PathBuf> {
    let folder = |name| std::env::var_os(name).map(PathBuf::from);
    folder("XDG_CACHE_HOME").or_else(|| Some(folder("HOME")?.join(".cache")))
}

fn dispatch(verb: &Verb, console: &Console) -> Result<(), Error> {
    match verb {
        Verb::Demo(args) => demo::run(args, console),
        Verb::Inspect(args) => inspect::run(args, console),
        Verb::Plan(args) => plan::run(args, console),
        Verb::Compress(args) => compress::run(args, console),
        Verb::Fit(args) => fit::run(args, console),
        Verb::Eval(args) => eval::run(args, console),
        Verb::Generate(args) => generate::run(args, console),
        Verb::Completions(args) => completions::run(args, console),
    }
}
