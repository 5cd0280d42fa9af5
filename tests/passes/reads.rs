//! How often a run reads a weight: on the way forward, on the way back, where the methods find what the
//! block holds, and once for what is written.

use std::sync::{Arc, Mutex};

use bantam::arch::{Model, Piece, Site, Storage};
use bantam::checkpoint::WriteOptions;
use bantam::error::Result;
use bantam::measure::SiteStats;
use bantam::passes::{Analysis, Needs, Pass, Pieces, Weights};
use bantam::pipeline::Run;
use bantam::plan::Offer;
use bantam::settings::{Method, Rule, Settings};

use super::models::Desk;
use super::road::text;
use super::toy::Toy;

/// Whether a weight was at hand when the method was asked for something.
#[derive(Debug, Default)]
struct Seen {
    analysing: Vec<bool>,
    made: Vec<bool>,
}

/// A method that looks whether its weights are at hand.
struct Watching(Toy, Arc<Mutex<Seen>>);

impl Pass for Watching {
    fn method(&self) -> Method {
        self.0.method()
    }

    fn needs(&self) -> Needs {
        self.0.needs()
    }

    fn takes(&self, site: &Site) -> bool {
        self.0.takes(site)
    }

    fn analyse(
        &self,
        site: &Site,
        weights: &Weights<'_>,
        stats: Option<&SiteStats>,
    ) -> Result<Analysis> {
        self.1.lock().unwrap().analysing.push(weights.holds(site));
        self.0.analyse(site, weights, stats)
    }

    fn offers(&self, site: &Site, analysis: Option<&Analysis>) -> Result<Vec<Offer>> {
        self.0.offers(site, analysis)
    }

    fn make(
        &self,
        site: &Site,
        weights: &Weights<'_>,
        analysis: &Analysis,
        chosen: Storage,
        piece: Piece,
    ) -> Result<Pieces> {
        let made = self.0.make(site, weights, analysis, chosen, piece)?;
        // Whoever writes it measures its error against the same weight.
        self.1.lock().unwrap().made.push(weights.holds(site));
        Ok(made)
    }
}

#[test]
fn methods_find_the_weights_that_measuring_read() {
    for (name, gradients) in [("qwen2", true), ("phi3", true), ("llama-bf16", false)] {
        let desk = Desk::with(name);
        let model = Model::open(&desk.model).unwrap();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let watching = Watching(Toy::new(), seen.clone());
        let methods = vec![watching.method()];
        let settings = Settings { methods, gradients, ..Settings::new(Rule::keep(0.85)) };
        let run = Run::with_passes(&model, settings, vec![Box::new(watching)]).unwrap();
        let out = desk.made().join("out");
        run.text(text(&desk, &model)).write(&out, &WriteOptions::default()).unwrap();
        let seen = seen.lock().unwrap();
        let linears = model.sites().iter().filter(|site| site.layer.is_some()).count();
        assert_eq!(seen.analysing, vec![true; linears], "{name}");
        assert!(!seen.made.is_empty() && seen.made.iter().all(|held| *held), "{name}: {seen:?}");
    }
}
