//! How a layer stands beside the others: what it needs of them, and what both have.

use std::collections::HashSet;

use strata_core::manifest::Kind;
use strata_core::metadata::{LayerKind, Metadata};
use strata_core::names::RepositoryName;
use strata_core::shared_paths::{may_obscure, shared_paths};
use strata_core::universe::{UnitId, Universe};

use super::{Code, Finding, LintError, Severity, Subject};
use crate::infer::providers::{Provider, Providers};

/// Dependencies that no unit meets, and other layers that share paths.
///
/// # Errors
/// A database or manifest cannot be read.
pub fn findings(
    subject: Subject<'_>,
    repositories: &[RepositoryName],
    providers: &Providers<'_>,
) -> Result<Vec<Finding>, LintError> {
    let Subject { store, repository, metadata, .. } = subject;
    let mut databases = Vec::new();
    for repository in repositories {
        databases.push((repository.clone(), 500, store.database_text(repository)?));
    }
    let universe = Universe::from_texts(databases);
    let own = universe.get(repository, &metadata.layer, &metadata.version);
    let own = own.ok_or_else(|| {
        LintError::Unlisted(format!("{repository}/{} {}", metadata.layer, metadata.version))
    })?;
    let mut found = unmet(&universe, own, metadata);
    if metadata.kind == LayerKind::Software {
        found.extend(shared(subject, &universe, own, providers)?);
    }
    Ok(found)
}

fn unmet(universe: &Universe, own: UnitId, metadata: &Metadata) -> Vec<Finding> {
    let fields = [("Pre-Depends", &metadata.pre_depends), ("Depends", &metadata.depends)];
    let mut found = Vec::new();
    for (field, dependencies) in fields {
        for dependency in dependencies {
            let satisfiers =
                dependency.alternatives.iter().flat_map(|one| universe.satisfiers(one, own));
            let (usable, barred): (Vec<_>, Vec<_>) =
                satisfiers.partition(|unit| !universe.barred(*unit));
            if !usable.is_empty() {
                continue;
            }
            let reason = match barred.first().and_then(|unit| Some((unit, universe.bar(*unit)?))) {
                Some((unit, bar)) => {
                    format!("{field}: {dependency}: there is only {} ({bar})", universe.show(*unit))
                }
                None => format!("{field}: {dependency}: no repository has it"),
            };
            let (severity, code) = (Severity::Error, Code::UnmetDependency);
            found.push(Finding { severity, code, path: None, reason });
        }
    }
    found
}

/// Whether the two can never stand in one composition.
fn apart(universe: &Universe, a: UnitId, b: UnitId) -> bool {
    let excludes = |from: UnitId, to: UnitId| {
        let metadata = &universe.unit(from).metadata;
        let mut relations = metadata.conflicts.iter().chain(&metadata.breaks);
        relations.any(|relation| universe.satisfies(to, relation, from))
    };
    let systems = [a, b].map(|unit| universe.unit(unit).metadata.system);
    excludes(a, b) || excludes(b, a) || matches!(systems, [Some(a), Some(b)] if a != b)
}

fn shared(
    subject: Subject<'_>,
    universe: &Universe,
    own: UnitId,
    providers: &Providers<'_>,
) -> Result<Vec<Finding>, LintError> {
    let Subject { metadata, manifest, .. } = subject;
    let files = manifest.entries().iter().filter(|entry| entry.kind != Kind::Directory);
    let files: HashSet<&[u8]> = files.map(|entry| entry.path.as_slice()).collect();
    let all: HashSet<&[u8]> = manifest.entries().iter().map(|e| e.path.as_slice()).collect();
    let mut found = Vec::new();
    for other in providers.all() {
        let theirs = providers.manifest(other)?;
        // A path counts where one of the two has no directory there.
        let meets = theirs.entries().iter().any(|entry| match entry.kind {
            Kind::Directory => files.contains(entry.path.as_slice()),
            _ => all.contains(entry.path.as_slice()),
        });
        let Provider { repository, metadata: other, .. } = other;
        let Some(unit) = universe.get(repository, &other.layer, &other.version) else { continue };
        if !meets || apart(universe, own, unit) {
            continue;
        }
        let permits = |_, _, path: &[u8]| {
            may_obscure(metadata, other, path) || may_obscure(other, metadata, path)
        };
        for shared in shared_paths(&[manifest, theirs], permits) {
            let more = match shared.count - 1 {
                0 => String::new(),
                more => format!(", and {more} more paths"),
            };
            let reason = format!(
                "{} has it too{more}; they cannot stand in one composition",
                universe.show(unit)
            );
            found.push(Finding::at(Severity::Error, Code::SharedPath, &shared.path, reason));
        }
    }
    Ok(found)
}
