//! One run: what is asked for, what was measured for it, and how far it goes.

use std::path::{Path, PathBuf};

use candle_core::Device;

use super::analyse::analyse;
use super::draw;
use super::manifest::Manifest;
use super::produce::{Preview, Producer};
use super::write::{Destination, write};
use crate::arch::{Model, Site};
use crate::checkpoint::{ModelWriter, TensorInfo, WriteOptions, WrittenModel};
use crate::error::{Error, Remedy, Result};
use crate::job::{Identity, Job};
use crate::measure::{Compute, Cut, Footprint, Measured, Reading, TextWindows};
use crate::passes::{Pass, Repairs, passes};
use crate::paths::{existing_parent, keep_apart, keep_out_of};
use crate::plan::Plan;
use crate::progress::{Progress, Silent};
use crate::settings::{Method, Rule, Settings};

/// Bytes of activations that stay in memory for a backward pass, unless told otherwise.
const ACTIVATION_MEMORY: u64 = 1 << 30;

/// A run over one model: built up, then [checked](Self::check) before hours of work, and carried as far as it
/// is told. The crate's first page shows one from end to end.
pub struct Run<'a> {
    pub(super) model: &'a Model,
    pub(super) settings: Settings,
    pub(super) passes: Vec<Box<dyn Pass>>,
    pub(super) text: Option<TextWindows>,
    /// Windows of text asked for and tokens of each: what a forecast without the text counts on.
    expected: (usize, usize),
    pub(super) activation_memory: u64,
    pub(super) compute: Compute,
    pub(super) progress: &'a dyn Progress,
    /// The folder that keeps what is measured, and whether a run that was stopped there goes on.
    kept_in: Option<(PathBuf, bool)>,
    /// The job of this text and device, once it was opened.
    job: Option<Job>,
    /// Whether the job holds what the passes made of this text.
    measured: bool,
    /// A plan that was drawn before and is carried out as it is.
    drawn: Option<Plan>,
}

impl std::fmt::Debug for Run<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (model, settings) = (self.model.checkpoint().root(), &self.settings);
        f.debug_struct("Run")
            .field("model", &model)
            .field("settings", settings)
            .finish_non_exhaustive()
    }
}

/// What a run wrote.
#[derive(Debug)]
pub struct Outcome {
    /// The plan that was carried out.
    pub plan: Plan,
    /// The model that was written.
    pub written: WrittenModel,
    /// Numbers that had to be mended on the way.
    pub repairs: Repairs,
}

impl<'a> Run<'a> {
    /// A run that draws its own plan, on the CPU, without text.
    ///
    /// # Errors
    /// Settings that make no sense, a model that is a stack already, a method that changes what no decoder
    /// reads changed.
    pub fn new(model: &'a Model, settings: Settings) -> Result<Self> {
        Self::with_passes(model, settings, Vec::new())
    }

