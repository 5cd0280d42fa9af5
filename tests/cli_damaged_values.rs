//! Values and texts that cannot be used are refused by name: NaN and infinity wherever they stand,
//! tokenizers that are missing or broken or another model's, texts and token files that are none.
//! A value that is not finite is exit code 6, everything else 3; nothing is left behind.

#![allow(clippy::unwrap_used, reason = "a failing test is to panic")]

#[path = "support/cli.rs"]
mod cli;
#[path = "support/damage.rs"]
mod damage;
#[path = "support/models.rs"]
mod models;

use std::fs;

use cli::{bantam, read_json};
use damage::Bench;
use models::{Weight, edit_weights};
use safetensors::Dtype;
use serde_json::json;

/// Tensors of every kind: what low rank changes, what it copies, what the forward pass reads.
#[test]
fn not_a_number_and_infinity_anywhere() {
    for (golden, tensors) in [
        (
            "llama-bias",
            &[
                "model.embed_tokens.weight",
                "model.norm.weight",
                "model.layers.0.input_layernorm.weight",
                "model.layers.0.self_attn.q_proj.weight",
                "model.layers.0.self_attn.k_proj.bias",
                "model.layers.1.mlp.down_proj.weight",
                "model.layers.1.mlp.gate_proj.bias",
            ][..],
        ),
        ("llama", &["lm_head.weight"]),
        ("qwen3", &["model.layers.1.self_attn.q_norm.weight"]),
        ("qwen3-moe-mixed", &["model.layers.1.mlp.gate.weight"]),
    ] {
        let bench = Bench::with(golden);
        for tensor in tensors {
            for (index, value) in [(-1, f32::NAN), (0, f32::INFINITY), (5, f32::NEG_INFINITY)] {
                edit_weights(&bench.model, |weights| {
                    weights.get_mut(*tensor).unwrap().plant(index, value);
                });
                bench.inspect().run().ok();
                bench.plan().run().ok();
                let verbs = [bench.eval_ids(), bench.welore(), bench.lord(), bench.generate()];
                bench.refused(verbs, 6, &[tensor, "not finite"]);
                bench.mend();
            }
        }
    }
}

/// A tensor that no part of the model reads is copied, and looked at on the way.
#[test]
fn not_a_number_in_a_tensor_that_is_only_copied() {
    let bench = Bench::with("llama");
    let expert = "model.mtp.proj.weight";
    edit_weights(&bench.model, |weights| {
        let data = [1.0, f32::NAN].map(f32::to_le_bytes).concat();
        weights.insert(expert.into(), Weight { dtype: Dtype::F32, shape: vec![1, 2], data });
    });
    bench.eval_ids().run().ok();
    bench.refused([bench.welore(), bench.lord()], 6, &[expert, "flat index 1"]);
}

#[test]
fn the_place_of_the_value_is_told() {
    let bench = Bench::with("llama");
    for (tensor, index) in [
        ("model.layers.1.mlp.down_proj.weight", 1234),
        ("model.norm.weight", 17),
        ("lm_head.weight", 3000),
        // Of the embedding only the rows of the text's tokens are read.
        ("model.embed_tokens.weight", 41 * 32 + 7),
    ] {
        edit_weights(&bench.model, |weights| {
            weights.get_mut(tensor).unwrap().plant(index, f32::NAN);
        });
        let place = format!("flat index {index}");
        bench.refused([bench.lord(), bench.eval_text(), bench.welore()], 6, &[tensor, &place]);
        bench.mend();
    }
}

/// Finite weights whose products are not.
#[test]
fn activations_that_overflow() {
    let bench = Bench::with("llama");
    edit_weights(&bench.model, |weights| {
        let down = weights.get_mut("model.layers.0.mlp.down_proj.weight").unwrap();
        down.data = 3e38_f32.to_le_bytes().repeat(down.data.len() / 4);
    });
    bench.refused([bench.eval_ids(), bench.eval_text(), bench.lord()], 6, &["not finite"]);
}

