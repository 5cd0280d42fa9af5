//! A run that is stopped, whenever that is, leaves nothing behind and an old output as it was, and goes on
//! as if nothing had been.
//!
//! The moments are the times at which the engine asks whether to go on: a listener says no at one of them,
//! so that nothing here depends on how fast a machine is. `cli_interrupt.rs` sends real signals.

#![allow(clippy::unwrap_used, reason = "a failing test is to panic")]

#[path = "support/cli.rs"]
mod cli;
#[path = "support/models.rs"]
mod models;

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use bantam::arch::Model;
use bantam::checkpoint::WriteOptions;
use bantam::error::{Error, Result};
use bantam::measure::{Cut, Draw, TextWindows};
use bantam::pipeline::{Run, cut};
use bantam::progress::Progress;
use bantam::settings::{Method, Rule, Settings, StackSettings};
use cli::{files, first_difference, fixture, names};
use models::{Desk, copy_folder};

/// A listener that says no once: the first time that it is asked is number 0.
struct Stop {
    at: usize,
    asked: AtomicUsize,
}

impl Stop {
    fn at(at: usize) -> Self {
        Self { at, asked: AtomicUsize::new(0) }
    }

    fn never() -> Self {
        Self::at(usize::MAX)
    }

    /// How often it was asked.
    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Progress for Stop {
    fn begin(&self, _: &str, _: u64) {}
    fn advance(&self, _: u64) {}
    fn end(&self) {}
    fn check(&self) -> Result<()> {
        match self.asked.fetch_add(1, Ordering::Relaxed) == self.at {
            true => Err(Error::Interrupted),
            false => Ok(()),
        }
    }
}

#[track_caller]
fn assert_stopped<T: Debug>(result: &Result<T>, what: &str) {
    assert!(matches!(result, Err(Error::Interrupted)), "{what}: {result:?}");
}

/// The first moments and others spread evenly over `measuring` of them, and as many over the rest of
/// `total`; the very last is one of them.
fn moments(measuring: usize, total: usize) -> BTreeSet<usize> {
    const PARTS: usize = 12;
    assert!(12 < measuring && measuring + 12 < total, "{measuring} of {total} moments");
    let spread = |from: usize, to: usize| (1..=PARTS).map(move |i| from + i * (to - from) / PARTS);
    let (last, end) = (measuring - 1, total - 1);
    [0, 1, 2, 5].into_iter().chain(spread(0, last)).chain(spread(last, end)).collect()
}

fn replacing() -> WriteOptions {
    WriteOptions { overwrite: true, ..WriteOptions::default() }
}

/// What is asked for, of which model.
struct Case {
    desk: Desk,
    model: Model,
    text: TextWindows,
    settings: Settings,
}

impl Case {
    fn new(model: &str, settings: Settings) -> Self {
        let desk = Desk::with(model);
        let model = Model::open(&desk.model).unwrap();
        // Two chunks, which go through the model side by side.
        let cut = Cut { length: Some(32), windows: Some(62), draw: Draw::FromStart };
        let text = TextWindows::read(&model, std::slice::from_ref(&desk.text), cut).unwrap();
        Self { desk, model, text, settings }
    }

    /// Factors, with gradients.
    fn lord() -> Self {
        let settings = Settings { rank_multiple: 2, ..Settings::new(Rule::keep(0.7)) };
        assert!(settings.gradients && settings.methods == [Method::LORD]);
        Self::new("qwen2", settings)
    }

    fn stack() -> Self {
        let stack = StackSettings { levels: 3, rank: 4, ..StackSettings::default() };
        let methods = vec![Method::BITSTACK];
        Self::new("llama", Settings { methods, stack, ..Settings::new(Rule::Stack) })
    }

    /// Factors multiplied out, and fused tensors put together again.
    fn folded() -> Self {
        let settings = Settings { rank_multiple: 2, fold: true, ..Settings::new(Rule::keep(0.75)) };
        Self::new("phi3", settings)
    }

    /// A place that no output is written to.
    fn aside(&self, name: &str) -> PathBuf {
        self.desk.root.path().join(name)
    }

    /// The run, with activations in a file.
    fn run<'a>(&'a self, stop: &'a Stop) -> Run<'a> {
        let run = Run::new(&self.model, self.settings.clone()).unwrap();
        run.text(self.text.clone()).with_activation_memory(1).told(stop)
    }

    /// Carries the run out undisturbed, and says when it may be stopped.
    fn undisturbed(&self, expected: &Path) -> BTreeSet<usize> {
        let never = Stop::never();
        let mut run = self.run(&never);
        run.measure().unwrap();
        let measuring = never.asked();
        run.write(expected, &WriteOptions::default()).unwrap();
        moments(measuring, never.asked())
    }

