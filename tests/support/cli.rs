//! Runs the program as a shell does, and looks at what it says and leaves.
//!
//! A test takes this in with `#[path = "support/cli.rs"] mod cli;`.

#![allow(dead_code, reason = "every test takes what it needs")]
#![allow(clippy::unwrap_used, reason = "a failing test is to panic")]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

/// A command line of the program.
pub(crate) struct Bantam {
    command: Command,
    line: String,
}

/// The program with its verb.
pub(crate) fn bantam(verb: &str) -> Bantam {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bantam"));
    command.stdin(Stdio::null()).env_remove("HF_HUB_CACHE").env("HF_HOME", "/nonexistent");
    Bantam { command, line: "bantam".into() }.arg(verb)
}

impl Bantam {
    /// One argument, as it is.
    pub(crate) fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.line += &format!(" {}", argument.as_ref().to_string_lossy());
        self.command.arg(argument);
        self
    }

    /// Arguments between blanks.
    pub(crate) fn args(self, arguments: &str) -> Self {
        arguments.split_whitespace().fold(self, Self::arg)
    }

    /// The working directory.
    pub(crate) fn within(mut self, folder: &Path) -> Self {
        self.command.current_dir(folder);
        self
    }

    /// A variable of the environment.
    pub(crate) fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    /// On the CPU unless a test says otherwise: what it asserts of bytes holds for one kind of device.
    fn on_the_cpu(self) -> Self {
        let computes = ["demo", "plan", "compress", "eval", "generate"];
        let verb = self.line.split_whitespace().nth(1).unwrap_or_default();
        match computes.contains(&verb) && !self.line.contains("--compute") {
            true => self.args("--compute cpu"),
            false => self,
        }
    }

    /// Starts it, for a test that does something meanwhile.
    pub(crate) fn spawn(self) -> std::process::Child {
        let mut this = self.on_the_cpu();
        this.command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Runs it to its end.
    pub(crate) fn run(self) -> Run {
        let mut this = self.on_the_cpu();
        Run::of(this.line, this.command.output().unwrap())
    }
}

/// A run that ended.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) line: String,
    /// The exit code; `None` where a signal ended it.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Run {
    pub(crate) fn of(line: String, output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let (stdout, stderr) = (text(output.stdout), text(output.stderr));
        Self { line, code: output.status.code(), stdout, stderr }
    }

    /// It succeeded.
    pub(crate) fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "`{}` failed:\n{}", self.line, self.stderr);
        self
    }

    /// It succeeded and printed one JSON value.
    pub(crate) fn json(self) -> Value {
        let run = self.ok();
        serde_json::from_str(&run.stdout)
            .unwrap_or_else(|e| panic!("`{}`: {e} in:\n{}", run.line, run.stdout))
    }

    /// It ended with `code`, an `error:` that names all of `named`, and no data.
    #[track_caller]
    pub(crate) fn refused(&self, code: i32, named: &[&str]) {
        let Self { line, stdout, stderr, .. } = self;
        assert_eq!(self.code, Some(code), "`{line}`:\n{stdout}{stderr}");
        assert!(stderr.starts_with("error: "), "`{line}`:\n{stderr}");
        assert!(!stderr.contains("panicked"), "`{line}`:\n{stderr}");
        for name in named {
            assert!(stderr.contains(name), "`{line}` does not name `{name}`:\n{stderr}");
        }
        assert!(stdout.is_empty(), "`{line}` failed and printed data:\n{stdout}");
    }
}

/// A file or folder of `tests/fixtures`.
pub(crate) fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// The names in a folder, hidden ones too, sorted.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Every file below a folder: path to contents.
pub(crate) fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for name in names(folder) {
        let path = folder.join(&name);
        if path.is_dir() {
            let below = files(&path).into_iter();
            found.extend(below.map(|(file, bytes)| (format!("{name}/{file}"), bytes)));
        } else {
            found.insert(name, fs::read(path).unwrap());
        }
    }
    found
}

/// The first name whose contents differ, or that only one of the two has.
pub(crate) fn first_difference(one: &Path, other: &Path) -> Option<String> {
    let (one, other) = (files(one), files(other));
    let names: std::collections::BTreeSet<_> = one.keys().chain(other.keys()).collect();
    names.into_iter().find(|name| one.get(*name) != other.get(*name)).cloned()
}

/// A JSON file.
pub(crate) fn read_json(file: &Path) -> Value {
    serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
}
