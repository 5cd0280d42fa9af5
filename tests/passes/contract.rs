//! The contract of a method, held against every one of them: a method to come is covered by being listed.

use std::collections::BTreeMap;

use bantam::arch::{Piece, Role, Site, Storage};
use bantam::error::Error;
use bantam::job::Job;
use bantam::measure::Side;
use bantam::passes::{ALL, Analysis, Pass};
use bantam::plan::Offer;
use bantam::settings::{Rule, Settings, StackSettings};
use candle_core::{DType, Device, Tensor};

use super::layer::{Layer, SHAPES};
use super::toy::Toy;

/// Every rank, and stacks small enough for the shapes.
pub(crate) fn settings() -> Settings {
    let stack = StackSettings { levels: 3, rank: 2, ..StackSettings::default() };
    Settings { rank_multiple: 1, stack, ..Settings::new(Rule::keep(0.5)) }
}

fn every_pass() -> Vec<Box<dyn Pass>> {
    let listed = ALL.iter().map(|entry| (entry.make)(&settings()));
    listed.chain([Box::new(Toy::new()) as Box<dyn Pass>]).collect()
}

#[test]
fn a_method_is_listed_under_its_name() {
    for entry in ALL {
        assert_eq!((entry.make)(&settings()).method().as_str(), entry.name);
    }
}

/// Calls `check` with every pass on every shape, with and without a bias, and what it made of the layer.
fn on_every_layer(check: impl Fn(&dyn Pass, &Layer, &Analysis, &str)) {
    let passes = every_pass();
    for (m, n) in SHAPES {
        for bias in [false, true] {
            let layer = Layer::plain(m, n, bias);
            for pass in passes.iter().map(AsRef::as_ref) {
                assert!(pass.takes(&layer.site), "{} does not take {m}x{n}", pass.method());
                let what = format!("{} on {m}x{n}, bias {bias}", pass.method());
                check(pass, &layer, &layer.analysis(pass, Side::Input), &what);
            }
        }
    }
}

fn offers(pass: &dyn Pass, layer: &Layer, analysis: &Analysis) -> Vec<Offer> {
    let offers = pass.offers(&layer.site, Some(analysis)).unwrap();
    assert!(offers.len() > 1, "{}", pass.method());
    offers
}

/// Bytes of a tensor as it will be stored for a model in f32.
fn bytes(tensor: &Tensor) -> u64 {
    (tensor.elem_count() * tensor.dtype().size_in_bytes()) as u64
}

fn data(tensor: &Tensor) -> Vec<u64> {
    match tensor.dtype() {
        DType::U8 => tensor
            .flatten_all()
            .unwrap()
            .to_vec1::<u8>()
            .unwrap()
            .into_iter()
            .map(u64::from)
            .collect(),
        _ => super::layer::flat(tensor).into_iter().map(f64::to_bits).collect(),
    }
}

#[test]
fn what_is_offered_is_made_piece_by_piece_and_byte_by_byte() {
    on_every_layer(|pass, layer, analysis, what| {
        for Offer { storage, price } in offers(pass, layer, analysis) {
            let made = layer.made(pass, analysis, storage);
            let found: Vec<Piece> = made.keys().copied().collect();
            let mut planned = layer.site.pieces(storage);
            planned.sort();
            assert_eq!(found, planned, "{what}, {storage}");
            for (&piece, tensor) in &made {
                let spec = layer.site.spec(storage, piece);
                assert_eq!(tensor.dims(), spec.shape, "{what}, {storage}: {piece:?}");
                assert_eq!(bytes(tensor), spec.bytes(), "{what}, {storage}: {piece:?}");
            }
            assert_eq!(made.values().map(bytes).sum::<u64>(), price.bytes, "{what}, {storage}");
        }
    });
}

#[test]
fn a_price_is_the_estimate_of_what_is_made() {
    on_every_layer(|pass, layer, analysis, what| {
        let nothing = layer.y.zeros_like().unwrap().to_dtype(DType::F64).unwrap();
        let scale = layer.estimate(&nothing);
        for Offer { storage, price } in offers(pass, layer, analysis) {
            let made = layer.made(pass, analysis, storage);
            let found = layer.estimate(&layer.output(&made, storage));
            let gap = (price.expected_loss - found).abs() / scale;
            let expected = price.expected_loss;
            assert!(gap < 1e-5, "{what}, {storage}: {expected:e} expected, {found:e} found");
        }
    });
}

#[test]
fn more_bytes_cost_less() {
    on_every_layer(|pass, layer, analysis, what| {
        let offers = offers(pass, layer, analysis);
        for pair in offers.windows(2) {
            let [less, more] = [pair[0].price, pair[1].price];
            assert!(less.bytes < more.bytes, "{what}: {less:?} {more:?}");
            assert!(less.expected_loss > more.expected_loss, "{what}: {less:?} {more:?}");
        }
    });
}

#[test]
fn a_job_gives_back_what_was_made_to_the_bit() {
    let folder = tempfile::tempdir().unwrap();
    on_every_layer(|pass, layer, analysis, what| {
        let mut job = Job::temporary(folder.path()).unwrap();
        job.store("linear", pass, analysis).unwrap();
        let stored = job.get("linear", &pass.method(), &Device::Cpu).unwrap();
        let offered = offers(pass, layer, analysis);
        assert_eq!(offers(pass, layer, &stored), offered, "{what}");
        let chosen = offered[offered.len() / 2].storage;
        let [at_once, later] =
            [analysis, &stored].map(|analysis| layer.made(pass, analysis, chosen));
        let data = |pieces: &BTreeMap<Piece, Tensor>| -> Vec<Vec<u64>> {
            pieces.values().map(data).collect()
        };
        assert!(data(&at_once) == data(&later), "{what}");
    });
}

#[test]
fn the_same_is_made_twice() {
    on_every_layer(|pass, layer, analysis, what| {
        let again = layer.analysis(pass, Side::Input);
        let tensors = |analysis: &Analysis| -> Vec<(String, Vec<u64>)> {
            analysis.tensors().map(|(name, tensor)| (name.to_owned(), data(tensor))).collect()
        };
        assert!(!tensors(analysis).is_empty(), "{what}");
        assert!(tensors(analysis) == tensors(&again), "{what}");
    });
}

#[test]
fn shapes_alone_offer_the_same_storages() {
    on_every_layer(|pass, layer, analysis, what| {
        let storages = |offers: Vec<Offer>| -> Vec<Storage> {
            offers.into_iter().map(|offer| offer.storage).collect()
        };
        let assumed = pass.offers(&layer.site, None).unwrap();
        assert!(assumed.iter().all(|offer| offer.price.expected_loss.is_finite()), "{what}");
        assert_eq!(storages(assumed), storages(offers(pass, layer, analysis)), "{what}");
    });
}

#[test]
fn what_is_not_offered_is_refused() {
    on_every_layer(|pass, layer, analysis, what| {
        let made =
            |storage, piece| pass.make(&layer.site, &layer.weights(), analysis, storage, piece);
        assert!(matches!(made(Storage::Dense, Piece::Weight), Err(Error::Bug(_))), "{what}");
    });
    for pass in every_pass() {
        for role in [Role::Embed, Role::Head] {
            let site = Site::linear("table", role, [96, 32]);
            assert!(!pass.takes(&site), "{} takes {role}", pass.method());
        }
        let stack = Storage::Stack { rank: 2, levels: 2 };
        let site = Site { storage: stack, ..Site::linear("stack", Role::AttnQ, [96, 32]) };
        assert!(!pass.takes(&site), "{} takes a stack", pass.method());
    }
}
