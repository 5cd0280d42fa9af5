//! The files of a checkpoint that are not weights: tokenizer, templates, licence, code.
//!
//! They are copied as they are. Weights are told by their names, as the Hub does.

use std::path::PathBuf;

use super::names::{CONFIG_FILE, MANIFEST_FILE, file_name, is_weights, list};
use super::reader::Checkpoint;
use crate::error::Result;

/// The one subfolder that belongs to the model itself: transformers keeps chat templates in it.
const TEMPLATE_FOLDER: &str = "additional_chat_templates";

impl Checkpoint {
    /// Every file that is not weights, sorted: regular files of the folder, through symlinks, and
    /// those of `additional_chat_templates/`.
    ///
    /// Left out are weights in any format, their indexes, `.git*`, `config.json` and `bantam.json`,
    /// which the writer makes itself, and all other subfolders: on the Hub they hold other forms of
    /// the weights (`original/`, `onnx/`) or caches.
    ///
    /// # Errors
    /// A folder that cannot be listed, or a symlink that leads nowhere.
    pub fn side_files(&self) -> Result<Vec<PathBuf>> {
        let mut files: Vec<PathBuf> =
            list(self.root())?.into_iter().filter(|path| is_side_file(&file_name(path))).collect();
        let templates = self.root().join(TEMPLATE_FOLDER);
        if templates.is_dir() {
            files.extend(list(&templates)?);
        }
        files.sort();
        Ok(files)
    }
}

fn is_side_file(name: &str) -> bool {
    let made_by_writer = name == CONFIG_FILE || name == MANIFEST_FILE;
    !(made_by_writer
        || is_weights(name)
        || name.ends_with(".index.json")
        || name.starts_with(".git"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_what_is_copied() {
        for name in ["tokenizer.json", "LICENSE", "chat_template.jinja", "modeling_x.py", ".hidden"]
        {
            assert!(is_side_file(name), "{name}");
        }
        for name in [
            "model-00001-of-00002.safetensors",
            "model.safetensors.index.json",
            "pytorch_model.bin.index.json",
            "consolidated.00.pth",
            "x-Q4_K.GGUF",
            ".gitattributes",
            "config.json",
            "bantam.json",
        ] {
            assert!(!is_side_file(name), "{name}");
        }
    }
}
