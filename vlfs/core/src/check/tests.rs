use std::collections::BTreeMap;

use super::*;
use crate::generation::LayerSetEntry;
use crate::shared_paths::tests::manifest;
use crate::source::SourceContent;
use crate::universe::tests::universe;

/// Repositories for all tests: a server with a library at two versions, and a
/// layer for each kind of fault.
const MAIN: &str = "Layer: base
Version: 1

Layer: libc6
Version: 1
Essential: yes

Layer: libssl
Version: 1

Layer: libssl
Version: 2

Layer: libssl
Version: 0.9
Withdrawn: CVE-2026-1

Layer: web
Version: 1
Depends: libssl (>= 1), httpd-config | base

Layer: web
Version: 2
Depends: libssl (>= 2)

Layer: legacy
Version: 1
Conflicts: web

Layer: twin
Version: 1

Layer: spare
Version: 1
";

fn tree(files: &[(&str, &str)]) -> SourceTree {
    let mut tree = SourceTree::default();
    for (path, text) in files {
        let content = SourceContent::Regular { bytes: (*text).into(), executable: false };
        tree.insert(path.as_bytes(), content).expect("a path");
    }
    tree
}

/// Every layer has a file of its own; `twin` has one of `web` as well.
fn manifests(entry: &LayerSetEntry) -> Option<Arc<Manifest>> {
    let own = format!("usr/lib/{}", entry.layer);
    let mut files = vec![(own.as_str(), entry.version.as_str())];
    match entry.layer.as_str() {
        "web" => files.push(("usr/bin/server", "web")),
        "twin" => files.push(("usr/bin/server", "twin")),
        _ => {}
    }
    Some(Arc::new(manifest(&files)))
}

const CONFIGURATION: &str =
    "base = [\"main/base\"]\nrings = [\"canary\", \"everyone\"]\n[[repository]]\nname = \"main\"\n";
const WEB: &str = "main/web 1\n\nmain/base 1\nmain/libc6 1\nmain/libssl 1\n";

fn checked(files: &[(&str, &str)]) -> CheckResult {
    check(&tree(files), &universe(&[("main", 500, MAIN)]), &manifests)
}

/// The diagnostics of LDFs beside a sound configuration, as `file:line code`.
fn faults(files: &[(&str, &str)]) -> Vec<String> {
    let files: Vec<_> = [("strata.toml", CONFIGURATION)].iter().chain(files).copied().collect();
    let result = checked(&files);
    result.diagnostics.iter().map(|d| format!("{}:{} {}", d.file, d.line, d.code)).collect()
}

#[test]
fn a_sound_repository_composes() {
    let result = checked(&[
        ("strata.toml", CONFIGURATION),
        ("templates/web.ldf", WEB),
        ("templates/web/etc/motd", "hello\n"),
        ("appliances/web-01.ldf", "# the canary\n@web\nmain/spare 1\n"),
        ("appliances/web-01/etc/hostname", "web-01\n"),
    ]);
    assert_eq!(result.diagnostics, []);
    let generation = &result.compositions[&"web-01".parse().expect("a name")];
    let layers: Vec<_> = generation.layers().iter().map(LayerSetEntry::to_string).collect();
    assert_eq!(
        layers[..5],
        ["main/base 1", "main/libc6 1", "main/libssl 1", "main/spare 1", "main/web 1"]
    );
    assert!(
        layers[5].starts_with("templates/web 0+") && layers[6].starts_with("templates/web-01 0+")
    );
    let ldf = generation.ldf();
    let start =
        "main/spare 1\nmain/web 1\n\nmain/base 1\nmain/libc6 1\nmain/libssl 1\ntemplates/web 0+";
    assert!(ldf.starts_with(start), "{ldf}");
}

