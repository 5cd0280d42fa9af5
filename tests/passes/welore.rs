//! The published rank rule of `WeLore`, against a second computation in the open.

use bantam::arch::{Role, Site, Storage};
use bantam::passes::{Analysis, Pass, Welore};
use bantam::settings::{Rule, Settings};
use candle_core::{Device, Tensor};

fn site(m: usize, n: usize) -> Site {
    Site::linear(format!("{m}x{n}"), Role::MlpUp, [m, n])
}

fn ranks(linears: &[(&Site, Analysis)], reduce: f64, multiple: usize) -> Vec<Option<usize>> {
    let settings = Settings { rank_multiple: multiple, ..Settings::new(Rule::Reduce(reduce)) };
    Welore::new(&settings).reduced_ranks(linears, reduce).unwrap().unwrap()
}

/// Singular values that fall as `1 / (i + offset)`.
fn analysis(count: usize, offset: f64) -> (Vec<f64>, Analysis) {
    let values: Vec<f64> = (0..count).map(|i| 1.0 / (i as f64 + offset)).collect();
    let tensor = Tensor::from_vec(values.clone(), count, &Device::Cpu).unwrap();
    (values, Analysis::default().with("singular_values", tensor))
}

#[test]
fn one_threshold_drops_the_given_fraction_of_all_singular_values() {
    let sites = [site(40, 60), site(60, 40), site(64, 64), site(31, 97)];
    let spectra = [(40, 1.0), (40, 30.0), (64, 4.0), (31, 200.0)];
    let (values, analyses): (Vec<_>, Vec<_>) =
        spectra.into_iter().map(|(n, o)| analysis(n, o)).unzip();
    let linears: Vec<(&Site, Analysis)> = sites.iter().zip(analyses).collect();
    for reduce in [0.0, 0.1, 0.33, 0.5, 0.8, 0.99] {
        // The rule as the paper states it: search the threshold, count what lies above.
        let scaled = |s: &Vec<f64>| {
            let (max, min) = (s[0], s[s.len() - 1]);
            s.iter().map(|v| (v - min) / (max - min)).collect::<Vec<f64>>()
        };
        let z: Vec<Vec<f64>> = values.iter().map(scaled).collect();
        let total: usize = z.iter().map(Vec::len).sum();
        let below = |k: f64| z.iter().flatten().filter(|&&v| v < k).count();
        let mut candidates: Vec<f64> = z.iter().flatten().copied().collect();
        candidates.sort_by(f64::total_cmp);
        let wanted = (reduce * total as f64).round() as usize;
        let threshold = candidates.into_iter().rev().find(|&k| below(k) <= wanted).unwrap();
        let expected: Vec<Option<usize>> = z
            .iter()
            .map(|z| z.iter().filter(|&&v| v >= threshold).count())
            .zip(&sites)
            .map(|(rank, site)| {
                let half = site.out_features.min(site.in_features);
                (2 * rank < half).then_some(rank.max(1))
            })
            .collect();
        assert_eq!(ranks(&linears, reduce, 1), expected, "reduce {reduce}");
        let multiples = ranks(&linears, reduce, 4);
        assert!(multiples.iter().flatten().all(|rank| rank % 4 == 0));
    }
}

#[test]
fn factors_never_take_more_bytes_than_the_matrix() {
    let sites = [site(8, 8), site(3, 50), site(128, 2), site(40, 40)];
    let of_site = |s: &Site| analysis(s.out_features.min(s.in_features), 1.0).1;
    let linears: Vec<(&Site, Analysis)> = sites.iter().map(|s| (s, of_site(s))).collect();
    for reduce in [0.5, 0.9] {
        for multiple in [1, 2, 8] {
            let ranks = ranks(&linears, reduce, multiple);
            let mut reduced = 0;
            for (site, rank) in sites.iter().zip(ranks) {
                let Some(rank) = rank else { continue };
                let bytes = site.bytes(Storage::LowRank { rank });
                assert!(bytes < site.bytes(Storage::Dense), "{} rank {rank}", site.name);
                reduced += 1;
            }
            assert!(reduced > 0, "reduce {reduce} in multiples of {multiple} reduces nothing");
        }
    }
}
