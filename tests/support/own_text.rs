//! Texts that a tiny model drew itself. No other model predicts them as well: what is lost of a model with
//! random weights shows here, where on any other text one such model is as good as the next.
//!
//! A test takes this in with `#[path = "support/own_text.rs"] mod own_text;`, after `cli`.

#![allow(dead_code, reason = "every test takes what it needs")]
#![allow(clippy::unwrap_used, reason = "a failing test is to panic")]

use std::fs;
use std::path::{Path, PathBuf};

use bantam::arch::Model;
use bantam::eval::perplexity;
use bantam::measure::{Compute, Cut, Draw, TextWindows, Tokenizer};
use bantam::model::{Sampler, Session};
use bantam::progress::Silent;
use candle_core::Device;

use super::cli::bantam;

/// Texts, each of which begins with a word of its own.
const TEXTS: u32 = 16;

/// Words of each, few enough for every tiny model.
const WORDS: usize = 32;

/// Texts of a model, and what is lost on them.
pub(crate) struct OwnText {
    file: PathBuf,
    /// Loss of the model itself, in nats per token.
    own: f64,
    /// Its loss on words that were not drawn from it: that of a model which knows nothing of this one.
    other: f64,
}

impl OwnText {
    /// Draws texts from the model in `folder` into a file in `root`. `words` is a text of words that have
    /// nothing to do with it.
    pub(crate) fn of(folder: &Path, words: &Path, root: &Path) -> Self {
        let model = Model::open(folder).unwrap();
        let texts: Vec<String> = (0..TEXTS).map(|number| drawn(&model, number)).collect();
        let file = root.join("own-text.txt");
        fs::write(&file, texts.join(" ")).unwrap();
        let (own, other) = (loss(&model, &file), loss(&model, words));
        assert!(own + 1.0 < other, "{}: {own} and {other}", folder.display());
        Self { file, own, other }
    }

    /// What `model` loses on the texts.
    pub(crate) fn loss(&self, model: &Model) -> f64 {
        loss(model, &self.file)
    }

    /// The same, as `bantam eval` says it of the model in `folder`.
    pub(crate) fn evaluated(&self, folder: &Path) -> f64 {
        let command = bantam("eval").arg(folder).arg("--text").arg(&self.file);
        let command = command.args(&format!("--window {WORDS} --windows {TEXTS} --json"));
        command.run().json()["nll"].as_f64().unwrap()
    }

    /// `found` is the loss of a model that was made of this one: not the model itself, better by no more
    /// than chance allows, and nearer to it than one that knows nothing of it. The compressions tested here
    /// lose between a thousandth and six tenths of the way.
    #[track_caller]
    pub(crate) fn assert_made_of_it(&self, found: f64, what: &str) {
        let Self { own, other, .. } = self;
        assert!(found.to_bits() != own.to_bits(), "{what}: nothing was changed");
        let lost = (found - own) / (other - own);
        assert!((-0.02..0.75).contains(&lost), "{what}: {found} of {own} to {other}, {lost:.3}");
    }
}

/// A text drawn from `model`, by the probabilities that it gives.
fn drawn(model: &Model, number: u32) -> String {
    let mut session = Session::new(model, &Device::Cpu).unwrap();
    let mut sampler = Sampler::new(1.0, 1.0, u64::from(number));
    let mut ids = vec![number];
    while ids.len() < WORDS {
        let logits = session.feed(&ids[ids.len() - 1..]).unwrap();
        ids.push(sampler.next(&logits).unwrap());
    }
    Tokenizer::open(model).unwrap().decode(&ids).unwrap()
}

fn loss(model: &Model, text: &Path) -> f64 {
    let windows = TEXTS as usize;
    let cut = Cut { length: Some(WORDS), windows: Some(windows), draw: Draw::FromStart };
    let text = TextWindows::read(model, &[text.to_owned()], cut).unwrap();
    assert_eq!(text.windows().count(), windows);
    perplexity(model, text.windows(), &Compute::cpu(), &Silent).unwrap().nll
}
