//! Signals end a run as they should: interrupted, it leaves nothing at all and exit code 130; killed, at
//! most a hidden folder. And an output is only ever replaced whole, and only when asked. `interrupts.rs`
//! stops runs at moments of every kind; here real signals hit a few.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a failing test is to panic")]

#[path = "support/cli.rs"]
mod cli;
#[path = "support/models.rs"]
mod models;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread::sleep;
use std::time::Duration;

use cli::{Bantam, Run, bantam, files, first_difference, fixture, names};
use models::{copy_folder, edit_weights, tiny};

/// Between two looks at how far a run is.
const MOMENT: Duration = Duration::from_millis(1);

/// Runs that are started for a signal to hit one: any may be done before that.
const TRIES: usize = 10;

/// Compresses pycode-llama into `parent/out`; `windows` says how much there is to measure.
fn compress(parent: &Path, windows: &str) -> Bantam {
    bantam("compress")
        .arg(fixture("pycode-llama"))
        .args("--keep 0.7 --text")
        .arg(fixture("pycode.calib.txt"))
        .args(windows)
        .arg("-o")
        .arg(parent.join("out"))
}

/// There is far more to measure than to write.
const LONG: &str = "--windows 128 --window 256";
const SHORT: &str = "--windows 12 --window 64";

/// How far a run has got, as a hidden folder beside its output tells.
type Reached = fn(&Path) -> bool;

/// It measures: this is the job that goes with the run.
fn measures(hidden: &Path) -> bool {
    hidden.file_name().unwrap().to_str().unwrap().starts_with(".bantam-job-")
}

/// It writes: there are weights in the folder that becomes the output.
fn writes(hidden: &Path) -> bool {
    hidden.join("model.safetensors").exists()
}

/// What is in `parent` beside the output.
fn beside_output(parent: &Path) -> Vec<String> {
    names(parent).into_iter().filter(|name| name != "out").collect()
}

fn send(signal: &str, child: &Child) {
    let sent = Command::new("kill").arg(format!("-{signal}")).arg(child.id().to_string()).status();
    assert!(sent.unwrap().success());
}

/// Starts a run into `parent/out`, sends it a signal once it has got so far, and says how it ended. A run
/// that was done first was done well, and another is started.
#[track_caller]
fn hit(signal: &str, parent: &Path, reached: Reached, start: impl Fn() -> Bantam) -> Run {
    let out = parent.join("out");
    for _ in 0..TRIES {
        let before = beside_output(parent);
        let is_there = |name: &String| !before.contains(name) && reached(&parent.join(name));
        let mut child = start().spawn();
        while child.try_wait().unwrap().is_none() {
            if beside_output(parent).iter().any(is_there) {
                send(signal, &child);
                break;
            }
            sleep(MOMENT);
        }
        let run = Run::of("bantam compress".into(), child.wait_with_output().unwrap());
        let done = run.code == Some(0);
        // A kill can also hit a process that has nothing left to do but to end.
        if !done && (signal != "KILL" || !out.exists()) {
            return run;
        }
        bantam("inspect").arg(&out).run().ok();
        assert!(!done || beside_output(parent) == before, "a run that was done left something");
        fs::remove_dir_all(&out).unwrap();
    }
    panic!("all of {TRIES} runs were done before {signal} hit them");
}

#[test]
fn an_interrupt_while_measuring_leaves_nothing() {
    for signal in ["INT", "TERM"] {
        let parent = tempfile::tempdir().unwrap();
        let run = hit(signal, parent.path(), measures, || compress(parent.path(), LONG));
        run.refused(130, &["interrupted"]);
        assert_eq!(names(parent.path()), [""; 0], "{signal}");
    }
}

#[test]
fn an_interrupt_while_writing_leaves_nothing() {
    let parent = tempfile::tempdir().unwrap();
    let run = hit("INT", parent.path(), writes, || compress(parent.path(), SHORT));
    run.refused(130, &["interrupted"]);
    assert_eq!(names(parent.path()), [""; 0]);
}

#[test]
fn an_interrupted_replacement_leaves_the_old_output() {
    let parent = tempfile::tempdir().unwrap();
    let (old, out) = (fixture("golden/llama"), parent.path().join("out"));
    let run = hit("INT", parent.path(), writes, || {
        copy_folder(&old, &out);
        compress(parent.path(), SHORT).arg("--overwrite")
    });
    run.refused(130, &["interrupted"]);
    assert_eq!(names(parent.path()), ["out"]);
    assert_eq!(first_difference(&out, &old), None);
}

/// A killed process can clean nothing up. What it leaves is hidden, is in nobody's way, and the same
/// command gives the same model beside it.
#[test]
fn a_kill_leaves_no_model() {
    let parent = tempfile::tempdir().unwrap();
    let out = parent.path().join("out");
    let points: [Reached; 2] = [measures, writes];
    for reached in points {
        let run = hit("KILL", parent.path(), reached, || compress(parent.path(), SHORT));
        assert_eq!(run.code, None, "{}", run.stderr);
        assert!(run.stdout.is_empty());
        bantam("inspect").arg(&out).run().refused(3, &["out"]);
        let left = names(parent.path());
        assert!(!left.is_empty() && left.iter().all(|name| name.starts_with('.')), "{left:?}");
    }
    compress(parent.path(), SHORT).run().ok();
    let elsewhere = tempfile::tempdir().unwrap();
    compress(elsewhere.path(), SHORT).run().ok();
    assert_eq!(first_difference(&out, &elsewhere.path().join("out")), None);
}

