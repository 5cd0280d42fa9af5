//! How the engine says how far it is and learns that it should stop.
//!
//! The engine never prints: it reports to a [`Progress`], which the command line implements with
//! bars and tests implement with nothing.

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
