//! `config.json`, read as JSON and edited as text.
//!
//! A config is read by many programs, so bantam changes what it has to and nothing else. Parsing and
//! writing JSON would turn `1e-05` into `0.00001` and lose digits of long numbers; therefore the
//! text is kept, and an edit replaces, adds or removes exactly one member of the top-level object.
//! An unmodified config is written as it was read, byte for byte.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::file;
use super::members::members;
use crate::error::ConfigProblem;
use crate::error::{Error, Result};

/// A model's `config.json`.
///
/// The typed getters take a top-level key, or a dotted path such as `rope_parameters.rope_theta`.
/// They give `None` for a key that is absent or `null`, as transformers treats both alike, and an
/// error with key, expectation and find for a value of another kind.
#[derive(Debug, Clone)]
pub struct Config {
    file: PathBuf,
    text: String,
    values: Map<String, Value>,
}

impl Config {
    /// Reads a config.
    ///
    /// # Errors
    /// A file that is missing, unreadable, not JSON, not an object, or with a key twice.
    pub fn read(file: &Path) -> Result<Self> {
        let bytes = file::read(file, "a model's config.json")?;
        let text = String::from_utf8(bytes).map_err(|e| Error::Config {
            file: file.to_owned(),
            problem: ConfigProblem::NotJson { message: e.to_string() },
        })?;
        Self::parse(file, text)
    }

    /// Parses the text of a config; errors will name `file`.
    ///
    /// # Errors
    /// Text that is not JSON, not an object, or has a key twice at the top level.
    pub fn parse(file: impl Into<PathBuf>, text: String) -> Result<Self> {
        let file = file.into();
        match parse(&text) {
            Ok(values) => Ok(Self { file, text, values }),
            Err(problem) => Err(Error::Config { file, problem }),
        }
    }

    /// The file it was read from.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The text, as read and edited, and as it will be written.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The value of a top-level key.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key)
    }

    /// The value at a dotted path. A top-level key that itself holds dots comes first.
    #[must_use]
    pub fn get_path(&self, path: &str) -> Option<&Value> {
        self.values.get(path).or_else(|| {
            let (first, rest) = path.split_once('.')?;
            rest.split('.').try_fold(self.values.get(first)?, |value, key| value.get(key))
        })
    }

    /// The top-level keys, in the order of the file.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.values.keys().map(String::as_str)
    }

    /// A whole number that is not negative.
    ///
    /// # Errors
    /// A value of another kind.
    pub fn usize(&self, key: &str) -> Result<Option<usize>> {
        self.typed(key, "a whole number that is not negative", |value| {
            value.as_u64().and_then(|number| usize::try_from(number).ok())
        })
    }

    /// A number, whole or not.
    ///
    /// # Errors
    /// A value of another kind.
    pub fn f64(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", Value::as_f64)
    }

    /// A truth value.
    ///
    /// # Errors
    /// A value of another kind.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", Value::as_bool)
    }

    /// A string.
    ///
    /// # Errors
    /// A value of another kind.
    pub fn str(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a string", Value::as_str)
    }

    /// As [`usize`](Self::usize), for a key that has to be there.
    ///
    /// # Errors
    /// No value, or one of another kind.
    pub fn require_usize(&self, key: &str) -> Result<usize> {
        self.usize(key)?.ok_or_else(|| self.absent(key, "a whole number that is not negative"))
    }

    /// As [`f64`](Self::f64), for a key that has to be there.
    ///
    /// # Errors
    /// No value, or one of another kind.
    pub fn require_f64(&self, key: &str) -> Result<f64> {
        self.f64(key)?.ok_or_else(|| self.absent(key, "a number"))
    }

    /// As [`str`](Self::str), for a key that has to be there.
    ///
    /// # Errors
    /// No value, or one of another kind.
    pub fn require_str(&self, key: &str) -> Result<&str> {
        self.str(key)?.ok_or_else(|| self.absent(key, "a string"))
    }

    /// Gives a top-level key a value: in its place where the key is there, else at the end.
    ///
    /// The value is written as transformers writes it, indented by two spaces; everything around it
    /// stays as it is.
    pub fn set(&mut self, key: &str, value: Value) {
        let rendered = format!("{value:#}").replace('\n', "\n  ");
        let members = members(&self.text);
        if let Some(member) = members.iter().find(|member| member.key == key) {
            self.text.replace_range(member.value.clone(), &rendered);
        } else {
            let key = Value::from(key);
            match members.last() {
                Some(last) => {
                    self.text.insert_str(last.value.end, &format!(",\n  {key}: {rendered}"));
                }
                None => self.text = format!("{{\n  {key}: {rendered}\n}}\n"),
            }
        }
        self.values.insert(key.to_owned(), value);
    }

    /// Takes a top-level key out, and gives the value it had.
    pub fn remove(&mut self, key: &str) -> Option<Value> {
        let members = members(&self.text);
        if let Some(at) = members.iter().position(|member| member.key == key) {
            // With a neighbour goes the comma between them: the one before, or, for the first, after.
            let cut = match (at.checked_sub(1).map(|i| &members[i]), members.get(at + 1)) {
                (Some(before), _) => before.value.end..members[at].value.end,
                (None, Some(after)) => members[at].start..after.start,
                (None, None) => members[at].start..members[at].value.end,
            };
            self.text.replace_range(cut, "");
        }
        // Not `Map::remove`, which would swap the last key into the place.
        self.values.shift_remove(key)
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        match self.get_path(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match read(value) {
                Some(read) => Ok(Some(read)),
                None => Err(self.wrong(key, expected, shortened(value))),
            },
        }
    }

    fn absent(&self, key: &str, expected: &'static str) -> Error {
        self.wrong(key, expected, "nothing".into())
    }

    fn wrong(&self, key: &str, expected: &'static str, found: String) -> Error {
        Error::config(&self.file, key, expected, found)
    }
}

