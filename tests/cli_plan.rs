//! `bantam plan` foretells from headers, and `compress --plan` does what the file says, to the byte,
//! or refuses it: a plan for another model, for another text, cut short, or edited into something
//! that does not hold together.

#![allow(clippy::unwrap_used, reason = "a failing test is to panic")]

#[path = "support/checkpoints.rs"]
mod checkpoints;
#[path = "support/cli.rs"]
mod cli;
#[path = "support/models.rs"]
mod models;

use std::fs;
use std::path::Path;

use cli::{Bantam, bantam, first_difference, fixture, names, read_json};
use models::{Desk, copy_folder, edit_weights, weight_bytes};
use serde_json::{Value, json};

impl Desk {
    fn measured(&self, verb: &str) -> Bantam {
        let command = bantam(verb).arg(&self.model).arg("--text").arg(&self.text);
        command.args("--windows 8 --window 32")
    }

    /// `compress --plan`, into `made/out`.
    fn carry_out(&self, plan: &Path) -> Bantam {
        let command = self.measured("compress").arg("--plan").arg(plan);
        command.arg("-o").arg(self.made().join("out"))
    }

    /// A measured plan to half the linears, as a value.
    fn plan(&self) -> Value {
        let file = self.root.path().join("fresh.json");
        let command = self.measured("plan").args("--keep 0.7 --rank-multiple 2 -o").arg(&file);
        command.run().ok();
        read_json(&file)
    }

    /// `compress --plan` refuses this plan, naming it and `named`, and leaves nothing.
    #[track_caller]
    fn refuses(&self, plan: &str, named: &[&str]) {
        let file = self.root.path().join("edited.json");
        fs::write(&file, plan).unwrap();
        let run = self.carry_out(&file).run();
        run.refused(3, &[&["edited.json"], named].concat());
        assert_eq!(names(&self.root.path().join("made")), [""; 0]);
    }
}

#[test]
fn a_plan_carried_out_gives_what_the_command_gives() {
    for (model, options) in [
        ("llama-bias", "--keep 0.7 --method lord --rank-multiple 2"),
        ("llama-sharded", "--uniform 0.6 --method lord --rank-multiple 1 --fold"),
        ("qwen3-moe-mixed", "--keep 0.8 --method welore --rank-multiple 4 --floor 0"),
    ] {
        let desk = Desk::with(model);
        let plan = desk.made().join("plan.json");
        let shown = desk.measured("plan").args(options).args("--json -o").arg(&plan).run().json();
        assert_eq!(shown, read_json(&plan), "{model}");
        let direct = desk.made().join("direct");
        desk.measured("compress").args(options).arg("-o").arg(&direct).run().ok();
        desk.carry_out(&plan).run().ok();
        assert_eq!(first_difference(&desk.made().join("out"), &direct), None, "{model}");
    }
}

/// Ranks drawn from shapes alone are carried out as they are, whatever measuring would prefer.
#[test]
fn a_plan_from_headers_is_carried_out() {
    let desk = Desk::with("qwen2");
    let plan = desk.made().join("plan.json");
    let command = bantam("plan").arg(&desk.model).args("--keep 0.75 --rank-multiple 2 -o");
    command.arg(&plan).run().ok();
    let report = desk.carry_out(&plan).arg("--json").run().json();
    assert_eq!(read_json(&plan)["loss_basis"], "assumed");
    // All but what this machine needs for it.
    let mut planned = read_json(&plan);
    assert!(planned.as_object_mut().unwrap().remove("memory").is_some());
    assert_eq!(read_json(&desk.made().join("out").join("bantam.json"))["plan"], planned);
    assert_eq!(report["weight_bytes_out"], weight_bytes(&desk.made().join("out")));
}

