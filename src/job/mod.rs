//! The job folder: what a run measured and decided, kept so that nothing is computed twice.
//!
//! ```text
//! JOB/job.json                             what it was made from and how: model bytes, text, options, version
//! JOB/journal.jsonl                        one line per finished linear, with the hashes of its tensors
//! JOB/analyses/LINEAR.METHOD.safetensors   spectra and directions
//! JOB/plan.json                            the last plan drawn from it
//! ```
//!
//! Analyses are written as soon as they are made and read back when they are asked for: memory holds
//! one linear's, however many layers there are. A job that the user names stays, and serves another
//! budget, or the rest of a run that was stopped; one that nobody named goes with the run. A linear is
//! finished when its line is in the journal, and its file was on disk before that.
//!
//! ```
//! use bantam::job::Job;
//! use bantam::passes::{Analysis, Pass, Welore};
//! use bantam::settings::{Rule, Settings};
//! use candle_core::{Device, Tensor};
//!
//! let pass = Welore::new(&Settings::new(Rule::keep(0.5)));
//! let mut job = Job::temporary(&std::env::temp_dir())?;
//! let analysis = Analysis::default().with("losses", Tensor::new(&[1.0_f64, 0.0], &Device::Cpu)?);
//! job.store("model.layers.0.mlp.up_proj", &pass, &analysis)?;
//! let kept = job.get("model.layers.0.mlp.up_proj", &pass.method(), &Device::Cpu);
//! assert_eq!(kept.expect("it was stored").numbers("losses")?, [1.0, 0.0]);
//! # Ok::<(), bantam::Error>(())
//! ```

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
use crate::error::{Error, Remedy, Result};
use crate::passes::{Analysis, Pass, Repairs};
use crate::settings::Method;
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
            Some((site, method)) if !resume => Err(Error::InvalidFile {
                file: folder.to_owned(),
                problem: format!("the run that made it was stopped after {method} of `{site}`"),
                hint: Some(Remedy::Resume),
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
                Line::Site { site, method, record } => {
                    finished.insert((site, method), record);
                }
                Line::Complete { method } => {
                    complete.insert(method);
                }
            }
        }
        Ok(Self { folder: folder.to_owned(), journal, finished, complete, temporary: None })
    }

    /// Whether there is a job in `folder` in which anything was finished.
    pub fn is_begun(folder: &Path) -> bool {
        fs::metadata(folder.join(journal::JOURNAL_FILE)).is_ok_and(|file| file.len() > 0)
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether it stays after the run.
    pub fn is_kept(&self) -> bool {
        self.temporary.is_none()
    }

    /// Refuses to serve `pass` with what was made with other options of it.
    ///
    /// # Errors
    /// [`Error::Usage`] naming both.
    pub fn expect_options_of(&self, pass: &dyn Pass) -> Result<()> {
        let (method, options) = (pass.method(), pass.options());
        let other = self
            .finished
            .iter()
            .find(|((_, finished), record)| *finished == method && record.options != options);
        let Some((_, record)) = other else { return Ok(()) };
        Err(Error::usage(
            format!("the job holds {method} made with {}, not with {options}", record.options),
            Remedy::OtherJob,
        ))
    }

    /// Whether the analysis of `site` by `method` is there.
    pub fn has(&self, site: &str, method: &Method) -> bool {
        self.finished.contains_key(&(site.to_owned(), method.clone()))
    }

    /// The analysis of `site` by `method`; its tensors are read from the file when asked for.
    pub fn get(&self, site: &str, method: &Method, device: &Device) -> Option<Analysis> {
        let record = self.finished.get(&(site.to_owned(), method.clone()))?;
        let tensors = StoredTensors::new(self.file(site, method), record.clone(), device.clone());
        Some(Analysis::stored(record.repairs, tensors))
    }

    /// Stores an analysis that `pass` made of `site`, first its file, then the line that says it is
    /// finished.
    ///
    /// # Errors
    /// What writing refuses, a full disk above all.
    pub fn store(&mut self, site: &str, pass: &dyn Pass, analysis: &Analysis) -> Result<()> {
        let (method, site) = (pass.method(), site.to_owned());
        let file = self.file(&site, &method);
        let record = stored::write(&file, analysis, pass.options(), self.is_kept())?;
        let line =
            Line::Site { site: site.clone(), method: method.clone(), record: record.clone() };
        self.journal.append(&line)?;
        self.finished.insert((site, method), record);
        Ok(())
    }

    /// Says that every linear of `method` is stored.
    ///
    /// # Errors
    /// As [`store`](Self::store).
    pub fn complete(&mut self, method: &Method) -> Result<()> {
        if self.complete.insert(method.clone()) {
            self.journal.append(&Line::Complete { method: method.clone() })?;
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

    /// The repairs of what `methods` analysed.
    pub fn repairs(&self, methods: &[Method]) -> Repairs {
        let mut total = Repairs::default();
        for ((_, method), record) in &self.finished {
            if methods.contains(method) {
                total.add(record.repairs);
            }
        }
        total
    }

    fn file(&self, site: &str, method: &Method) -> PathBuf {
        self.folder.join(ANALYSES).join(format!("{site}.{method}.safetensors"))
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
            hint: Some(Remedy::NewJob),
        }),
    }
}