fn parse(text: &str) -> Result<Map<String, Value>, ConfigProblem> {
    let value = serde_json::from_str(text)
        .map_err(|e| ConfigProblem::NotJson { message: e.to_string() })?;
    let Value::Object(values) = value else {
        return Err(ConfigProblem::NotAnObject { found: shortened(&value) });
    };
    let mut keys = std::collections::HashSet::new();
    for member in members(text) {
        if !keys.insert(member.key.clone()) {
            return Err(ConfigProblem::Duplicate { key: member.key });
        }
    }
    Ok(values)
}

/// A value as JSON, cut to what fits in a message.
fn shortened(value: &Value) -> String {
    const LIMIT: usize = 60;
    let text = value.to_string();
    if text.chars().count() <= LIMIT {
        return text;
    }
    text.chars().take(LIMIT).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const TEXT: &str = r#"{
  "architectures": [
    "LlamaForCausalLM"
  ],
  "eps": 1e-05,
  "huge": 123456789012345678901234567890,
  "rope_parameters": {"rope_theta": 10000.0, "a,}": "b"},
  "sliding_window": null,
  "tie": true,
  "vocab_size": 2048
}
"#;

    fn config() -> Config {
        Config::parse("config.json", TEXT.into()).unwrap()
    }

    #[test]
    fn typed_getters_read_keys_and_paths() {
        let config = config();
        assert_eq!(config.require_usize("vocab_size").unwrap(), 2048);
        assert_eq!(
            config.require_f64("rope_parameters.rope_theta").unwrap().to_bits(),
            1e4f64.to_bits()
        );
        assert_eq!(config.f64("vocab_size").unwrap(), Some(2048.0));
        assert_eq!(config.bool("tie").unwrap(), Some(true));
        assert_eq!(config.str("rope_parameters.a,}").unwrap(), Some("b"));
        assert_eq!(config.usize("sliding_window").unwrap(), None);
        assert_eq!(config.usize("absent.path").unwrap(), None);
        let error = config.usize("eps").unwrap_err().to_string();
        assert_eq!(
            error,
            "`config.json`: `eps`: expected a whole number that is not negative, found 0.00001"
        );
        let error = config.require_str("model_type").unwrap_err().to_string();
        assert_eq!(error, "`config.json`: `model_type`: expected a string, found nothing");
    }

    #[test]
    fn an_edit_changes_its_member_only() {
        let mut config = config();
        config.set("vocab_size", json!(1000));
        config.set("bantam", json!({ "layers": [1, 2], "x": {} }));
        config.set("eps", json!("é\n"));
        assert_eq!(config.remove("tie"), Some(json!(true)));
        assert_eq!(config.remove("architectures"), Some(json!(["LlamaForCausalLM"])));
        assert_eq!(config.remove("never"), None);
        let expected = r#"{
  "eps": "é\n",
  "huge": 123456789012345678901234567890,
  "rope_parameters": {"rope_theta": 10000.0, "a,}": "b"},
  "sliding_window": null,
  "vocab_size": 1000,
  "bantam": {
    "layers": [
      1,
      2
    ],
    "x": {}
  }
}
"#;
        assert_eq!(config.text(), expected);
        let again = Config::parse("config.json", config.text().into()).unwrap();
        assert!(again.keys().eq(config.keys()));
        assert_eq!(again.values, config.values);
    }

    #[test]
    fn the_last_member_goes_and_comes_back() {
        let mut config = Config::parse("c", "{\"a\" : 1}".into()).unwrap();
        assert_eq!(config.remove("a"), Some(json!(1)));
        assert_eq!(config.text(), "{}");
        config.set("b", json!(2));
        assert_eq!(config.text(), "{\n  \"b\": 2\n}\n");
    }

    #[test]
    fn what_is_not_a_config_is_refused_by_kind() {
        let problem = |text: &str| match Config::parse("c", text.into()) {
            Err(Error::Config { problem, .. }) => problem,
            other => panic!("{other:?}"),
        };
        assert!(matches!(problem("{\"a\": }"), ConfigProblem::NotJson { .. }));
        assert!(matches!(problem("[1]"), ConfigProblem::NotAnObject { .. }));
        assert!(matches!(problem(r#"{"a": 1, "\u0061": 2}"#), ConfigProblem::Duplicate { .. }));
    }
}