/// What a plan was drawn with is not asked for again, and nothing else is taken in its place.
#[test]
fn a_plan_says_how_it_is_carried_out() {
    let desk = Desk::with("llama");
    let plan = desk.made().join("plan.json");
    for (options, gradients, floor) in [
        ("--keep 0.7 --rank-multiple 2 --no-gradients --floor 0.25", false, 0.25),
        ("--uniform 0.6 --rank-multiple 2", false, 0.5),
        ("--keep 0.7 --rank-multiple 2", true, 0.5),
        ("--method bitstack --rank 4 --levels 3 --no-gradients", false, 0.5),
        ("--method bitstack --rank 4 --levels 3 --no-gradients --order priority", false, 0.5),
    ] {
        bantam("plan").arg(&desk.model).args(options).arg("-o").arg(&plan).run().ok();
        let settings = read_json(&plan)["settings"].clone();
        assert_eq!(settings["gradients"], gradients, "{options}");
        assert_eq!(settings["floor"], floor, "{options}");
        let average = !gradients && !options.contains("priority");
        let order = if average { "average" } else { "priority" };
        assert_eq!(settings["stack"]["order"], order, "{options}");
        let job = desk.made().join("job");
        desk.carry_out(&plan).arg("--job").arg(&job).run().ok();
        assert_eq!(
            read_json(&job.join("job.json"))["options"]["gradients"],
            gradients,
            "{options}"
        );
        let made = read_json(&desk.made().join("out/bantam.json"));
        assert_eq!(made["plan"]["settings"], settings, "{options}");
        for folder in [job, desk.made().join("out")] {
            fs::remove_dir_all(folder).unwrap();
        }
    }
    for option in ["--method lord", "--rank 4", "--levels 3", "--exact-svd", "--order average"] {
        let named = option.split(' ').next().unwrap();
        desk.carry_out(&plan).args(option).run().refused(2, &["--plan", named]);
    }
}

#[test]
fn a_plan_of_a_stack_shows_its_levels() {
    let desk = Desk::with("llama");
    let command = bantam("plan").arg(&desk.model).args("--method bitstack --rank 4 --levels 3");
    let shown = command.run().ok().stdout;
    assert!(shown.contains("levels x rank") && shown.contains("3 x 4"), "{shown}");
    // A stack has no target, and no linear of it is dense.
    assert!(!shown.contains("--keep") && !shown.contains("dense"), "{shown}");
}

/// What stands in the place of the plan is no file, or is needed for something else.
#[cfg(unix)]
#[test]
fn a_plan_is_not_written_over_what_is_no_file() {
    let desk = Desk::with("llama");
    let plan = |file: &Path| {
        let command = bantam("plan").arg(&desk.model).args("--keep 0.8 -o").arg(file);
        command.arg("--job").arg(desk.made().join("job")).run()
    };
    let socket = desk.made().join("socket");
    let _listening = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    plan(&socket).refused(2, &["socket", "is no file"]);
    plan(&desk.made()).refused(2, &["made", "is no file"]);
    plan(&desk.made().join("no/plan.json")).refused(2, &["plan.json", "does not exist"]);
    plan(&desk.made().join("job")).refused(2, &["job", "in the place of the output"]);
    let inside =
        desk.measured("compress").args("--keep 0.8 --job").arg(desk.made().join("out/job"));
    let inside = inside.arg("-o").arg(desk.made().join("out")).run();
    inside.refused(2, &["job", "in the place of the output"]);
    assert_eq!(names(&desk.made()), ["socket"]);
}

#[test]
fn a_plan_of_another_layout_is_told_so() {
    let desk = Desk::with("llama");
    let mut plan = desk.plan();
    plan["layout"] = json!(1);
    desk.refuses(&plan.to_string(), &["layout 1", "draw the plan again"]);
}

#[test]
fn a_plan_is_for_one_model() {
    let desk = Desk::with("llama");
    let plan = desk.plan().to_string();
    let other = Desk::with("llama-bias");
    other.refuses(&plan, &["drawn for a"]);
    // The same shapes with another norm are another model.
    let changed = Desk::with("llama");
    edit_weights(&changed.model, |weights| {
        weights.get_mut("model.norm.weight").unwrap().plant(0, 0.5);
    });
    changed.refuses(&plan, &["drawn for a"]);
}

#[test]
fn a_damaged_plan_is_refused() {
    let desk = Desk::with("llama");
    let plan = desk.plan();
    let text = plan.to_string();
    for cut in [0, 1, text.len() / 3, text.len() / 2, text.len() - 1] {
        desk.refuses(&text[..cut], &[]);
    }
    desk.refuses("[]", &[]);
    desk.refuses(&format!("{text}{text}"), &[]);
    desk.carry_out(&desk.made().join("none.json")).run().refused(3, &["none.json"]);
}

/// Bytes of a site of F32 with these factors, or dense.
fn site_bytes(site: &Value, rank: Option<u64>) -> u64 {
    let [m, n] = [0, 1].map(|i| site["shape"][i].as_u64().unwrap());
    4 * rank.map_or(m * n, |rank| rank * (m + n))
}

