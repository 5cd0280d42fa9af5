//! The job folder: what was measured once serves another budget, a run killed anywhere goes on where
//! it stopped and ends in the same bytes, and a job of anything else is refused by name.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a failing test is to panic")]

#[path = "support/cli.rs"]
mod cli;
#[path = "support/models.rs"]
mod models;

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use cli::{Bantam, Run, bantam, first_difference, fixture, names};
use models::{Desk, copy_folder, edit_weights, two_layers};
use serde_json::Value;

impl Desk {
    fn job(&self) -> PathBuf {
        self.root.path().join("job")
    }

    /// A measuring verb on the model and text, with the job folder.
    fn measured(&self, verb: &str) -> Bantam {
        let command = bantam(verb).arg(&self.model).arg("--text").arg(&self.text);
        command.args("--windows 8 --window 32 --rank-multiple 2 --job").arg(self.job())
    }

    fn compress(&self, arguments: &str, out: &str) -> Bantam {
        self.measured("compress").args(arguments).arg("-o").arg(self.made().join(out))
    }

    fn journal(&self) -> String {
        fs::read_to_string(self.job().join("journal.jsonl")).unwrap()
    }
}

#[test]
fn a_second_budget_measures_nothing_and_gives_what_it_would_alone() {
    let desk = Desk::with("llama");
    desk.compress("--keep 0.8", "first").run().ok();
    let journal = desk.journal();
    // The text is in the journal only as a hash: what is not measured is not read either.
    desk.compress("--keep 0.6", "second").run().ok();
    desk.measured("plan").args("--keep 0.5").run().ok();
    assert_eq!(desk.journal(), journal);
    let alone = desk.root.path().join("alone");
    let command = bantam("compress").arg(&desk.model).arg("--text").arg(&desk.text);
    let command = command.args("--windows 8 --window 32 --rank-multiple 2 --keep 0.6 -o");
    command.arg(&alone).run().ok();
    assert_eq!(first_difference(&desk.made().join("second"), &alone), None);
    assert_eq!(names(&desk.made()), ["first", "second"]);
    // Another method adds its own analyses.
    desk.compress("--keep 0.6 --method welore", "third").run().ok();
    assert!(desk.journal().starts_with(&journal) && desk.journal().len() > journal.len());
}

#[test]
fn a_job_of_anything_else_is_refused_by_name() {
    let desk = Desk::with("llama");
    desk.compress("--keep 0.8", "out").run().ok();
    let journal = desk.journal();
    let refused = |command: Bantam, named: &[&str]| {
        let named = [&["job.json"], named].concat();
        command
            .arg("--keep")
            .arg("0.6")
            .arg("-o")
            .arg(desk.made().join("no"))
            .run()
            .refused(3, &named);
    };
    let on = |model: &Path, text: &Path, arguments: &str| {
        let command = bantam("compress").arg(model).arg("--text").arg(text);
        command.args("--rank-multiple 2 --job").arg(desk.job()).args(arguments)
    };
    let same = "--windows 8 --window 32";
    let other_text = desk.root.path().join("other.txt");
    let text = fs::read_to_string(&desk.text).unwrap();
    fs::write(&other_text, text.replace("w1 ", "w2 ")).unwrap();
    refused(on(&desk.model, &other_text, same), &["another text"]);
    refused(on(&desk.model, &desk.text, "--windows 7 --window 32"), &["other windows"]);
    refused(on(&desk.model, &desk.text, "--windows 8 --window 32 --seed 3"), &["other windows"]);
    // One weight in the middle of one tensor, where no header and no sample would show it.
    let changed = desk.root.path().join("changed");
    copy_folder(&desk.model, &changed);
    edit_weights(&changed, |weights| {
        weights.get_mut("model.layers.1.mlp.up_proj.weight").unwrap().plant(7, 0.125);
    });
    refused(on(&changed, &desk.text, same), &["model.layers.1.mlp.up_proj.weight"]);
    let config = fs::read_to_string(desk.model.join("config.json")).unwrap();
    copy_folder(&desk.model, &changed);
    fs::write(changed.join("config.json"), config + "\n").unwrap();
    refused(on(&changed, &desk.text, same), &["config.json"]);
    let identity = desk.job().join("job.json");
    let made = fs::read_to_string(&identity).unwrap();
    let version = format!("\"bantam\": \"{}\"", env!("CARGO_PKG_VERSION"));
    fs::write(&identity, made.replace(&version, "\"bantam\": \"0.0.7\"")).unwrap();
    refused(on(&desk.model, &desk.text, same), &["bantam 0.0.7"]);
    fs::write(&identity, &made[..made.len() / 2]).unwrap();
    refused(on(&desk.model, &desk.text, same), &[]);
    fs::write(&identity, made).unwrap();
    assert_eq!(desk.journal(), journal);
    assert_eq!(names(&desk.made()), ["out"]);
}

