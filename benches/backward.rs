//! The cost of gradients: a whole backward pass, its own forward sweep included, against `eval` over
//! the same tokens.
//!
//! `CANDLE_NUM_THREADS=1 cargo bench --bench backward -- MODEL TEXT WINDOWS WINDOW ROUNDS` prints one
//! JSON object with the least seconds of each and their ratio. The variable is what the program
//! itself sets (see `main.rs`).

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a bench may panic and prints")]

use std::time::Instant;

use bantam::arch::Model;
use bantam::eval::perplexity;
use bantam::measure::{Backward, Compute, Draw, Spill, Text, Tokenizer, Windows};
use bantam::progress::Silent;

fn main() {
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let [model, text, windows, window, rounds] = arguments.as_slice() else {
        // `cargo test --benches` runs this with no data: there is nothing to measure.
        return;
    };
    let model = Model::open(model.as_ref()).unwrap();
    let text = Text::read(&[text.into()]).unwrap();
    let tokens = Tokenizer::open(&model).unwrap().encode(&text.content, false).unwrap();
    let (windows, window) = (windows.parse().unwrap(), window.parse().unwrap());
    let windows = Windows::cut(&tokens, window, Some(windows), Draw::FromStart).unwrap();
    let keep = Spill { memory: u64::MAX, folder: std::env::temp_dir() };
    let (mut forward, mut both) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..rounds.parse().unwrap() {
        let started = Instant::now();
        perplexity(&model, &windows, &Compute::cpu(), &Silent).unwrap();
        forward = forward.min(started.elapsed().as_secs_f64());
        let started = Instant::now();
        let mut pass =
            Backward::forward(&model, &windows, &Compute::cpu(), &keep, &Silent).unwrap();
        while pass.next_layer().is_some() {
            pass.retreat_unobserved(&Silent).unwrap();
        }
        both = both.min(started.elapsed().as_secs_f64());
    }
    let tokens = windows.ids().len();
    println!(
        "{}",
        serde_json::json!({ "tokens": tokens, "eval": forward, "backward": both, "ratio": both / forward })
    );
}
