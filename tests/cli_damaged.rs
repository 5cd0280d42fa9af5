//! Damaged files are refused by name: cut short, bits turned, shards and tensors missing, shapes and
//! configs that contradict each other. Every verb ends with exit code 3 (5 for what is whole and not
//! supported), an error that names the file or tensor, no data, and nothing left behind.

#![allow(clippy::unwrap_used, reason = "a failing test is to panic")]

#[path = "support/cli.rs"]
mod cli;
#[path = "support/damage.rs"]
mod damage;
#[path = "support/models.rs"]
mod models;

use std::fs;

use cli::read_json;
use damage::Bench;
use models::{edit_config, edit_weights};
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

#[test]
fn nothing_is_refused_before_the_damage() {
    for golden in ["llama", "llama-sharded"] {
        let bench = Bench::with(golden);
        for command in [bench.inspect(), bench.plan(), bench.eval_ids(), bench.eval_text()] {
            command.run().ok();
        }
        bench.generate().run().ok();
        bench.lord().run().ok();
        bench.welore().arg("--overwrite").run().ok();
    }
}

#[test]
fn a_weights_file_cut_anywhere() {
    let bench = Bench::with("llama");
    let file = bench.model.join("model.safetensors");
    let whole = fs::read(&file).unwrap();
    let (length, header) = SafeTensors::read_metadata(&whole).unwrap();
    let data = 8 + length;
    let mut cuts = vec![0, 1, 7, 8, 9, data / 3, data - 1, data, data + 1];
    let ends =
        header.offset_keys().into_iter().map(|name| header.info(&name).unwrap().data_offsets);
    // Between two tensors, and in the middle of one.
    cuts.extend(ends.flat_map(|(start, end)| [data + usize::midpoint(start, end), data + end]));
    cuts.retain(|&cut| cut != whole.len());
    cuts.extend([whole.len() - 2, whole.len() - 1]);
    for cut in cuts {
        fs::write(&file, &whole[..cut]).unwrap();
        let verbs = [bench.inspect(), bench.eval_ids(), bench.welore()];
        bench.refused(verbs, 3, &["model.safetensors"]);
    }
    fs::write(&file, [&whole[..], b"\0"].concat()).unwrap();
    bench.refused_by_all(3, &["model.safetensors"]);
    fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    bench.refused_by_all(3, &["model.safetensors"]);
    fs::remove_file(&file).unwrap();
    bench.refused_by_all(3, &["model.safetensors"]);
}

/// No byte of a header can change without notice, but for the text of its metadata.
#[test]
fn a_turned_bit_in_a_header() {
    let bench = Bench::with("llama");
    let file = bench.model.join("model.safetensors");
    let whole = fs::read(&file).unwrap();
    let (length, _) = SafeTensors::read_metadata(&whole).unwrap();
    let text = std::str::from_utf8(&whole[8..8 + length]).unwrap();
    let metadata = text.find("__metadata__").map(|at| {
        let close = text[at..].find('}').unwrap();
        8 + at..8 + at + close
    });
    // The padding behind the JSON may be any blank.
    let json_end = 8 + text.trim_end().len();
    let harmless = |at: usize| metadata.as_ref().is_some_and(|m| m.contains(&at)) || at >= json_end;
    let mut turned = 0;
    for at in (0..8).chain((8..8 + length).step_by(11)).filter(|&at| !harmless(at)) {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        fs::write(&file, damaged).unwrap();
        bench.refused([bench.inspect()], 3, &["model"]);
        turned += 1;
    }
    assert!(turned > 150, "only {turned} bytes were turned");
}

#[test]
fn shards_that_do_not_agree_with_their_index() {
    let bench = Bench::with("llama-sharded");
    let second = "model-00002-of-00005.safetensors";
    let index_file = bench.model.join("model.safetensors.index.json");
    let index = read_json(&index_file);
    let map = index["weight_map"].as_object().unwrap();
    let (tensor, _) = map.iter().find(|(_, shard)| *shard == second).unwrap();

    fs::remove_file(bench.model.join(second)).unwrap();
    bench.refused_by_all(3, &[second]);
    fs::write(bench.model.join(second), "").unwrap();
    bench.refused_by_all(3, &[second]);
    bench.mend();
    let third = fs::read(bench.model.join("model-00003-of-00005.safetensors")).unwrap();
    fs::write(bench.model.join(second), third).unwrap();
    bench.refused_by_all(3, &["model-0000"]);
    bench.mend();

    let refused = |edit: &dyn Fn(&mut Value), named: &str| {
        let mut edited = index.clone();
        edit(&mut edited);
        fs::write(&index_file, edited.to_string()).unwrap();
        bench.refused_by_all(3, &["model.safetensors.index.json", named]);
    };
    refused(&|i| i["weight_map"]["model.ghost.weight"] = json!(second), "model.ghost.weight");
    refused(&|i| drop(i["weight_map"].as_object_mut().unwrap().remove(tensor)), tensor);
    refused(&|i| i["weight_map"][tensor] = json!("model-00001-of-00005.safetensors"), tensor);
    refused(&|i| i["weight_map"][tensor] = json!("../model.safetensors"), tensor);
    refused(&|i| i["weight_map"][tensor] = json!(3), "");
    refused(&|i| drop(i.as_object_mut().unwrap().remove("weight_map")), "weight_map");
    let text = index.to_string();
    for cut in [0, text.len() / 2, text.len() - 1] {
        fs::write(&index_file, &text[..cut]).unwrap();
        bench.refused([bench.inspect(), bench.welore()], 3, &["model.safetensors.index.json"]);
    }
}

