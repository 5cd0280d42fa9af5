//! A disk that fills up, wherever it happens: exit code 4, the file named, and nothing that looks
//! like a model. And a place that cannot be written to is refused before any work.
//!
//! A limit on the size of files stands in for the disk: writing beyond it fails as on a full one, at
//! any place that is wanted, and it needs no privileges.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a failing test is to panic")]

#[path = "support/cli.rs"]
mod cli;
#[path = "support/models.rs"]
mod models;

use std::process::Command;

use cli::{Run, bantam, first_difference, names};
use models::{Desk, edit_weights};

/// `bantam ARGUMENTS` where no file grows beyond `bytes`.
fn with_disk_of(bytes: u64, arguments: &[&str]) -> Run {
    // The signal that comes with the limit would end the process before it saw the error.
    let script = "trap '' XFSZ; ulimit -f \"$0\"; exec \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", script, &(bytes / 512).to_string(), env!("CARGO_BIN_EXE_bantam")]);
    Run::of(arguments.join(" "), command.args(arguments).output().unwrap())
}

#[test]
fn a_disk_that_fills_up_is_named_and_leaves_no_model() {
    let desk = Desk::with("llama");
    let made = desk.made();
    let (out, job) = (made.join("out"), desk.root.path().join("job"));
    let paths = [&desk.model, &desk.text, &out, &job].map(|path| path.to_str().unwrap());
    let [model, text, out_text, job_text] = paths;
    let compress = ["compress", model, "--keep", "0.8", "--rank-multiple", "2", "--text", text];
    let windows = ["--windows", "8", "--window", "32", "-o", out_text];
    let alone = [&compress[..], &windows].concat();
    let kept = [&alone[..], &["--job", job_text, "--resume"]].concat();
    // The first analysis, a later one, and the weights are what fill up at these sizes.
    for (bytes, named) in
        [(512, "analyses"), (4 * 1024, "analyses"), (40 * 1024, "model.safetensors")]
    {
        with_disk_of(bytes, &alone).refused(4, &[named, "hint: free some space"]);
        assert_eq!(names(&made), [""; 0], "{bytes}");
        assert_eq!(names(desk.root.path()), ["llama", "made", "words.txt"], "{bytes}");
    }
    // A job that was named stays and is gone on with once there is room.
    let run = with_disk_of(40 * 1024, &kept);
    assert_eq!(run.code, Some(4), "{}", run.stderr);
    assert!(run.stderr.contains("go on with --resume"), "{}", run.stderr);
    assert_eq!(names(&made), [""; 0]);
    with_disk_of(1 << 30, &kept).ok();
    let elsewhere = made.join("elsewhere");
    let fresh = [&compress[..], &windows[..5], &[elsewhere.to_str().unwrap()]].concat();
    with_disk_of(1 << 30, &fresh).ok();
    assert_eq!(first_difference(&out, &elsewhere), None);
    // A plan that does not fit leaves no half of it.
    let plan = made.join("plan.json");
    let arguments = ["plan", model, "--keep", "0.8", "-o", plan.to_str().unwrap()];
    with_disk_of(512, &arguments).refused(4, &["plan.json"]);
    assert!(!plan.exists());
}

/// Nobody, not even root, makes folders in /proc.
#[cfg(target_os = "linux")]
#[test]
fn an_output_that_cannot_be_written_is_refused_before_any_work() {
    let desk = Desk::with("llama");
    // Weights that would be refused as soon as they were read.
    edit_weights(&desk.model, |weights| {
        weights.get_mut("lm_head.weight").unwrap().plant(-1, f32::NAN);
    });
    let command = bantam("compress").arg(&desk.model).args("--method welore --keep 0.8");
    let command = command.args("--rank-multiple 2 -o /proc/self/out");
    command.run().refused(2, &["/proc/self", "cannot write"]);
    let command = bantam("compress").arg(&desk.model).args("--method welore --keep 0.8");
    let command =
        command.args("--rank-multiple 2 --job /proc/self/job -o").arg(desk.made().join("out"));
    command.run().refused(3, &["/proc/self/job"]);
    assert_eq!(names(&desk.made()), [""; 0]);
}