#[test]
fn comments_and_the_order_of_lines_make_no_other_generation() {
    let id = |text: &str| {
        let result = checked(&[("strata.toml", CONFIGURATION), ("templates/web.ldf", text)]);
        result.compositions.values().next().expect("composes").id()
    };
    let turned = "# why\nmain/web 1\n\nmain/libssl 1 # old\nmain/libc6 1\nmain/base 1\n";
    assert_eq!(id(WEB), id(turned));
    assert_ne!(id(WEB), id(&WEB.replace("libssl 1", "libssl 2")));
}

/// Issue 2, acceptance line 7: every planted fault is named with file and line.
#[test]
fn twelve_faults_and_more_are_named_at_once() {
    let mut files = tree(&[
        ("strata.toml", &format!("{CONFIGURATION}prioritaet = 5\n")),
        (
            "appliances.toml",
            "[[appliance]]\nname = \"a\"\nmac = \"nonsense\"\nldf = \"web\"\n\n[[appliance]]\nname = \"b\"\nmac = \"52:54:00:00:00:01\"\nldf = \"nobody\"\nring = \"nowhere\"\n\n[[appliance]]\nname = \"c\"\nmac = \"52:54:00:00:00:01\"\nldf = \"web\"\n\n[[appliance]]\nname = \"d\"\nmac = \"52:54:00:00:00:01\"\nldf = \"web\"\n",
        ),
        ("templates/web.ldf", WEB),
        (
            "templates/syntax.ldf",
            "main/web 1\nno slash\n\nmain/base 1\nmain/libc6 1\nmain/libssl 1\n",
        ),
        (
            "templates/names.ldf",
            "main/nothing 1\nother/web 1\nmain/legacy 7\nmain/spare\ntemplates/twin 1\n\nmain/base 1\nmain/libc6 1\nmain/libssl 0.9\n",
        ),
        ("templates/unsatisfied.ldf", "main/web 2\n\nmain/base 1\nmain/libc6 1\nmain/libssl 1\n"),
        ("templates/conflict.ldf", "@web\n# both\nmain/legacy 1\n"),
        ("templates/shared.ldf", "main/twin 1\n@web\n"),
        ("templates/missing.ldf", "@web\n@nobody\n"),
        ("templates/a.ldf", "@b\n"),
        ("templates/b.ldf", "@a\n"),
        ("templates/baseless.ldf", "main/spare 1\n"),
        ("templates/versions.ldf", "main/libssl 2\n@web\n"),
        ("templates/web.modes", "# keys\netc/motd rwx root root\n"),
        ("templates/web/etc/motd", "hello\n"),
    ]);
    let link = SourceContent::Symlink { target: b"../../etc/passwd".to_vec() };
    files.insert(b"templates/link.ldf", link).expect("a path");
    let result = check(&files, &universe(&[("main", 500, MAIN)]), &manifests);
    let found: Vec<_> = result
        .diagnostics
        .iter()
        .filter(|d| d.severity == Severity::Error)
        .map(|d| format!("{}:{} {}", d.file, d.line, d.code))
        .collect();
    assert_eq!(
        found,
        [
            "appliances.toml:3 value",
            "appliances.toml:9 unknown-ldf",
            "appliances.toml:10 unknown-ring",
            "appliances.toml:14 duplicate-mac",
            "appliances.toml:19 duplicate-mac",
            "strata.toml:5 unknown-key",
            "templates/a.ldf:1 reference-cycle",
            "templates/baseless.ldf:0 missing-base",
            "templates/conflict.ldf:3 conflict",
            "templates/link.ldf:0 not-a-file",
            "templates/missing.ldf:2 missing-reference",
            "templates/names.ldf:1 unknown-layer",
            "templates/names.ldf:2 unknown-repository",
            "templates/names.ldf:3 unknown-version",
            "templates/names.ldf:4 unresolved",
            "templates/names.ldf:5 reserved-repository",
            "templates/names.ldf:9 withdrawn",
            "templates/shared.ldf:1 shared-path",
            "templates/syntax.ldf:2 ldf",
            "templates/unsatisfied.ldf:1 unsatisfied",
            "templates/versions.ldf:1 two-versions",
            "templates/web.modes:2 modes",
        ]
    );
    assert!(!result.accepted());
    for diagnostic in &result.diagnostics {
        assert!(!diagnostic.message.is_empty());
    }
}

