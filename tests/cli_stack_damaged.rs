//! Damaged stacks are refused by name: cut short on disk, an order that contradicts what is
//! declared, factors and scales that nothing can be computed with, tensors of another shape or
//! dtype.

#![allow(clippy::unwrap_used, reason = "a failing test is to panic")]

#[path = "support/cli.rs"]
mod cli;
#[path = "support/models.rs"]
mod models;

use std::fs;
use std::path::{Path, PathBuf};

use cli::{Bantam, bantam, names, read_json};
use models::{Desk, copy_folder, edit_config, edit_weights, weights};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

const SITE: &str = "model.layers.1.self_attn.k_proj";

/// A stack that is broken and made whole again.
struct Bench {
    desk: Desk,
    whole: PathBuf,
    stack: PathBuf,
}

impl Bench {
    fn new() -> Self {
        let desk = Desk::with("llama");
        let [whole, stack] = ["whole", "stack"].map(|name| desk.root.path().join(name));
        bantam("compress")
            .arg(&desk.model)
            .args("--method bitstack --levels 4 --rank 4 --windows 8 --window 32 --text")
            .arg(&desk.text)
            .arg("-o")
            .arg(&whole)
            .run()
            .ok();
        copy_folder(&whole, &stack);
        Self { desk, whole, stack }
    }

    fn mend(&self) {
        fs::remove_dir_all(&self.stack).unwrap();
        copy_folder(&self.whole, &self.stack);
    }

    fn inspect(&self) -> Bantam {
        bantam("inspect").arg(&self.stack)
    }

    fn sweep(&self) -> Bantam {
        bantam("plan").arg(&self.stack).args("--sweep 3")
    }

    fn eval(&self) -> Bantam {
        let ids = self.desk.model.join("golden.safetensors");
        bantam("eval").arg(&self.stack).arg("--ids").arg(ids)
    }

    fn generate(&self) -> Bantam {
        bantam("generate").arg(&self.stack).arg("--prompt").arg("w1 w2").args("--max-tokens 2")
    }

    fn fit(&self) -> Bantam {
        let out = self.desk.made().join("out");
        bantam("fit").arg(&self.stack).args("--budget 1GB -o").arg(out)
    }

    /// Every command is refused with `code` by these names, and nothing was left behind.
    #[track_caller]
    fn refused(&self, commands: impl IntoIterator<Item = Bantam>, code: i32, named: &[&str]) {
        for command in commands {
            command.run().refused(code, named);
            let left = names(&self.desk.made());
            assert!(left.is_empty(), "left behind: {left:?}");
        }
    }

    /// What headers and config tell, every verb says before it begins.
    #[track_caller]
    fn refused_by_all(&self, code: i32, named: &[&str]) {
        let fold = self.fit().arg("--fold");
        let verbs = [self.inspect(), self.sweep(), self.eval(), self.generate(), self.fit(), fold];
        self.refused(verbs, code, named);
    }

    /// What only the values tell, those say that read them.
    #[track_caller]
    fn refused_by_readers(&self, code: i32, named: &[&str]) {
        let fold = self.fit().arg("--fold");
        self.refused([self.eval(), self.generate(), self.fit(), fold], code, named);
    }

    fn declared(&self) -> Value {
        read_json(&self.stack.join("config.json"))["bantam"].clone()
    }

    fn declare(&self, edit: impl FnOnce(&mut Value)) {
        let mut bantam = self.declared();
        edit(&mut bantam);
        edit_config(&self.stack, &json!({ "bantam": bantam }));
    }
}

/// The number of a linear in the order.
fn number(declared: &Value, site: &str) -> usize {
    declared["sites"].as_object().unwrap().keys().position(|name| name == site).unwrap()
}

#[test]
fn nothing_is_refused_before_the_damage() {
    let bench = Bench::new();
    for command in [bench.inspect(), bench.sweep(), bench.eval(), bench.generate(), bench.fit()] {
        command.run().ok();
    }
    bench.fit().args("--fold --overwrite").run().ok();
    // Written again by others, in whatever order of the file, it is the same stack.
    edit_weights(&bench.stack, |_| {});
    let nll = |model: &Path| {
        let ids = bench.desk.model.join("golden.safetensors");
        bantam("eval").arg(model).arg("--ids").arg(ids).arg("--json").run().json()["nll"].clone()
    };
    assert_eq!(nll(&bench.stack), nll(&bench.whole));
    let out = bench.desk.made().join("out");
    bench.fit().arg("--overwrite").run().ok();
    assert_eq!(weights(&out), weights(&bench.whole));
}

#[test]
fn a_file_cut_anywhere() {
    let bench = Bench::new();
    let file = bench.stack.join("model.safetensors");
    let whole = fs::read(&file).unwrap();
    let (length, _) = SafeTensors::read_metadata(&whole).unwrap();
    let data = whole.len() - 8 - length;
    for cut in [0, 8 + length / 2, 8 + length, 8 + length + data / 2, whole.len() - 1] {
        fs::write(&file, &whole[..cut]).unwrap();
        bench.refused_by_all(3, &["model.safetensors"]);
    }
}

