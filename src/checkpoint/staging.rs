//! The hidden folder in which a model grows, and the moment it becomes the output.
//!
//! A run that fails, is interrupted or killed must not leave a folder that could be taken for a model.
//! So everything is written into a folder beside the output whose name marks it as partial, and one
//! rename makes it the output. Dropped before that, the folder and the parents made for it are removed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tempfile::{Builder, TempDir};

use super::durable::sync_folder;
use super::names::{CONFIG_FILE, weight_files};
use crate::error::OutputProblem;
use crate::error::{Error, Result};

/// A folder that will become the output.
#[derive(Debug)]
pub(super) struct Staging {
    // Dropped in this order: first the folder, then the parents that were made for it.
    folder: TempDir,
    parents: MadeFolders,
    asked_for: PathBuf,
    target: PathBuf,
    overwrite: bool,
}

impl Staging {
    /// Makes the folder beside `out`, after every check that can be made before any work.
    ///
    /// `input` are the files and folders of the input, which `out` must not touch.
    pub(super) fn create(out: &Path, input: &[PathBuf], overwrite: bool) -> Result<Self> {
        let refused = |problem| Error::output(out, problem);
        let target = resolve(out).map_err(refused)?;
        keep_apart(&target, input).map_err(refused)?;
        may_replace(&target, overwrite)
            .map_err(|e| Error::io("list", &target, e))?
            .map_err(refused)?;
        let (Some(parent), Some(_)) = (target.parent(), target.file_name()) else {
            return Err(refused(OutputProblem::NoName));
        };
        let not_writable = |e: io::Error| {
            let (parent, reason) = (parent.to_owned(), e.to_string());
            refused(OutputProblem::NotWritable { parent, reason })
        };
        let parents = MadeFolders::make(parent).map_err(not_writable)?;
        let folder = beside(&target, "partial").map_err(not_writable)?;
        Ok(Self { folder, parents, asked_for: out.to_owned(), target, overwrite })
    }

    /// The folder to write into.
    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Makes the folder the output. Either the output is whole, or it is as it was.
    pub(super) fn publish(self) -> Result<PathBuf> {
        let Self { folder, parents, asked_for, target, overwrite } = self;
        sync_folder(folder.path());
        // Hours may have passed: an output that could be replaced then may hold something else now.
        let failed = |e| Error::io("replace", &target, e);
        may_replace(&target, overwrite)
            .map_err(failed)?
            .map_err(|problem| Error::output(&asked_for, problem))?;
        if target.exists() && exchange(folder.path(), &target) {
            // The old output lies where the new one grew, and goes when the folder is dropped.
            parents.keep();
            if let Some(parent) = target.parent() {
                sync_folder(parent);
            }
            return Ok(asked_for);
        }
        let old = if target.exists() { Some(move_aside(&target).map_err(failed)?) } else { None };
        if let Err(e) = fs::rename(folder.path(), &target) {
            if let Some(old) = old {
                // If even this fails the old model stays where it is, whole, under the hidden name.
                let _ = old.restore(&target);
            }
            return Err(Error::io("rename the finished folder to", &target, e));
        }
        // The output stands: neither it nor the folders above it are to be removed any more.
        drop(folder.keep());
        parents.keep();
        if let Some(parent) = target.parent() {
            sync_folder(parent);
        }
        if let Some(old) = old {
            // The output is in place; an old folder that cannot be deleted does not undo that.
            let _ = fs::remove_dir_all(old.holder);
        }
        Ok(asked_for)
    }
}

/// The output's real place: symlinks followed, folders that do not exist yet appended.
fn resolve(out: &Path) -> Result<PathBuf, OutputProblem> {
    let cannot = |at: &Path, e: io::Error| OutputProblem::NotWritable {
        parent: at.to_owned(),
        reason: e.to_string(),
    };
    let mut existing = std::path::absolute(out).map_err(|_| OutputProblem::NoName)?;
    let mut missing = Vec::new();
    loop {
        match existing.canonicalize() {
            Ok(base) if missing.is_empty() && !base.is_dir() => {
                return Err(OutputProblem::NotAFolder);
            }
            Ok(base) => {
                return Ok(missing.iter().rev().fold(base, |path, name| path.join(name)));
            }
            // A symlink that leads nowhere is there, and is not a folder.
            Err(_) if missing.is_empty() && existing.is_symlink() => {
                return Err(OutputProblem::NotAFolder);
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(cannot(&existing, e)),
        }
        // `..` after a folder that does not exist has no name to create.
        missing.push(existing.file_name().ok_or(OutputProblem::NoName)?.to_owned());
        if !existing.pop() {
            return Err(OutputProblem::NoName);
        }
    }
}

/// Refuses an output that is the input, lies inside it, or holds any file of it.
fn keep_apart(target: &Path, input: &[PathBuf]) -> Result<(), OutputProblem> {
    for path in input {
        // An input that cannot be resolved cannot be read either, and reading gives the better error.
        let Ok(real) = path.canonicalize() else { continue };
        if target.starts_with(&real) || real.starts_with(target) {
            return Err(OutputProblem::OverlapsInput { input: path.clone() });
        }
    }
    Ok(())
}

/// Whether the output may take this place: there is nothing, an empty folder, or, when overwriting,
/// a model.
fn may_replace(target: &Path, overwrite: bool) -> io::Result<Result<(), OutputProblem>> {
    let mut entries = match fs::read_dir(target) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Ok(())),
        Err(e) => return Err(e),
    };
    if is_mount_point(target)? {
        return Ok(Err(OutputProblem::MountPoint));
    }
    if entries.next().is_none() {
        return Ok(Ok(()));
    }
    if !overwrite {
        return Ok(Err(OutputProblem::NotEmpty));
    }
    // Many kinds of folders have a config.json; one with weights beside it is a model.
    let has_weights = weight_files(target).is_ok_and(|names| !names.is_empty());
    if !has_weights || !target.join(CONFIG_FILE).is_file() {
        return Ok(Err(OutputProblem::NotAModel));
    }
    Ok(Ok(()))
}

