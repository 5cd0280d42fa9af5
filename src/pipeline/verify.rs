//! Verify: reopen what was written and compare it with the plan, tensor by tensor.

use super::Context;
use crate::arch::SourceModel;
use crate::checkpoint::{Checkpoint, check_finite};
use crate::error::{Error, Result};
use crate::plan::Plan;

/// Checks that what was written opens as a model, that its tensors are the plan's by name, shape,
/// dtype and bytes, and that every value is finite.
///
/// # Errors
/// [`Error::Verification`] naming the first difference; whatever opening refuses.
pub(super) fn verify(written: Checkpoint, plan: &Plan, context: Context<'_>) -> Result<()> {
    let root = written.root().to_owned();
    let differs = |problem: String| Error::Verification { file: root.clone(), problem };
    let written = SourceModel::from_checkpoint(written)?;
    let checkpoint = &written.checkpoint;
    let mut found = 0;
    context.progress.begin("verifying", plan.tensors.len() as u64);
    for spec in &plan.tensors {
        context.progress.check()?;
        let info = checkpoint
            .get(&spec.name)
            .ok_or_else(|| differs(format!("`{}` is missing", spec.name)))?;
        if info.spec() != *spec {
            return Err(differs(format!("`{}` is {:?}, planned {spec:?}", spec.name, info.spec())));
        }
        if !written.is_unread(&spec.name) {
            check_finite(info.dtype, checkpoint.bytes(info)?, &spec.name)?;
        }
        checkpoint.release(info);
        found += 1;
        context.progress.advance(1);
    }
    context.progress.end();
    let tensors = checkpoint.tensors().count();
    if tensors != found {
        return Err(differs(format!("it has {tensors} tensors, planned {found}")));
    }
    if checkpoint.weight_bytes() != plan.weight_bytes {
        let bytes = checkpoint.weight_bytes();
        return Err(differs(format!("it has {bytes} weight bytes, planned {}", plan.weight_bytes)));
    }
    Ok(())
}