/// Copied from a download that stopped: the last of several files is short, and even a budget that
/// does not reach it is not read.
#[test]
fn a_shard_cut_short() {
    let bench = Bench::new();
    let sharded = bench.desk.root.path().join("sharded");
    let fit = bantam("fit").arg(&bench.whole).args("--budget 1GB --max-shard-size 20KB -o");
    fit.arg(&sharded).run().ok();
    fs::remove_dir_all(&bench.stack).unwrap();
    copy_folder(&sharded, &bench.stack);
    let shards = models::shard_names(&bench.stack);
    let last = shards.iter().rfind(|name| *name != "model.safetensors.index.json").unwrap();
    let whole = fs::read(bench.stack.join(last)).unwrap();
    fs::write(bench.stack.join(last), &whole[..whole.len() / 2]).unwrap();
    bench.refused_by_all(3, &[last]);
    fs::remove_file(bench.stack.join(last)).unwrap();
    bench.refused_by_all(3, &[last]);
}

#[test]
fn an_order_that_contradicts_what_is_declared() {
    let bench = Bench::new();
    let k = number(&bench.declared(), SITE);
    let damage = |edit: &dyn Fn(&mut Vec<Value>), named: &[&str]| {
        bench.declare(|bantam| edit(bantam["order"].as_array_mut().unwrap()));
        bench.refused_by_all(3, &[&["config.json", "bantam.order"], named].concat());
        bench.mend();
    };
    damage(&|order| order[7] = json!(999), &["999"]);
    damage(&|order| drop(order.remove(order.iter().position(|s| *s == k).unwrap())), &[SITE, "3"]);
    damage(&|order| order.push(json!(k)), &[SITE, "5"]);
    damage(&|order| order.retain(|site| *site != k), &[SITE]);
    damage(&Vec::clear, &[]);
    for wrong in [json!("7"), json!(-1), json!(0.5), json!(null), json!([0])] {
        damage(&|order| order[3] = wrong.clone(), &["numbers"]);
    }
    for wrong in [json!("order"), json!({}), json!(7), json!(null)] {
        bench.declare(|bantam| bantam["order"] = wrong.clone());
        bench.refused_by_all(3, &["config.json", "bantam.order"]);
        bench.mend();
    }
    bench.declare(|bantam| drop(bantam.as_object_mut().unwrap().remove("order")));
    bench.refused_by_all(3, &["config.json", "bantam.order", "nothing"]);
    bench.mend();
    // An order where nothing is a stack.
    let order = bench.declared()["order"].clone();
    edit_config(&bench.desk.model, &json!({ "bantam": { "version": 1, "order": order } }));
    let inspect = bantam("inspect").arg(&bench.desk.model);
    bench.refused([inspect], 3, &["bantam.order", "model.layers.0.self_attn.q_proj"]);
}

#[test]
fn shapes_that_are_declared_and_not_there() {
    let bench = Bench::new();
    let damage = |key: &str, value: Value, named: &[&str]| {
        bench.declare(|bantam| bantam["sites"][SITE][key] = value);
        bench.refused_by_all(3, named);
        bench.mend();
    };
    damage("levels", json!(5), &[&format!("{SITE}.4.sign")]);
    damage("levels", json!(1_u64 << 60), &[&format!("{SITE}.4.sign")]);
    damage("levels", json!(3), &["bantam.order", SITE]);
    damage("levels", json!(0), &["config.json", SITE]);
    damage("rank", json!(0), &["config.json", SITE]);
    damage("rank", json!(5), &[&format!("{SITE}.0.u"), "shape"]);
    damage("rank", json!(1_u64 << 60), &[&format!("{SITE}.0.u"), "shape"]);
    damage("rank", json!(-1), &["config.json", "bantam.sites"]);
    damage("kind", json!("pile"), &["config.json", "bantam.sites"]);
}

#[test]
fn tensors_that_are_missing_or_others() {
    let bench = Bench::new();
    for part in ["2.sign", "0.u", "3.v", "scale"] {
        let name = format!("{SITE}.{part}");
        edit_weights(&bench.stack, |weights| drop(weights.remove(&name).unwrap()));
        bench.refused_by_all(3, &[&name]);
        bench.mend();
        edit_weights(&bench.stack, |weights| {
            let weight = weights.get_mut(&name).unwrap();
            match weight.shape.as_mut_slice() {
                [rows, columns] if rows != columns => std::mem::swap(rows, columns),
                _ => weight.shape.push(1),
            }
        });
        bench.refused_by_all(3, &[&name, "shape"]);
        bench.mend();
    }
    for (part, dtype) in [
        ("1.sign", Dtype::I8),
        ("1.sign", Dtype::BOOL),
        ("1.u", Dtype::BF16),
        ("1.v", Dtype::BF16),
        ("1.v", Dtype::I16),
        ("scale", Dtype::I32),
    ] {
        let name = format!("{SITE}.{part}");
        edit_weights(&bench.stack, |weights| weights.get_mut(&name).unwrap().dtype = dtype);
        bench.refused_by_all(3, &[&name, "dtype", &dtype.to_string()]);
        bench.mend();
    }
}

#[test]
fn values_that_nothing_can_be_computed_with() {
    let bench = Bench::new();
    for (part, half) in [("3.u", 0x7e00_u16), ("0.v", 0x7c00), ("1.u", 0xfc00)] {
        let name = format!("{SITE}.{part}");
        edit_weights(&bench.stack, |weights| {
            weights.get_mut(&name).unwrap().data[6..8].copy_from_slice(&half.to_le_bytes());
        });
        bench.refused_by_readers(6, &[&name]);
        bench.mend();
    }
    // The last has no inverse in f32.
    for value in [0.0, -0.0, -1.0, f32::NAN, f32::INFINITY, 1e-40] {
        let name = format!("{SITE}.scale");
        edit_weights(&bench.stack, |weights| weights.get_mut(&name).unwrap().plant(-2, value));
        bench.refused_by_readers(6, &[&name]);
        bench.mend();
    }
}
