//! Typed access to the keys of a config object, nested or not.
//!
//! Adds to [`Config`] what reading an architecture needs: bounds on counts, lists, and the
//! difference between a key that is absent and one that says null.

use serde_json::Value;

use crate::checkpoint::Config;
use crate::error::{Error, Result};

/// Keys below `prefix`, which is empty or ends in a dot.
#[derive(Debug, Clone)]
pub(super) struct Keys<'a> {
    config: &'a Config,
    prefix: String,
}

impl<'a> Keys<'a> {
    pub(super) fn of(config: &'a Config) -> Self {
        Self { config, prefix: String::new() }
    }

    fn path(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// The value, where the key is present and not null.
    pub(super) fn value(&self, key: &str) -> Option<&'a Value> {
        self.config.get_path(&self.path(key)).filter(|v| !v.is_null())
    }

    /// Whether the key is there and says null, which is not the same as its absence.
    pub(super) fn is_null(&self, key: &str) -> bool {
        self.config.get_path(&self.path(key)).is_some_and(Value::is_null)
    }

    /// The object under `key`; an empty one counts as absent, as it does in transformers.
    pub(super) fn object(&self, key: &str) -> Result<Option<Self>> {
        let found =
            self.typed(key, "an object", Value::as_object)?.filter(|object| !object.is_empty());
        Ok(found.map(|_| Self { config: self.config, prefix: self.path(key) + "." }))
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<f64>> {
        self.config.f64(&self.path(key))
    }

    pub(super) fn positive(&self, key: &str) -> Result<f64> {
        match self.number(key)? {
            Some(found) if found > 0.0 => Ok(found),
            Some(found) => Err(self.wrong(key, "a positive number", &found.to_string())),
            None => Err(self.missing(key, "a positive number")),
        }
    }

    pub(super) fn positive_or(&self, key: &str, default: f64) -> Result<f64> {
        if self.value(key).is_some() { self.positive(key) } else { Ok(default) }
    }

    pub(super) fn boolean(&self, key: &str) -> Result<Option<bool>> {
        self.config.bool(&self.path(key))
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>> {
        self.config.str(&self.path(key))
    }

    pub(super) fn texts(&self, key: &str) -> Result<Option<Vec<&'a str>>> {
        self.typed(key, "a list of strings", |v| v.as_array()?.iter().map(Value::as_str).collect())
    }

    /// A list of as many positive numbers as said, which has to be there.
    pub(super) fn positives(&self, key: &str, count: usize) -> Result<Vec<f64>> {
        let expected = format!("{count} positive numbers");
        let one = |v: &Value| v.as_f64().filter(|n| *n > 0.0);
        let list = |v: &Value| v.as_array()?.iter().map(one).collect::<Option<Vec<f64>>>();
        let found = self.typed(key, &expected, |v| list(v).filter(|list| list.len() == count))?;
        found.ok_or_else(|| self.missing(key, &expected))
    }

    /// One number or a list of them, as `eos_token_id` is spelled; absent is an empty list.
    pub(super) fn ids(&self, key: &str) -> Result<Vec<u32>> {
        let one = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
        let read = |v: &'a Value| match v.as_array() {
            Some(list) => list.iter().map(one).collect(),
            None => one(v).map(|n| vec![n]),
        };
        Ok(self.typed(key, "an id or a list of ids", read)?.unwrap_or_default())
    }

    /// A whole number small enough that products of two of them cannot overflow.
    pub(super) fn count_option(&self, key: &str) -> Result<Option<usize>> {
        let small = |v: &Value| v.as_u64().filter(|&n| n < 1 << 31);
        self.typed(key, "a count below 2^31", |v| small(v).and_then(|n| usize::try_from(n).ok()))
    }

    /// A positive count that has to be there.
    pub(super) fn count(&self, key: &str) -> Result<usize> {
        match self.count_option(key)? {
            Some(0) => Err(self.wrong(key, "a positive count", "0")),
            Some(count) => Ok(count),
            None => Err(self.missing(key, "a positive count")),
        }
    }

    pub(super) fn count_or(&self, key: &str, default: usize) -> Result<usize> {
        if self.value(key).is_some() { self.count(key) } else { Ok(default) }
    }

    fn typed<T>(
        &self,
        key: &str,
        expected: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let read = |v| read(v).ok_or_else(|| self.wrong(key, expected, &v.to_string()));
        self.value(key).map(read).transpose()
    }

    pub(super) fn unsupported(&self, what: &str) -> Error {
        Error::Unsupported {
            what: format!("`{}`: {what}", self.config.file().display()),
            hint: None,
        }
    }

    pub(super) fn missing(&self, key: &str, expected: &str) -> Error {
        self.wrong(key, expected, "missing")
    }

    pub(super) fn wrong(&self, key: &str, expected: &str, found: &str) -> Error {
        Error::config(self.config.file(), &self.path(key), expected, found)
    }
}
