use super::edit::{EditError, Wanted};
use super::tests::{
    WEB, main_universe, own_file, resolution, resolved, resolved_with, stanzas, tree, upgrade,
};
use super::*;
use crate::check::check;
use crate::universe::tests::universe;

fn desired(files: &[(&str, &str)]) -> DesiredState {
    let (desired, faults) = DesiredState::read(&tree(files));
    assert_eq!(faults, []);
    desired
}

fn layer(name: &str) -> LayerName {
    name.parse().expect("a name")
}

/// The chain in short: where it starts, then the units.
fn chain(universe: &Universe, ldf: &str, name: &str) -> (Origin, Vec<String>) {
    let desired = desired(&[("templates/t.ldf", ldf)]);
    let [chain] = <[Chain; 1]>::try_from(why(&desired, universe, &layer(name))).expect("one chain");
    let step = |step: Step| match step.needed_by {
        None => step.unit,
        Some(how) => format!("{how}: {}", step.unit),
    };
    (chain.from, chain.steps.into_iter().map(step).collect())
}

fn line(line: u32) -> Origin {
    Origin::Line { file: "templates/t.ldf".to_owned(), line }
}

#[test]
fn why_shows_the_shortest_chain() {
    let universe = main_universe(
        "far 1; Depends: mid\nmid 1; Depends: web\nweb 1; Pre-Depends: ssl (>= 1) | tls\nssl 1\nsh 1; Essential: yes; Depends: libc\nlibc 1\nlost 1\n",
    );
    let ldf =
        "main/far 1\nmain/web 1\n\nmain/libc 1\nmain/lost 1\nmain/mid 1\nmain/sh 1\nmain/ssl 1\n";
    let (from, steps) = chain(&universe, ldf, "ssl");
    assert_eq!(from, line(2));
    assert_eq!(steps, ["main/web 1", "pre-depends on ssl (>= 1) | tls: main/ssl 1"]);
    assert_eq!(chain(&universe, ldf, "web").0, line(2));
    let (from, steps) = chain(&universe, ldf, "libc");
    assert_eq!((from, steps.len()), (Origin::Essential, 2));
    let nothing = Origin::Nothing { file: "templates/t.ldf".to_owned(), line: 5 };
    assert_eq!(chain(&universe, ldf, "lost"), (nothing, vec!["main/lost 1".to_owned()]));
    let none = why(&desired(&[("templates/t.ldf", ldf)]), &universe, &layer("tls"));
    assert_eq!(none, []);
}

/// The answer of the one composition there is.
fn asked(universe: &Universe, ldf: &str, wanted: &str) -> WhyNot {
    let wanted: Wanted = wanted.parse().expect("a layer");
    let unit = wanted.find_any(universe).expect("a unit");
    let desired = desired(&[("templates/t.ldf", ldf)]);
    why_not(&desired, universe, unit).into_values().next().expect("one")
}

#[test]
fn why_not_names_what_stands_against_a_unit() {
    let universe = main_universe(WEB);
    let ldf = "main/web 1\n\nmain/postfix 1\n=main/ssl 1\n";
    assert_eq!(asked(&universe, ldf, "ssl 1"), WhyNot::In);
    let WhyNot::Impossible { fault } = asked(&universe, ldf, "ssl 3") else { panic!("the hold") };
    assert_eq!(
        fault.message,
        "the hold =main/ssl 1 (line 4) and main/ssl 3 cannot go together: main/ssl 3 is needed"
    );
    assert_eq!(fault.hint.as_deref(), Some("drop the hold on line 4: 3 would do"));
    let WhyNot::Possible { changes } = asked(&universe, ldf, "exim") else { panic!("possible") };
    let changes: Vec<_> = changes.iter().map(|change| change.layer.as_str()).collect();
    assert_eq!(changes, ["exim", "postfix"], "one mailer takes the other's place");
    let withdrawn = main_universe("a 1\na 2; Withdrawn: CVE-1\n");
    let WhyNot::Impossible { fault } = asked(&withdrawn, "main/a 1\n", "a 2") else {
        panic!("withdrawn")
    };
    assert_eq!(fault.message, "main/a 2 is withdrawn: CVE-1");
}

