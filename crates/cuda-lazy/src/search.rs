//! Where the libraries are.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

use crate::table::{LIBRARIES, library};

/// A library and the file it was opened from.
#[derive(Debug, Clone)]
pub struct Found {
    /// Its file name.
    pub file: &'static str,
    /// Where it lies; `None` where it could not be opened.
    pub path: Option<PathBuf>,
}

/// Opens every library and says where it was found.
pub fn found() -> Vec<Found> {
    let named = LIBRARIES.iter().enumerate().filter(|(_, library)| !library.file.is_empty());
    named
        .map(|(index, it)| {
            let path = library(index).map(|_| mapped(it.file).unwrap_or_else(|| it.file.into()));
            Found { file: it.file, path }
        })
        .collect()
}

/// The file that is mapped into this process under the name `file`.
fn mapped(file: &str) -> Option<PathBuf> {
    // A library's file may carry a longer version than the name it is asked for by.
    let stem = file.split(".so").next()?;
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let paths = maps.lines().filter_map(|line| line.find('/').map(|at| &line[at..]));
    let belongs = |path: &&str| {
        let name = Path::new(path).file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.strip_prefix(stem).is_some_and(|rest| rest.starts_with(".so")))
    };
    paths.filter(belongs).map(PathBuf::from).next()
}

/// Folders to look in before the loader's own search.
pub fn folders() -> &'static [PathBuf] {
    static FOLDERS: OnceLock<Vec<PathBuf>> = OnceLock::new();
    FOLDERS.get_or_init(|| {
        let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
        let mut folders: Vec<PathBuf> = std::env::var_os("CUDA_LIB_PATH")
            .map(|paths| std::env::split_paths(&paths).collect())
            .unwrap_or_default();
        let toolkits =
            [variable("CUDA_HOME"), variable("CUDA_PATH"), Some("/usr/local/cuda".into())];
        for root in toolkits.into_iter().flatten() {
            folders.extend([root.join("lib64"), root.join("lib")]);
        }
        let user = variable("HOME").map(|home| home.join(".local"));
        let pythons = [variable("VIRTUAL_ENV"), python_prefix(), user, Some("/usr/local".into())];
        for root in pythons.into_iter().flatten() {
            for python in entries(&root.join("lib")) {
                // Debian's own Python has another name for the folder.
                for site in ["site-packages/nvidia", "dist-packages/nvidia"] {
                    let packages = entries(&python.join(site));
                    folders.extend(packages.into_iter().map(|package| package.join("lib")));
                }
            }
        }
        folders.retain(|folder| folder.is_dir());
        folders
    })
}

/// The folder above that of the `python3` on PATH, whose link, if it is one, is not followed: that of a
/// virtual environment leads out of it.
fn python_prefix() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let python = std::env::split_paths(&path).map(|d| d.join("python3")).find(|p| p.exists())?;
    Some(python.parent()?.parent()?.to_owned())
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let read = std::fs::read_dir(folder);
    read.map(|read| read.flatten().map(|entry| entry.path()).collect()).unwrap_or_default()
}

/// Opens `file` from the first folder that has it, or by the loader's search.
pub(crate) fn open(file: &str) -> Option<Library> {
    let flags = RTLD_NOW | RTLD_GLOBAL;
    let here = folders().iter().map(|folder| folder.join(file)).filter(|path| path.exists());
    here.chain([PathBuf::from(file)]).find_map(|path| {
        // SAFETY: these are NVIDIA's libraries, or stand-ins of the same interface; what runs when
        // they are loaded is theirs to get right.
        unsafe { Library::open(Some(&path), flags) }.ok()
    })
}
