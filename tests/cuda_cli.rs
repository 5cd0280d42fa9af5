//! The program on a GPU: every verb that computes, whole, against itself on the CPU.
//!
//! Where there is no GPU it runs in the emulator: `scripts/emulate.sh cargo test --features cuda`.

#![allow(clippy::unwrap_used, reason = "a failing test is to panic")]

#[path = "support/cli.rs"]
mod cli;

use std::path::Path;

use cli::bantam;
use serde_json::Value;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");

fn eval(model: &Path, on: &str) -> Value {
    let text = format!("{FIXTURES}/pycode.test.txt");
    let eval = bantam("eval").arg(model).arg("--text").arg(text);
    eval.args("--window 32 --windows 4 --json --compute").arg(on).run().json()
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap()
}

/// Products of bf16 numbers have eight bits; a loss averages over many of them.
const BF16: f64 = 0.01;

#[test]
fn eval_agrees_with_the_cpu() {
    for model in ["pycode-llama", "pycode-qwen3moe"] {
        let model = Path::new(FIXTURES).join(model);
        let [cpu, gpu] = ["cpu", "cuda"].map(|on| eval(&model, on));
        assert_eq!(cpu["tokens"], gpu["tokens"]);
        let (cpu, gpu) = (number(&cpu, "nll"), number(&gpu, "nll"));
        assert!((cpu - gpu).abs() < BF16, "{}: {cpu} and {gpu}", model.display());
        assert!(cpu.to_bits() != gpu.to_bits(), "the GPU was not used");
    }
}

#[test]
fn compress_agrees_with_the_cpu() {
    let folder = tempfile::tempdir().unwrap();
    for (model, options) in [
        ("pycode-llama", "--keep 0.7"),
        ("pycode-llama", "--keep 0.7 --no-gradients"),
        ("pycode-llama", "--uniform 0.6"),
        ("pycode-llama", "--method bitstack --levels 3 --rank 4"),
        ("pycode-qwen3moe", "--keep 0.97 --method lord --method welore"),
    ] {
        let source = Path::new(FIXTURES).join(model);
        let outputs = ["cpu", "cuda"].map(|on| {
            let out = folder.path().join(format!("{model}{}{on}", options.replace(' ', "")));
            let text = format!("{FIXTURES}/pycode.calib.txt");
            let run = bantam("compress").arg(&source).args(options).arg("--text").arg(text);
            let run = run.args("--window 32 --windows 3 --json --compute").arg(on);
            let report = run.arg("-o").arg(&out).run().json();
            (report, eval(&out, "cpu"))
        });
        let [(cpu, cpu_loss), (gpu, gpu_loss)] = outputs;
        let [cpu_bytes, gpu_bytes] = [&cpu, &gpu].map(|report| number(report, "weight_bytes_out"));
        let off = (cpu_bytes - gpu_bytes).abs() / cpu_bytes;
        assert!(off < 0.01, "{model} {options}: {cpu_bytes} and {gpu_bytes} bytes");
        // Ninety-six tokens leave much of a spectrum undecided, so ranks and directions differ; what
        // they do to the model does not.
        let [cpu, gpu] = [&cpu_loss, &gpu_loss].map(|report| number(report, "nll"));
        assert!((cpu - gpu).abs() < 0.15, "{model} {options}: {cpu} and {gpu}");
    }
}

#[test]
fn the_same_run_gives_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let outputs = ["one", "two"].map(|name| {
        let out = folder.path().join(name);
        let (model, text) =
            (format!("{FIXTURES}/pycode-llama"), format!("{FIXTURES}/pycode.calib.txt"));
        let run = bantam("compress").arg(model).arg("--text").arg(text).arg("-o").arg(&out);
        run.args("--keep 0.8 --window 32 --windows 2 --compute cuda").run().ok();
        std::fs::read(out.join("model.safetensors")).unwrap()
    });
    assert!(outputs[0] == outputs[1]);
}

#[test]
fn generate_goes_on_from_the_prompt() {
    let model = format!("{FIXTURES}/pycode-llama");
    let run = |on| {
        let run = bantam("generate").arg(&model).arg("--prompt").arg("def main():");
        run.args("--max-tokens 8 --compute").arg(on).run().ok().stdout
    };
    let (cpu, gpu) = (run("cpu"), run("cuda"));
    assert!(gpu.len() > "def main():\n".len(), "{gpu:?}");
    // The likeliest token is the same for a while, however it is rounded.
    let alike = cpu.bytes().zip(gpu.bytes()).take_while(|(a, b)| a == b).count();
    assert!(alike > "def main():\n".len(), "{cpu:?} and {gpu:?}");
}

#[test]
fn device_memory_is_respected_or_refused() {
    let (model, text) = (format!("{FIXTURES}/pycode-llama"), format!("{FIXTURES}/pycode.test.txt"));
    let eval = |memory: &str| {
        let run = bantam("eval").arg(&model).arg("--text").arg(&text);
        run.args("--window 32 --windows 4 --json --compute cuda --device-memory").arg(memory).run()
    };
    let refused = eval("100MiB");
    assert_eq!(refused.code, Some(4), "{}", refused.stderr);
    assert!(refused.stderr.contains("bytes of device memory"), "{}", refused.stderr);
    assert!(refused.stderr.contains("hint: "), "{}", refused.stderr);
    // Enough for the pass and not for the stream between blocks, which then waits in host memory.
    let (tight, free) = (eval("620MiB").json(), eval("8GiB").json());
    assert_eq!(tight["nll"], free["nll"]);
}

#[test]
fn inspect_shows_what_was_found() {
    let found = bantam("inspect").args("--system --json").run().json();
    assert_eq!(found["built_in"], true);
    let devices = found["devices"].as_array().unwrap();
    assert!(!devices.is_empty(), "{found}");
    assert!(number(&devices[0], "memory") > 0.0, "{found}");
    let text = bantam("inspect").args("--system").run().ok().stdout;
    assert!(text.contains("compute capability") && text.contains("libcuda.so.1"), "{text}");
}

#[test]
fn without_a_device_it_says_so() {
    let model = format!("{FIXTURES}/pycode-llama");
    let run = bantam("eval").arg(&model).arg("--text").arg(format!("{FIXTURES}/pycode.test.txt"));
    let run = run.args("--window 32 --windows 1 --compute cuda");
    let run = run.env("CUDA_VISIBLE_DEVICES", "").run();
    assert_eq!(run.code, Some(5), "{}", run.stderr);
    assert!(run.stderr.starts_with("error: cannot compute on a GPU"), "{}", run.stderr);
    assert!(run.stderr.contains("hint: "), "{}", run.stderr);
}
