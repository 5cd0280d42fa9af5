//! How the engine says how far it is and learns that it should stop.
//!
//! The engine never prints: it reports to a [`Progress`], which the command line implements with
//! bars and tests implement with nothing.
//!
//! ```
//! use std::sync::atomic::{AtomicU64, Ordering};
//!
//! use bantam::progress::Progress;
//!
//! /// Counts steps, and stops the work after the tenth.
//! struct Ten(AtomicU64);
//!
//! impl Progress for Ten {
//!     fn begin(&self, _: &str, _: u64) {}
//!     fn advance(&self, steps: u64) {
//!         self.0.fetch_add(steps, Ordering::Relaxed);
//!     }
//!     fn end(&self) {}
//!     fn check(&self) -> bantam::Result<()> {
//!         match self.0.load(Ordering::Relaxed) < 10 {
//!             true => Ok(()),
//!             false => Err(bantam::Error::Interrupted),
//!         }
//!     }
//! }
//! # let ten = Ten(AtomicU64::new(9));
//! # assert!(ten.check().is_ok());
//! # ten.advance(1);
//! # assert!(ten.check().is_err());
//! ```

use crate::error::Result;

/// A listener to long work.
pub trait Progress: Sync {
    /// A task of `total` steps begins; tasks do not nest.
    fn begin(&self, task: &str, total: u64);

    /// `steps` more of the current task are done.
    fn advance(&self, steps: u64);

    /// The current task is over.
    fn end(&self);

    /// Asked between steps.
    ///
    /// # Errors
    /// [`Error::Interrupted`](crate::Error::Interrupted) once the user asked to stop.
    fn check(&self) -> Result<()>;
}

/// Nobody listens and nobody stops the work.
#[derive(Debug, Clone, Copy)]
pub struct Silent;

impl Progress for Silent {
    fn begin(&self, _: &str, _: u64) {}
    fn advance(&self, _: u64) {}
    fn end(&self) {}
    fn check(&self) -> Result<()> {
        Ok(())
    }
}
