//! What the ops, the decompositions and a whole block cost on the GPU, against what the device
//! could do.
//!
//! `cargo bench --features cuda --bench gpu -- [--block DIR] [--only GROUP,..] [--small]` prints
//! one JSON object, `name -> {value, unit, limit, ratio, note}`, and tells on stderr how it goes:
//!
//! | group | measures |
//! |---|---|
//! | `memory` | the most device memory that a block took, against the forecast |
//! | `device` | copies, products of matrices: the limits that the other groups are held against |
//! | `kernels` | every op that a large model spends its time in |
//! | `stacks` | residual stacks: taken apart, rebuilt, and one token through them |
//! | `linalg` | eigenvalues, singular values, QR, Cholesky |
//! | `block` | the first block of the checkpoint DIR through `LoRD`, step by step |
//!
//! Sizes are those of an 8-billion-parameter llama unless told otherwise; `--small` makes them
//! tiny, so that the emulator (`scripts/emulate.sh`) can run all of it. `scripts/gpu_peers.py`
//! measures the same names in `PyTorch`. A figure is of the best of some rounds, each of which
//! waits for the device once.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, reason = "a bench")]

#[path = "gpu/attention.rs"]
mod attention;
#[path = "gpu/bench.rs"]
mod bench;
#[path = "gpu/block.rs"]
mod block;
#[path = "gpu/decompositions.rs"]
mod decompositions;
#[path = "gpu/kernels.rs"]
mod kernels;
#[path = "gpu/limits.rs"]
mod limits;
#[path = "gpu/memory.rs"]
mod memory;
#[path = "gpu/report.rs"]
mod report;
#[path = "gpu/sizes.rs"]
mod sizes;
#[path = "gpu/stacks.rs"]
mod stacks;

use std::path::PathBuf;
use std::process::ExitCode;

use bantam::error::Result;
use clap::{Parser, ValueEnum};

use bench::Bench;
use sizes::Sizes;

/// Measures the kernels, decompositions and one block on the GPU.
#[derive(Parser)]
struct Args {
    /// What cargo passes to every bench.
    #[arg(long, hide = true)]
    bench: bool,

    /// Measure these groups only.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Group>,

    /// A checkpoint whose first block goes through `LoRD`; without it `memory` and `block` are left
    /// out.
    #[arg(long, value_name = "DIR")]
    block: Option<PathBuf>,

    /// Every size tiny and one round each: for the emulator.
    #[arg(long)]
    small: bool,

    /// Rounds, of which the best counts.
    #[arg(long, default_value_t = 5)]
    rounds: usize,

    /// Tokens of calibration text, of a window, and width and inner width of the model.
    #[arg(long, num_args = 4, value_names = ["TOKENS", "WINDOW", "HIDDEN", "WIDE"])]
    sizes: Vec<usize>,

    /// Rank of the factors.
    #[arg(long)]
    rank: Option<usize>,
}

/// What is measured together.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Group {
    Memory,
    Device,
    Kernels,
    Stacks,
    Linalg,
    Block,
}

fn main() -> ExitCode {
    if std::env::args().len() == 1 {
        // `cargo test --benches` runs this, and asks for nothing.
        return ExitCode::SUCCESS;
    }
    let args = Args::parse();
    let mut sizes = if args.small { Sizes::small() } else { Sizes::of_8b() };
    if let [tokens, window, hidden, wide] = args.sizes[..] {
        sizes = Sizes { tokens, window, hidden, wide, ..sizes };
    }
    sizes.rank = args.rank.unwrap_or(sizes.rank);
    let rounds = if args.small { 1 } else { args.rounds.max(1) };
    let device = match bantam::ops::gpu() {
        Ok(device) => device,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let mut bench = Bench::new(device, sizes, rounds);
    run(&args, &mut bench);
    println!("{}", bench.report.json());
    if bench.report.is_complete() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run(args: &Args, bench: &mut Bench) {
    let wanted = |group| args.only.is_empty() || args.only.contains(&group);
    let mut group = |group, name, work: &mut dyn FnMut(&mut Bench) -> Result<()>| {
        if wanted(group) {
            let result = work(bench);
            bench.report.outcome(name, result);
        }
    };
    // Memory is kept once it was taken, so what takes the most of it is measured before the rest.
    if let Some(folder) = &args.block {
        group(Group::Memory, "memory", &mut |bench| memory::measure(bench, folder));
    }
    // The limits of the other groups.
    group(Group::Device, "device", &mut limits::measure);
    group(Group::Kernels, "kernels", &mut kernels::measure);
    group(Group::Kernels, "attention", &mut attention::measure);
    group(Group::Stacks, "stacks", &mut stacks::measure);
    group(Group::Linalg, "linalg", &mut decompositions::measure);
    if let Some(folder) = &args.block {
        group(Group::Block, "block", &mut |bench| block::measure(bench, folder));
    }
}
