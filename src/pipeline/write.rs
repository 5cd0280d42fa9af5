//! Write and verify: the one loop that every output goes through, whoever makes its tensors.

use std::path::Path;

use super::manifest::Manifest;
use super::produce::{Data, Producer};
use super::verify::verify;
use crate::checkpoint::{ModelWriter, WriteOptions, WrittenModel};
use crate::error::Result;
use crate::plan::Output;
use crate::progress::Progress;

/// Where and how an output is written.
pub(super) struct Destination<'a> {
    pub(super) out: &'a Path,
    pub(super) options: &'a WriteOptions,
    pub(super) progress: &'a dyn Progress,
}

/// Writes `output`, whose tensors `producer` makes, with the manifest that is drawn up once all are made.
/// The model appears whole and verified or not at all.
pub(super) fn write<'a>(
    output: &Output,
    producer: &mut Producer<'a>,
    manifest: impl FnOnce(&Producer<'a>) -> Manifest,
    destination: &Destination<'_>,
) -> Result<WrittenModel> {
    let Destination { out, options, progress } = *destination;
    let (model, specs) = (producer.model, output.specs());
    let source = model.checkpoint();
    let options = WriteOptions { data_order: output.data_order(), ..options.clone() };
    let mut writer = ModelWriter::create(out, source, specs.clone(), &options)?;
    progress.begin("writing", specs.len() as u64);
    for tensor in &output.tensors {
        progress.check()?;
        let name = &tensor.spec.name;
        match producer.data(tensor)? {
            Data::Bytes(bytes) => writer.write(name, &bytes)?,
            Data::Copied if model.is_unread(name) => {
                writer.copy_unread(source, source.require(name)?)?;
            }
            Data::Copied => writer.copy(source, source.require(name)?)?,
        }
        progress.advance(1);
    }
    progress.end();
    let mut config = source.config().clone();
    output.declaration().write(&mut config)?;
    let sealed = writer.seal(&config, &manifest(producer).to_json()?)?;
    verify(sealed.reopen()?, &specs, progress)?;
    sealed.publish()
}
