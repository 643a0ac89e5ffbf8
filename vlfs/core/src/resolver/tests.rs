use proptest::prelude::*;

use super::*;
use crate::check::check;
use crate::generation::LayerSetEntry;
use crate::manifest::Manifest;
use crate::shared_paths::tests::manifest;
use crate::source::{SourceContent, SourceTree};
use crate::universe::tests::universe;

const CONFIGURATION: &str = "[[repository]]\nname = \"main\"\n";

pub(super) fn tree(files: &[(&str, &str)]) -> SourceTree {
    let mut tree = SourceTree::default();
    let configuration = ("strata.toml", CONFIGURATION);
    let given = files.iter().any(|(path, _)| *path == configuration.0);
    for (path, text) in files.iter().chain((!given).then_some(&configuration)) {
        let content = SourceContent::Regular { bytes: (*text).into(), executable: false };
        tree.insert(path.as_bytes(), content).expect("a path");
    }
    tree
}

pub(super) fn own_file(entry: &LayerSetEntry) -> Option<Arc<Manifest>> {
    let path = format!("usr/lib/{}", entry.layer);
    Some(Arc::new(manifest(&[(path.as_str(), entry.version.as_str())])))
}

pub(super) fn resolution(
    universe: &Universe,
    files: &[(&str, &str)],
    upgrade: &Upgrade,
) -> Resolution {
    let (desired, faults) = DesiredState::read(&tree(files));
    assert_eq!(faults, []);
    resolve(&desired, universe, upgrade)
}

/// The text of one LDF after resolution; what it gives must pass the check.
pub(super) fn resolved_with(universe: &Universe, ldf: &str, upgrade: &Upgrade) -> String {
    let result = resolution(universe, &[("templates/t.ldf", ldf)], upgrade);
    assert_eq!(result.diagnostics, []);
    let text = result.resolved.values().next().expect("one").ldf.print();
    let checked = check(&tree(&[("templates/t.ldf", &text)]), universe, &own_file);
    assert_eq!(checked.diagnostics, [], "{text}");
    text
}

pub(super) fn resolved(universe: &Universe, ldf: &str) -> String {
    resolved_with(universe, ldf, &Upgrade::Nothing)
}

/// `line: message | hint` of one LDF that cannot be resolved.
fn explained(universe: &Universe, ldf: &str) -> String {
    let result = resolution(universe, &[("templates/t.ldf", ldf)], &Upgrade::Nothing);
    assert_eq!(result.resolved.len(), 0);
    let [fault] = result.diagnostics.as_slice() else { panic!("{:?}", result.diagnostics) };
    format!("{}: {} | {}", fault.line, fault.message, fault.hint.as_deref().unwrap_or(""))
}

/// A universe in short: `name version [Field: value]…`, one unit a line.
pub(super) fn main_universe(units: &str) -> Universe {
    universe(&[("main", 500, &stanzas(units))])
}

pub(super) fn stanzas(units: &str) -> String {
    let mut text = String::new();
    for line in units.lines().filter(|line| !line.is_empty()) {
        let mut fields = line.split("; ");
        let (name, version) =
            fields.next().and_then(|unit| unit.split_once(' ')).expect("name version");
        text.push_str(&format!("Layer: {name}\nVersion: {version}\n"));
        for field in fields {
            text.push_str(&format!("{field}\n"));
        }
        text.push('\n');
    }
    text
}

pub(super) fn upgrade(names: &[&str]) -> Upgrade {
    Upgrade::Layers(names.iter().map(|name| name.parse().expect("a name")).collect())
}

pub(super) const WEB: &str = "web 1; Depends: ssl (>= 1), mta
web 2; Depends: ssl (>= 2), mta
ssl 1
ssl 2
ssl 3
postfix 1; Provides: mta; Conflicts: mta
exim 1; Provides: mta; Conflicts: mta
tool 1; Depends: ssl (= 1)
tool 2; Depends: ssl (= 2)
";

