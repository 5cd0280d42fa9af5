//! The `bantam` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    bantam::cli::run()
}