#[test]
fn a_layer_that_replaces_another_stands_above_it() {
    let units = "Layer: base\nVersion: 1\n\nLayer: web\nVersion: 1\n\nLayer: twin\nVersion: 1\nReplaces: web (<< 2)\n\nLayer: web\nVersion: 2\n";
    let check = |web: &str| {
        let ldf = format!("main/twin 1\nmain/web {web}\n\nmain/base 1\n");
        let files = [("strata.toml", CONFIGURATION), ("templates/a.ldf", ldf.as_str())];
        check(&tree(&files), &universe(&[("main", 500, units)]), &manifests)
    };
    let result = check("1");
    assert_eq!(result.diagnostics, []);
    let generation = &result.compositions[&"a".parse().expect("a name")];
    let layers: Vec<_> = generation.layers().iter().map(LayerSetEntry::to_string).collect();
    assert_eq!(layers, ["main/base 1", "main/web 1", "main/twin 1"]);
    let codes: Vec<_> = check("2").diagnostics.iter().map(|found| found.code).collect();
    assert_eq!(codes, ["shared-path"]);
}

#[test]
fn layers_of_two_systems_are_refused() {
    let units = "Layer: base\nVersion: 1\n\nLayer: spare\nVersion: 1\nSystem: deb\n\nLayer: legacy\nVersion: 1\nSystem: rpm\n";
    let ldf = "main/legacy 1\nmain/spare 1\n\nmain/base 1\n";
    let files = [("strata.toml", CONFIGURATION), ("templates/a.ldf", ldf)];
    let result = check(&tree(&files), &universe(&[("main", 500, units)]), &manifests);
    let [found] = result.diagnostics.as_slice() else { panic!("{:?}", result.diagnostics) };
    assert_eq!((found.code, found.line), ("two-systems", 2));
    let named = ["main/legacy 1", "main/spare 1", "rpm", "deb", "templates/a.ldf:1"];
    assert!(named.iter().all(|name| found.message.contains(name)), "{}", found.message);
}

#[test]
fn messages_name_both_sides() {
    let result = checked(&[
        ("strata.toml", CONFIGURATION),
        ("templates/web.ldf", WEB),
        ("templates/both.ldf", "@web\nmain/legacy 1\nmain/twin 1\n"),
    ]);
    let messages: Vec<_> = result.diagnostics.iter().map(|d| d.message.as_str()).collect();
    assert_eq!(
        messages,
        [
            "main/legacy 1 conflicts with web, and main/web 1 is here (templates/web.ldf:1)",
            "main/twin 1 and main/web 1 (templates/web.ldf:1) share the path /usr/bin/server",
        ]
    );
    assert!(result.compositions.contains_key(&"web".parse().expect("a name")));
    assert!(!result.compositions.contains_key(&"both".parse().expect("a name")));
}

#[test]
fn what_nothing_needs_is_a_warning() {
    let files = [(
        "templates/web.ldf",
        "main/web 1\n\nmain/base 1\nmain/libc6 1\nmain/libssl 1\nmain/spare 1\n",
    )];
    assert_eq!(faults(&files), ["templates/web.ldf:6 not-needed"]);
    assert_eq!(
        faults(&[("templates/web.ldf", "main/web 1\n\nmain/base 1\nmain/libssl 1\n")]),
        ["templates/web.ldf:0 missing-essential"]
    );
}

