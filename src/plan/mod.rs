//! Where to spend the bytes: offers, the one allocator, the plan that is carried out, and the output that
//! follows from it.

mod allocator;
mod level_order;
mod offer;
mod output;
mod plan_file;

pub use allocator::{Allocation, allocate};
pub(crate) use level_order::{LevelLosses, order_levels};
pub use offer::{Offer, Price, efficient};
pub(crate) use output::{Origin, Output, Written};
pub use plan_file::{LossBasis, ModelId, Plan, PlannedSite, PlannedStack};
