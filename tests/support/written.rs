//! What the tensors of a compressed model have to be, held against the input's and the plan's without the
//! code under test.
//!
//! A test takes this in with `#[path = "support/written.rs"] mod written;`, after `cli` and `models`.

#![allow(clippy::unwrap_used, reason = "a failing test is to panic")]

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use super::cli::read_json;
use super::models::{Weight, weights};

/// `(site, rank)` of every site that the plan stores as factors.
pub(crate) fn low_rank(plan: &Value) -> impl Iterator<Item = (&Value, u64)> {
    let sites = plan["sites"].as_array().unwrap().iter();
    sites.filter_map(|site| Some((site, site["storage"]["rank"].as_u64()?)))
}

fn is_low_rank(site: &Value) -> bool {
    site["storage"]["rank"].is_u64()
}

fn name(site: &Value) -> &str {
    site["site"].as_str().unwrap()
}

/// The input's tensors, and the parts that stay dense of modules that the plan takes apart. Such a module
/// is cut into its parts, whose rows stand one above the other in the order of the plan.
fn taken_apart(
    mut input: BTreeMap<String, Weight>,
    plan: &Value,
) -> (BTreeMap<String, Weight>, Vec<&str>) {
    let mut modules: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
    for site in plan["sites"].as_array().unwrap() {
        if !input.contains_key(&format!("{}.weight", name(site))) {
            let (module, _) = name(site).rsplit_once('.').unwrap();
            modules.entry(module).or_default().push(site);
        }
    }
    let mut dense = Vec::new();
    for (module, parts) in modules {
        if !parts.iter().any(|part| is_low_rank(part)) {
            continue;
        }
        for suffix in ["weight", "bias"] {
            let Some(whole) = input.remove(&format!("{module}.{suffix}")) else { continue };
            let (row, mut first) = (whole.data.len() / whole.shape[0], 0);
            for part in &parts {
                let rows = usize::try_from(part["shape"][0].as_u64().unwrap()).unwrap();
                let data = whole.data[first * row..(first + rows) * row].to_vec();
                let mut shape = whole.shape.clone();
                shape[0] = rows;
                let weight = Weight { dtype: whole.dtype, shape, data };
                input.insert(format!("{}.{suffix}", name(part)), weight);
                first += rows;
            }
            assert_eq!(first, whole.shape[0], "rows of `{module}.{suffix}`");
        }
        dense.extend(parts.into_iter().filter(|part| !is_low_rank(part)).map(name));
    }
    (input, dense)
}

/// The tensors in `out` are those of the plan in its manifest, and exactly those of `input` with factors in
/// place of the planned weights. With `moves_biases` the biases beside factors may be others.
pub(crate) fn check_tensors(
    input: &Path,
    out: &Path,
    rank_multiple: u64,
    moves_biases: bool,
    what: &str,
) {
    let plan = &read_json(&out.join("bantam.json"))["plan"];
    let ((mut rest, dense_parts), mut output) = (taken_apart(weights(input), plan), weights(out));
    let config = read_json(&out.join("config.json"));
    let mut declared = config["bantam"]["sites"].as_object().cloned().unwrap_or_default();
    let spec = |name: &str, w: &Weight| json!({ "name": name, "dtype": w.dtype, "shape": w.shape });
    let found: BTreeMap<&str, Value> =
        output.iter().map(|(name, weight)| (name.as_str(), spec(name, weight))).collect();
    let planned = plan["tensors"].as_array().unwrap().iter();
    let planned: BTreeMap<&str, Value> =
        planned.map(|t| (t["name"].as_str().unwrap(), t.clone())).collect();
    assert_eq!(found, planned, "{what}");

    for (planned, rank) in low_rank(plan) {
        let site = name(planned);
        let dense = rest.remove(&format!("{site}.weight")).unwrap();
        let [v, u] =
            ["v", "u"].map(|part| output.remove(&format!("{site}.{part}.weight")).unwrap());
        let size = |weight: &Weight| weight.data.len();
        assert!(size(&v) + size(&u) < size(&dense), "{what}: `{site}` did not shrink");
        assert_eq!([v.dtype, u.dtype], [dense.dtype; 2], "{what}: `{site}`");
        assert!(rank.is_multiple_of(rank_multiple), "{what}: `{site}` has {rank}");
        let rank = usize::try_from(rank).unwrap();
        assert_eq!(v.shape, [rank, dense.shape[1]], "{what}: `{site}`");
        assert_eq!(u.shape, [dense.shape[0], rank], "{what}: `{site}`");
        assert_eq!(declared.remove(site).unwrap()["rank"], rank, "{what}: `{site}`");
        let bias = format!("{site}.bias");
        let (before, after) = (rest.remove(&bias), output.remove(&bias));
        assert_eq!(after.is_some(), before.is_some(), "{what}: `{bias}`");
        assert!(moves_biases || after == before, "{what}: `{bias}` was changed");
    }
    for part in dense_parts {
        assert_eq!(declared.remove(part).unwrap()["kind"], "dense", "{what}: `{part}`");
    }
    assert!(declared.is_empty(), "{what}: config.json declares more: {declared:?}");
    assert!(output == rest, "{what}: a tensor that was to stay as it is was changed");
}
