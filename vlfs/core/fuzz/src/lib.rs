//! What must hold of every parser on every input: it never panics, and what it
//! accepts it prints back. One function a fuzz target of `targets/`.

use std::collections::BTreeSet;

use strata_core::configuration::{Configuration, read_appliances};
use strata_core::data_paths::{self, DataPath, DataPaths};
use strata_core::database::Database;
use strata_core::deb822;
use strata_core::diagnostic::Diagnostic;
use strata_core::generation::Generation;
use strata_core::ldf::{LayerLine, Ldf};
use strata_core::manifest::Manifest;
use strata_core::metadata::Metadata;
use strata_core::modes;
use strata_core::names::{LayerName, MacAddr, unit_directory};
use strata_core::relation::{parse_dependencies, parse_relations, print_list};
use strata_core::report::Report;
use strata_core::signed::{Envelope, Root, Snapshot};
use strata_core::version::LayerVersion;
use strata_core::withdrawn::Withdrawn;

/// Lossless, and an edit of an accepted file is accepted and read back the same.
pub fn ldf(text: &[u8]) {
    let Ok(mut ldf) = Ldf::parse(text) else { return };
    assert_eq!(ldf.print().as_bytes(), text);
    let names: BTreeSet<_> = ldf.explicit().map(|(_, line)| line.layer.clone()).collect();
    let mut wanted: Vec<LayerLine> = ldf.implicit().map(|(_, line)| line.clone()).collect();
    let first =
        ldf.explicit().map(|(_, line)| (line.repository.clone(), line.layer.clone())).next();
    if let Some((repository, layer)) = first {
        let version = LayerVersion::new("1:2.3-4").expect("a version");
        ldf.set_version(&repository, &layer, &version);
        let added = LayerName::new("added").expect("a name");
        if !names.contains(&added) && wanted.iter().all(|line| line.layer != added) {
            let version = Some(version);
            wanted.push(LayerLine { hold: false, repository, layer: added, version });
        }
    }
    ldf.set_implicit(&wanted);
    if ldf.print().len() <= strata_core::limits::LDF_BYTES {
        assert_eq!(Ldf::parse(ldf.print().as_bytes()).as_ref(), Ok(&ldf));
    }
}

/// Every byte of every value has a position within the text.
pub fn deb822(text: &[u8]) {
    let Ok(stanzas) = deb822::parse(text) else { return };
    let lines = text.split(|b| *b == b'\n').count();
    for field in stanzas.iter().flat_map(|stanza| &stanza.fields) {
        for offset in 0..=field.value.len() {
            let place = field.locate(offset, ());
            assert!(place.line as usize <= lines && place.column >= 1);
        }
    }
}

pub fn relation(text: &[u8]) {
    let Ok(text) = std::str::from_utf8(text) else { return };
    match parse_dependencies(text) {
        Ok(list) => assert_eq!(parse_dependencies(&print_list(&list)), Ok(list)),
        Err(fault) => assert!(fault.0 <= text.len()),
    }
    match parse_relations(text) {
        Ok(list) => assert_eq!(parse_relations(&print_list(&list)), Ok(list)),
        Err(fault) => assert!(fault.0 <= text.len()),
    }
}

pub fn metadata(text: &[u8]) {
    if let Ok(metadata) = Metadata::parse(text) {
        assert_eq!(Metadata::parse(metadata.print().as_bytes()), Ok(metadata));
    }
}

pub fn database(text: &[u8]) {
    if let Ok(database) = Database::parse(text) {
        assert_eq!(Database::parse(database.print().as_bytes()), Ok(database));
    }
}

/// Only what was printed is read.
pub fn withdrawn(text: &[u8]) {
    if let Ok(withdrawn) = Withdrawn::parse(text) {
        assert_eq!(withdrawn.print().as_bytes(), text);
    }
}

/// Only canonical manifests are accepted, and every entry is found by its path.
pub fn manifest(text: &[u8]) {
    let Ok(manifest) = Manifest::parse(text) else { return };
    assert_eq!(manifest.print().as_bytes(), text);
    for entry in manifest.entries() {
        assert_eq!(manifest.get(&entry.path), Some(entry));
    }
}