#[test]
fn an_explicit_line_without_a_version_gets_the_newest() {
    let universe = main_universe(WEB);
    assert_eq!(resolved(&universe, "main/web\n"), "main/web 2\n\nmain/exim 1\nmain/ssl 3\n");
}

#[test]
fn what_stands_is_kept() {
    let universe = main_universe(WEB);
    let old = "main/web 1 # pinned\n\n# the mailer\nmain/postfix 1\nmain/ssl 1\n";
    assert_eq!(resolved(&universe, old), old);
}

#[test]
fn a_bump_by_hand_is_respected_and_the_rest_follows() {
    let universe = main_universe(WEB);
    let explicit = "main/web 2\nmain/tool\n\nmain/postfix 1\nmain/ssl 2\n";
    let expected = "main/web 2\nmain/tool 2\n\nmain/postfix 1\nmain/ssl 2\n";
    assert_eq!(resolved(&universe, explicit), expected);
    // The bump of an implicit layer brings along what depended on the old version.
    let universe = main_universe(
        "app 1; Depends: tool\nssl 1\nssl 2\ntool 1; Depends: ssl (= 1)\ntool 2; Depends: ssl (= 2)\n",
    );
    let bumped = "main/app 1\n\nmain/ssl 2\nmain/tool 1\n";
    assert_eq!(resolved(&universe, bumped), "main/app 1\n\nmain/ssl 2\nmain/tool 2\n");
    // And only as far as it must.
    let universe = main_universe(WEB);
    let bumped = "main/web 2\n\nmain/postfix 1\nmain/ssl 1\n";
    assert_eq!(resolved(&universe, bumped), "main/web 2\n\nmain/postfix 1\nmain/ssl 3\n");
}

#[test]
fn holds_and_upgrades() {
    let universe = main_universe(WEB);
    let held = "main/web 1\n\nmain/postfix 1\n=main/ssl 1\n";
    assert_eq!(resolved_with(&universe, held, &Upgrade::Everything), held, "web 2 needs ssl 2");
    let old = "main/web 1\n\nmain/postfix 1\nmain/ssl 1\n";
    let new = "main/web 2\n\nmain/postfix 1\nmain/ssl 3\n";
    assert_eq!(resolved_with(&universe, old, &Upgrade::Everything), new);
    let only_ssl = "main/web 1\n\nmain/postfix 1\nmain/ssl 3\n";
    assert_eq!(resolved_with(&universe, old, &upgrade(&["ssl"])), only_ssl);
    assert_eq!(resolved_with(&universe, old, &upgrade(&["web"])), new);
}

#[test]
fn what_nothing_needs_goes() {
    let universe = main_universe(WEB);
    let text = "main/ssl 1\n\nmain/exim 1\nmain/tool 1\n";
    assert_eq!(resolved(&universe, text), "main/ssl 1\n");
}

#[test]
fn a_withdrawn_layer_is_replaced_and_never_chosen() {
    let universe = main_universe(
        "a 1; Depends: b\nb 1; Withdrawn: CVE-1\nb 2\nb 3; Withdrawn: CVE-2\na 2; Withdrawn: CVE-3\n",
    );
    assert_eq!(resolved(&universe, "main/a\n\nmain/b 1\n"), "main/a 1\n\nmain/b 2\n");
    let message = explained(&universe, "main/a 2\n");
    assert_eq!(message, "1: main/a 2 is withdrawn: CVE-3 | main/a 1 may be used");
}

#[test]
fn base_and_essential_layers_are_in() {
    let universe = main_universe("base 1; Depends: init\ninit 1\nsh 1; Essential: yes\napp 1\n");
    let configuration =
        ("strata.toml", "base = [\"main/base\"]\n[[repository]]\nname = \"main\"\n");
    let files = [configuration, ("templates/t.ldf", "main/app 1\n")];
    let result = resolution(&universe, &files, &Upgrade::Nothing);
    let text = result.resolved.values().next().expect("one").ldf.print();
    assert_eq!(text, "main/app 1\n\nmain/base 1\nmain/init 1\nmain/sh 1\n");
}

