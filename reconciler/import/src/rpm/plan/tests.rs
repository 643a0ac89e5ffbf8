use super::super::package::tests::{package, trigger};
use super::*;

const ALL: [&str; 6] = [
    "pre-transaction",
    "pre-install",
    "post-install",
    "pre-remove",
    "post-remove",
    "post-transaction",
];

fn set(packages: impl IntoIterator<Item = Package>) -> BTreeMap<String, Package> {
    packages.into_iter().map(|package| (package.name.clone(), package)).collect()
}

fn former(packages: impl IntoIterator<Item = Package>) -> BTreeMap<String, Former> {
    let of = |package: Package| {
        let version = package.version.clone();
        (package.name.clone(), Former { version, package: Some(package) })
    };
    packages.into_iter().map(of).collect()
}

/// Lines such as `a %post 1`, with a file trigger's input behind.
fn told(plan: &Plan) -> Vec<String> {
    let line = |step: &Step| {
        let arguments: Vec<_> = step.arguments.iter().map(ToString::to_string).collect();
        let input = step.input.as_deref().map(String::from_utf8_lossy).unwrap_or_default();
        let input = input.trim_end().replace('\n', ",");
        format!("{} {} {} {input}", step.package, step.what, arguments.join(" ")).trim().to_owned()
    };
    plan.steps.iter().map(line).collect()
}

#[test]
fn a_first_installation() {
    let mut daemon = package("a-daemon", "2_1", &ALL);
    daemon.relations.depends = strata_core::relation::parse_dependencies("lib").expect("valid");
    let plan = plan(&set([daemon, package("lib", "1_1", &["post-install"])]), &BTreeMap::new());
    assert_eq!(plan.installed, ["lib", "a-daemon"]);
    let expected = [
        "a-daemon %pretrans 1",
        "lib %post 1",
        "a-daemon %pre 1",
        "a-daemon %post 1",
        "a-daemon %posttrans 1",
    ];
    assert_eq!(told(&plan), expected);
    let failing: Vec<_> = plan.steps.iter().filter(|s| s.must_succeed).map(|s| s.what).collect();
    assert_eq!(failing, ["%pretrans", "%pre"]);
}

#[test]
fn what_scripts_need_comes_first_even_in_a_circle() {
    let (mut a, mut b) = (package("a", "1_1", &ALL[1..3]), package("b", "1_1", &ALL[1..3]));
    let parse = |text: &str| strata_core::relation::parse_dependencies(text).expect("valid");
    a.relations.depends = parse("b");
    b.relations.depends = parse("a");
    a.relations.pre_depends = parse("b");
    assert_eq!(plan(&set([a, b]), &BTreeMap::new()).installed, ["b", "a"]);
}

#[test]
fn an_upgrade_and_a_removal() {
    let before =
        former([package("a", "1_1", &ALL), package("b", "1_1", &ALL), package("c", "1_1", &ALL)]);
    let now = set([package("a", "2_1", &ALL), package("c", "1_1", &ALL)]);
    let plan = plan(&now, &before);
    let expected = [
        "a %pretrans 2",
        "a %pre 2",
        "a %post 2",
        "a %preun 1",
        "a %postun 1",
        "b %preun 0",
        "b %postun 0",
        "a %posttrans 2",
    ];
    assert_eq!(told(&plan), expected);
    assert_eq!((plan.installed, plan.erased), (vec!["a".to_owned()], vec!["b".to_owned()]));
}

#[test]
fn nothing_changed_nothing_runs() {
    let packages = [package("a", "1_1", &ALL)];
    let plan = plan(&set(packages.clone()), &former(packages));
    assert_eq!(plan, Plan::default());
}

#[test]
fn what_is_not_known_any_more_is_told_and_counted() {
    let version = "1_1".parse().expect("valid");
    let before = BTreeMap::from([("a".to_owned(), Former { version, package: None })]);
    let plan = plan(&set([package("a", "2_1", &ALL)]), &before);
    assert_eq!(told(&plan), ["a %pretrans 2", "a %pre 2", "a %post 2", "a %posttrans 2"]);
    assert_eq!(plan.unknown, ["a 1_1"]);
}

/// As rpm 4.18 runs `x`, which has triggers on `y`, and then `y`.
#[test]
fn triggers_on_packages() {
    let mut x = package("x", "1_1", &["pre-install"]);
    let moments = [TRIGGER_PREIN, TRIGGER_IN, TRIGGER_UN, TRIGGER_POSTUN];
    x.triggers[0] = moments.iter().map(|moment| trigger(&[("y", *moment)], 0)).collect();
    let mut y = package("y", "1_1", &ALL[1..5]);
    y.relations.depends = strata_core::relation::parse_dependencies("x").expect("valid");
    let first = plan(&set([x.clone(), y.clone()]), &BTreeMap::new());
    let expected = ["x %pre 1", "x %triggerprein 1 0", "y %pre 1", "y %post 1", "x %triggerin 1 1"];
    assert_eq!(told(&first), expected);
    // The owner comes last: its triggers hear of what is there.
    let mut early = y.clone();
    early.relations.depends.clear();
    x.relations.depends = strata_core::relation::parse_dependencies("y").expect("valid");
    let last = plan(&set([x.clone(), early]), &BTreeMap::new());
    let expected = ["y %pre 1", "y %post 1", "x %triggerprein 0 1", "x %pre 1", "x %triggerin 1 1"];
    assert_eq!(told(&last), expected);
    let gone = plan(&set([x.clone()]), &former([x, y]));
    let expected = ["x %triggerun 1 0", "y %preun 0", "y %postun 0", "x %triggerpostun 1 0"];
    assert_eq!(told(&gone), expected);
}

#[test]
fn versions_of_conditions_count() {
    let mut x = package("x", "1_1", &[]);
    let mut on = trigger(&[("y", TRIGGER_IN)], 0);
    let relation = super::super::relations::Raw { name: "y", flags: 1 << 1, version: "2" };
    on.conditions[0].relation =
        Some(super::super::relations::relation(relation).expect("y before 2"));
    x.triggers[0] = vec![on];
    for (version, count) in [("1.9_1", 1), ("2_1", 0), ("2.1_1", 0)] {
        let plan = plan(&set([x.clone(), package("y", version, &[])]), &BTreeMap::new());
        assert_eq!(plan.steps.len(), count, "{version}");
    }
}

#[test]
fn triggers_on_files() {
    let mut x = package("x", "1_1", &["post-install"]);
    x.triggers[1] = vec![
        trigger(&[("/usr/share/y", TRIGGER_IN)], 100),
        trigger(&[("/usr/share/y", TRIGGER_IN)], 1_000_000),
    ];
    x.triggers[2] = vec![trigger(&[("/usr/share", TRIGGER_IN | TRIGGER_POSTUN)], 1_000_000)];
    let y = package("y", "1_1", &["post-install"]);
    let first = plan(&set([x.clone(), y.clone()]), &BTreeMap::new());
    let expected = [
        "x %post 1",
        "x %filetriggerin 0 /usr/share/y",
        "y %post 1",
        "x %filetriggerin 0 /usr/share/y",
        "x %transfiletriggerin 0 /usr/share/x,/usr/share/y",
    ];
    assert_eq!(told(&first), expected);
    let gone = plan(&set([x.clone()]), &former([x, y]));
    assert_eq!(told(&gone), ["x %transfiletriggerpostun 0 /usr/share/y"]);
}
