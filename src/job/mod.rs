//! The job folder: what a run measured and decided, kept so that nothing is computed twice.
//!
//! ```text
//! JOB/job.json                             what it was made from and how: model bytes, text, options, version
//! JOB/journal.jsonl                        one line per finished unit, with the hashes of its tensors
//! JOB/analyses/UNIT.METHOD.safetensors     spectra and directions
//! JOB/plan.json                            the last plan drawn from it
//! ```
//!
//! Analyses are written as soon as they are made and read back when they are asked for: memory holds
//! one unit's, however many layers there are. A job that the user names stays, and serves another
//! budget, or the rest of a run that was stopped; one that nobody named goes with the run. A unit is
//! finished when its line is in the journal, and its file was on disk before that.

mod identity;
mod journal;
mod stored;

pub use identity::Identity;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::Device;
use tempfile::TempDir;

use crate::atomic;
use crate::error::{Error, Result};
use crate::passes::{Analysis, Method, Repairs};
use journal::{Journal, Line};
use stored::{Record, StoredTensors};

const ANALYSES: &str = "analyses";
const IDENTITY_FILE: &str = "job.json";
const PLAN_FILE: &str = "plan.json";

/// An open job folder.
#[derive(Debug)]
pub struct Job {
    folder: PathBuf,
    journal: Journal,
    finished: BTreeMap<(String, Method), Record>,
    complete: BTreeSet<Method>,
    // Removes the folder of a job that nobody named.
    temporary: Option<TempDir>,
}

impl Job {
    /// A job that goes when it is dropped, in a hidden folder inside `parent`.
    ///
    /// # Errors
    /// A folder that cannot be made.
    pub fn temporary(parent: &Path) -> Result<Self> {
        let temporary = tempfile::Builder::new()
            .prefix(".bantam-job-")
            .tempdir_in(parent)
            .map_err(|e| Error::io("make a job folder in", parent, e))?;
        let mut job = Self::at(temporary.path(), false)?;
        job.temporary = Some(temporary);
        Ok(job)
    }

    /// The job at `folder`, made where there is none. One that stands there must have been made from
    /// the same things; one that was stopped half way is continued only when `resume` says so.
    ///
    /// # Errors
    /// A folder that holds something else, or a job of another model, text, version or options, each
    /// named; a job that was stopped, without `resume`.
    pub fn open(folder: &Path, identity: &Identity, resume: bool) -> Result<Self> {
        let file = folder.join(IDENTITY_FILE);
        let stored = file.exists().then(|| Identity::read(&file)).transpose()?;
        if let Some(stored) = &stored {
            identity.expect_same_as(stored, &file)?;
        } else {
            refuse_other_folders(folder)?;
            fs::create_dir_all(folder).map_err(|e| Error::io("make folder", folder, e))?;
            identity.write(&file)?;
        }
        let job = Self::at(folder, true)?;
        let stopped = job.finished.keys().find(|(_, method)| !job.complete.contains(method));
        match stopped {
            Some((unit, method)) if !resume => Err(Error::InvalidFile {
                file: folder.to_owned(),
                problem: format!("the run that made it was stopped after {method} of `{unit}`"),
                hint: Some("add --resume to go on with it, or name another --job folder".into()),
            }),
            Some(_) => {
                if let Some(stored) = &stored {
                    identity.expect_same_device_as(stored, &file)?;
                }
                Ok(job)
            }
            None => Ok(job),
        }
    }

    fn at(folder: &Path, durable: bool) -> Result<Self> {
        let analyses = folder.join(ANALYSES);
        fs::create_dir_all(&analyses).map_err(|e| Error::io("make folder", &analyses, e))?;
        let (journal, lines) = Journal::open(folder, durable)?;
        let (mut finished, mut complete) = (BTreeMap::new(), BTreeSet::new());
        for line in lines {
            match line {
                Line::Unit { unit, method, record } => {
                    finished.insert((unit, method), record);
                }
                Line::Complete { method } => {
                    complete.insert(method);
                }
            }
        }
        Ok(Self { folder: folder.to_owned(), journal, finished, complete, temporary: None })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether it stays after the run.
    pub fn is_kept(&self) -> bool {
        self.temporary.is_none()
    }

    /// Whether the analysis of `unit` by `method` is there.
    pub fn has(&self, unit: &str, method: Method) -> bool {
        self.finished.contains_key(&(unit.to_owned(), method))
    }

    /// The analysis of `unit` by `method`; its tensors are read from the file when asked for.
    pub fn get(&self, unit: &str, method: Method, device: &Device) -> Option<Analysis> {
        let record = self.finished.get(&(unit.to_owned(), method))?;
        let tensors = StoredTensors::new(self.file(unit, method), record.clone(), device.clone());
        Some(Analysis::stored(record.repairs, tensors))
    }

    /// Stores an analysis, first its file, then the line that says it is finished.
    ///
    /// # Errors
    /// What writing refuses, a full disk above all.
    pub fn store(&mut self, unit: &str, method: Method, analysis: &Analysis) -> Result<()> {
        let record = stored::write(&self.file(unit, method), analysis, self.is_kept())?;
        let line = Line::Unit { unit: unit.to_owned(), method, record: record.clone() };
        self.journal.append(&line)?;
        self.finished.insert((unit.to_owned(), method), record);
        Ok(())
    }

    /// Says that every unit of `method` is stored.
    ///
    /// # Errors
    /// As [`store`](Self::store).
    pub fn complete(&mut self, method: Method) -> Result<()> {
        if self.complete.insert(method) {
            self.journal.append(&Line::Complete { method })?;
        }
        Ok(())
    }

    /// Keeps the plan that was drawn beside what it was drawn from.
    ///
    /// # Errors
    /// As [`store`](Self::store).
    pub fn record_plan(&self, json: &str) -> Result<()> {
        atomic::write(&self.folder.join(PLAN_FILE), json.as_bytes(), self.is_kept())
    }

    /// All repairs together.
    pub fn repairs(&self) -> Repairs {
        let mut total = Repairs::default();
        for record in self.finished.values() {
            total.add(record.repairs);
        }
        total
    }

    fn file(&self, unit: &str, method: Method) -> PathBuf {
        self.folder.join(ANALYSES).join(format!("{unit}.{method}.safetensors"))
    }
}

/// A job is made in a new or an empty folder only.
fn refuse_other_folders(folder: &Path) -> Result<()> {
    let occupied = match fs::read_dir(folder) {
        Ok(mut entries) => entries.next().is_some(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => false,
        Err(e) => return Err(Error::io("list", folder, e)),
    };
    match occupied {
        false => Ok(()),
        true => Err(Error::InvalidFile {
            file: folder.to_owned(),
            problem: format!("it is not empty and holds no {IDENTITY_FILE}: not a job folder"),
            hint: Some("--job takes a new folder, or one that an earlier run made".into()),
        }),
    }
}
