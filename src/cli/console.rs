//! stdout, stderr, progress bars and Ctrl-C.

use std::io::{ErrorKind, IsTerminal, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::advice::spell;
use crate::error::{Error, ExitCode, Result};
use crate::lock::lock;
use crate::progress::Progress;

/// Set by the signal handler, which can reach nothing but a static.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// What takes less time than this shows no progress bar.
const QUICK: Duration = Duration::from_secs(1);

/// Where the verbs talk.
#[derive(Debug)]
pub(super) struct Console {
    quiet: bool,
    verbose: bool,
    bar: Mutex<Option<ProgressBar>>,
}

impl Console {
    pub(super) fn new(quiet: bool, verbose: bool) -> Self {
        Self { quiet, verbose, bar: Mutex::new(None) }
    }

    /// From here on the first Ctrl-C or SIGTERM makes [`Progress::check`] fail, and the second
    /// ends the process at once.
    pub(super) fn watch_interrupts(&self) -> Result<()> {
        ctrlc::set_handler(|| {
            if INTERRUPTED.swap(true, Ordering::SeqCst) {
                std::process::exit(ExitCode::Interrupted as i32);
            }
        })
        .map_err(|e| Error::Bug(format!("could not watch for Ctrl-C: {e}")))
    }

    /// Data. A reader that closed the pipe has seen enough: that is no error.
    pub(super) fn data(&self, text: &str) -> Result<()> {
        let mut out = std::io::stdout().lock();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Err(e) if e.kind() != ErrorKind::BrokenPipe => {
                Err(Error::io("write to", "stdout".as_ref(), e))
            }
            _ => Ok(()),
        }
    }

    /// A value as pretty JSON on stdout.
    pub(super) fn json(&self, value: &impl serde::Serialize) -> Result<()> {
        let text = serde_json::to_string_pretty(value).map_err(|e| Error::Bug(e.to_string()))?;
        self.data(&(text + "\n"))
    }

    /// Talk.
    pub(super) fn note(&self, text: &str) {
        if !self.quiet {
            self.talk(text);
        }
    }

    /// Talk for those who asked for more.
    pub(super) fn detail(&self, text: &str) {
        if self.verbose {
            self.talk(text);
        }
    }

    /// What ended the run.
    pub(super) fn error(&self, error: &Error) {
        self.end();
        self.talk(&format!("error: {error}"));
        if let Some(hint) = error.hint() {
            self.talk(&format!("hint: {}", spell(&hint)));
        }
    }

    fn talk(&self, text: &str) {
        let line = || {
            // Nowhere is left to say that stderr is gone.
            let _ = writeln!(std::io::stderr().lock(), "{text}");
        };
        match &*lock(&self.bar) {
            Some(bar) => bar.suspend(line),
            None => line(),
        }
    }
}

impl Progress for Console {
    fn begin(&self, task: &str, total: u64) {
        if self.quiet || !std::io::stderr().is_terminal() {
            return;
        }
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden());
        let template = "{prefix:>12} {bar:32} {percent:>3}% {elapsed_precise} (left {eta})";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_prefix(task.to_owned());
        *lock(&self.bar) = Some(bar);
    }

    fn advance(&self, steps: u64) {
        if let Some(bar) = &*lock(&self.bar) {
            bar.inc(steps);
            // Shown once it has taken a while: what is quick shows no bar.
            if bar.is_hidden() && bar.elapsed() > QUICK {
                bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(5));
                bar.enable_steady_tick(Duration::from_millis(500));
            }
        }
    }

    fn end(&self) {
        let bar = lock(&self.bar).take();
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
    }

    fn check(&self) -> Result<()> {
        match INTERRUPTED.load(Ordering::SeqCst) {
            true => Err(Error::Interrupted),
            false => Ok(()),
        }
    }
}