#[test]
fn an_upgrade_says_what_it_keeps_back_and_why() {
    let universe = main_universe(WEB);
    let kept = |ldf: &str, upgrade: &Upgrade| {
        let result = resolution(&universe, &[("templates/t.ldf", ldf)], upgrade);
        let kept = result.resolved.into_values().next().expect("resolved").kept_back;
        kept.into_iter()
            .map(|kept| format!("{} not {}: {}", kept.at, kept.best, kept.reason))
            .collect::<Vec<_>>()
    };
    let held = "main/web 1\n\nmain/postfix 1\n=main/ssl 1\n";
    assert_eq!(
        kept(held, &Upgrade::Everything),
        [
            "main/ssl 1 not main/ssl 3: line 4 holds it",
            "main/web 1 not main/web 2: the hold =main/ssl 1 (line 4) and main/web 2 cannot go together: main/web 2 depends on ssl (>= 2)",
        ]
    );
    assert_eq!(kept(held, &upgrade(&["postfix"])), Vec::<String>::new());
    assert_eq!(kept(held, &Upgrade::Nothing), Vec::<String>::new());
    let free = "main/web 1\n\nmain/postfix 1\nmain/ssl 1\n";
    assert_eq!(kept(free, &Upgrade::Everything), Vec::<String>::new());
}

fn edited(
    universe: &Universe,
    ldf: &str,
    edit: impl Fn(&mut Definition) -> Result<(), EditError>,
) -> Result<String, EditError> {
    let mut desired = desired(&[("templates/t.ldf", ldf)]);
    let before = desired.clone();
    edit(desired.definitions.values_mut().next().expect("one"))?;
    let mut result = resolve(&desired, universe, &Upgrade::Nothing);
    result.count_edits(&before);
    assert_eq!(result.diagnostics, []);
    let resolved = result.resolved.into_values().next().expect("one");
    let text = resolved.ldf.print();
    assert_eq!(resolved.rewritten, text != ldf);
    let checked = check(&tree(&[("templates/t.ldf", &text)]), universe, &own_file);
    assert_eq!(checked.diagnostics, [], "{text}");
    Ok(text)
}

#[test]
fn layers_are_added_and_removed() {
    let universe = main_universe(&format!("{WEB}old 1; Withdrawn: bad\n"));
    let add = |ldf: &str, wanted: &str| {
        let wanted: Wanted = wanted.parse().expect("a layer");
        edited(&universe, ldf, |definition| edit::add(definition, &universe, &wanted))
    };
    let remove = |ldf: &str, name: &str| {
        edited(&universe, ldf, |definition| edit::remove(definition, &layer(name)))
    };
    let web = "main/web 1 # keep\n\nmain/exim 1\nmain/ssl 1\n";
    let with_tool = "main/web 1 # keep\nmain/tool 1\n\nmain/exim 1\nmain/ssl 1\n";
    assert_eq!(add(web, "tool").as_deref(), Ok(with_tool), "ssl stays, so tool 2 does not fit");
    assert_eq!(add(web, "main/tool 1").as_deref(), Ok(with_tool));
    assert_eq!(remove(with_tool, "tool").as_deref(), Ok(web));
    let moved = "main/web 1 # keep\nmain/ssl 1\n\nmain/exim 1\n";
    assert_eq!(add(web, "ssl").as_deref(), Ok(moved), "it keeps its version");
    assert_eq!(remove(moved, "web").as_deref(), Ok("main/ssl 1\n"));
    assert_eq!(add(web, "web 2").as_deref(), Ok("main/web 2 # keep\n\nmain/exim 1\nmain/ssl 3\n"));
    assert!(matches!(add(web, "mta"), Err(EditError::Virtual { .. })));
    assert!(matches!(add(web, "nothing"), Err(EditError::Unknown { .. })));
    assert!(matches!(add(web, "ssl 9"), Err(EditError::NoSuchUnit { .. })));
    assert!(matches!(add(web, "old"), Err(EditError::Barred { .. })));
    assert!(matches!(remove(web, "ssl"), Err(EditError::Implicit { .. })));
    assert!(matches!(remove(web, "tool"), Err(EditError::NotThere { .. })));
    assert!(matches!(remove(web, "web"), Err(EditError::Last { .. })));
}

#[test]
fn an_added_layer_of_another_repository_takes_the_place_of_the_line() {
    let (main, local) =
        (stanzas("a 1\na 2\nb 1\nuser 1; Depends: a\n"), stanzas("a 1\na 3\nb 1\n"));
    let universe = universe(&[("main", 500, &main), ("local", 900, &local)]);
    let add = |ldf: &str, wanted: &str| {
        let configuration =
            "[[repository]]\nname = \"main\"\n[[repository]]\nname = \"local\"\npriority = 900\n";
        let wanted: Wanted = wanted.parse().expect("a layer");
        let mut desired = desired(&[("strata.toml", configuration), ("templates/t.ldf", ldf)]);
        let definition = desired.definitions.values_mut().next().expect("one");
        edit::add(definition, &universe, &wanted).expect("it is there");
        let result = resolve(&desired, &universe, &Upgrade::Nothing);
        assert_eq!(result.diagnostics, []);
        result.resolved.into_values().next().expect("resolved").ldf.print()
    };
    assert_eq!(add("main/a 1 # mine\n", "local/a"), "local/a 3 # mine\n");
    assert_eq!(add("main/a 1\n", "local/a 1"), "local/a 1\n");
    assert_eq!(add("main/a 1\n", "a 3"), "local/a 3\n", "only there");
    assert_eq!(add("main/a 2\n", "a 1"), "main/a 1\n", "the line's own repository first");
    assert_eq!(add("main/a 2\n", "a"), "main/a 2\n");
    assert_eq!(add("=main/a 2\n", "local/a 3"), "=local/a 3\n");
    assert_eq!(add("main/user 1\n\nmain/a 2\n", "a 1"), "main/user 1\nmain/a 1\n");
    assert_eq!(add("main/user 1\n\nmain/a 2\n", "a"), "main/user 1\nmain/a 2\n");
}

