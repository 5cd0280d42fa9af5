//! A tiny model to break, and what every verb has to say of it then.
//!
//! A test takes this in with `#[path = "support/damage.rs"] mod damage;`, after `cli` and `models`.

#![allow(dead_code, reason = "every test takes what it needs")]
#![allow(clippy::unwrap_used, reason = "a failing test is to panic")]

use std::fs;
use std::path::PathBuf;

use super::cli::{Bantam, bantam, names};
use super::models::{copy_folder, tiny, tiny_text};

/// A model that is broken and made whole again, a text, and a folder for outputs.
pub(crate) struct Bench {
    root: tempfile::TempDir,
    whole: PathBuf,
    pub(crate) model: PathBuf,
    pub(crate) text: PathBuf,
}

impl Bench {
    pub(crate) fn with(golden: &str) -> Self {
        let root = tempfile::tempdir().unwrap();
        let (whole, text) = (tiny(golden, root.path()), tiny_text(root.path()));
        let model = root.path().join("model");
        copy_folder(&whole, &model);
        fs::create_dir(root.path().join("made")).unwrap();
        Self { root, whole, model, text }
    }

    /// Undoes all damage.
    pub(crate) fn mend(&self) {
        fs::remove_dir_all(&self.model).unwrap();
        copy_folder(&self.whole, &self.model);
    }

    /// A file beside the model, which no verb looks at unless it is named.
    pub(crate) fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let file = self.root.path().join(name);
        fs::write(&file, content).unwrap();
        file
    }

    pub(crate) fn inspect(&self) -> Bantam {
        bantam("inspect").arg(&self.model)
    }

    pub(crate) fn plan(&self) -> Bantam {
        bantam("plan").arg(&self.model).args("--keep 0.9 --rank-multiple 2")
    }

    pub(crate) fn eval_ids(&self) -> Bantam {
        bantam("eval").arg(&self.model).arg("--ids").arg(self.whole.join("golden.safetensors"))
    }

    pub(crate) fn eval_text(&self) -> Bantam {
        let command = bantam("eval").arg(&self.model).arg("--text").arg(&self.text);
        command.args("--window 32 --windows 4")
    }

    pub(crate) fn generate(&self) -> Bantam {
        bantam("generate").arg(&self.model).arg("--prompt").arg("w1 w2").args("--max-tokens 2")
    }

    fn compress(&self) -> Bantam {
        let out = self.root.path().join("made/out");
        bantam("compress").arg(&self.model).args("--keep 0.9 --rank-multiple 2 -o").arg(out)
    }

    pub(crate) fn welore(&self) -> Bantam {
        self.compress().args("--method welore")
    }

    pub(crate) fn lord(&self) -> Bantam {
        self.lord_on(&self.text)
    }

    pub(crate) fn lord_on(&self, text: &std::path::Path) -> Bantam {
        self.compress().args("--windows 4 --window 16 --text").arg(text)
    }

    /// Every command is refused with `code` by these names, and nothing was left behind.
    #[track_caller]
    pub(crate) fn refused(
        &self,
        commands: impl IntoIterator<Item = Bantam>,
        code: i32,
        named: &[&str],
    ) {
        for command in commands {
            command.run().refused(code, named);
            let left = names(&self.root.path().join("made"));
            assert!(left.is_empty(), "left behind: {left:?}");
        }
    }

    /// What headers and config tell is told by every verb, before any of them begins.
    #[track_caller]
    pub(crate) fn refused_by_all(&self, code: i32, named: &[&str]) {
        let readers = [self.inspect(), self.plan(), self.eval_ids(), self.eval_text()];
        self.refused(readers, code, named);
        self.refused([self.welore(), self.lord(), self.generate()], code, named);
    }
}
