//! The distribution's archive as a Strata database, from the indexes that apt
//! has on this machine: no package is downloaded, so there are no layers behind
//! it. For measuring and comparing, not for use.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use strata_core::database::{Database, Unit};
use strata_core::deb822::{self, Stanza};
use strata_core::metadata::{LayerKind, Metadata};
use strata_core::relation::{parse_dependencies, parse_relations};
use strata_core::{Digest, LayerName, LayerVersion};

/// The name of the repository that is made.
pub const REPOSITORY: &str = "debian";

/// The Packages indexes of the machine's apt sources.
///
/// # Errors
/// apt has none.
pub fn indexes() -> Result<Vec<PathBuf>> {
    let output = Command::new("apt-get")
        .args(["indextargets", "--format", "$(FILENAME)", "Created-By: Packages"])
        .output()
        .context("run apt-get indextargets")?;
    ensure!(output.status.success(), "apt-get indextargets failed: {}", output.status);
    let text = String::from_utf8(output.stdout)?;
    let files: BTreeSet<PathBuf> = text.lines().map(PathBuf::from).collect();
    ensure!(!files.is_empty(), "apt has no package indexes; run `apt-get update`");
    Ok(files.into_iter().collect())
}

/// Reads one index, whatever it is compressed with.
///
/// # Errors
/// apt cannot read it.
pub fn read_index(path: &Path) -> Result<Vec<u8>> {
    let output = Command::new("/usr/lib/apt/apt-helper")
        .arg("cat-file")
        .arg(path)
        .output()
        .context("run apt-helper")?;
    if !output.status.success() {
        bail!("apt-helper cannot read {}; run `apt-get update`", path.display());
    }
    Ok(output.stdout)
}

/// All units of the archive. A version that two indexes have stands once.
///
/// # Errors
/// apt has no indexes, or one is damaged.
pub fn database() -> Result<Database> {
    let mut database = Database::default();
    for path in indexes()? {
        let text = read_index(&path)?;
        let stanzas = deb822::parse(&text).with_context(|| path.display().to_string())?;
        for stanza in &stanzas {
            let unit =
                unit(stanza).with_context(|| format!("{}:{}", path.display(), stanza.line))?;
            if database.get(&unit.metadata.layer, &unit.metadata.version).is_none() {
                database.insert(unit);
            }
        }
    }
    Ok(database)
}

/// What `strata layer import` would say of this package.
fn unit(stanza: &Stanza<'_>) -> Result<Unit> {
    let value = |name: &str| stanza.get(name).map_or("", |field| field.value);
    let line = |name: &str| match value(name).lines().next() {
        None | Some("") => None,
        Some(line) => Some(line.trim().to_owned()),
    };
    let dependencies = |name: &str| {
        parse_dependencies(value(name)).map_err(|(_, error)| anyhow::anyhow!("{name}: {error}"))
    };
    let relations = |name: &str| {
        parse_relations(value(name)).map_err(|(_, error)| anyhow::anyhow!("{name}: {error}"))
    };
    let layer = LayerName::new(value("Package"))?;
    let version = LayerVersion::new(value("Version"))?;
    let metadata = Metadata {
        architecture: line("Architecture"),
        essential: value("Essential") == "yes",
        priority: value("Priority").parse().unwrap_or_default(),
        pre_depends: dependencies("Pre-Depends")?,
        depends: dependencies("Depends")?,
        conflicts: relations("Conflicts")?,
        breaks: relations("Breaks")?,
        replaces: relations("Replaces")?,
        provides: relations("Provides")?,
        section: line("Section"),
        description: line("Description"),
        ..Metadata::new(layer, version, LayerKind::Software)
    };
    let kilobytes: u64 = value("Installed-Size").parse().unwrap_or(0);
    let digest = Digest::of(metadata.print().as_bytes());
    Ok(Unit { metadata, digest, content_bytes: kilobytes * 1024, withdrawn: None })
}