#[test]
fn tensors_that_are_missing_or_of_another_shape() {
    let bench = Bench::with("llama-bias");
    for name in [
        "model.embed_tokens.weight",
        "model.norm.weight",
        "model.layers.0.post_attention_layernorm.weight",
        "model.layers.1.self_attn.k_proj.weight",
        "model.layers.1.mlp.down_proj.bias",
    ] {
        edit_weights(&bench.model, |weights| drop(weights.remove(name).unwrap()));
        bench.refused_by_all(3, &[name]);
        bench.mend();
        edit_weights(&bench.model, |weights| {
            let weight = weights.get_mut(name).unwrap();
            match weight.shape.as_mut_slice() {
                [rows, columns] if rows != columns => std::mem::swap(rows, columns),
                _ => weight.shape.push(1),
            }
        });
        bench.refused_by_all(3, &[name, "shape"]);
        bench.mend();
    }
}

/// A dtype that no arithmetic is done in is not compressed into a model that nobody can run.
#[test]
fn tensors_of_integers() {
    let bench = Bench::with("llama");
    for name in [
        "model.layers.1.mlp.up_proj.weight",
        "model.layers.0.input_layernorm.weight",
        "model.embed_tokens.weight",
    ] {
        edit_weights(&bench.model, |weights| weights.get_mut(name).unwrap().dtype = Dtype::I32);
        bench.refused([bench.eval_ids(), bench.lord(), bench.welore()], 5, &[name, "I32"]);
        bench.mend();
    }
}

#[test]
fn a_config_that_is_no_config() {
    let bench = Bench::with("llama");
    let file = bench.model.join("config.json");
    let whole = fs::read_to_string(&file).unwrap();
    for cut in (0..whole.rfind('}').unwrap()).step_by(23) {
        fs::write(&file, &whole[..cut]).unwrap();
        bench.refused([bench.inspect()], 3, &["config.json"]);
    }
    let twice = whole.replacen('{', "{\"hidden_size\": 32,", 1);
    for text in ["", "null", "[]", "\"config\"", "{}", &format!("{whole}}}"), &twice] {
        fs::write(&file, text).unwrap();
        bench.refused_by_all(3, &["config.json"]);
    }
    fs::write(&file, b"{\"model_type\": \"\xff\"}").unwrap();
    bench.refused_by_all(3, &["config.json"]);
    fs::remove_file(&file).unwrap();
    bench.refused_by_all(3, &["config.json"]);
}

#[test]
fn a_config_with_values_that_cannot_be() {
    let bench = Bench::with("llama");
    let site = "model.layers.0.self_attn.q_proj";
    let cases = [
        (3, "model_type", json!(7)),
        (3, "hidden_size", json!("32")),
        (3, "hidden_size", json!(0)),
        (3, "hidden_size", json!(-32)),
        (3, "hidden_size", json!(32.5)),
        (3, "hidden_size", json!(1_u64 << 40)),
        (3, "hidden_size", Value::Null),
        (3, "num_attention_heads", json!(0)),
        (3, "num_key_value_heads", json!(3)),
        (3, "num_hidden_layers", json!(1_000_000)),
        (3, "num_hidden_layers", json!([2])),
        (3, "head_dim", json!(7)),
        (3, "max_position_embeddings", json!(0)),
        (3, "rms_norm_eps", json!("small")),
        (3, "rope_parameters", json!(3)),
        (3, "tie_word_embeddings", json!("no")),
        (3, "eos_token_id", json!("</s>")),
        (3, "bantam", json!({ "version": 1, "sites": { "no.such": { "kind": "dense" } } })),
        (3, "bantam", json!({ "version": 1, "sites": { site: { "kind": "hologram" } } })),
        (5, "hidden_act", json!("relu")),
        (5, "quantization_config", json!({ "bits": 4 })),
        (5, "rope_parameters", json!({ "rope_type": "spiral", "rope_theta": 1e4 })),
    ];
    for (code, key, value) in cases {
        let named = if code == 3 { key } else { "config.json" };
        edit_config(&bench.model, &json!({ key: value }));
        bench.refused_by_all(code, &["config.json", named]);
        bench.mend();
    }
    // Whole files of different models.
    for (key, value) in [("vocab_size", 96), ("intermediate_size", 64), ("num_hidden_layers", 3)] {
        edit_config(&bench.model, &json!({ key: value }));
        bench.refused_by_all(3, &["tensor `"]);
        bench.mend();
    }
    edit_config(&bench.model, &json!({ "model_type": "martian" }));
    bench.refused_by_all(5, &["martian", "llama", "qwen3"]);
}