/// A universe that the configuration was applied to, and what an LDF becomes in it.
fn configured(text: &str, units: &[(&str, u32, &str)], ldf: &str, upgrade: &Upgrade) -> String {
    let units: Vec<_> = units.iter().map(|(name, p, text)| (*name, *p, stanzas(text))).collect();
    let units: Vec<_> = units.iter().map(|(name, p, text)| (*name, *p, text.as_str())).collect();
    let mut universe = universe(&units);
    let files = [("strata.toml", text), ("templates/t.ldf", ldf)];
    universe.configure(&desired(&files).configuration);
    let result = resolution(&universe, &files, upgrade);
    match result.resolved.values().next() {
        Some(resolved) => resolved.ldf.print(),
        None => result.diagnostics[0].message.clone(),
    }
}

#[test]
fn a_pin_prefers_a_version_or_a_repository() {
    let units = [("main", 500, "a 1.1\na 1.2\na 2.0\nb 1\n"), ("local", 400, "b 2\n")];
    let configuration =
        "[[repository]]\nname = \"main\"\n[[repository]]\nname = \"local\"\npriority = 400\n";
    let pinned = format!(
        "{configuration}[[pin]]\nlayer = \"a\"\nversion = \"1.*\"\n[[pin]]\nlayer = \"b\"\nrepository = \"local\"\n"
    );
    let user = [("main", 500, "a 1.1\na 1.2\na 2.0\nb 1\nc 1; Depends: a, b\n"), units[1]];
    let plain = configured(configuration, &user, "main/c\n", &Upgrade::Nothing);
    assert_eq!(plain, "main/c 1\n\nmain/a 2.0\nmain/b 1\n");
    let found = configured(&pinned, &user, "main/c\n", &Upgrade::Nothing);
    assert_eq!(found, "main/c 1\n\nmain/a 1.2\nlocal/b 2\n");
    let up = configured(&pinned, &units, "main/a 1.1\n", &Upgrade::Everything);
    assert_eq!(up, "main/a 1.2\n");
    let never_back = configured(&pinned, &units, "main/a 2.0\n", &Upgrade::Everything);
    assert_eq!(never_back, "main/a 2.0\n");
}

#[test]
fn another_architecture_is_left_out_and_said() {
    let configuration = "architecture = \"amd64\"\n[[repository]]\nname = \"main\"\n";
    let units = [(
        "main",
        500,
        "a 1; Architecture: amd64; Depends: b, c:any\na 2; Architecture: arm64\nb 1; Architecture: all\nc 1; Architecture: amd64\nd 1; Architecture: arm64\ne 1; Depends: d\n",
    )];
    let found = configured(configuration, &units, "main/a\n", &Upgrade::Nothing);
    assert_eq!(found, "main/a 1\n\nmain/b 1\nmain/c 1\n");
    let message = configured(configuration, &units, "main/e\n", &Upgrade::Nothing);
    assert_eq!(
        message,
        "main/e (line 1) cannot be had: main/e 1 depends on d, and there is only main/d 1 (filtered: it is for arm64, and strata.toml says amd64)"
    );
}

#[test]
fn a_cycle_of_pre_depends_is_named() {
    let universe =
        main_universe("a 1; Pre-Depends: b\nb 1; Pre-Depends: c | d\nc 1; Pre-Depends: a\nd 1\n");
    let fault = |ldf: &str| {
        let checked = check(&tree(&[("templates/t.ldf", ldf)]), &universe, &own_file);
        checked.diagnostics.into_iter().map(|found| (found.code, found.message)).collect::<Vec<_>>()
    };
    let [(code, message)] = &fault("main/a 1\nmain/b 1\nmain/c 1\n")[..] else { panic!("one") };
    assert_eq!(*code, "pre-depends-cycle");
    assert_eq!(message, "the Pre-Depends form a cycle: main/a 1 → main/b 1 → main/c 1 → main/a 1");
    assert_eq!(fault("main/a 1\nmain/b 1\nmain/c 1\nmain/d 1\n"), [], "d goes first");
}