/// A tiny model and its compression, which takes an instant.
struct Desk {
    root: tempfile::TempDir,
    model: PathBuf,
}

impl Desk {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let model = tiny("llama", root.path());
        Self { root, model }
    }

    fn to(&self, out: impl AsRef<Path>) -> Bantam {
        let command = bantam("compress").within(self.root.path()).arg(&self.model);
        command.args("--method welore --keep 0.8 --rank-multiple 2 -o").arg(out.as_ref())
    }
}

#[test]
fn an_output_is_replaced_only_when_asked() {
    let desk = Desk::new();
    let [out, fresh] = ["out", "fresh"].map(|name| desk.root.path().join(name));
    desk.to(&fresh).run().ok();
    copy_folder(&fixture("golden/qwen2"), &out);
    fs::write(out.join("notes.txt"), "of the old model").unwrap();
    let old = files(&out);
    desk.to(&out).run().refused(2, &["out", "--overwrite"]);
    assert!(files(&out) == old, "the old output was changed");
    desk.to(&out).arg("--overwrite").run().ok();
    assert_eq!(first_difference(&out, &fresh), None);
    assert_eq!(names(desk.root.path()), ["fresh", "llama", "out"]);
}

/// One step swaps the old model and the new one: whoever reads meanwhile finds one of them.
#[cfg(target_os = "linux")]
#[test]
fn a_replaced_output_is_there_at_every_moment() {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    let desk = Desk::new();
    let out = desk.root.path().join("out");
    desk.to(&out).run().ok();
    let (looks, done) = (AtomicUsize::new(0), AtomicBool::new(false));
    let (watched, runs) = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                assert!(out.join("config.json").is_file(), "gone at look {looks:?}");
                looks.fetch_add(1, Ordering::Relaxed);
            }
        });
        // Replacements in which the reader looked, of so many that it must have.
        let (mut watched, mut runs) = (0, Vec::new());
        while watched < 8 && runs.len() < 100 && !reader.is_finished() {
            let before = looks.load(Ordering::Relaxed);
            runs.push(desk.to(&out).arg("--overwrite").run());
            watched += usize::from(looks.load(Ordering::Relaxed) > before);
        }
        done.store(true, Ordering::Relaxed);
        reader.join().unwrap();
        (watched, runs)
    });
    assert_eq!(watched, 8, "replacements were seen, of {}", runs.len());
    for run in runs {
        run.ok();
    }
    assert_eq!(names(desk.root.path()), ["llama", "out"]);
}

#[test]
fn what_is_no_model_is_not_replaced() {
    let desk = Desk::new();
    let out = desk.root.path().join("photos");
    fs::create_dir(&out).unwrap();
    fs::write(out.join("config.json"), "{}").unwrap();
    let before = files(&out);
    for overwrite in ["", "--overwrite"] {
        desk.to(&out).args(overwrite).run().refused(2, &["photos"]);
    }
    assert!(files(&out) == before);
    let file = desk.root.path().join("file");
    fs::write(&file, "text").unwrap();
    desk.to(&file).arg("--overwrite").run().refused(2, &["file", "not a folder"]);
    assert_eq!(fs::read_to_string(&file).unwrap(), "text");
    fs::create_dir(desk.root.path().join("empty")).unwrap();
    desk.to("empty").run().ok();
}

#[test]
fn a_failed_replacement_leaves_the_old_output() {
    let desk = Desk::new();
    let out = desk.root.path().join("out");
    desk.to(&out).run().ok();
    let old = files(&out);
    edit_weights(&desk.model, |weights| {
        weights.get_mut("lm_head.weight").unwrap().plant(-1, f32::NAN);
    });
    desk.to(&out).arg("--overwrite").run().refused(6, &["lm_head.weight"]);
    assert!(files(&out) == old, "the old output was changed");
    assert_eq!(names(desk.root.path()), ["llama", "out"]);
}

#[test]
fn the_input_is_never_the_output() {
    let desk = Desk::new();
    let root = desk.root.path();
    std::os::unix::fs::symlink(&desk.model, root.join("link")).unwrap();
    let before = files(root);
    for out in [
        "llama",
        "llama/",
        "./link",
        "link/out",
        "llama/a/b",
        "x/../llama/out",
        "nowhere/../llama",
        ".",
    ] {
        for overwrite in ["", "--overwrite"] {
            desk.to(out).args(overwrite).run().refused(2, &["cannot write to"]);
        }
    }
    desk.to(root.parent().unwrap()).arg("--overwrite").run().refused(2, &["cannot write to"]);
    assert!(files(root) == before, "the input was changed");
    assert_eq!(names(root), ["link", "llama"]);
}