/// The input is a `layers` file, a NUL byte and an LDF.
pub fn generation(text: &[u8]) {
    let mut parts = text.splitn(2, |b| *b == 0);
    let layers = parts.next().unwrap_or_default();
    let ldf = parts.next().unwrap_or_default();
    let Ok(generation) = Generation::parse(layers, ldf) else { return };
    assert_eq!(generation.print_layers().as_bytes(), layers);
    assert_eq!(generation.ldf().as_bytes(), ldf);
}

pub fn report(text: &[u8]) {
    let mac: MacAddr = "52:54:00:12:34:56".parse().expect("a MAC address");
    if let Ok(report) = Report::parse(text, mac) {
        let again = Report::parse(report.print().as_bytes(), mac).expect("its own print");
        assert_eq!(again, report);
    }
}

/// Two versions, one a line: printed as written, ordered one way, and naming
/// two directories where they differ.
pub fn version(text: &[u8]) {
    let Ok(text) = std::str::from_utf8(text) else { return };
    let mut lines = text.splitn(2, '\n');
    let (Some(Ok(a)), Some(Ok(b))) =
        (lines.next().map(LayerVersion::new), lines.next().map(LayerVersion::new))
    else {
        return;
    };
    assert_eq!(format!("{a}\n{b}"), text);
    assert_eq!(a.cmp(&b), b.cmp(&a).reverse());
    assert_eq!(a.debian_cmp(&b), b.debian_cmp(&a).reverse());
    let layer = LayerName::new("x").expect("a name");
    assert_eq!(a == b, unit_directory(&layer, &a) == unit_directory(&layer, &b));
}

/// `strata.toml`: a fault names a line of the text, or the text as a whole.
pub fn configuration(text: &[u8]) {
    let (_, faults) = Configuration::read(text);
    located(text, &faults);
}

/// `appliances.toml`, under the configuration of an empty `strata.toml`.
pub fn appliances(text: &[u8]) {
    let (configuration, _) = Configuration::read(b"");
    let (appliances, faults) = read_appliances(text, &configuration);
    located(text, &faults);
    assert!(appliances.by_name.len() <= text.len());
}

/// `templates/<name>.modes`: no path leaves the template's root.
pub fn modes(text: &[u8]) {
    let (lines_by_path, faults) = modes::parse(text);
    for fault in &faults {
        assert!(fault.line as usize <= lines(text), "{fault}");
    }
    for path in lines_by_path.keys() {
        let mut components = path.trim_end_matches('/').split('/');
        assert!(components.all(|component| !matches!(component, "" | "." | "..")), "{path:?}");
    }
}

/// A generation's `scripts`: only what was printed is read.
pub fn script_policy(text: &[u8]) {
    if let Ok(policy) = strata_core::scripts::policy::ScriptPolicy::parse(text) {
        assert_eq!(policy.print().as_bytes(), text);
    }
}

/// `templates/<name>.data` and a generation's `data`: no path leaves the VA's root,
/// and each has a name on the private disk of its own.
pub fn data(text: &[u8]) {
    let (declared, faults) = data_paths::parse(text);
    for fault in &faults {
        assert!(fault.line as usize <= lines(text), "{fault}");
    }
    for path in declared.keys() {
        let mut components = path.relative().split('/');
        assert!(components.all(|component| !matches!(component, "" | "." | "..")), "{path}");
        let name = path.directory_name();
        assert_eq!(DataPath::of_directory_name(name.as_bytes()).as_ref(), Some(path));
    }
    if let Ok(paths) = DataPaths::parse(text) {
        assert_eq!(paths.print().as_bytes(), text);
    }
}

/// A root or a snapshot with its signatures: taken apart without loss.
pub fn signed(text: &[u8]) {
    let Ok(envelope) = Envelope::parse(text) else { return };
    assert_eq!(envelope.print().as_bytes(), text);
    if let Ok(root) = Root::parse(&envelope.text) {
        assert_eq!(Root::parse(&root.print()), Ok(root));
    }
    if let Ok(snapshot) = Snapshot::parse(&envelope.text) {
        assert_eq!(Snapshot::parse(&snapshot.print()), Ok(snapshot));
    }
}

fn located(text: &[u8], faults: &[Diagnostic]) {
    for fault in faults {
        assert!(fault.line as usize <= lines(text), "{fault}");
    }
}

fn lines(text: &[u8]) -> usize {
    text.iter().filter(|byte| **byte == b'\n').count() + 1
}
