//! The folder of a model that a user names by a path, or by an entry of the Hub's cache.
//!
//! ```text
//! <cache>/models--org--name/refs/main            "<commit>"
//!                          /snapshots/<commit>/  config.json → ../../blobs/<etag>, …
//! ```
//!
//! Nothing is downloaded, and the environment is not read here: [`HubEnv`] carries it in.

use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

use crate::error::{Error, Result};

/// The variables that say where the Hub's cache is, as the `huggingface_hub` library reads them.
#[derive(Debug, Clone, Default)]
pub struct HubEnv {
    /// `HF_HUB_CACHE`: the cache itself.
    pub hf_hub_cache: Option<PathBuf>,
    /// `HF_HOME`: the folder whose `hub` is the cache.
    pub hf_home: Option<PathBuf>,
    /// `XDG_CACHE_HOME`: the folder whose `huggingface/hub` is the cache.
    pub xdg_cache_home: Option<PathBuf>,
    /// `HOME`: the folder whose `.cache/huggingface/hub` is the cache.
    pub home: Option<PathBuf>,
}

impl HubEnv {
    /// Asks for each variable by name; one that is empty counts as not set.
    pub fn from_lookup(lookup: impl Fn(&str) -> Option<OsString>) -> Self {
        let path = |name| lookup(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        Self {
            hf_hub_cache: path("HF_HUB_CACHE"),
            hf_home: path("HF_HOME"),
            xdg_cache_home: path("XDG_CACHE_HOME"),
            home: path("HOME"),
        }
    }

    /// The cache's folder; the first variable that is set decides.
    #[must_use]
    pub fn cache(&self) -> PathBuf {
        if let Some(cache) = &self.hf_hub_cache {
            return cache.clone();
        }
        if let Some(hf_home) = &self.hf_home {
            return hf_home.join("hub");
        }
        if let Some(xdg) = &self.xdg_cache_home {
            return xdg.join("huggingface/hub");
        }
        // Without a home there is no cache, and the tilde in the error says where it would be.
        let home = self.home.as_deref().unwrap_or(Path::new("~"));
        home.join(".cache/huggingface/hub")
    }
}

/// The folder of `model`: the folder of that name where there is one, else the snapshot of
/// `org/name`, `org/name@revision` or `name` in the local Hub cache.
///
/// A revision is a branch, a tag or a commit; it is `main` unless given. The snapshot's folder bears
/// the commit's name, so the returned path names the exact commit.
///
/// # Errors
/// [`Error::NotInHubCache`] with the place that was looked at; [`Error::Missing`] for a name that can
/// only be a path; [`Error::NotAFolder`] for a file.
pub fn resolve(model: &str, env: &HubEnv) -> Result<PathBuf> {
    let path = Path::new(model);
    if path.is_dir() {
        return Ok(path.to_owned());
    }
    if path.exists() {
        return Err(Error::NotAFolder { path: path.to_owned() });
    }
    let (name, revision) = model.split_once('@').unwrap_or((model, "main"));
    if !is_repository(name) || !is_plain(revision) {
        return Err(Error::Missing { path: path.to_owned(), what: "a model folder" });
    }
    let folder = env.cache().join(format!("models--{}", name.replace('/', "--")));
    let not_there = |looked_for| Error::NotInHubCache { model: model.into(), looked_for };
    if !folder.is_dir() {
        return Err(not_there(folder));
    }
    let snapshots = folder.join("snapshots");
    // A commit names its snapshot; a branch or tag is a file with the commit in it.
    let by_commit = snapshots.join(revision);
    if by_commit.is_dir() {
        return Ok(by_commit);
    }
    let reference = folder.join("refs").join(revision);
    let commit = match std::fs::read_to_string(&reference) {
        Ok(commit) => commit.trim().to_owned(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(not_there(reference)),
        Err(e) => return Err(Error::io("read", &reference, e)),
    };
    let snapshot = snapshots.join(&commit);
    if !is_plain(&commit) || !snapshot.is_dir() {
        return Err(not_there(snapshot));
    }
    Ok(snapshot)
}

/// Whether this can be the name of a repository on the Hub: `name` or `org/name`.
fn is_repository(name: &str) -> bool {
    let part = |part: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        part.starts_with(|c: char| c.is_ascii_alphanumeric()) && part.chars().all(allowed)
    };
    match name.split_once('/') {
        Some((org, name)) => part(org) && part(name),
        None => part(name),
    }
}

/// Whether this stays below the folder it is joined to. A branch's name may hold slashes.
fn is_plain(revision: &str) -> bool {
    let path = Path::new(revision);
    !revision.is_empty() && path.components().all(|c| matches!(c, Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> HubEnv {
        HubEnv::from_lookup(|name| {
            pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
        })
    }

    #[test]
    fn the_first_variable_decides() {
        let all =
            [("HF_HUB_CACHE", "/a"), ("HF_HOME", "/b"), ("XDG_CACHE_HOME", "/c"), ("HOME", "/d")];
        for (skip, expected) in
            ["/a", "/b/hub", "/c/huggingface/hub", "/d/.cache/huggingface/hub"].iter().enumerate()
        {
            assert_eq!(env(&all[skip..]).cache(), Path::new(expected));
        }
        assert_eq!(env(&[("HF_HUB_CACHE", ""), ("HF_HOME", "/b")]).cache(), Path::new("/b/hub"));
        assert_eq!(env(&[]).cache(), Path::new("~/.cache/huggingface/hub"));
    }

    #[test]
    fn repositories_and_paths_are_told_apart() {
        for name in ["gpt2", "Qwen/Qwen3-0.6B", "a_b/c.d-e"] {
            assert!(is_repository(name), "{name}");
        }
        for name in ["", "/abs/x", "./x", "../x", "a/b/c", "a/", "~/x", "a b", "a/..", "c:\\x"] {
            assert!(!is_repository(name), "{name}");
        }
        assert!(is_plain("refs/pr/1"));
        assert!(!is_plain("../x") && !is_plain("/x") && !is_plain(""));
    }
}
