//! Figures that several verbs report.

use std::fmt::Display;
use std::path::Path;

use crate::settings::format_size;

/// The most memory the process has held, mapped pages included, where the system tells.
pub(super) fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// A report for people: lines of a label and what there is to say of it.
#[derive(Debug)]
pub(super) struct Lines {
    pub(super) text: String,
    width: usize,
}

impl Lines {
    /// None yet below `text`; labels take up `width` characters.
    pub(super) fn below(text: String, width: usize) -> Self {
        Self { text, width }
    }

    /// Adds a line.
    pub(super) fn add(&mut self, label: &str, value: impl Display) {
        self.text += &format!("{label:<width$}{value}\n", width = self.width);
    }

    /// Adds what a verb took that wrote to `out`.
    pub(super) fn add_end(&mut self, seconds: f64, peak: Option<u64>, out: &Path) {
        self.add("time", format_args!("{seconds:.1} s"));
        self.add("peak memory", peak_text(peak));
        self.add("wrote", out.display());
    }
}

impl Default for Lines {
    fn default() -> Self {
        Self::below(String::new(), 12)
    }
}

/// A peak for people.
pub(super) fn peak_text(peak: Option<u64>) -> String {
    peak.map_or_else(|| "unknown".into(), format_size)
}

/// Bytes for people, exact figure included.
pub(super) fn exact_size(bytes: u64) -> String {
    format!("{} ({bytes} bytes)", format_size(bytes))
}

/// A perplexity with its standard error.
pub(super) fn perplexity_text(found: &crate::eval::Perplexity) -> String {
    match found.perplexity_stderr {
        Some(error) => format!("{:.3} ± {error:.3}", found.perplexity),
        None => format!("{:.3}", found.perplexity),
    }
}