/// Gives a site another rank, or none, and lets everything follow that is said to follow.
fn choose(plan: &mut Value, at: usize, rank: Option<u64>) {
    let site = &mut plan["sites"][at];
    let before = site["bytes"].as_u64().unwrap();
    let bytes = site_bytes(site, rank);
    site["bytes"] = json!(bytes);
    site["storage"] = match rank {
        Some(rank) => json!({ "kind": "low_rank", "rank": rank }),
        None => json!({ "kind": "dense" }),
    };
    let (name, shape) = (site["site"].as_str().unwrap().to_owned(), site["shape"].clone());
    let total = plan["weight_bytes"].as_u64().unwrap();
    plan["weight_bytes"] = json!(total - before + bytes);
    let mine = |tensor: &Value| tensor["name"].as_str().unwrap().starts_with(&format!("{name}."));
    let tensors = plan["tensors"].as_array_mut().unwrap();
    let place = tensors.iter().position(mine).unwrap();
    tensors.retain(|tensor| !mine(tensor));
    let tensor = |part: &str, shape: Value| json!({ "name": format!("{name}.{part}"), "dtype": "F32", "shape": shape });
    let made = match rank {
        Some(rank) => vec![
            tensor("v.weight", json!([rank, shape[1]])),
            tensor("u.weight", json!([shape[0], rank])),
        ],
        None => vec![tensor("weight", shape)],
    };
    tensors.splice(place..place, made);
}

/// What the refusal must name, and the edit.
/// Edits a plan of any size.
fn roomy(plan: &mut Value, edit: &dyn Fn(&mut Value)) {
    plan["settings"]["rule"] = json!({ "target": { "budget": 1 << 30 } });
    edit(plan);
}

type Edit<'a> = (&'a str, &'a dyn Fn(&mut Value));

#[test]
fn an_edited_plan_holds_together_or_is_refused() {
    let desk = Desk::with("llama");
    let plan = desk.plan();
    let sites = plan["sites"].as_array().unwrap();
    let at = sites.iter().position(|site| site["storage"]["rank"].is_u64()).unwrap();
    let site = sites[at]["site"].as_str().unwrap();
    let rank = sites[at]["storage"]["rank"].as_u64().unwrap();

    // Another rank with all that follows from it is a plan like any other.
    let mut smaller = plan.clone();
    choose(&mut smaller, at, Some(rank - 2));
    let file = desk.made().join("smaller.json");
    fs::write(&file, smaller.to_string()).unwrap();
    let report = desk.carry_out(&file).arg("--json").run().json();
    assert_eq!(report["weight_bytes_out"], smaller["weight_bytes"]);
    assert_eq!(weight_bytes(&desk.made().join("out")), smaller["weight_bytes"]);
    fs::remove_dir_all(desk.made().join("out")).unwrap();
    fs::remove_file(file).unwrap();

    let edits: &[Edit<'_>] = &[
        (site, &|p| p["sites"][at]["storage"]["rank"] = json!(rank - 2)),
        (site, &|p| p["sites"][at]["bytes"] = json!(8)),
        (site, &|p| choose(p, at, Some(0))),
        // Factors of full rank are larger than the matrix: no method offers them.
        (site, &|p| roomy(p, &|p| choose(p, at, Some(32)))),
        // A method without factors, and factors without a method.
        (site, &|p| roomy(p, &|p| choose(p, at, None))),
        (site, &|p| p["sites"][at]["method"] = Value::Null),
        ("", &|p| p["settings"]["methods"] = json!([])),
        ("rank_multiple", &|p| p["settings"]["rank_multiple"] = json!(0)),
        ("", &|p| p["sites"][at]["site"] = json!("model.layers.0.mlp.no_proj")),
        ("", &|p| p["weight_bytes"] = json!(1)),
        ("", &|p| p["model"]["weight_bytes"] = json!(1)),
        ("", &|p| p["settings"]["fold"] = json!(true)),
        ("extra", &|p| p["extra"] = json!(1)),
        ("budget", &|p| p["settings"]["rule"]["target"] = json!({ "budget": 1 })),
        ("budget", &|p| p["settings"]["rule"]["target"] = json!({ "keep": 0.01 })),
        ("loss", &|p| p["sites"][at]["expected_loss"] = json!(1e300)),
        (site, &|p| p["sites"][at]["storage"]["rank"] = json!(1_u64 << 63)),
        (site, &|p| {
            let storage = json!({ "kind": "stack", "rank": 1, "levels": 1_u64 << 63 });
            p["sites"][at]["storage"] = storage;
        }),
        ("", &|p| drop(p["sites"].as_array_mut().unwrap().pop())),
        ("", &|p| drop(p["tensors"].as_array_mut().unwrap().pop())),
        ("", &|p| p["tensors"].as_array_mut().unwrap().swap(0, 1)),
        ("", &|p| p["tensors"][0]["dtype"] = json!("F16")),
    ];
    let mut accepted = Vec::new();
    for (i, (named, edit)) in edits.iter().enumerate() {
        let mut edited = plan.clone();
        edit(&mut edited);
        assert_ne!(edited, plan, "edit {i} changes nothing");
        let file = desk.root.path().join("edited.json");
        fs::write(&file, edited.to_string()).unwrap();
        let run = desk.carry_out(&file).run();
        let named = run.stderr.contains("edited.json") && run.stderr.contains(named);
        if run.code != Some(3) || !named || names(&desk.root.path().join("made")) != [""; 0] {
            accepted.push(format!("edit {i}: {:?} {}", run.code, run.stderr));
            let _ = fs::remove_dir_all(desk.made().join("out"));
        }
    }
    assert!(accepted.is_empty(), "not refused with 3 by name: {accepted:#?}");
}

