//! A run that is stopped leaves no model behind: interrupted, nothing at all and exit code 130;
//! killed, at most a hidden folder. And an output is only ever replaced whole, and only when asked.

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

const MOMENT: Duration = Duration::from_millis(1);

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

/// Measuring alone takes far longer than the moments below.
const LONG: &str = "--windows 128 --window 256";
const SHORT: &str = "--windows 12 --window 64";

/// Waits until the process would notice a signal. A signal before that ends it, as it ends any
/// program, and is not what is tested.
fn wait_until_it_listens(child: &mut Child) {
    let status = format!("/proc/{}/status", child.id());
    if !Path::new(&status).exists() {
        return sleep(Duration::from_secs(1));
    }
    let caught = |status: String| {
        let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
        u64::from_str_radix(mask.trim(), 16).unwrap() & (1 << (2 - 1)) != 0
    };
    while !caught(fs::read_to_string(&status).unwrap()) {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it could be stopped");
        sleep(MOMENT);
    }
}

/// Waits until weights are being written, in the hidden folder that becomes the output.
fn wait_until_it_writes(child: &mut Child, parent: &Path) {
    let writes = |name: &String| parent.join(name).join("model.safetensors").exists();
    while !names(parent).iter().any(|name| name.starts_with('.') && writes(name)) {
        assert!(child.try_wait().unwrap().is_none(), "it ended before it was seen to write");
        sleep(MOMENT);
    }
}

fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").arg(format!("-{name}")).arg(child.id().to_string()).status();
    assert!(sent.unwrap().success());
}

fn end(child: Child) -> Run {
    Run::of("bantam compress".into(), child.wait_with_output().unwrap())
}

#[test]
fn an_interrupt_while_measuring_leaves_nothing() {
    for (name, later) in [("INT", 0), ("INT", 150), ("TERM", 400), ("INT", 900)] {
        let parent = tempfile::tempdir().unwrap();
        let mut child = compress(parent.path(), LONG).spawn();
        wait_until_it_listens(&mut child);
        sleep(Duration::from_millis(later));
        signal(&child, name);
        end(child).refused(130, &["interrupted"]);
        assert_eq!(names(parent.path()), [""; 0], "{name} after {later} ms");
    }
}

/// Here a run may be done before the signal arrives; then it is done well. Not every one is.
#[test]
fn an_interrupt_while_writing_leaves_nothing() {
    let mut interrupted = 0;
    for later in [0, 40] {
        let parent = tempfile::tempdir().unwrap();
        let mut child = compress(parent.path(), SHORT).spawn();
        wait_until_it_writes(&mut child, parent.path());
        sleep(Duration::from_millis(later));
        signal(&child, "INT");
        let run = end(child);
        if run.code == Some(0) {
            bantam("inspect").arg(parent.path().join("out")).run().ok();
            assert_eq!(names(parent.path()), ["out"]);
        } else {
            run.refused(130, &["interrupted"]);
            assert_eq!(names(parent.path()), [""; 0], "after {later} ms");
            interrupted += 1;
        }
    }
    assert!(interrupted > 0, "every run was done before it was interrupted");
}

#[test]
fn an_interrupted_replacement_leaves_the_old_output() {
    let parent = tempfile::tempdir().unwrap();
    let out = parent.path().join("out");
    copy_folder(&fixture("golden/llama"), &out);
    let mut child = compress(parent.path(), SHORT).arg("--overwrite").spawn();
    wait_until_it_writes(&mut child, parent.path());
    signal(&child, "INT");
    let run = end(child);
    assert_eq!(names(parent.path()), ["out"]);
    if run.code != Some(0) {
        run.refused(130, &["interrupted"]);
        assert_eq!(first_difference(&out, &fixture("golden/llama")), None);
    }
}

/// A killed process can clean nothing up. What it leaves is hidden, is in nobody's way, and the same
/// command gives the same model beside it.
#[test]
fn a_kill_leaves_no_model() {
    let parent = tempfile::tempdir().unwrap();
    let out = parent.path().join("out");
    let kill = |later: u64, writing: bool| {
        let mut child = compress(parent.path(), SHORT).spawn();
        match writing {
            true => wait_until_it_writes(&mut child, parent.path()),
            false => wait_until_it_listens(&mut child),
        }
        sleep(Duration::from_millis(later));
        signal(&child, "KILL");
        let run = end(child);
        if run.code.is_none() {
            assert!(run.stdout.is_empty());
            bantam("inspect").arg(&out).run().refused(3, &["out"]);
            assert!(names(parent.path()).iter().all(|name| name.starts_with('.')));
        } else {
            bantam("inspect").arg(&out).run().ok();
            fs::remove_dir_all(&out).unwrap();
        }
        run.code.is_none()
    };
    let killed = [(300, false), (0, true), (50, true)].map(|(ms, writing)| kill(ms, writing));
    assert!(killed[0] && killed[1..].contains(&true), "runs were done before they were killed");
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
    use std::sync::atomic::{AtomicBool, Ordering};
    let desk = Desk::new();
    let out = desk.root.path().join("out");
    desk.to(&out).run().ok();
    let done = AtomicBool::new(false);
    let looks = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut looks = 0;
            while !done.load(Ordering::Relaxed) {
                assert!(out.join("config.json").is_file(), "gone after {looks} looks");
                looks += 1;
            }
            looks
        });
        let runs: Vec<Run> = (0..8).map(|_| desk.to(&out).arg("--overwrite").run()).collect();
        done.store(true, Ordering::Relaxed);
        for run in runs {
            run.ok();
        }
        reader.join().unwrap()
    });
    assert!(looks > 1000, "only {looks} looks");
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
