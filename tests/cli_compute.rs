//! A build without CUDA: what it does with the options that ask for it.
#![cfg(not(feature = "cuda"))]
#![allow(clippy::unwrap_used, reason = "a failing test is to panic")]

#[path = "support/cli.rs"]
mod cli;

use cli::bantam;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");

#[test]
fn a_gpu_that_is_not_built_in_is_refused_by_name_and_passed_over_by_default() {
    let eval = |on: &str| {
        let (model, text) =
            (format!("{FIXTURES}/pycode-llama"), format!("{FIXTURES}/pycode.test.txt"));
        let run = bantam("eval").arg(model).arg("--text").arg(text);
        run.args("--window 32 --windows 2 --json --compute").arg(on).run()
    };
    let refused = eval("cuda");
    assert_eq!(refused.code, Some(5), "{}", refused.stderr);
    assert!(refused.stderr.contains("built without CUDA"), "{}", refused.stderr);
    assert!(refused.stderr.contains("hint: "), "{}", refused.stderr);
    let [cpu, auto] = ["cpu", "auto"].map(|on| eval(on).json()["nll"].clone());
    assert_eq!(cpu, auto);
}

#[test]
fn inspect_says_that_it_is_not_built_in() {
    let text = bantam("inspect").args("--system").run().ok().stdout;
    assert!(text.contains("CPU") && text.contains("not in this build"), "{text}");
    let found = bantam("inspect").args("--system --json").run().json();
    assert_eq!(found["built_in"], false);
}
