//! Questions about places on the disk that nothing stands at yet.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The nearest folder above `path` that exists.
pub(crate) fn existing_parent(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let found = absolute.ancestors().skip(1).find(|folder| folder.is_dir());
    found.map_or_else(|| PathBuf::from("."), Path::to_owned)
}

/// Refuses to write `file` where it cannot be written, or among the files of the model in `folder`.
///
/// # Errors
/// [`Error::Usage`]; a folder that cannot be found.
pub(crate) fn check_output_file(file: &Path, folder: &Path) -> Result<()> {
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty());
    let refuse = |problem: String, hint: &str| Err(Error::usage(problem, hint));
    if parent.is_some_and(|parent| !parent.is_dir()) {
        let problem = format!("the folder of `{}` does not exist", file.display());
        return refuse(problem, "make it, or write elsewhere");
    }
    // A link is replaced, not followed.
    let there = file.symlink_metadata().map(|found| found.file_type());
    if there.is_ok_and(|kind| !kind.is_file() && !kind.is_symlink()) {
        return refuse(format!("`{}` is there and is no file", file.display()), "name a file");
    }
    keep_out_of(file, folder)
}

/// Refuses a folder for a job that is the output's, or inside it: it would be in the way.
///
/// # Errors
/// [`Error::Usage`].
pub(crate) fn keep_apart(job: &Path, output: &Path) -> Result<()> {
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    match absolute(job).starts_with(absolute(output)) {
        false => Ok(()),
        true => Err(Error::usage(
            format!("the job `{}` would be in the place of the output", job.display()),
            "keep it elsewhere",
        )),
    }
}

/// Refuses to write `path` among the files of the model in `folder`.
///
/// # Errors
/// [`Error::Usage`]; a folder that cannot be found.
pub(crate) fn keep_out_of(path: &Path, folder: &Path) -> Result<()> {
    let real = |path: &Path| path.canonicalize().map_err(|e| Error::io("find folder", path, e));
    if real(&existing_parent(path))?.starts_with(real(folder)?) {
        return Err(Error::usage(
            format!("`{}` is inside the model's folder, which is never written to", path.display()),
            "write it elsewhere",
        ));
    }
    Ok(())
}