    /// A new run with its job in `job`, from there to `out`.
    fn run_in(&self, job: &Path, resume: bool, out: &Path, stop: &Stop) -> Result<()> {
        let mut run = self.run(stop).in_job(job, resume)?;
        run.write(out, &WriteOptions::default()).map(drop)
    }
}

/// Stops `case` at every moment: on its way to a place where nothing is, and to that of another model, from
/// where the same run goes on.
fn check(case: &Case) {
    let (expected, made) = (case.aside("expected"), case.desk.made());
    let (old, out) = (fixture("golden/mistral"), made.join("out"));
    for at in case.undisturbed(&expected) {
        let what = format!("stopped at moment {at}");
        let stopped = case.run(&Stop::at(at)).write(&out, &WriteOptions::default());
        assert_stopped(&stopped, &what);
        assert_eq!(names(&made), [""; 0], "{what}");

        copy_folder(&old, &out);
        let stop = Stop::at(at);
        let mut run = case.run(&stop);
        assert_stopped(&run.write(&out, &replacing()), &what);
        assert_eq!(first_difference(&out, &old), None, "{what}: the old output was changed");
        run.write(&out, &replacing()).unwrap();
        assert_eq!(first_difference(&out, &expected), None, "{what}: it went on to another model");
        drop(run);
        assert_eq!(names(&made), ["out"], "{what}");
        fs::remove_dir_all(&out).unwrap();
    }
    case.run(&Stop::never()).write(&out, &WriteOptions::default()).unwrap();
    assert_eq!(first_difference(&out, &expected), None);
    assert_eq!(names(&made), ["out"]);
}

#[test]
fn a_run_with_gradients() {
    check(&Case::lord());
}

#[test]
fn a_run_that_makes_a_stack() {
    check(&Case::stack());
}

#[test]
fn a_run_that_folds() {
    check(&Case::folded());
}

fn journal(job: &Path) -> String {
    fs::read_to_string(job.join("journal.jsonl")).unwrap_or_default()
}

/// Stops `case` at every moment of a run with a job folder. Another run goes on from what it holds.
fn check_in_job(case: &Case) {
    let (expected, made) = (case.aside("expected"), case.desk.made());
    let (job, out) = (case.aside("job"), made.join("out"));
    case.undisturbed(&expected);
    let never = Stop::never();
    let mut run = case.run(&never).in_job(&job, false).unwrap();
    run.measure().unwrap();
    let measuring = never.asked();
    run.write(&out, &WriteOptions::default()).unwrap();
    drop(run);
    assert_eq!(first_difference(&out, &expected), None);
    let (whole, held) = (journal(&job), names(&job));
    let clear = || {
        fs::remove_dir_all(&job).unwrap();
        fs::remove_dir_all(&out).unwrap();
    };
    clear();

    let (mut bytes, mut half_way) = (0, 0);
    for at in moments(measuring, never.asked()) {
        let what = format!("stopped at moment {at}");
        assert_stopped(&case.run_in(&job, false, &out, &Stop::at(at)), &what);
        assert_eq!(names(&made), [""; 0], "{what}");
        let kept = journal(&job);
        assert!(whole.starts_with(&kept), "{what}: the journal says something else:\n{kept}");
        assert!(kept.is_empty() || kept.ends_with('\n'), "{what}: the journal is torn:\n{kept}");
        assert!(kept.len() >= bytes, "{what}: stopped later, it kept less:\n{kept}");
        bytes = kept.len();
        half_way += usize::from(!kept.is_empty() && kept != whole);
        if job.exists() {
            let odd = names(&job).into_iter().find(|name| !held.contains(name));
            assert_eq!(odd, None, "{what}");
        }

        case.run_in(&job, true, &out, &Stop::never()).unwrap();
        assert_eq!(first_difference(&out, &expected), None, "{what}: it went on to another model");
        assert!(journal(&job) == whole, "{what}: another journal");
        assert_eq!(names(&job), held, "{what}");
        clear();
    }
    assert!(half_way > 2, "only {half_way} journals were kept half way");
}

#[test]
fn a_run_with_gradients_and_a_job() {
    check_in_job(&Case::lord());
}

#[test]
fn a_run_that_makes_a_stack_and_keeps_a_job() {
    check_in_job(&Case::stack());
}

#[test]
fn a_run_that_folds_and_keeps_a_job() {
    check_in_job(&Case::folded());
}

/// Nothing is measured to cut a stack: it is written, and then looked over.
#[test]
fn a_stack_that_is_cut() {
    let case = Case::stack();
    let (stack, made) = (case.aside("stack"), case.desk.made());
    let (old, out) = (fixture("golden/mistral"), made.join("out"));
    case.run(&Stop::never()).write(&stack, &WriteOptions::default()).unwrap();
    let before = files(&stack);
    for fold in [false, true] {
        let to = |out: &Path, options: &WriteOptions, stop: &Stop| {
            let model = Model::open(&stack).unwrap();
            let budget = model.weight_bytes() - 1;
            cut(model, budget, fold, out, options, stop)
        };
        let (expected, never) = (case.aside(&format!("fold-{fold}")), Stop::never());
        to(&expected, &WriteOptions::default(), &never).unwrap();
        let last = never.asked() - 1;
        for at in (0..=12).map(|i| i * last / 12) {
            let what = format!("fold {fold}, stopped at moment {at}");
            assert_stopped(&to(&out, &WriteOptions::default(), &Stop::at(at)), &what);
            assert_eq!(names(&made), [""; 0], "{what}");
            copy_folder(&old, &out);
            assert_stopped(&to(&out, &replacing(), &Stop::at(at)), &what);
            assert_eq!(first_difference(&out, &old), None, "{what}");
            to(&out, &replacing(), &Stop::never()).unwrap();
            assert_eq!(first_difference(&out, &expected), None, "{what}");
            assert_eq!(names(&made), ["out"], "{what}");
            fs::remove_dir_all(&out).unwrap();
        }
    }
    assert!(files(&stack) == before, "the stack was changed");
}