#[test]
fn a_measured_plan_is_for_one_text() {
    let desk = Desk::with("llama");
    let file = desk.root.path().join("plan.json");
    fs::write(&file, desk.plan().to_string()).unwrap();
    let out = desk.made().join("out");
    let with = |text: &Path, windows: &str| {
        let command = bantam("compress").arg(&desk.model).arg("--plan").arg(&file);
        command.arg("-o").arg(&out).arg("--text").arg(text).args(windows).run()
    };
    let other = desk.root.path().join("other.txt");
    let words = fs::read_to_string(&desk.text).unwrap();
    fs::write(&other, words.replacen("w1 ", "w2 ", 1)).unwrap();
    with(&other, "--windows 8 --window 32").refused(2, &["measured on"]);
    with(&desk.text, "--windows 7 --window 32").refused(2, &["measured on"]);
    with(&desk.text, "--windows 8 --window 16").refused(2, &["measured on"]);
    with(&desk.text, "--windows 8 --window 32 --seed 3").refused(2, &["measured on"]);
    let none = bantam("compress").arg(&desk.model).arg("--plan").arg(&file).arg("-o").arg(&out);
    none.run().refused(2, &["--text"]);
    assert_eq!(names(&desk.root.path().join("made")), [""; 0]);
}

/// A file of 80 GB, all holes: what reads it takes minutes, or more memory than there is.
#[test]
fn plan_and_inspect_read_no_weights() {
    let root = tempfile::tempdir().unwrap();
    let model = root.path().join("huge");
    copy_folder(&fixture("golden/llama"), &model);
    let (hidden, wide, vocab) = (1 << 15, 1 << 17, 1 << 17);
    models::edit_config(
        &model,
        &json!({
            "hidden_size": hidden, "intermediate_size": wide, "vocab_size": vocab, "head_dim": 128,
            "num_attention_heads": 256, "num_key_value_heads": 256, "num_hidden_layers": 2,
        }),
    );
    let shape = |name: &str| match name {
        n if n.contains("norm") => vec![hidden],
        n if n.contains("embed") || n.contains("head") => vec![vocab, hidden],
        n if n.contains("gate") || n.contains("up_proj") => vec![wide, hidden],
        n if n.contains("down") => vec![hidden, wide],
        _ => vec![hidden, hidden],
    };
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for name in models::weights(&model).keys() {
        let (start, shape) = (end, shape(name));
        end += 2 * shape.iter().product::<usize>();
        let entry = json!({ "dtype": "BF16", "shape": shape, "data_offsets": [start, end] });
        header.insert(name.clone(), entry);
    }
    let file = model.join("model.safetensors");
    let bytes = checkpoints::file_with_header(&Value::from(header).to_string(), &[]);
    let length = (bytes.len() + end) as u64;
    fs::write(&file, bytes).unwrap();
    fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(length).unwrap();
    let found = bantam("inspect").arg(&model).arg("--json").run().json();
    assert_eq!(found["weight_bytes"], end);
    assert!(end > 64 << 30, "{end} bytes are not that many");
    let plan =
        bantam("plan").arg(&model).args("--keep 0.6 --rank-multiple 128 --json").run().json();
    assert!(plan["weight_bytes"].as_u64().unwrap() <= end as u64 * 6 / 10);
}
