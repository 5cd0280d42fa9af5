//! Command lines that cannot be meant end with exit code 2 before anything is read or made, and a
//! budget that is too small ends with 4 and the size that is not.

#![allow(clippy::unwrap_used, reason = "a failing test is to panic")]

#[path = "support/cli.rs"]
mod cli;
#[path = "support/models.rs"]
mod models;

use std::fs;
use std::path::PathBuf;

use cli::{Bantam, bantam, files, names};
use models::Desk;
use serde_json::Value;

impl Desk {
    /// A verb on the model, with its output in the empty folder.
    fn on_model(&self, verb: &str) -> Bantam {
        let command = bantam(verb).arg(&self.model);
        match verb {
            "compress" => command.arg("-o").arg(self.made().join("out")),
            _ => command,
        }
    }
}

/// What clap says begins with `error:` too; both name the argument.
#[test]
fn what_makes_no_sense_is_refused_as_usage() {
    let desk = Desk::with("llama");
    let before = files(&desk.model);
    let text = format!("--text {}", desk.text.display());
    let lord = format!("--keep 0.9 --rank-multiple 2 {text}");
    let cases: &[(&str, &str, &str)] = &[
        ("compress", &text, "--budget"),
        ("compress", "--budget 90KB --keep 0.5", "--keep"),
        ("compress", "--uniform 0.5 --reduce 0.5 --method welore", "--reduce"),
        ("compress", "--plan p.json --keep 0.5", "--plan"),
        ("compress", "--plan p.json --rank-multiple 4", "--plan"),
        ("compress", "--plan p.json --fold", "--fold"),
        ("compress", "--budget 5apples --method welore", "5apples"),
        ("compress", "--budget 0 --method welore", "--budget"),
        ("compress", "--budget=-5GB --method welore", "--budget"),
        ("compress", "--budget 99999TB --method welore", "99999TB"),
        ("compress", "--keep 0 --method welore", "--keep"),
        ("compress", "--keep 1.01 --method welore", "--keep"),
        ("compress", "--keep nan --method welore", "--keep"),
        ("compress", "--keep -0.5 --method welore", "above 0 and up to 1"),
        ("compress", "--keep 60% --method welore", "--keep"),
        ("compress", "--keep 0.9 --method zip", "zip"),
        ("compress", "--keep 0.9 --method welore --rank-multiple 0", "--rank-multiple"),
        ("compress", "--keep 0.9 --method welore --floor 1.5", "--floor"),
        ("compress", "--keep 0.9 --method welore --max-shard-size 0", "--max-shard-size"),
        ("compress", "--keep 0.9 --rank-multiple 2", "--text"),
        ("compress", &format!("--reduce 0.3 {text}"), "--method welore"),
        ("compress", &format!("{lord} --window 129"), "128 positions"),
        ("compress", &format!("{lord} --window 1"), "--window"),
        ("compress", &format!("{lord} --windows 0"), "--windows"),
        ("compress", "--keep 0.9 --method welore --budgte 5", "--budgte"),
        ("plan", "", "--keep"),
        ("plan", "--keep 0.9 --rank-multiple 2 --measure", "--text"),
        ("plan", "--reduce 0.3 --method welore", "--measure"),
        ("plan", "--keep 0.9 --budget 5", "--budget"),
        ("eval", "", "--text"),
        ("eval", &format!("{text} --ids x"), "--ids"),
        ("eval", "--ids x --window 5", "--window"),
        ("eval", &format!("{text} --window 4096"), "128 positions"),
        ("generate", "", "--prompt"),
        ("generate", "--prompt w1 --temperature=-1", "--temperature"),
        ("generate", "--prompt w1 --temperature nan", "--temperature"),
        ("generate", "--prompt w1 --top-p 0", "--top-p"),
        ("inspect", "--quiet --verbose", "--verbose"),
        ("inspect", "--keep 0.5", "--keep"),
    ];
    for (verb, arguments, named) in cases {
        desk.on_model(verb).args(arguments).run().refused(2, &[named]);
        assert_eq!(names(&desk.made()), [""; 0], "{verb} {arguments}");
    }
    bantam("generate").arg(&desk.model).arg("--prompt").arg("").run().refused(2, &["prompt"]);
    bantam("squash").run().refused(2, &["squash"]);
    assert!(files(&desk.model) == before, "the model was changed");
}

#[test]
fn a_text_shorter_than_a_window_is_refused() {
    let desk = Desk::with("llama");
    let short = desk.root.path().join("short.txt");
    fs::write(&short, "w1 w2 w3 w4 w5").unwrap();
    let arguments = format!("--text {} --window", short.display());
    let lord = desk.on_model("compress").args("--keep 0.9 --rank-multiple 2");
    lord.args(&arguments).arg("6").run().refused(2, &["5 tokens", "window of 6"]);
    assert_eq!(names(&desk.made()), [""; 0]);
    desk.on_model("eval").args(&arguments).arg("6").run().refused(2, &["5 tokens"]);
    desk.on_model("eval").args(&arguments).arg("5").run().ok();
}

#[test]
fn a_prompt_that_fills_the_model_is_refused() {
    let desk = Desk::with("llama");
    let generate = |words: usize| {
        let command = desk.on_model("generate").arg("--prompt").arg("w7 ".repeat(words));
        command.args("--max-tokens 1").run()
    };
    generate(128).refused(2, &["128 tokens"]);
    generate(127).ok();
}

/// A plan is written where the user says, but never over the model it is for.
#[test]
fn a_plan_is_not_written_over_the_model() {
    let desk = Desk::with("llama");
    let before = files(&desk.model);
    let plan = |file: PathBuf| {
        let command = desk.on_model("plan").args("--keep 0.9 --rank-multiple 2 -o");
        command.arg(file).run()
    };
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        let run = plan(desk.model.join(name));
        assert!(files(&desk.model) == before, "{name} was written over");
        run.refused(2, &[name]);
    }
    let nowhere = plan(desk.made().join("no/such/folder/plan.json"));
    assert_ne!(nowhere.code, Some(0));
    assert!(nowhere.stderr.starts_with("error: ") && nowhere.stderr.contains("plan.json"));
}

#[test]
fn a_budget_below_the_smallest_model_names_the_smallest() {
    let desk = Desk::with("llama-bias");
    for options in ["--method lord --rank-multiple 8", "--method welore --rank-multiple 3"] {
        let run = |verb: &str, size: &str| {
            let command = desk.on_model(verb).args(options).arg("--budget").arg(size);
            let command = command.arg("--text").arg(&desk.text).args("--windows 8 --window 32");
            command.arg("--json").run()
        };
        for verb in ["plan", "compress"] {
            let tiny = run(verb, "20000");
            tiny.refused(4, &["20000 bytes", "hint: use `--budget "]);
            let (_, hint) = tiny.stderr.split_once("--budget ").unwrap();
            let smallest: u64 = hint.split('`').next().unwrap().parse().unwrap();
            run(verb, &(smallest - 1).to_string()).refused(4, &[&smallest.to_string()]);
            assert_eq!(names(&desk.made()), [""; 0]);
            let found: Value = run(verb, &smallest.to_string()).json();
            let key = if verb == "plan" { "weight_bytes" } else { "weight_bytes_out" };
            assert_eq!(found[key], smallest, "{verb} {options}");
        }
        fs::remove_dir_all(desk.made().join("out")).unwrap();
    }
}
