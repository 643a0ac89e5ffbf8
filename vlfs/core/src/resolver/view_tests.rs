//! Compositions that may draw on less than all: `[[template]]` in `strata.toml`.

use super::tests::{main_universe, own_file, tree};
use super::*;
use crate::check::check;

const UNITS: &str = "web 1; Depends: mailer\nexim 1; Provides: mailer; Section: mail\nnull 1; Provides: mailer; Section: misc\ntelnet 1\ntelnet 2\n";
const FILTERS: &str = "[[repository]]\nname = \"main\"\n[[template]]\nname = \"web\"\n[[template.deny]]\nname = \"telnet\"\nversion = \">= 2\"\nreason = \"plain text\"\n[[template.deny]]\nsection = \"mail\"\n";

fn resolution(ldfs: &[(&str, &str)], upgrade: &Upgrade) -> Resolution {
    let universe = main_universe(UNITS);
    let files: Vec<_> = [("strata.toml", FILTERS)].iter().chain(ldfs).copied().collect();
    let (desired, faults) = DesiredState::read(&tree(&files));
    assert_eq!(faults, []);
    let found = resolve(&desired, &universe, upgrade);
    // What is resolved passes the check.
    if found.diagnostics.is_empty() {
        let resolved: Vec<_> = found.resolved.values().map(|r| (&r.file, r.ldf.print())).collect();
        let texts = resolved.iter().map(|(file, text)| (file.as_str(), text.as_str()));
        let files: Vec<_> = [("strata.toml", FILTERS)].into_iter().chain(texts).collect();
        assert_eq!(check(&tree(&files), &universe, &own_file).diagnostics, []);
    }
    found
}

fn text(found: &Resolution, name: &str) -> String {
    assert_eq!(found.diagnostics, []);
    found.resolved[&name.parse().expect("a name")].ldf.print()
}

fn told(found: &Resolution) -> Vec<String> {
    let shown = |fault: &Diagnostic| format!("{}:{}: {}", fault.file, fault.line, fault.message);
    found.diagnostics.iter().map(shown).collect()
}

#[test]
fn a_filter_of_a_template_holds_for_it_alone() {
    let ldfs = [
        ("templates/web.ldf", "main/web\nmain/telnet\n"),
        ("templates/b.ldf", "main/web\nmain/telnet\n"),
    ];
    let found = resolution(&ldfs, &Upgrade::Nothing);
    assert_eq!(text(&found, "web"), "main/web 1\nmain/telnet 1\n\nmain/null 1\n");
    assert_eq!(text(&found, "b"), "main/web 1\nmain/telnet 2\n\nmain/exim 1\n");
    let upgraded = resolution(&[("templates/web.ldf", "main/telnet 1\n")], &Upgrade::Everything);
    assert_eq!(text(&upgraded, "web"), "main/telnet 1\n", "an upgrade goes as far as it may");
}

#[test]
fn a_filter_goes_with_the_template_into_what_is_built_on_it() {
    let base = ("templates/web.ldf", "main/web 1\n\nmain/null 1\n");
    let above = ("appliances/va.ldf", "@templates/web\nmain/telnet\n");
    assert_eq!(
        text(&resolution(&[base, above], &Upgrade::Nothing), "va"),
        "@templates/web\nmain/telnet 1\n"
    );
    // And what is built on another template, by its own filter.
    let other = ("templates/other.ldf", "main/telnet 2\n");
    let above = ("templates/web.ldf", "@templates/other\n");
    let found = resolution(&[other, above], &Upgrade::Nothing);
    let wanted = "templates/web.ldf:1: main/telnet 2 is filtered: strata.toml:5 denies name telnet, version >= 2: plain text";
    assert_eq!(told(&found), [wanted]);
    let universe = main_universe(UNITS);
    let files = [("strata.toml", FILTERS), other, above];
    let checked = check(&tree(&files), &universe, &own_file);
    assert_eq!(checked.diagnostics.len(), 1);
    assert_eq!(checked.diagnostics[0].message, found.diagnostics[0].message);
    assert_eq!(checked.diagnostics[0].hint.as_deref(), Some("it comes from templates/other.ldf:1"));
}

#[test]
fn the_rule_is_told_where_it_is_why_nothing_can_be_had() {
    let found = resolution(&[("templates/web.ldf", "main/telnet 2\n")], &Upgrade::Nothing);
    let wanted = "templates/web.ldf:1: main/telnet 2 is filtered: strata.toml:5 denies name telnet, version >= 2: plain text";
    assert_eq!(told(&found), [wanted]);
    let found = resolution(&[("templates/web.ldf", "main/exim\n")], &Upgrade::Nothing);
    let wanted = "templates/web.ldf:1: no version of main/exim may be used; main/exim 1 is filtered: strata.toml:9 denies section mail";
    assert_eq!(told(&found), [wanted]);
    // A dependency that only a filtered unit could meet.
    let universe = main_universe("app 1; Depends: exim\nexim 1; Section: mail\n");
    let files = [("strata.toml", FILTERS), ("templates/web.ldf", "main/app\n")];
    let (desired, _) = DesiredState::read(&tree(&files));
    let found = resolve(&desired, &universe, &Upgrade::Nothing);
    let wanted = "templates/web.ldf:1: main/app (line 1) cannot be had: main/app 1 depends on exim, and there is only main/exim 1 (filtered: strata.toml:9 denies section mail)";
    assert_eq!(told(&found), [wanted]);
    let unit = universe.named(&"exim".parse().expect("a name")).next().expect("there");
    let answers = why_not(&desired, &universe, unit);
    let WhyNot::Impossible { fault } = &answers[&"web".parse().expect("a name")] else {
        panic!("{answers:?}")
    };
    assert_eq!(fault.message, "main/exim 1 is filtered: strata.toml:9 denies section mail");
}

#[test]
fn what_is_said_of_no_template_is_a_fault() {
    for (rules, code, line) in [
        (
            "[[template]]\nname = \"nobody\"\n[[template.deny]]\nname = \"x\"\n",
            "unknown-template",
            4,
        ),
        ("[[template]]\nname = \"web\"\n", "template", 4),
        ("[[template]]\n[[template.deny]]\nname = \"x\"\n", "missing-key", 3),
        ("[[template]]\nname = \"web\"\n[[template.deny]]\nreason = \"x\"\n", "filter", 5),
        (
            "[[template]]\nname = \"web\"\n[[template.deny]]\nname = \"x\"\n[[template]]\nname = \"web\"\n[[template.deny]]\nname = \"x\"\n",
            "template",
            8,
        ),
    ] {
        let configuration = format!("[[repository]]\nname = \"main\"\n{rules}");
        let files =
            [("strata.toml", configuration.as_str()), ("templates/web.ldf", "main/web 1\n")];
        let (_, faults) = DesiredState::read(&tree(&files));
        let found: Vec<_> = faults.iter().map(|fault| (fault.code, fault.line)).collect();
        assert_eq!(found, [(code, line)], "{rules}");
    }
}