#[test]
fn a_cycle_of_pre_depends_is_not_chosen() {
    let universe =
        main_universe("app 1; Depends: cy\ncy 1\ncy 2; Pre-Depends: cz\ncz 1; Pre-Depends: cy\n");
    assert_eq!(resolved(&universe, "main/cy\n"), "main/cy 1\n");
    assert_eq!(resolved_with(&universe, "main/cy 1\n", &Upgrade::Everything), "main/cy 1\n");
    let cycle = "the Pre-Depends form a cycle: main/cy 2 → main/cz 1 → main/cy 2";
    let WhyNot::Impossible { fault } = asked(&universe, "main/app 1\n\nmain/cy 1\n", "cy 2") else {
        panic!("a cycle")
    };
    assert_eq!(fault.message, cycle);
    let desired = desired(&[("templates/t.ldf", "main/cy 2\n")]);
    let found = resolve(&desired, &universe, &Upgrade::Nothing);
    assert_eq!(found.resolved, BTreeMap::new(), "nothing to write");
    let [fault] = &found.diagnostics[..] else { panic!("one: {:?}", found.diagnostics) };
    assert_eq!((fault.code, fault.line, fault.message.as_str()), ("pre-depends-cycle", 1, cycle));
    let kept = resolve(
        &self::desired(&[("templates/t.ldf", "main/cy 1\n")]),
        &universe,
        &Upgrade::Everything,
    );
    let kept = &kept.resolved.values().next().expect("resolved").kept_back;
    assert_eq!((kept[0].best.as_str(), kept[0].reason.as_str()), ("main/cy 2", cycle));
    // Two circles, each with a way out of its own.
    let universe = main_universe(
        "a 1\na 2; Pre-Depends: b\nb 1; Pre-Depends: a\nc 1\nc 2; Pre-Depends: d\nd 1; Pre-Depends: c\n",
    );
    assert_eq!(resolved(&universe, "main/a\nmain/c\n"), "main/a 1\nmain/c 1\n");
}

#[test]
fn who_would_provide_it_is_told_with_what_bars_them() {
    let universe = main_universe(
        "need 1; Depends: virt\nnew 1; Depends: virt (>= 2)\npa 1; Provides: virt; Withdrawn: bad\npb 1; Provides: virt (= 1); Withdrawn: old\n",
    );
    let message = |ldf: &str| {
        let found = resolve(&desired(&[("templates/t.ldf", ldf)]), &universe, &Upgrade::Nothing);
        found.diagnostics[0].message.clone()
    };
    let told = message("main/need\n");
    assert!(told.contains("main/pa 1, which provides virt (withdrawn: bad)"), "{told}");
    assert!(told.contains("main/pb 1, which provides virt 1 (withdrawn: old)"), "{told}");
    let virtual_line =
        resolve(&desired(&[("templates/t.ldf", "main/virt\n")]), &universe, &Upgrade::Nothing);
    let hint = virtual_line.diagnostics[0].hint.as_deref();
    assert_eq!(hint, Some("virt is no layer; main/pa 1 provides it"));
    let told = message("main/new\n");
    assert!(told.contains("main/pa 1, which provides virt in no version (withdrawn"), "{told}");
}

#[test]
fn what_a_pin_would_take_back_is_kept_with_the_reason() {
    let configuration =
        "[[repository]]\nname = \"main\"\n[[pin]]\nlayer = \"z\"\nversion = \"2*\"\n";
    let (desired, faults) = DesiredState::read(&tree(&[
        ("strata.toml", configuration),
        ("templates/t.ldf", "main/z 4\n"),
    ]));
    assert_eq!(faults, []);
    let mut universe = main_universe("z 2\nz 4\n");
    universe.configure(&desired.configuration);
    let found = resolve(&desired, &universe, &Upgrade::Everything);
    let kept = &found.resolved.values().next().expect("resolved").kept_back[0];
    assert_eq!((kept.at.as_str(), kept.best.as_str()), ("main/z 4", "main/z 2"));
    assert!(kept.reason.starts_with("it is older, and nothing is downgraded"), "{kept:?}");
}

#[test]
fn of_several_providers_the_more_important_comes_first() {
    let universe = main_universe(
        "app 1; Depends: awk\ngawk 1; Provides: awk\nmawk 1; Provides: awk; Priority: required\n",
    );
    assert_eq!(resolved(&universe, "main/app\n"), "main/app 1\n\nmain/mawk 1\n");
    let stays = "main/app 1\n\nmain/gawk 1\n";
    assert_eq!(resolved_with(&universe, stays, &Upgrade::Everything), stays);
}
