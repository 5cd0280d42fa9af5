//! Where to spend the bytes: offers, the one allocator, the plan that is carried out, and the output that
//! follows from it.
//!
//! ```
//! use bantam::arch::Model;
//! use bantam::pipeline::Run;
//! use bantam::settings::{Rule, Settings};
//!
//! // From headers alone: the text is needed when the plan is carried out.
//! let model = Model::open("tests/fixtures/pycode-llama".as_ref())?;
//! let plan = Run::new(&model, Settings::new(Rule::keep(0.5)))?.plan()?;
//! assert!(plan.weight_bytes <= model.weight_bytes() / 2);
//! assert_eq!(plan.sites.len(), model.sites().len());
//! # Ok::<(), bantam::Error>(())
//! ```

mod allocator;
mod level_order;
mod offer;
mod output;
mod plan_file;

pub use allocator::{Allocation, allocate};
pub(crate) use level_order::{LevelLosses, order_levels};
pub use offer::{Offer, Price, efficient};
pub(crate) use output::{Origin, Output, Written};
pub(crate) use plan_file::check_losses;
pub use plan_file::{LossBasis, ModelId, Plan, PlannedSite, PlannedStack};
