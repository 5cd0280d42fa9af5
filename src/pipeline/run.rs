//! One run: what is asked for, what was measured for it, and how far it goes.

use std::path::Path;

use candle_core::Device;

use super::analyse::analyse;
use super::draw;
use super::manifest::Manifest;
use super::produce::{Preview, Producer};
use super::write::{Destination, write};
use crate::arch::{Model, Site};
use crate::checkpoint::{ModelWriter, TensorInfo, WriteOptions, WrittenModel};
use crate::error::{Error, Result};
use crate::job::{Identity, Job};
use crate::measure::{Compute, Cut, Footprint, Measured, Reading, TextWindows};
use crate::passes::{Needs, Pass, Repairs, passes};
use crate::paths::{existing_parent, keep_out_of};
use crate::plan::Plan;
use crate::progress::{Progress, Silent};
use crate::settings::{Rule, Settings};

/// Bytes of activations that stay in memory for a backward pass, unless told otherwise.
const ACTIVATION_MEMORY: u64 = 1 << 30;

/// A run over one model.
///
/// ```no_run
/// use bantam::arch::Model;
/// use bantam::checkpoint::WriteOptions;
/// use bantam::measure::{Cut, TextWindows};
/// use bantam::pipeline::Run;
/// use bantam::settings::{Rule, Settings};
///
/// let model = Model::open("model".as_ref())?;
/// let text = TextWindows::read(&model, &["calib.txt".into()], Cut::default())?;
/// let mut run = Run::new(&model, Settings::new(Rule::keep(0.6)))?.text(text);
/// run.check("smaller".as_ref(), &WriteOptions::default())?; // before hours of work
/// let outcome = run.write("smaller".as_ref(), &WriteOptions::default())?;
/// println!("{} bytes", outcome.written.weight_bytes);
/// # Ok::<(), bantam::Error>(())
/// ```
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
    pub(super) job: Option<Job>,
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
    /// Settings that make no sense, a model that is a stack already.
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
                "`bantam fit` cuts it to any size",
            ));
        }
        let mut settings = settings.settled()?;
        let passes = passes(&settings, own)?;
        settings.methods = passes.iter().map(|pass| pass.method()).collect();
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
    /// As [`new`](Self::new), for the settings of the plan.
    pub fn of_plan(model: &'a Model, plan: Plan) -> Result<Self> {
        Ok(Self::new(model, plan.settings.clone())?.carrying_out(plan))
    }

    /// With a plan that was drawn before, of the same settings, in the place of one of its own.
    #[must_use]
    pub fn carrying_out(self, plan: Plan) -> Self {
        Self { drawn: Some(plan), ..self }
    }

    /// Calibrated on `text`.
    #[must_use]
    pub fn text(self, text: TextWindows) -> Self {
        let record = text.record();
        let expected = (record.windows, record.window);
        Self { text: Some(text), expected, measured: false, ..self }
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
        Self { compute, ..self }
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
    /// As [`Job::open`]; a folder inside the model's; files of the model that cannot be read.
    pub fn in_job(self, folder: &Path, resume: bool) -> Result<Self> {
        keep_out_of(folder, self.model.checkpoint().root())?;
        let calibration = self.text.as_ref().map(|text| text.record().clone());
        let (on_gpu, measuring) = (!self.device().is_cpu(), self.settings.measuring());
        let identity = Identity::of(self.model, calibration, measuring, on_gpu, self.progress)?;
        let job = Job::open(folder, &identity, resume)?;
        self.passes.iter().try_for_each(|pass| job.expect_options_of(pass.as_ref()))?;
        Ok(Self { job: Some(job), measured: false, ..self })
    }

    /// What is asked for.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What the run takes while it measures, beside running the model.
    pub fn measured(&self) -> Measured<'a> {
        let taken: Vec<&Site> = self.model.sites().iter().filter(|site| self.takes(site)).collect();
        let moments = if self.needs().moments { taken.clone() } else { Vec::new() };
        Measured { gradients: self.settings.gradients, moments, analysed: taken }
    }

    /// Refuses what can be refused before any work: text that is missing or not the plan's, a size that no
    /// choice of ranks meets, an output that may not be written.
    ///
    /// # Errors
    /// [`Error::Usage`], [`Error::BudgetTooSmall`], [`Error::Output`].
    pub fn check(&self, out: &Path, options: &WriteOptions) -> Result<()> {
        self.require_text()?;
        let tensors = match (&self.drawn, self.settings.rule) {
            (Some(plan), _) => {
                self.check_calibration(plan)?;
                plan.tensors.clone()
            }
            // This rule has no size to miss, and ranks nothing without the weights.
            (None, Rule::Reduce(_)) => {
                self.model.checkpoint().tensors().map(TensorInfo::spec).collect()
            }
            // Ranks are not known yet, but from the shapes alone it is known whether any fit.
            (None, _) => draw::outline(self)?.tensors,
        };
        ModelWriter::check(out, self.model.checkpoint(), tensors, options)
    }

    /// Measures and analyses what the job does not hold yet; without a job, in one that goes with the run.
    ///
    /// # Errors
    /// Text that is missing; whatever reading, measuring, a pass or the job folder refuses.
    pub fn measure(&mut self) -> Result<()> {
        self.measure_in(&std::env::temp_dir())
    }

    fn measure_in(&mut self, scratch: &Path) -> Result<()> {
        if self.measured {
            return Ok(());
        }
        self.require_text()?;
        let mut job = match self.job.take() {
            Some(job) => job,
            None => Job::temporary(scratch)?,
        };
        let result = analyse(self, &mut job);
        self.job = Some(job);
        result?;
        self.measured = true;
        Ok(())
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
            None => draw::plan(self),
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
        Ok(Outcome { plan, written, repairs: job.repairs() })
    }

    /// The model that `plan` would write, to be run before it is written. Nothing of it is on a disk.
    ///
    /// # Errors
    /// A run that did not measure; a method of the plan that this run does not have.
    pub fn preview<'b>(&'b self, plan: &'b Plan) -> Result<Preview<'b>> {
        Preview::new(self, plan)
    }

    /// Bytes that this run holds at its peak on this machine; nothing of a text where no method needs one.
    pub(super) fn footprint(&self) -> Footprint {
        let text = self.text.as_ref();
        let (windows, window) = self.expected;
        let reading = (text.is_some() || self.needs().text).then(|| Reading {
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

    /// What all passes need together.
    pub(super) fn needs(&self) -> Needs {
        self.passes.iter().fold(Needs::default(), |needs, pass| needs.and(pass.needs()))
    }

    /// Whether any pass has something to offer for `site`.
    pub(super) fn takes(&self, site: &Site) -> bool {
        self.passes.iter().any(|pass| pass.takes(site))
    }

    /// Whether there is something measured to draw plans from.
    pub(super) fn is_measured(&self) -> bool {
        self.measured
    }

    pub(super) fn require_job(&self) -> Result<&Job> {
        self.job.as_ref().ok_or_else(|| Error::Bug("nothing was measured".into()))
    }

    fn require_text(&self) -> Result<()> {
        let wants = self.passes.iter().find(|pass| pass.needs().text);
        match (wants, &self.text) {
            (Some(pass), None) => Err(Error::usage(
                format!(
                    "method `{}` measures activations and needs calibration text",
                    pass.method()
                ),
                "add --text FILE",
            )),
            _ => Ok(()),
        }
    }

    /// A plan that was measured holds for the text it was measured on.
    fn check_calibration(&self, plan: &Plan) -> Result<()> {
        match (&plan.calibration, &self.text) {
            (Some(planned), Some(given)) if planned != given.record() => Err(Error::usage(
                format!(
                    "the plan was measured on {} windows of {} tokens (text {}), not on this text",
                    planned.windows, planned.window, planned.text_sha256
                ),
                "give the same --text, --windows, --window and --seed, or draw the plan again",
            )),
            _ => Ok(()),
        }
    }

    /// A rule must be one that the methods can follow.
    fn check_rule(&self) -> Result<()> {
        match (self.settings.rule, self.passes.as_slice()) {
            (Rule::Reduce(fraction), [pass]) if pass.reduced_ranks(&[], fraction)?.is_some() => {
                Ok(())
            }
            (Rule::Reduce(_), _) => Err(Error::usage(
                "--reduce thresholds singular values of the weights",
                "add --method welore, or name a size with --keep or --budget",
            )),
            (Rule::Target(_) | Rule::Uniform(_) | Rule::Stack, _) => Ok(()),
        }
    }
}
