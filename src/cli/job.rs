//! Where a verb keeps what it measures: the job folder that the user names, or one that goes with the
//! run.

use std::path::{Path, PathBuf};

use clap::Args;

use super::console::Console;
use crate::arch::SourceModel;
use crate::error::{Error, ExitCode, Result};
use crate::job::{Identity, Job};
use crate::pipeline::{CalibrationText, Context};

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
    /// Opens the job named, or makes one in `scratch` that goes with the run.
    ///
    /// # Errors
    /// As [`Job::open`]; a job folder inside the model's.
    pub(super) fn open(
        &self,
        model: &SourceModel,
        text: Option<&CalibrationText>,
        scratch: &Path,
        context: Context<'_>,
    ) -> Result<Job> {
        let Some(folder) = &self.job else { return Job::temporary(scratch) };
        keep_out_of_model(folder, model)?;
        let calibration = text.map(CalibrationText::record);
        let on_gpu = !context.place.device().is_cpu();
        let identity = Identity::of(model, calibration, context.measure, on_gpu, context.progress)?;
        Job::open(folder, &identity, self.resume)
    }

    /// Says what a failed run left in the job folder.
    pub(super) fn explain_failure<T>(&self, result: Result<T>, console: &Console) -> Result<T> {
        // What failed for want of room or patience can go on; other failures would only repeat.
        let stopped =
            |e: &Error| matches!(e.exit_code(), ExitCode::Interrupted | ExitCode::DoesNotFit);
        if let (Err(e), Some(folder)) = (&result, self.job.as_ref().filter(|f| f.exists()))
            && stopped(e)
        {
            let folder = folder.display();
            console
                .note(&format!("what was measured is kept in `{folder}`: add --resume to go on"));
        }
        result
    }
}

/// The nearest folder above `path` that exists.
pub(super) fn existing_parent(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let found = absolute.ancestors().skip(1).find(|folder| folder.is_dir());
    found.map_or_else(|| PathBuf::from("."), Path::to_owned)
}

/// Refuses to write `path` among the model's own files.
pub(super) fn keep_out_of_model(path: &Path, model: &SourceModel) -> Result<()> {
    let real = |path: &Path| path.canonicalize().map_err(|e| Error::io("find folder", path, e));
    if real(&existing_parent(path))?.starts_with(real(model.checkpoint.root())?) {
        return Err(Error::usage(
            format!("`{}` is inside the model's folder, which is never written to", path.display()),
            "write it elsewhere",
        ));
    }
    Ok(())
}
