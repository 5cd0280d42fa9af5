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
    if file.is_dir() {
        return refuse(format!("`{}` is a folder", file.display()), "name a file");
    }
    keep_out_of(file, folder)
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