    /// The same with methods of the caller's own beside those that come with bantam; which of them
    /// compete say the settings, by name.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_passes(
        model: &'a Model,
        settings: Settings,
        own: Vec<Box<dyn Pass>>,
    ) -> Result<Self> {
        if model.stack().is_some() {
            return Err(Error::usage(
                format!("`{}` is a stack already", model.checkpoint().root().display()),
                Remedy::CutStack,
            ));
        }
        let mut settings = settings.settled()?;
        let passes = passes(&settings, own)?;
        settings.methods = passes.iter().map(|pass| pass.method()).collect();
        for site in model.sites().iter().filter(|site| site.role.is_vocabulary()) {
            if let Some(pass) = passes.iter().find(|pass| pass.takes(site)) {
                let what = format!("method `{}` for `{}`", pass.method(), site.name);
                let hint = Some("embedding and head are read as dense tensors only".into());
                return Err(Error::Unsupported { what, hint });
            }
        }
        let length = model.spec().default_window();
        let expected = (Cut::default().windows.unwrap_or_default(), length);
        let run = Self {
            model,
            settings,
            passes,
            text: None,
            expected,
            activation_memory: ACTIVATION_MEMORY,
            compute: Compute::cpu(),
            progress: &Silent,
            kept_in: None,
            job: None,
            measured: false,
            drawn: None,
        };
        run.check_rule()?;
        Ok(run)
    }

    /// A run that carries out `plan`, as it was drawn.
    ///
    /// # Errors
    /// As [`new`](Self::new), for the settings of the plan, and as [`carrying_out`](Self::carrying_out).
    pub fn of_plan(model: &'a Model, plan: Plan) -> Result<Self> {
        Self::new(model, plan.settings.clone())?.carrying_out(plan)
    }

    /// With a plan that was drawn before in the place of one of its own.
    ///
    /// # Errors
    /// [`Error::Usage`] for a plan of another model, of other settings, or with a choice that no method
    /// offers.
    pub fn carrying_out(self, plan: Plan) -> Result<Self> {
        self.require_own(&plan)?;
        Ok(Self { drawn: Some(plan), ..self })
    }

    /// Calibrated on `text`.
    #[must_use]
    pub fn text(self, text: TextWindows) -> Self {
        let record = text.record();
        let expected = (record.windows, record.window);
        Self { text: Some(text), expected, job: None, measured: false, ..self }
    }

    /// Forecasts for so many windows of so many tokens where there is no text yet.
    #[must_use]
    pub fn expecting(self, windows: usize, window: usize) -> Self {
        Self { expected: (windows, window), ..self }
    }

    /// With so many bytes of activations in memory; more goes to the job folder.
    #[must_use]
    pub fn with_activation_memory(self, bytes: u64) -> Self {
        Self { activation_memory: bytes, ..self }
    }

    /// Computed there.
    #[must_use]
    pub fn on(self, compute: Compute) -> Self {
        Self { compute, job: None, measured: false, ..self }
    }

    /// With somebody who listens.
    #[must_use]
    pub fn told(self, progress: &'a dyn Progress) -> Self {
        Self { progress, ..self }
    }

    /// With what is measured kept in `folder`: another run for the same model, text and options then takes
    /// seconds. One that was stopped half way is continued with `resume`.
    ///
    /// # Errors
    /// A folder inside the model's.
    pub fn in_job(self, folder: &Path, resume: bool) -> Result<Self> {
        keep_out_of(folder, self.model.checkpoint().root())?;
        Ok(Self { kept_in: Some((folder.to_owned(), resume)), job: None, measured: false, ..self })
    }

    /// What is asked for.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What the run takes while it measures, beside running the model.
    pub fn measured(&self) -> Measured<'a> {
        let taken: Vec<&Site> = self.model.sites().iter().filter(|site| self.takes(site)).collect();
        let moments = taken.iter().copied().filter(|site| self.takes_moments_of(site)).collect();
        Measured { gradients: self.settings.gradients, moments, analysed: taken }
    }

    /// Refuses what can be refused before any work: text that is missing or not the plan's, a size that no
    /// choice of ranks meets, an output that may not be written.
    ///
    /// # Errors
    /// [`Error::Usage`], [`Error::BudgetTooSmall`], [`Error::Output`].
    pub fn check(&self, out: &Path, options: &WriteOptions) -> Result<()> {
        self.require_text()?;
        if let Some((folder, _)) = &self.kept_in {
            keep_apart(folder, out)?;
        }
        let tensors = match (&self.drawn, self.settings.rule) {
            (Some(plan), _) => plan.tensors.clone(),
            // This rule has no size to miss, and ranks nothing without the weights.
            (None, Rule::Reduce(_)) => {
                self.model.checkpoint().tensors().map(TensorInfo::spec).collect()
            }
            // Ranks are not known yet, but from the shapes alone it is known whether any fit.
            (None, _) => draw::plan(self, None)?.tensors,
        };
        ModelWriter::check(out, self.model.checkpoint(), tensors, options)
    }

    /// Measures and analyses what the job does not hold yet; without a job, in one that goes with the run.
    ///
    /// # Errors
    /// Text that is missing or not the plan's; as [`Job::open`]; whatever reading, measuring or a pass
    /// refuses.
    pub fn measure(&mut self) -> Result<()> {
        self.measure_in(&std::env::temp_dir())
    }

    fn measure_in(&mut self, scratch: &Path) -> Result<()> {
        self.require_text()?;
        if self.measured {
            return Ok(());
        }
        let mut job = match self.job.take() {
            Some(job) => job,
            None => self.open_job(scratch)?,
        };
        let result = analyse(self, &mut job);
        self.job = Some(job);
        result?;
        self.measured = true;
        Ok(())
    }

    fn open_job(&self, scratch: &Path) -> Result<Job> {
        let Some((folder, resume)) = &self.kept_in else { return Job::temporary(scratch) };
        let calibration = self.text.as_ref().map(|text| text.record().clone());
        let (on_gpu, measuring) = (!self.device().is_cpu(), self.settings.measuring());
        let identity = Identity::of(self.model, calibration, measuring, on_gpu, self.progress)?;
        let job = Job::open(folder, &identity, *resume)?;
        self.passes.iter().try_for_each(|pass| job.expect_options_of(pass.as_ref()))?;
        Ok(job)
    }

    /// The plan: the one that is carried out, or one drawn from what was measured, or, before anything was,
    /// from shapes and an assumed spectrum.
    ///
    /// # Errors
    /// [`Error::BudgetTooSmall`] with the size of the smallest possible model; a rule that needs an
    /// analysis which is not there.
    pub fn plan(&self) -> Result<Plan> {
        match &self.drawn {
            Some(plan) => Ok(plan.clone()),
            None => draw::plan(self, self.require_job().ok()),
        }
    }

    /// Measures where nothing was measured yet, and writes the model to `out`, which appears whole and
    /// verified or not at all.
    ///
    /// # Errors
    /// As [`measure`](Self::measure) and [`plan`](Self::plan); whatever a pass or the writer refuses.
    pub fn write(&mut self, out: &Path, options: &WriteOptions) -> Result<Outcome> {
        self.measure_in(&existing_parent(out))?;
        let plan = self.plan()?;
        let job = self.require_job()?;
        job.record_plan(&plan.to_json()?)?;
        let output = plan.output(self.model);
        let mut producer = Producer::of_run(self, &plan)?;
        let destination = Destination { out, options, progress: self.progress };
        let manifest = |producer: &Producer<'_>| Manifest::of_plan(&plan, job, producer.errors());
        let written = write(&output, &mut producer, manifest, &destination)?;
        let repairs = job.repairs(&plan.settings.methods);
        Ok(Outcome { plan, written, repairs })
    }

    /// The model that `plan` would write, to be run before it is written. Nothing of it is on a disk.
    ///
    /// # Errors
    /// As [`carrying_out`](Self::carrying_out); a run that did not measure.
    pub fn preview<'b>(&'b self, plan: &'b Plan) -> Result<Preview<'b>> {
        self.require_own(plan)?;
        Preview::new(self, plan)
    }

    /// Bytes that this run holds at its peak on this machine; nothing of a text where no method needs one.
    pub(super) fn footprint(&self) -> Footprint {
        let text = self.text.as_ref();
        let (windows, window) = self.expected;
        let reads = text.is_some() || self.passes.iter().any(|pass| pass.needs().text);
        let reading = reads.then(|| Reading {
            windows,
            window,
            text_bytes: text.map_or(0, TextWindows::text_bytes),
            activation_memory: self.activation_memory,
        });
        Footprint::on_cpu(self.model, reading, &self.measured())
    }

    /// Where tensors live.
    pub(super) fn device(&self) -> &Device {
        self.compute.device()
    }

    /// Whether the second moments of `site` are of use to a pass that takes it.
    pub(super) fn takes_moments_of(&self, site: &Site) -> bool {
        self.passes.iter().any(|pass| pass.needs().moments && pass.takes(site))
    }

    /// Whether any pass has something to offer for `site`.
    pub(super) fn takes(&self, site: &Site) -> bool {
        self.passes.iter().any(|pass| pass.takes(site))
    }

    /// The job that all was measured in.
    pub(super) fn require_job(&self) -> Result<&Job> {
        let job = self.job.as_ref().filter(|_| self.measured);
        job.ok_or_else(|| Error::usage("nothing was measured", Remedy::Measure))
    }

    /// There must be text where a method measures it, and for a plan that was measured on text that text.
    fn require_text(&self) -> Result<()> {
        let wants = self.passes.iter().find(|pass| pass.needs().text);
        let planned = self.drawn.as_ref().and_then(|plan| plan.calibration.as_ref());
        match (wants, &self.text, planned) {
            (Some(pass), None, _) => Err(Error::usage(
                format!(
                    "method `{}` measures activations and needs calibration text",
                    pass.method()
                ),
                Remedy::GiveText,
            )),
            (_, Some(given), Some(planned)) if planned != given.record() => Err(Error::usage(
                format!(
                    "the plan was measured on {} windows of {} tokens (text {}), not on this text",
                    planned.windows, planned.window, planned.text_sha256
                ),
                Remedy::GiveSameText,
            )),
            _ => Ok(()),
        }
    }

    /// A plan must be one that this run could have drawn.
    fn require_own(&self, plan: &Plan) -> Result<()> {
        let refuse = |problem: String| Error::usage(problem, Remedy::DrawPlan);
        plan.check(self.model).map_err(refuse)?;
        if plan.settings != self.settings {
            return Err(refuse("the plan was drawn with other settings".into()));
        }
        for (site, planned) in self.model.sites().iter().zip(&plan.sites) {
            let storage = planned.offer.storage;
            let (offered, by) = match &planned.method {
                None => (storage == site.storage, "no method"),
                Some(method) => {
                    let pass = self.passes.iter().find(|p| p.method() == *method && p.takes(site));
                    let offers = pass.map(|pass| pass.offers(site, None)).transpose()?;
                    let offers = offers.unwrap_or_default();
                    (offers.iter().any(|offer| offer.storage == storage), method.as_str())
                }
            };
            if !offered {
                return Err(refuse(format!("`{}` becomes {storage} by {by}", site.name)));
            }
        }
        Ok(())
    }

    /// A rule must be one that the methods can follow.
    fn check_rule(&self) -> Result<()> {
        match (self.settings.rule, self.passes.as_slice()) {
            (Rule::Reduce(fraction), [pass]) if pass.reduced_ranks(&[], fraction)?.is_some() => {
                Ok(())
            }
            (Rule::Reduce(_), _) => Err(Error::usage(
                "`reduce` thresholds singular values of the weights",
                Remedy::UseMethod(Method::WELORE.to_string()),
            )),
            (Rule::Target(_) | Rule::Uniform(_) | Rule::Stack, _) => Ok(()),
        }
    }
}