#[test]
fn a_reference_brings_its_layers_as_they_are() {
    let universe = main_universe(WEB);
    let files = [
        ("templates/web.ldf", "main/web 1\n\nmain/postfix 1\nmain/ssl 1\n"),
        ("appliances/a.ldf", "@web\nmain/tool\n"),
        ("appliances/b.ldf", "@web\n=main/ssl 2\nmain/tool\n"),
    ];
    let result = resolution(&universe, &files, &Upgrade::Nothing);
    assert_eq!(result.diagnostics, []);
    let texts: Vec<_> = result.resolved.values().map(|found| found.ldf.print()).collect();
    assert_eq!(texts[0], "@web\nmain/tool 1\n");
    assert_eq!(texts[1], "@web\n=main/ssl 2\nmain/tool 2\n");
    let result = resolution(&universe, &files, &Upgrade::Everything);
    let texts: Vec<_> = result.resolved.values().map(|found| found.ldf.print()).collect();
    assert_eq!(texts[1], "main/web 2\n\nmain/postfix 1\nmain/ssl 3\n");
    assert_eq!(texts[0], "@web\n=main/ssl 2\nmain/tool 2\n");
    let fault = &result.diagnostics[0];
    assert_eq!((fault.file.as_str(), fault.line), ("appliances/a.ldf", 2), "tool wants ssl 2");
}

#[test]
fn two_repositories_and_their_priorities() {
    let main = stanzas("a 1; Depends: b\nb 1\nb 9\n");
    let local = stanzas("b 2\n");
    let universe = universe(&[("main", 500, &main), ("local", 900, &local)]);
    let configuration =
        "[[repository]]\nname = \"main\"\n[[repository]]\nname = \"local\"\npriority = 900\n";
    let resolve_one = |ldf: &str| {
        let files = [("strata.toml", configuration), ("templates/t.ldf", ldf)];
        resolution(&universe, &files, &Upgrade::Nothing)
            .resolved
            .values()
            .next()
            .expect("one")
            .ldf
            .print()
    };
    assert_eq!(resolve_one("main/a\n"), "main/a 1\n\nlocal/b 2\n");
    assert_eq!(resolve_one("main/a\nmain/b\n"), "main/a 1\nmain/b 9\n");
}

#[test]
fn provides_are_expanded_and_do_not_meet_explicit_lines() {
    let universe = main_universe(
        "app 1; Depends: virtual (>= 2)\np 1; Provides: virtual\nq 1; Provides: virtual (= 3)\nmta 1\nz 1; Provides: mta\n",
    );
    assert_eq!(resolved(&universe, "main/app\nmain/mta\n"), "main/app 1\nmain/mta 1\n\nmain/q 1\n");
}

#[test]
fn the_order_of_alternatives_counts_and_what_is_in_comes_first() {
    let universe = main_universe("app 1; Depends: x | y\nx 1\ny 1\nlib 1; Depends: y\n");
    assert_eq!(resolved(&universe, "main/app\n"), "main/app 1\n\nmain/x 1\n");
    assert_eq!(resolved(&universe, "main/app\n\nmain/y 1\n"), "main/app 1\n\nmain/y 1\n");
    let both = resolved(&universe, "main/app\nmain/lib\n");
    assert_eq!(both, "main/app 1\nmain/lib 1\n\nmain/y 1\n", "y is in for lib and is enough");
}

