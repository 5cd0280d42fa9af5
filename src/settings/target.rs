//! What the user asks for: a size, or a fraction of the input's size.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The size wanted for all weights of the output.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// Bytes of all weight tensors of the output.
    Budget(u64),
    /// The same as a fraction of the input's, in `(0, 1]`.
    Keep(f64),
}

impl Target {
    /// The budget in bytes for an input of `weight_bytes`.
    pub fn bytes(self, weight_bytes: u64) -> u64 {
        match self {
            Self::Budget(bytes) => bytes,
            Self::Keep(fraction) => (fraction * weight_bytes as f64).floor() as u64,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Budget(bytes) => write!(f, "budget {}", format_size(*bytes)),
            Self::Keep(fraction) => write!(f, "keep {fraction}"),
        }
    }
}

/// Units a size may carry: decimal as disks are sold, binary as memory is.
const UNITS: [(&str, f64); 9] = [
    ("kib", 1024.0),
    ("mib", 1_048_576.0),
    ("gib", 1_073_741_824.0),
    ("tib", 1_099_511_627_776.0),
    ("kb", 1e3),
    ("mb", 1e6),
    ("gb", 1e9),
    ("tb", 1e12),
    ("b", 1.0),
];

/// Reads `5.5GiB`, `800 MB`, `123456`.
///
/// # Errors
/// [`Error::Usage`] for anything else, and for sizes that are not positive.
pub fn parse_size(text: &str) -> Result<u64> {
    let lower = text.trim().to_ascii_lowercase();
    let (number, unit) = UNITS
        .iter()
        .find_map(|(name, unit)| lower.strip_suffix(name).map(|number| (number.trim_end(), *unit)))
        .unwrap_or((lower.as_str(), 1.0));
    let plain = number.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    match number.parse::<f64>() {
        // 2^53: beyond it a byte count is no longer exact, and no disk is as large.
        Ok(value) if plain && value * unit >= 1.0 && value * unit < 9e15 => {
            Ok((value * unit).floor() as u64)
        }
        _ => Err(Error::usage(
            format!("`{text}` is not a size"),
            "write a number with B, KB, MB, GB, TB (powers of 1000) or KiB, MiB, GiB, TiB (of 1024)",
        )),
    }
}

/// A size for people: three significant digits, binary units.
pub fn format_size(bytes: u64) -> String {
    let mut value = bytes as f64;
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    for unit in ["KiB", "MiB", "GiB", "TiB"] {
        value /= 1024.0;
        if value < 999.5 || unit == "TiB" {
            let digits = if value < 9.995 { 2 } else { usize::from(value < 99.95) };
            return format!("{value:.digits$} {unit}");
        }
    }
    format!("{bytes} B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_decimal_and_binary_units() {
        let cases = [
            ("123456", 123_456),
            ("1kb", 1000),
            ("1KiB", 1024),
            ("5.5GiB", 5_905_580_032),
            (" 800 MB ", 800_000_000),
            ("2 TB", 2_000_000_000_000),
            ("7b", 7),
        ];
        for (text, bytes) in cases {
            assert_eq!(parse_size(text).ok(), Some(bytes), "{text}");
        }
        for bad in
            ["", "GB", "-1GB", "1e3", "nan", "inf", "0", "0.2B", "5 apples", "1.2.3MB", "99999TB"]
        {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_are_shown_with_three_digits() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (10 * 1024, "10.0 KiB"),
            (9_760_768, "9.31 MiB"),
            (104_857_600, "100 MiB"),
            (1_048_000, "1.00 MiB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(format_size(bytes), text);
        }
    }

    #[test]
    fn keep_is_rounded_down_to_whole_bytes() {
        assert_eq!(Target::Keep(0.5).bytes(11), 5);
        assert_eq!(Target::Budget(7).bytes(11), 7);
    }
}