#[test]
fn what_is_no_job_or_was_damaged_is_refused() {
    let desk = Desk::with("llama");
    let photos = desk.root.path().join("photos");
    fs::create_dir(&photos).unwrap();
    fs::write(photos.join("cat.jpg"), "a cat").unwrap();
    let command = bantam("compress").arg(&desk.model).args("--method welore --keep 0.8 --job");
    let command = command.arg(&photos).args("--rank-multiple 2 -o").arg(desk.made().join("out"));
    command.run().refused(3, &["photos", "not a job folder"]);
    assert_eq!(names(&photos), ["cat.jpg"]);
    let inside = desk.model.join("job");
    let command = bantam("compress").arg(&desk.model).args("--method welore --keep 0.8 --job");
    let command = command.arg(&inside).args("--rank-multiple 2 -o").arg(desk.made().join("out"));
    command.run().refused(2, &["inside the model's folder"]);
    assert!(!inside.exists());

    desk.compress("--keep 0.8", "out").run().ok();
    let analyses = desk.job().join("analyses");
    let file = analyses.join(&names(&analyses)[0]);
    let whole = fs::read(&file).unwrap();
    let mut flipped = whole.clone();
    *flipped.last_mut().unwrap() ^= 1;
    for damaged in [&whole[..whole.len() - 1], &whole[..100], &flipped] {
        fs::write(&file, damaged).unwrap();
        desk.compress("--keep 0.6", "no").run().refused(3, &["analyses", "delete the job folder"]);
    }
    fs::remove_file(&file).unwrap();
    desk.compress("--keep 0.6", "no").run().refused(3, &["analyses"]);
    assert_eq!(names(&desk.made()), ["out"]);
}

/// The first two layers of pycode-llama: enough work for a kill to hit any part of it.
struct Bench {
    root: tempfile::TempDir,
    model: PathBuf,
}

