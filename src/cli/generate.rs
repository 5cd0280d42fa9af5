//! `bantam generate`: run a model, the proof a person believes.

use std::time::Instant;

use super::args::{ModelArg, PrefixArgs, fraction, number};
use super::compute::ComputeArgs;
use super::console::Console;
use crate::error::{Error, Result};
use crate::measure::Tokenizer;
use crate::model::{Sampler, Session};
use crate::progress::Progress;

/// Continue a prompt.
///
/// The text streams to stdout as it is made. Greedy unless --temperature is given.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  bantam generate ./model --prompt 'def main():'
  bantam generate ./model --prompt 'import ' --temperature 0.8 --top-p 0.95 --seed 7")]
pub(super) struct Args {
    #[command(flatten)]
    model: ModelArg,

    #[command(flatten)]
    prefix: PrefixArgs,

    /// The text to continue.
    #[arg(long, value_name = "TEXT")]
    prompt: String,

    /// Stop after this many tokens.
    #[arg(long, value_name = "N", default_value_t = 128)]
    max_tokens: usize,

    /// 0 takes the likeliest token; larger is more varied.
    #[arg(long, value_name = "T", default_value_t = 0.0, value_parser = temperature)]
    temperature: f64,

    /// Choose among the likeliest tokens that hold this much probability together.
    #[arg(long, value_name = "P", default_value_t = 1.0, value_parser = fraction)]
    top_p: f64,

    /// The same seed gives the same text.
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,

    #[command(flatten)]
    compute: ComputeArgs,
}

pub(super) fn run(args: &Args, console: &Console) -> Result<()> {
    let model = args.prefix.open(&args.model)?;
    let tokenizer = Tokenizer::open(&model)?;
    let ids = tokenizer.encode(&args.prompt, true)?;
    let (given, most) = (ids.len(), model.spec().max_positions);
    if given >= most {
        let message = format!("the prompt has {given} tokens, the model takes {most}");
        return Err(Error::usage(message, "give a shorter prompt"));
    }
    let mut session = Session::new(&model, &args.compute.device(console)?)?;
    let mut sampler = Sampler::new(args.temperature, args.top_p, args.seed);
    let started = Instant::now();
    // Nothing is printed before the model was seen to run.
    let mut logits = session.feed(&ids)?;
    console.data(&args.prompt)?;
    let mut made = Vec::new();
    let mut shown = String::new();
    let limit = args.max_tokens.min(most - given);
    for _ in 0..limit {
        console.check()?;
        let id = sampler.next(&logits)?;
        if model.spec().eos.contains(&id) {
            break;
        }
        made.push(id);
        // A token may hold part of a character: what does not decode yet waits for the next.
        let text = tokenizer.decode(&made)?;
        if !text.ends_with('\u{fffd}')
            && let Some(new) = text.strip_prefix(shown.as_str())
        {
            console.data(new)?;
            shown = text;
        }
        if made.len() < limit {
            logits = session.feed(&[id])?;
        }
    }
    console.data("\n")?;
    let seconds = started.elapsed().as_secs_f64();
    console.note(&format!(
        "{} tokens, {:.1} per second",
        made.len(),
        made.len() as f64 / seconds.max(1e-9)
    ));
    Ok(())
}

fn temperature(text: &str) -> std::result::Result<f64, String> {
    number(text, 0.0..=100.0, "a number from 0 to 100")
}
