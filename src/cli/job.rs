//! Where a verb keeps what it measures: the job folder that the user names, or one that goes with the
//! run.

use std::path::{Path, PathBuf};

use clap::Args;

use super::console::Console;
use crate::error::{Error, ExitCode, Result};
use crate::job::Job;
use crate::paths::keep_apart;
use crate::pipeline::Run;

/// What is kept for the next run.
#[derive(Debug, Args)]
pub(super) struct JobArgs {
    /// Keep what is measured in this folder: another budget for the same model, text and options then
    /// takes seconds.
    #[arg(long, value_name = "DIR")]
    job: Option<PathBuf>,

    /// Go on with the run that was stopped in --job; begin where there is none.
    #[arg(long, requires = "job")]
    resume: bool,
}

impl JobArgs {
    /// The run with the job named, if any; else what it measures goes with it.
    ///
    /// # Errors
    /// As [`Run::in_job`].
    pub(super) fn open<'a>(&self, run: Run<'a>) -> Result<Run<'a>> {
        match &self.job {
            Some(folder) => run.in_job(folder, self.resume),
            None => Ok(run),
        }
    }

    /// Refuses an output in the place of the job.
    pub(super) fn keep_apart(&self, output: &Path) -> Result<()> {
        self.job.as_ref().map_or(Ok(()), |job| keep_apart(job, output))
    }

    /// Says what a failed run left in the job folder.
    pub(super) fn explain_failure<T>(&self, result: Result<T>, console: &Console) -> Result<T> {
        // What failed for want of room or patience can go on; other failures would only repeat.
        let stopped =
            |e: &Error| matches!(e.exit_code(), ExitCode::Interrupted | ExitCode::DoesNotFit);
        if let (Err(e), Some(folder)) = (&result, &self.job)
            && stopped(e)
            && Job::is_begun(folder)
        {
            let folder = folder.display();
            console.note(&format!("what was finished is kept in `{folder}`: go on with --resume"));
        }
        result
    }
}
