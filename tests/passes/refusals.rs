//! What makes no sense is refused of a library user as of somebody at a shell, before any work.

use bantam::arch::{Model, Storage};
use bantam::checkpoint::{TensorSpec, WriteOptions};
use bantam::error::Error;
use bantam::measure::{Cut, Draw, TextWindows};
use bantam::passes::Pass;
use bantam::pipeline::Run;
use bantam::plan::Plan;
use bantam::settings::{Method, Rule, Settings, StackSettings};

use super::models::Desk;
use super::road::text;
use super::toy::Toy;

fn usage<T>(result: Result<T, Error>, says: &str) {
    match result.map(drop) {
        Err(e @ Error::Usage { .. }) => assert!(e.to_string().contains(says), "{says}: {e}"),
        other => panic!("{says}: {other:?}"),
    }
}

fn settings() -> Settings {
    Settings { rank_multiple: 2, ..Settings::new(Rule::keep(0.8)) }
}

fn methods(names: &[&'static str]) -> Vec<Method> {
    names.iter().map(|name| Method::named(name)).collect()
}

/// Another text than that of [`text`].
fn other_text(desk: &Desk, model: &Model) -> TextWindows {
    let cut = Cut { length: Some(8), windows: Some(4), draw: Draw::FromStart };
    TextWindows::read(model, std::slice::from_ref(&desk.text), cut).unwrap()
}

#[test]
fn settings_text_and_folders() {
    let desk = Desk::with("llama");
    let model = Model::open(&desk.model).unwrap();
    let new = |settings| Run::new(&model, settings).map(drop);
    usage(new(Settings { methods: methods(&["zip"]), ..settings() }), "`zip`");
    usage(new(Settings { floor: -1.0, ..settings() }), "`floor`");
    usage(new(Settings::new(Rule::Reduce(0.3))), "`reduce`");
    let two = methods(&["lord", "welore"]);
    usage(new(Settings { methods: two, ..Settings::new(Rule::Reduce(0.3)) }), "`reduce`");

    let (out, options) = (desk.made().join("out"), WriteOptions::default());
    let run = || Run::new(&model, settings()).unwrap();
    usage(run().check(&out, &options), "needs calibration text");
    usage(run().measure(), "needs calibration text");
    let calibrated = |settings| Run::new(&model, settings).unwrap().text(text(&desk, &model));
    let small = calibrated(Settings { rule: Rule::budget(10), ..settings() });
    assert!(matches!(small.check(&out, &options), Err(Error::BudgetTooSmall { .. })));
    let inside = calibrated(settings()).check(&desk.model.join("out"), &options);
    assert!(matches!(inside, Err(Error::Output { .. })), "{inside:?}");
    let no_stack = Settings { rule: Rule::Stack, ..settings() };
    usage(calibrated(no_stack).check(&out, &options), "stack");
    let job = calibrated(settings()).in_job(&desk.model.join("job"), false);
    usage(job.map(drop), "inside the model's folder");

    // A stack is made once.
    let stack = Settings { methods: methods(&["bitstack"]), ..Settings::new(Rule::Stack) };
    calibrated(stack).write(&out, &options).unwrap();
    let stack = Model::open(&out).unwrap();
    usage(Run::new(&stack, settings()).map(drop), "is a stack already");
}

#[test]
fn a_plan_of_something_else() {
    let desk = Desk::with("llama");
    let model = Model::open(&desk.model).unwrap();
    let mut run = Run::new(&model, settings()).unwrap().text(text(&desk, &model));
    usage(run.preview(&run.plan().unwrap()), "nothing was measured");
    run.measure().unwrap();
    let plan = run.plan().unwrap();

    // Of one text, on another: refused by whatever comes first.
    let (out, options) = (desk.made().join("out"), WriteOptions::default());
    let on_other = || Run::of_plan(&model, plan.clone()).unwrap().text(other_text(&desk, &model));
    usage(on_other().check(&out, &options), "not on this text");
    usage(on_other().measure(), "not on this text");
    usage(on_other().write(&out, &options), "not on this text");
    assert!(!out.exists());

    // Of other settings, and of another model.
    let other = Settings { gradients: false, ..settings() };
    usage(Run::new(&model, other).unwrap().carrying_out(plan.clone()), "other settings");
    let mut elsewhere = plan.clone();
    elsewhere.model.fingerprint = "0".repeat(64);
    usage(Run::of_plan(&model, elsewhere), "it was drawn for a");
    let mut short = plan.clone();
    short.sites.pop();
    usage(Run::of_plan(&model, short), "sites");

    // With a choice that nobody offers, and all else that follows from it.
    let at = plan.sites.iter().position(|site| site.method.is_some()).unwrap();
    let head = plan.sites.iter().rposition(|site| site.role.is_vocabulary()).unwrap();
    let low_rank = |rank| Storage::LowRank { rank };
    let lord = Some(Method::LORD);
    for (site, method, storage) in [
        (at, lord.clone(), low_rank(plan.sites[at].offer.storage.rank() - 1)),
        (at, None, low_rank(2)),
        (at, Some(Method::WELORE), low_rank(2)),
        (head, lord, low_rank(2)),
    ] {
        let edited = chosen(&plan, &model, site, method, storage);
        usage(run.preview(&edited), &plan.sites[site].site);
        usage(Run::of_plan(&model, edited), &plan.sites[site].site);
    }
}

#[test]
fn more_levels_than_a_stack_is_made_of() {
    let desk = Desk::with("llama");
    let model = Model::open(&desk.model).unwrap();
    let stack = StackSettings { levels: 2, rank: 2, ..StackSettings::default() };
    let settings =
        Settings { methods: methods(&["bitstack"]), stack, ..Settings::new(Rule::Stack) };
    let mut plan = Run::new(&model, settings).unwrap().plan().unwrap();
    let order = plan.stack.as_mut().unwrap();
    order.order.push(0);
    order.losses.push(0.0);
    let more = Storage::Stack { rank: 2, levels: 3 };
    let plan = chosen(&plan, &model, 0, Some(Method::BITSTACK), more);
    usage(Run::of_plan(&model, plan), &model.sites()[0].name);
}

/// `plan` with another choice for site number `at`, and what follows from it.
fn chosen(plan: &Plan, model: &Model, at: usize, method: Option<Method>, storage: Storage) -> Plan {
    let mut plan = plan.clone();
    let site = &model.sites()[at];
    let specs = |storage| site.pieces(storage).into_iter().map(move |p| site.spec(storage, p));
    let before: Vec<TensorSpec> = specs(plan.sites[at].offer.storage).collect();
    let new: Vec<TensorSpec> = specs(storage).filter(|spec| !before.contains(spec)).collect();
    if storage.is_stack() {
        // Its levels stand last.
        plan.tensors.extend(new);
    } else {
        let place = plan.tensors.iter().position(|spec| before.contains(spec)).unwrap();
        plan.tensors.retain(|spec| !before.contains(spec));
        plan.tensors.splice(place..place, specs(storage));
    }
    plan.weight_bytes = plan.tensors.iter().map(TensorSpec::bytes).sum();
    plan.sites[at].method = method;
    plan.sites[at].offer.storage = storage;
    plan.sites[at].offer.price.bytes = site.bytes(storage);
    plan
}

#[test]
fn methods_that_stand_in_the_way() {
    let desk = Desk::with("llama");
    let model = Model::open(&desk.model).unwrap();
    let with = |pass: Toy| {
        let methods = vec![pass.method()];
        let own: Vec<Box<dyn Pass>> = vec![Box::new(pass)];
        Run::with_passes(&model, Settings { methods, ..settings() }, own).map(drop)
    };
    with(Toy::new()).unwrap();
    usage(with(Toy::named("lord")), "`lord`");
    usage(with(Toy::named("../lord")), "`../lord`");
    let refused = with(Toy::everywhere());
    assert!(matches!(refused, Err(Error::Unsupported { .. })), "{refused:?}");
    // A published rule of ranks, and a method that has none.
    let stack = Settings { methods: methods(&["bitstack"]), ..Settings::new(Rule::Uniform(0.5)) };
    let run = Run::new(&model, stack).unwrap().text(text(&desk, &model));
    usage(run.check(&desk.made().join("out"), &WriteOptions::default()), "`uniform`");
}

/// What was measured of one text is no answer for another.
#[test]
fn another_text_is_measured_again() {
    let desk = Desk::with("llama");
    let model = Model::open(&desk.model).unwrap();
    let plan = |mut run: Run<'_>| {
        run.measure().unwrap();
        run.plan().unwrap()
    };
    let fresh = || Run::new(&model, settings()).unwrap();
    let expected = plan(fresh().text(other_text(&desk, &model)));
    let mut run = fresh().text(text(&desk, &model));
    run.measure().unwrap();
    assert_eq!(plan(run.text(other_text(&desk, &model))), expected);
    // In a folder it is refused, whatever was said first.
    let folder = desk.made().join("job");
    plan(fresh().in_job(&folder, false).unwrap().text(text(&desk, &model)));
    let mut other = fresh().text(other_text(&desk, &model)).in_job(&folder, false).unwrap();
    assert!(other.measure().is_err());
}