#[test]
fn a_tokenizer_that_is_none() {
    let bench = Bench::with("llama");
    let file = bench.model.join("tokenizer.json");
    let whole = fs::read_to_string(&file).unwrap();
    let verbs = || [bench.eval_text(), bench.lord(), bench.generate()];
    for text in ["", "{}", "[1]", "\u{0}", &whole[..whole.len() / 2], &whole[..whole.len() - 1]] {
        fs::write(&file, text).unwrap();
        bench.refused(verbs(), 3, &["tokenizer.json"]);
    }
    fs::write(&file, b"{\"version\": \"\xff\"}").unwrap();
    bench.refused(verbs(), 3, &["tokenizer.json"]);
    fs::remove_file(&file).unwrap();
    bench.refused(verbs(), 3, &["tokenizer.json"]);
    // What needs no text needs no tokenizer.
    bench.inspect().run().ok();
    bench.eval_ids().run().ok();
    bench.welore().run().ok();
}

#[test]
fn a_tokenizer_of_another_model() {
    let bench = Bench::with("llama");
    let file = bench.model.join("tokenizer.json");
    let mut tokenizer = read_json(&file);
    tokenizer["model"]["vocab"]["w1"] = json!(97);
    fs::write(&file, tokenizer.to_string()).unwrap();
    bench.refused([bench.eval_text(), bench.lord(), bench.generate()], 3, &["97", "vocabulary"]);
}

#[test]
fn texts_that_are_none() {
    let bench = Bench::with("llama");
    let long = "w1 w2 ".repeat(100);
    for (name, content) in [
        ("bytes.txt", b"w1 w2 \xc3(".as_slice()),
        ("utf16.txt", b"\xff\xfew\x001\x00"),
        ("empty.txt", b""),
        ("blank.txt", b" \n\t\n"),
        ("empty.jsonl", b"\n"),
        ("cut.jsonl", b"{\"text\": \"w1 w2\"}\n{\"text\": \"w1"),
        ("other.jsonl", b"{\"content\": \"w1 w2\"}"),
        ("number.jsonl", b"{\"text\": 5}"),
    ] {
        let file = bench.file(name, content);
        let eval = bantam("eval").arg(&bench.model).args("--window 4 --text");
        bench.refused([eval.arg(&file), bench.lord_on(&file)], 3, &[name]);
        // One bad file among good ones is one bad file.
        let good = bench.file("good.txt", &long);
        bench.refused([bench.lord_on(&good).arg(&file)], 3, &[name]);
    }
    let missing = bench.model.with_file_name("missing.txt");
    bench.refused([bench.lord_on(&missing)], 3, &["missing.txt"]);
    bench.refused([bench.lord_on(&bench.model)], 3, &["model"]);
}

#[test]
fn token_files_that_are_none() {
    let bench = Bench::with("llama");
    let whole = fs::read(bench.model.join("golden.safetensors")).unwrap();
    let eval = |content: &[u8]| {
        bantam("eval").arg(&bench.model).arg("--ids").arg(bench.file("tokens", content))
    };
    for cut in [0, 7, 8, 100, whole.len() / 2, whole.len() - 1] {
        bench.refused([eval(&whole[..cut])], 3, &["tokens"]);
    }
    let tokens = |name: &str, dtype: Dtype, shape: Vec<usize>, ids: &[i64]| {
        let data: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        let view = safetensors::tensor::TensorView::new(dtype, shape, &data).unwrap();
        eval(&safetensors::serialize([(name, view)], None).unwrap())
    };
    for command in [
        tokens("ids", Dtype::I64, vec![1, 4], &[1, 2, 3, 4]),
        tokens("input_ids", Dtype::F64, vec![1, 4], &[1, 2, 3, 4]),
        tokens("input_ids", Dtype::I64, vec![4], &[1, 2, 3, 4]),
        tokens("input_ids", Dtype::I64, vec![4, 1], &[1, 2, 3, 4]),
        tokens("input_ids", Dtype::I64, vec![0, 4], &[]),
        tokens("input_ids", Dtype::I64, vec![1, 4], &[1, 2, -3, 4]),
        tokens("input_ids", Dtype::I64, vec![1, 4], &[1, 2, 3, 1 << 32]),
    ] {
        bench.refused([command], 3, &["tokens"]);
    }
    // As many tokens as the model has, and one more.
    tokens("input_ids", Dtype::I64, vec![1, 4], &[1, 2, 3, 96]).run().ok();
    bench.refused([tokens("input_ids", Dtype::I64, vec![1, 4], &[1, 2, 3, 97])], 3, &["97"]);
    let missing = bantam("eval").arg(&bench.model).args("--ids missing.safetensors");
    bench.refused([missing], 3, &["missing.safetensors"]);
}