/// Storage that this version does not know cannot be read as if it were not declared.
#[test]
fn a_declaration_of_a_later_version() {
    let bench = Bench::with("llama");
    for version in [json!(2), json!(0), json!("1")] {
        edit_config(&bench.model, &json!({ "bantam": { "version": version, "sites": {} } }));
        bench.refused_by_all(5, &["version"]);
    }
    for value in [json!(3), json!("low rank"), json!([1]), json!({ "version": 1, "sites": [] })] {
        edit_config(&bench.model, &json!({ "bantam": value }));
        bench.refused_by_all(3, &["config.json", "bantam"]);
    }
}

/// What a family's own keys may say, and this program does not do or cannot make sense of.
#[test]
fn settings_of_the_families() {
    let long = |factors: usize| {
        let factors = vec![1.5; factors];
        json!({ "rope_type": "longrope", "rope_theta": 50.0, "short_factor": factors })
    };
    let cases = [
        ("gpt-bigcode", 5, "add_cross_attention", json!(true)),
        ("gpt-bigcode", 5, "activation_function", json!("relu")),
        ("gpt-bigcode", 3, "n_embd", Value::Null),
        ("gpt-bigcode", 3, "scale_attn_weights", json!("no")),
        ("gpt-neox", 5, "hidden_act", json!("silu")),
        ("gpt-neox", 3, "rotary_pct", json!(0.35)),
        ("gpt-neox", 3, "rotary_pct", json!(1.5)),
        ("gpt-neox", 3, "use_parallel_residual", json!(1)),
        ("phi3", 5, "rope_parameters", json!({ "rope_type": "dynamic", "rope_theta": 50.0 })),
        ("phi3", 3, "rope_parameters", long(5)),
        ("phi3", 3, "rope_parameters", long(3)),
        ("gemma2", 5, "use_bidirectional_attention", json!(true)),
        ("gemma2", 5, "layer_types", json!(["full_attention", "chunked", "full_attention"])),
        ("gemma2", 3, "attn_logit_softcapping", json!(-2.0)),
        ("gemma2", 3, "query_pre_attn_scalar", json!(0)),
        ("starcoder2", 3, "norm_epsilon", json!(-1e-5)),
    ];
    for (model, code, key, value) in cases {
        let bench = Bench::with(model);
        edit_config(&bench.model, &json!({ key: value }));
        bench.refused_by_all(code, &["config.json"]);
    }
    // Tables and fused tensors have the sizes that the config tells.
    for (model, key, value, tensor) in [
        ("gpt-bigcode", "n_positions", json!(40), "transformer.wpe.weight"),
        ("gpt-bigcode", "multi_query", json!(false), "transformer.h.0.attn.c_attn.weight"),
        ("phi3", "num_key_value_heads", json!(3), "model.layers.0.self_attn.qkv_proj.weight"),
        ("phi3", "intermediate_size", json!(52), "model.layers.0.mlp.gate_up_proj.weight"),
    ] {
        let bench = Bench::with(model);
        edit_config(&bench.model, &json!({ key: value }));
        bench.refused_by_all(3, &[tensor]);
    }
    let bench = Bench::with("gpt-neox");
    let bias = "gpt_neox.layers.1.mlp.dense_h_to_4h.bias";
    edit_weights(&bench.model, |weights| drop(weights.remove(bias).unwrap()));
    bench.refused_by_all(3, &[bias]);
    bench.mend();
    let bias = "gpt_neox.layers.1.input_layernorm.bias";
    edit_weights(&bench.model, |weights| drop(weights.remove(bias).unwrap()));
    bench.refused_by_all(3, &[bias]);
}

/// Whoever reads a value of config.json, its error has one form: key, expectation, find.
#[test]
fn wrong_values_of_a_config_are_told_alike() {
    for (key, expected) in [
        ("rms_norm_eps", "expected a number, found \"abc\""),
        ("vocab_size", "expected a count below 2^31, found \"abc\""),
        ("tie_word_embeddings", "expected true or false, found \"abc\""),
        ("bantam", "expected an object, found \"abc\""),
    ] {
        let bench = Bench::with("llama");
        edit_config(&bench.model, &json!({ key: "abc" }));
        let said = format!("config.json`: `{key}`: {expected}");
        bench.refused_by_all(3, &[&said]);
    }
}