#[test]
fn explanations_name_the_lines_the_reason_and_a_way_out() {
    let universe = main_universe(
        "web 1; Depends: ssl (= 1)\nweb 2; Depends: ssl (= 2)\nold 1; Depends: ssl (= 1)\nssl 1\nssl 2\nfoe 1; Conflicts: web\nlost 1; Depends: mid\nmid 1; Depends: nothing (>= 2) | gone\nfar 1; Depends: ssl (>= 3)\nspare 1\n",
    );
    assert_eq!(
        explained(&universe, "main/spare 1\nmain/web 2\nmain/foe 1\n"),
        "3: main/web 2 (line 2) and main/foe 1 (line 3) cannot go together: main/foe 1 conflicts with web, which is main/web 2 | remove line 2 or 3"
    );
    assert_eq!(
        explained(&universe, "main/web 2\nmain/old 1\n"),
        "2: main/web 2 (line 1) and main/old 1 (line 2) cannot go together: only one of these can be in: main/old 1 → main/ssl 1 or main/web 2 → main/ssl 2 | on line 1, web 1 would do"
    );
    assert_eq!(
        explained(&universe, "main/spare 1\nmain/lost\n"),
        "2: main/lost (line 2) cannot be had: main/lost 1 → main/mid 1 depends on nothing (>= 2) | gone, and no repository has it | remove that line, or import what it lacks"
    );
    assert_eq!(
        explained(&universe, "main/far\n"),
        "1: main/far (line 1) cannot be had: main/far 1 depends on ssl (>= 3), and there is only main/ssl 2, main/ssl 1 | remove that line, or import what it lacks"
    );
    assert_eq!(
        explained(&universe, "main/web 2\n\n=main/ssl 1\n"),
        "3: the hold =main/ssl 1 (line 3) and main/web 2 (line 1) cannot go together: main/web 2 depends on ssl (= 2) | on line 1, web 1 would do"
    );
}

#[test]
fn of_several_faults_the_one_with_the_fewest_lines_is_told() {
    let universe = main_universe(
        "lost 1; Depends: gone\na 1\nb 1; Conflicts: a\nc 1; Depends: ssl (= 1)\nd 1; Depends: ssl (= 2) | ssl (= 3)\ne 1; Conflicts: ssl (= 3)\nssl 1\nssl 2\nssl 3\nf 1; Conflicts: ssl (= 2)\n",
    );
    let told = explained(&universe, "main/lost\nmain/a\nmain/b\n");
    assert!(told.starts_with("1: main/lost (line 1) cannot be had: "), "{told}");
    let three = explained(&universe, "main/d\nmain/e\nmain/f\n");
    assert!(three.contains("main/d (line 1), main/e (line 2) and main/f (line 3)"), "{three}");
    let two = explained(&universe, "main/a\nmain/b\nmain/d\nmain/e\nmain/f\n");
    assert!(two.contains(": main/a (line 1) and main/b (line 2) cannot go together"), "{two}");
}

#[test]
fn a_conflict_with_all_versions_is_told_once() {
    let universe = main_universe("a 1\na 2\na 3\nfoe 1; Conflicts: a\n");
    assert_eq!(
        explained(&universe, "main/foe\nmain/a\n"),
        "2: main/foe (line 1) and main/a (line 2) cannot go together: main/foe 1 conflicts with a, which is main/a 1 or main/a 2 or main/a 3 | remove line 1 or 2"
    );
}

#[test]
fn an_explanation_is_short_whatever_there_is() {
    let names: Vec<_> = (0..20).map(|at| format!("p{at} (>= 9)")).collect();
    let mut units = format!("lost 1; Depends: {}\n", names.join(" | "));
    for at in 0..20 {
        for version in 1..5 {
            units.push_str(&format!("p{at} {version}\n"));
        }
    }
    let universe = main_universe(&units);
    assert_eq!(
        explained(&universe, "main/lost\n"),
        "1: main/lost (line 1) cannot be had: main/lost 1 depends on p0 (>= 9) | p1 (>= 9) | p2 (>= 9) | p3 (>= 9) | …, and there is only main/p0 4, main/p1 4, main/p2 4, main/p3 4, … | remove that line, or import what it lacks"
    );
}

