//! The fuzz targets' properties on the golden files and on mutations of them, so
//! that they hold, and still compile, in every run of the tests.

use proptest::prelude::*;

#[path = "../../vlfs/core/fuzz/src/lib.rs"]
mod properties;

type Property = fn(&[u8]);

/// A property, and an input that its parser accepts.
const TARGETS: [(Property, &[u8]); 20] = [
    (properties::ldf, include_bytes!("../../vlfs/core/golden/figure-2.ldf")),
    (properties::ldf, b"# web\n@base\n=main/apache2 1 # held\n\n  main/a 1   # why\n# tail"),
    (properties::deb822, include_bytes!("../../vlfs/core/golden/database")),
    (properties::relation, b"perl (>= 5.6), tcpd:any (>= 7.6-4) | inetd, x (<< 1~)"),
    (properties::metadata, b"Layer: x\nVersion: 1\nDepends: a (>= 1),\n b | c\nProvides: v\n"),
    (properties::database, include_bytes!("../../vlfs/core/golden/database")),
    (properties::withdrawn, include_bytes!("../../vlfs/core/golden/withdrawn")),
    (properties::manifest, include_bytes!("../../vlfs/core/golden/manifest")),
    (properties::generation, include_bytes!("../../vlfs/core/golden/generation-layers")),
    (properties::report, include_bytes!("../../vlfs/core/golden/report")),
    (properties::report, include_bytes!("../../vlfs/core/golden/report-2")),
    (properties::configuration, include_bytes!("../../examples/repo-layout/strata.toml")),
    (properties::appliances, include_bytes!("../../examples/repo-layout/appliances.toml")),
    (properties::modes, include_bytes!("../../examples/repo-layout/templates/web-server.modes")),
    (properties::data, include_bytes!("../../examples/repo-layout/templates/sql-server.data")),
    (properties::data, include_bytes!("../../vlfs/core/golden/generation-data")),
    (properties::script_policy, include_bytes!("../../vlfs/core/golden/generation-scripts")),
    (properties::signed, include_bytes!("../../vlfs/core/golden/signed-root")),
    (properties::signed, include_bytes!("../../vlfs/core/golden/signed-snapshot")),
    (properties::version, b"1:2.3~rc1-4\n1:2.3-4"),
];

#[test]
fn golden_files() {
    for (property, text) in TARGETS {
        property(text);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn mutations(
        which in 0..TARGETS.len(),
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..4u8), 1..6),
    ) {
        let (property, text) = TARGETS[which];
        let mut text = text.to_vec();
        for (at, byte, edit) in edits {
            let at = at.index(text.len() + 1);
            match edit {
                0 if at < text.len() => text[at] = byte,
                1 if at < text.len() => drop(text.remove(at)),
                2 => text.truncate(at),
                _ => text.insert(at, byte),
            }
        }
        property(&text);
    }
}