impl Bench {
    fn at(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn compress(&self, job: &str, out: &str) -> Bantam {
        let command = bantam("compress").arg(&self.model).arg("--text");
        let command = command.arg(fixture("pycode.calib.txt"));
        let command = command.args("--windows 12 --window 64 --keep 0.7 --resume --job");
        command.arg(self.at(job)).arg("-o").arg(self.at(out))
    }

    /// The whole lines of a job's journal: a kill may tear the last.
    fn journal(&self, job: &str) -> String {
        let text = fs::read_to_string(self.at(job).join("journal.jsonl")).unwrap_or_default();
        text.split_inclusive('\n').filter(|line| line.ends_with('\n')).collect()
    }

    /// Files in which there are analyses, or will be.
    fn analyses(&self) -> usize {
        fs::read_dir(self.at("job").join("analyses")).map_or(0, Iterator::count)
    }

    /// Whether the output that is being written has this file.
    fn writes(&self, file: &str) -> bool {
        let folders = names(self.root.path()).into_iter();
        let mut partial = folders.filter(|name| name.contains("bantam-partial"));
        partial.any(|name| self.at(&name).join(file).exists())
    }

    /// Removes what killed runs left beside the output.
    fn sweep(&self) {
        for hidden in names(self.root.path()).iter().filter(|name| name.starts_with('.')) {
            fs::remove_dir_all(self.at(hidden)).unwrap();
        }
    }

    /// Kills a run into `out` once `reached` says so. Whether that came in time; a run that was done first
    /// was done well, and its output is removed.
    fn kill(&self, reached: impl Fn() -> bool) -> bool {
        let before = self.journal("job");
        let mut child = self.compress("job", "out").spawn();
        while !reached() && child.try_wait().unwrap().is_none() {
            sleep(Duration::from_micros(200));
        }
        // In vain where it is done.
        let _ = child.kill();
        let run = Run::of("bantam compress".into(), child.wait_with_output().unwrap());
        assert!(self.journal("job").starts_with(&before), "the journal lost a line");
        // The output may be in its place and the process not gone yet.
        if !self.at("out").exists() {
            assert_eq!(run.code, None, "it was not killed:\n{}", run.stderr);
            return true;
        }
        assert_eq!(first_difference(&self.at("out"), &self.at("expected")), None);
        fs::remove_dir_all(self.at("out")).unwrap();
        false
    }

    /// Compresses undisturbed: the same model as ever.
    fn finish(&self) {
        self.compress("job", "out").run().ok();
        assert_eq!(first_difference(&self.at("out"), &self.at("expected")), None);
        fs::remove_dir_all(self.at("out")).unwrap();
    }
}

/// Calls `kill` with the number of kills so far until there were so many.
fn kill_often(wanted: usize, kill: impl Fn(usize) -> bool) {
    const TRIES: usize = 100;
    let kills = (0..TRIES).fold(0, |kills, _| match kills < wanted {
        true => kills + usize::from(kill(kills)),
        false => kills,
    });
    assert_eq!(kills, wanted, "kills in {TRIES} tries: the other runs were done first");
}

#[test]
fn a_run_killed_at_twenty_points_goes_on_and_ends_in_the_same_bytes() {
    let root = tempfile::tempdir().unwrap();
    let model = two_layers(root.path());
    let bench = Bench { root, model };
    bench.compress("undisturbed", "expected").run().ok();
    let whole = bench.journal("undisturbed");
    let lines = |journal: &str| journal.lines().count();
    kill_often(14, |kills| {
        let (journal, analyses) = (bench.journal("job"), bench.analyses());
        // By turns once another unit is finished, and as soon as there is a file for one.
        let killed = bench.kill(|| match kills % 2 {
            0 => bench.journal("job").len() > journal.len(),
            _ => bench.analyses() > analyses,
        });
        assert!(whole.starts_with(&bench.journal("job")), "the journal says something else");
        if lines(&bench.journal("job")) + 2 >= lines(&whole) {
            fs::remove_dir_all(bench.at("job")).unwrap();
        }
        killed
    });
    bench.finish();
    // And while it writes, with every unit measured: weights, or what comes after them.
    kill_often(6, |kills| {
        bench.sweep();
        bench.kill(|| bench.writes(["model.safetensors", "bantam.json"][kills % 2]))
    });
    assert_eq!(bench.journal("job"), whole);
    bench.finish();
}

#[test]
fn a_stopped_job_is_continued_only_when_asked() {
    let desk = Desk::with("llama");
    desk.compress("--keep 0.8", "out").run().ok();
    // As a kill in the middle would have left it: the last units and the closing line are missing.
    let journal = desk.journal();
    let some: Vec<&str> = journal.lines().take(5).collect();
    fs::write(desk.job().join("journal.jsonl"), some.join("\n") + "\n{\"finis").unwrap();
    desk.compress("--keep 0.8", "again").run().refused(3, &["was stopped", "--resume"]);
    desk.compress("--keep 0.8 --resume", "again").run().ok();
    assert_eq!(first_difference(&desk.made().join("out"), &desk.made().join("again")), None);
    assert_eq!(desk.journal(), journal);
    let mut plan: Value = cli::read_json(&desk.job().join("plan.json"));
    assert!(plan.as_object_mut().unwrap().remove("memory").is_some());
    assert_eq!(plan, cli::read_json(&desk.made().join("again/bantam.json"))["plan"]);
}
