//! Where to spend the bytes: offers, the one allocator, and the plan that compress carries out.

mod allocator;
mod memory;
mod offer;
mod output;
mod plan_file;
mod stack_order;
mod target;

pub use allocator::{Allocation, allocate};
pub use memory::{Forecast, Measuring, forecast, largest_decomposition};
pub use offer::{Offer, efficient};
pub(crate) use output::{choices, fused_output, groups, output_tensors};
pub use plan_file::{Calibration, LossBasis, ModelId, Plan, PlannedStack, PlannedUnit, Rule};
pub use stack_order::BlockOrder;
pub(crate) use stack_order::{Blocks, order_blocks};
pub use target::{Target, format_size, parse_size};