#[test]
fn a_large_universe_is_resolved_in_a_moment() {
    let mut text = String::new();
    for layer in 0..20_000u32 {
        for version in 1..=2 {
            text.push_str(&format!("l{layer} {version}"));
            let needs: Vec<_> = [layer % 700, layer / 2, layer / 3, layer % 61]
                .iter()
                .filter(|n| **n < layer && layer % 7 != 0)
                .map(|n| format!("l{n} (>= {version})"))
                .collect();
            if !needs.is_empty() {
                text.push_str(&format!("; Depends: {}", needs.join(", ")));
            }
            text.push('\n');
        }
    }
    let universe = main_universe(&text);
    let explicit: String = (0..60).map(|n| format!("main/l{}\n", 19_999 - n * 11)).collect();
    let started = std::time::Instant::now();
    let files = [("templates/t.ldf", explicit.as_str())];
    let result = resolution(&universe, &files, &Upgrade::Nothing);
    let took = started.elapsed();
    let count = result.resolved.values().next().expect("one").ldf.implicit().count();
    eprintln!("{count} of {} units in {took:?}", universe.len());
    assert!(count > 200, "{count}");
    assert!(took.as_secs() < 3, "{took:?}; the goal is 20 ms on an idle machine");
}

/// One unit of a random universe, and what a brute-force solver must know of it.
#[derive(Debug, Clone)]
struct Random {
    name: usize,
    version: usize,
    depends: Vec<Vec<(usize, Option<usize>)>>,
    conflicts: Vec<(usize, Option<usize>)>,
    /// A virtual name that it provides.
    provides: Option<usize>,
    withdrawn: bool,
}

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

fn random_universe() -> impl Strategy<Value = Vec<Random>> {
    let relation = || (0..NAMES.len(), proptest::option::weighted(0.4, 1..3usize));
    let unit = (
        proptest::collection::vec(proptest::collection::vec(relation(), 1..3), 0..3),
        proptest::collection::vec(relation(), 0..2),
        proptest::option::weighted(0.2, 0..NAMES.len()),
        proptest::bool::weighted(0.1),
    );
    proptest::collection::vec(unit, NAMES.len() * 2).prop_map(|units| {
        let unit = |(at, (depends, conflicts, provides, withdrawn))| Random {
            name: at / 2,
            version: at % 2 + 1,
            depends,
            conflicts,
            provides,
            withdrawn,
        };
        units.into_iter().enumerate().map(unit).collect()
    })
}

fn print(units: &[Random]) -> String {
    let relation = |(name, version): &(usize, Option<usize>)| match version {
        None => NAMES[*name].to_owned(),
        Some(version) => format!("{} (= {version})", NAMES[*name]),
    };
    let mut text = String::new();
    for unit in units {
        text.push_str(&format!("{} {}", NAMES[unit.name], unit.version));
        let depends: Vec<_> = unit
            .depends
            .iter()
            .map(|or| or.iter().map(relation).collect::<Vec<_>>().join(" | "))
            .collect();
        let conflicts: Vec<_> = unit.conflicts.iter().map(relation).collect();
        for (field, values) in [("Depends", depends), ("Conflicts", conflicts)] {
            if !values.is_empty() {
                text.push_str(&format!("; {field}: {}", values.join(", ")));
            }
        }
        if let Some(provided) = unit.provides {
            text.push_str(&format!("; Provides: {}", NAMES[provided]));
        }
        if unit.withdrawn {
            text.push_str("; Withdrawn: bad");
        }
        text.push('\n');
    }
    text
}

fn meets(unit: &Random, (name, version): &(usize, Option<usize>)) -> bool {
    unit.name == *name && version.is_none_or(|version| unit.version == version)
        || unit.provides == Some(*name) && version.is_none()
}

/// Whether a set is consistent, by the definition of §5.2 and nothing else.
fn consistent(set: &[&Random]) -> bool {
    set.iter().enumerate().all(|(at, unit)| {
        !unit.withdrawn
            && unit.depends.iter().all(|or| or.iter().any(|r| set.iter().any(|u| meets(u, r))))
            && unit
                .conflicts
                .iter()
                .all(|r| set.iter().enumerate().all(|(other, u)| other == at || !meets(u, r)))
    })
}