/// A folder on another file system than its parent can be neither renamed nor renamed to.
#[cfg(unix)]
fn is_mount_point(target: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let Some(parent) = target.parent() else { return Ok(true) };
    Ok(fs::metadata(target)?.dev() != fs::metadata(parent)?.dev())
}

#[cfg(not(unix))]
fn is_mount_point(target: &Path) -> io::Result<bool> {
    Ok(target.parent().is_none())
}

/// A new folder with a hidden name beside `target`, so on the same file system.
fn beside(target: &Path, kind: &str) -> io::Result<TempDir> {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    let mut builder = Builder::new();
    let prefix = format!(".{name}.bantam-{kind}-");
    builder.prefix(&prefix);
    // It becomes the output, so it is to be as readable as any other folder, not private: all that
    // the process's mask allows.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
    builder.tempdir_in(target.parent().unwrap_or(Path::new(".")))
}

/// Swaps two folders in one step, where the system and the file system can: then there is no moment
/// without a model at the output's place, not even for a process that is killed.
#[cfg(target_os = "linux")]
fn exchange(one: &Path, other: &Path) -> bool {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).is_ok()
}

#[cfg(not(target_os = "linux"))]
fn exchange(_: &Path, _: &Path) -> bool {
    false
}

/// An old output that was moved out of the way.
struct Aside {
    holder: PathBuf,
    old: PathBuf,
}

impl Aside {
    fn restore(self, target: &Path) -> io::Result<()> {
        fs::rename(&self.old, target)?;
        fs::remove_dir(&self.holder)
    }
}

fn move_aside(target: &Path) -> io::Result<Aside> {
    // Kept at once: from here on nothing but success may delete what is in it.
    let holder = beside(target, "replaced")?.keep();
    let old = holder.join("model");
    if let Err(e) = fs::rename(target, &old) {
        let _ = fs::remove_dir(&holder);
        return Err(e);
    }
    Ok(Aside { holder, old })
}

/// Folders made on the way to the output; dropped, they go again if nothing else is in them.
#[derive(Debug)]
struct MadeFolders(Vec<PathBuf>);

impl MadeFolders {
    fn make(folder: &Path) -> io::Result<Self> {
        let mut made = Self(Vec::new());
        let missing: Vec<&Path> = folder.ancestors().take_while(|path| !path.exists()).collect();
        for path in missing.into_iter().rev() {
            fs::create_dir(path)?;
            made.0.push(path.to_owned());
        }
        Ok(made)
    }

    fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for MadeFolders {
    fn drop(&mut self) {
        for folder in self.0.iter().rev() {
            // Fails, and should, where somebody put something there in the meantime.
            let _ = fs::remove_dir(folder);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(folder: &Path) {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join("config.json"), "{}").unwrap();
        fs::write(folder.join("model.safetensors"), "old").unwrap();
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> =
            entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_failed_rename_brings_the_old_model_back() {
        let root = tempfile::tempdir().unwrap();
        let out = root.path().join("out");
        model(&out);
        let staging = Staging::create(&out, &[], true).unwrap();
        fs::remove_dir_all(staging.path()).unwrap();
        assert!(matches!(staging.publish(), Err(Error::Io { .. })));
        assert_eq!(names(root.path()), ["out"]);
        assert_eq!(fs::read_to_string(out.join("model.safetensors")).unwrap(), "old");
    }

    #[test]
    fn what_appears_meanwhile_is_not_replaced() {
        let root = tempfile::tempdir().unwrap();
        let out = root.path().join("out");
        let staging = Staging::create(&out, &[], false).unwrap();
        model(&out);
        let error = staging.publish().unwrap_err();
        let problem = OutputProblem::NotEmpty;
        assert!(matches!(error, Error::Output { problem: p, .. } if p == problem));
        assert_eq!(names(root.path()), ["out"]);
    }

    #[test]
    fn parents_are_made_and_go_with_a_failure() {
        let root = tempfile::tempdir().unwrap();
        let out = root.path().join("a/b/out");
        drop(Staging::create(&out, &[], false).unwrap());
        assert!(names(root.path()).is_empty());
        let staging = Staging::create(&out, &[], false).unwrap();
        fs::write(staging.path().join("x"), "1").unwrap();
        assert_eq!(staging.publish().unwrap(), out);
        assert_eq!(names(&root.path().join("a/b")), ["out"]);
        assert_eq!(names(&out), ["x"]);
    }

    #[test]
    fn odd_places_are_refused() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("file"), "").unwrap();
        let refused = |path: &str| match Staging::create(&root.path().join(path), &[], false) {
            Err(Error::Output { problem, .. }) => problem,
            other => panic!("{path}: {other:?}"),
        };
        assert_eq!(refused("file"), OutputProblem::NotAFolder);
        assert_eq!(refused("nowhere/.."), OutputProblem::NoName);
        assert!(matches!(refused("file/out"), OutputProblem::NotWritable { .. }));
        if cfg!(target_os = "linux") {
            assert_eq!(refused("/proc"), OutputProblem::MountPoint);
        }
    }
}