#[test]
fn a_held_line_wins_over_its_references() {
    let held = [("templates/web.ldf", WEB), ("appliances/a.ldf", "@web\n=main/libssl 2\n")];
    assert_eq!(faults(&held), Vec::<String>::new());
    let free = [("templates/web.ldf", WEB), ("appliances/a.ldf", "@web\nmain/libssl 2\n")];
    assert_eq!(faults(&free), ["appliances/a.ldf:2 two-versions"]);
}

#[test]
fn references_that_disagree() {
    let other = WEB.replace("libssl 1", "libssl 2");
    let files =
        [("templates/a.ldf", WEB), ("templates/b.ldf", &other), ("templates/c.ldf", "@a\n@b\n")];
    assert_eq!(faults(&files), ["templates/c.ldf:2 two-versions"]);
}

#[test]
fn deep_chains_are_refused_without_recursion() {
    let mut files = vec![("strata.toml".to_owned(), CONFIGURATION.to_owned())];
    files.push(("templates/t0.ldf".to_owned(), WEB.to_owned()));
    for n in 1..50 {
        files.push((format!("templates/t{n}.ldf"), format!("@t{}\n", n - 1)));
    }
    let files: Vec<_> = files.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
    let result = checked(&files);
    assert!(result.diagnostics.iter().all(|d| d.code == "reference-depth"));
    assert_eq!(result.diagnostics.len(), 49 - crate::limits::REFERENCE_DEPTH);
}

#[test]
fn a_missing_manifest_is_said() {
    let none = |_: &LayerSetEntry| None;
    let files = tree(&[("strata.toml", CONFIGURATION), ("templates/web.ldf", WEB)]);
    let result = check(&files, &universe(&[("main", 500, MAIN)]), &none);
    let lines: BTreeMap<_, _> = result.diagnostics.iter().map(|d| (d.line, d.code)).collect();
    assert_eq!(
        lines,
        BTreeMap::from([
            (1, "no-manifest"),
            (3, "no-manifest"),
            (4, "no-manifest"),
            (5, "no-manifest")
        ])
    );
}

const SQL: &str = "main/spare 1\n\nmain/base 1\nmain/libc6 1\n";

#[test]
fn data_directories_are_sealed_and_included() {
    let files = [
        ("strata.toml", CONFIGURATION),
        ("templates/web.ldf", WEB),
        ("templates/sql.ldf", SQL),
        ("templates/sql.data", "/var/lib/mysql\n"),
        ("appliances/one.ldf", "@web\n@sql\n"),
        ("appliances/one.data", "# its queue\n/var/spool/mail\n/var/lib/mysql\n"),
    ];
    let result = checked(&files);
    assert_eq!(result.diagnostics, []);
    let data = |name: &str| -> Vec<String> {
        let generation = &result.compositions[&name.parse().expect("a name")];
        generation.data().iter().map(ToString::to_string).collect()
    };
    assert_eq!(data("web"), [""; 0]);
    assert_eq!(data("sql"), ["/var/lib/mysql"]);
    assert_eq!(data("one"), ["/var/lib/mysql", "/var/spool/mail"]);
}

#[test]
fn data_directories_that_cannot_be_mounted() {
    let found = faults(&[
        ("templates/web.ldf", WEB),
        ("templates/web.data", "/srv/www\n/usr/bin/server/x\n"),
        ("templates/sql.ldf", SQL),
        ("templates/sql.data", "/srv/www/sql\n/srv/x\n/srv/x/y\n"),
        ("templates/tree.ldf", SQL),
        ("templates/tree/var/file", "a file"),
        ("templates/tree.data", "/var/file\n/var/other\n"),
        ("appliances/both.ldf", "@web\n@sql\n"),
    ]);
    let expected = [
        "appliances/both.ldf:0 nested-data",
        "appliances/both.ldf:0 nested-data",
        "templates/sql.data:3 nested-data",
        "templates/tree.data:1 data-path",
        "templates/web.data:2 data-path",
    ];
    assert_eq!(found, expected);
}
