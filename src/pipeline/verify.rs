//! Verify: reopen what was written and compare it with the plan, tensor by tensor.

use crate::arch::Model;
use crate::checkpoint::{Checkpoint, TensorSpec};
use crate::error::{Error, Result};
use crate::progress::Progress;

/// Checks that what was written opens as a model, that its tensors are the plan's by name, shape,
/// dtype and bytes, and that every value is finite.
///
/// # Errors
/// [`Error::Verification`] naming the first difference; whatever opening refuses.
pub(super) fn verify(
    written: Checkpoint,
    planned: &[TensorSpec],
    progress: &dyn Progress,
) -> Result<()> {
    let root = written.root().to_owned();
    let differs = |problem: String| Error::Verification { file: root.clone(), problem };
    let written = Model::from_checkpoint(written)?;
    let checkpoint = written.checkpoint();
    progress.begin("verifying", planned.len() as u64);
    for spec in planned {
        progress.check()?;
        let info = checkpoint
            .get(&spec.name)
            .ok_or_else(|| differs(format!("`{}` is missing", spec.name)))?;
        if info.spec() != *spec {
            return Err(differs(format!("`{}` is {:?}, planned {spec:?}", spec.name, info.spec())));
        }
        if !written.is_unread(&spec.name) {
            checkpoint.require_finite(info)?;
        }
        progress.advance(1);
    }
    progress.end();
    let (tensors, expected) = (checkpoint.tensors().count(), planned.len());
    if tensors != expected {
        return Err(differs(format!("it has {tensors} tensors, planned {expected}")));
    }
    Ok(())
}