/// Whether any set has the explicit layers: every choice of versions is tried.
fn solvable(units: &[Random], explicit: &[(usize, Option<usize>)]) -> bool {
    (0..3usize.pow(NAMES.len() as u32)).any(|mut choice| {
        let mut set = Vec::new();
        for name in 0..NAMES.len() {
            if choice % 3 > 0 {
                set.push(&units[name * 2 + choice % 3 - 1]);
            }
            choice /= 3;
        }
        let explicit_in = |(name, version): &(usize, Option<usize>)| {
            set.iter().any(|u| u.name == *name && version.is_none_or(|v| u.version == v))
        };
        explicit.iter().all(explicit_in) && consistent(&set)
    })
}

fn explicit_text(explicit: &[(usize, Option<usize>)]) -> String {
    let line = |(name, version): &(usize, Option<usize>)| match version {
        None => format!("main/{}\n", NAMES[*name]),
        Some(version) => format!("main/{} {version}\n", NAMES[*name]),
    };
    explicit.iter().map(line).collect()
}

fn random_explicit() -> impl Strategy<Value = Vec<(usize, Option<usize>)>> {
    let line = (0..NAMES.len(), proptest::option::of(1..3usize));
    proptest::collection::vec(line, 1..4).prop_map(|mut lines| {
        lines.sort_unstable();
        lines.dedup_by_key(|(name, _)| *name);
        lines
    })
}

/// The text after resolution, or `None`.
fn attempt(universe: &Universe, text: &str, upgrade: &Upgrade) -> Option<String> {
    let result = resolution(universe, &[("templates/t.ldf", text)], upgrade);
    assert_eq!(result.resolved.is_empty(), !result.diagnostics.is_empty());
    result.resolved.values().next().map(|found| found.ldf.print())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Agrees with the brute force on what can be solved; what it gives passes
    /// the check, without a superfluous layer.
    #[test]
    fn oracle(units in random_universe(), explicit in random_explicit()) {
        let universe = main_universe(&print(&units));
        let text = explicit_text(&explicit);
        let found = attempt(&universe, &text, &Upgrade::Nothing);
        prop_assert_eq!(found.is_some(), solvable(&units, &explicit), "{}{}", print(&units), text);
        if let Some(found) = found {
            let checked = check(&tree(&[("templates/t.ldf", &found)]), &universe, &own_file);
            prop_assert_eq!(checked.diagnostics, vec![], "{}{}", print(&units), found);
            // Resolving again, or with everything upgraded and nothing to gain, is stable.
            let again = attempt(&universe, &found, &Upgrade::Nothing);
            prop_assert_eq!(again.as_deref(), Some(found.as_str()));
            let upgraded = attempt(&universe, &found, &Upgrade::Everything).expect("still solvable");
            let checked = check(&tree(&[("templates/t.ldf", &upgraded)]), &universe, &own_file);
            prop_assert_eq!(checked.diagnostics, vec![], "{}{}", print(&units), upgraded);
        }
    }

    /// What is unsolvable stays so when units go, and what is chosen stays chosen
    /// when units come that nothing asks for.
    #[test]
    fn laws(units in random_universe(), explicit in random_explicit(), gone in 0..NAMES.len() * 2) {
        let universe = main_universe(&print(&units));
        let text = explicit_text(&explicit);
        let found = attempt(&universe, &text, &Upgrade::Nothing);
        let mut fewer = units.clone();
        fewer[gone].withdrawn = true;
        let fewer = main_universe(&print(&fewer));
        let after = attempt(&fewer, &text, &Upgrade::Nothing);
        prop_assert!(found.is_some() || after.is_none());
        if let Some(after) = after {
            // `fewer` with the unit given back is a larger universe: nothing moves.
            let kept = attempt(&universe, &after, &Upgrade::Nothing);
            prop_assert_eq!(kept, Some(after));
        }
    }
}
