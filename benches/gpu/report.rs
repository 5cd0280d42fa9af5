//! The figures: one JSON object in the end, a line each on the way.

use bantam::error::Result;
use serde_json::{Map, Value, json};

/// One measured number.
#[derive(Debug, Clone)]
pub(crate) struct Figure {
    /// The number.
    pub(crate) value: f64,
    /// Its unit: `s` and `B` are better small, rates better large.
    pub(crate) unit: &'static str,
    /// What the device could do, in the same unit.
    pub(crate) limit: Option<f64>,
    /// Shapes, and how it was counted.
    pub(crate) note: String,
}

/// All figures so far.
#[derive(Debug, Default)]
pub(crate) struct Report {
    figures: Map<String, Value>,
    failed: bool,
}

impl Report {
    /// Adds a figure.
    pub(crate) fn add(&mut self, name: &str, figure: Figure) {
        let Figure { value, unit, limit, note } = figure;
        let ratio = limit.map(|limit| value / limit);
        let share =
            ratio.map_or(String::new(), |ratio| format!(", {:.1} % of limit", 100.0 * ratio));
        eprintln!("{name:30} {value:>14.6} {unit}{share}   {note}");
        let figure =
            json!({ "value": value, "unit": unit, "limit": limit, "ratio": ratio, "note": note });
        self.figures.insert(name.to_owned(), figure);
    }

    /// The value of a figure that was measured before.
    pub(crate) fn value(&self, name: &str) -> Option<f64> {
        self.figures.get(name)?["value"].as_f64()
    }

    /// Notes a group that could not be measured to its end; what it has so far stays.
    pub(crate) fn outcome(&mut self, group: &str, result: Result<()>) {
        let Err(error) = result else { return };
        eprintln!("{group}: {error}");
        let note = error.to_string();
        self.figures.insert(format!("{group}_failed"), json!({ "value": null, "note": note }));
        self.failed = true;
    }

    /// Whether nothing failed and every figure is a number.
    pub(crate) fn is_complete(&self) -> bool {
        !self.failed && self.figures.values().all(|figure| figure["value"].is_number())
    }

    /// The object.
    pub(crate) fn json(&self) -> Value {
        Value::Object(self.figures.clone())
    }
}
