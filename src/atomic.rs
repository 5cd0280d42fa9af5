//! Small files that appear whole or not at all: written beside their place, then renamed.

use std::io::Write;
use std::path::Path;

use crate::error::{Error, Result};

/// Writes `bytes` to `path`, replacing what is there; `durable` waits until they are on the disk.
///
/// # Errors
/// [`Error::Io`] naming `path`, which then holds what it held before.
pub(crate) fn write(path: &Path, bytes: &[u8], durable: bool) -> Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut builder = tempfile::Builder::new();
    builder.prefix(".bantam-");
    // As readable as any other file the user makes, which the process's mask decides.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let written = builder.tempfile_in(folder).and_then(|mut file| {
        file.write_all(bytes)?;
        if durable {
            file.as_file().sync_all()?;
        }
        file.persist(path).map(drop).map_err(|e| e.error)
    });
    written.map_err(|e| Error::io("write", path, e))
}
