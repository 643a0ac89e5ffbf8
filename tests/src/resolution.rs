//! A repository with one template over the distribution's archive, resolved in memory
//! or by the command.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use strata_core::desired::DesiredState;
use strata_core::metadata::LayerKind;
use strata_core::resolver::{Upgrade, resolve};
use strata_core::source::{SourceContent, SourceTree};
use strata_core::universe::{UnitId, Universe};

use crate::archive::REPOSITORY;

/// The text of `strata.toml`.
pub fn configuration() -> String {
    format!("[[repository]]\nname = \"{REPOSITORY}\"\n")
}

/// A template's explicit part: these layers.
pub fn template(goals: &[&str]) -> String {
    goals.iter().map(|goal| format!("{REPOSITORY}/{goal}\n")).collect()
}

/// The template as the resolver takes it.
///
/// # Errors
/// A goal is no name of a layer.
pub fn desired(goals: &[&str]) -> Result<DesiredState> {
    let mut tree = SourceTree::default();
    let files = [("strata.toml", configuration()), ("templates/goal.ldf", template(goals))];
    for (path, text) in files {
        let content = SourceContent::Regular { bytes: text.into_bytes(), executable: false };
        tree.insert(path.as_bytes(), content)?;
    }
    let (desired, faults) = DesiredState::read(&tree);
    ensure!(faults.is_empty(), "{faults:?}");
    Ok(desired)
}

/// Reads and indexes a database. Returns the seconds it took.
///
/// # Errors
/// It cannot be read, or is none.
pub fn load(database: &Path) -> Result<(Universe, f64)> {
    let started = Instant::now();
    let text = std::fs::read(database).with_context(|| database.display().to_string())?;
    let database = strata_store::check_database(text)?;
    let universe = Universe::from_texts(vec![(REPOSITORY.parse()?, 500, database)]);
    Ok((universe, started.elapsed().as_secs_f64()))
}

/// Resolves: the set, or why there is none, and the seconds it took.
///
/// # Errors
/// The resolver's answer names what is not in the universe.
pub fn resolved(
    universe: &Universe,
    desired: &DesiredState,
) -> Result<(Result<BTreeSet<UnitId>, String>, f64)> {
    let started = Instant::now();
    let resolution = resolve(desired, universe, &Upgrade::Nothing);
    let took = started.elapsed().as_secs_f64();
    let Some(found) = resolution.resolved.values().next() else {
        let message = resolution.diagnostics.first().map(ToString::to_string);
        return Ok((Err(message.unwrap_or_default()), took));
    };
    let mut units = BTreeSet::new();
    for (_, line) in found.ldf.explicit().chain(found.ldf.implicit()) {
        let version = line.version.as_ref().context("a resolved line has a version")?;
        let unit = universe.get(&line.repository, &line.layer, version);
        units.insert(unit.context("a resolved unit is in the universe")?);
    }
    Ok((Ok(units), took))
}

/// The names of the essential layers.
///
/// # Errors
/// None that can happen: the repository's name is valid.
pub fn essential(universe: &Universe) -> Result<Vec<String>> {
    let names = universe.essential(&REPOSITORY.parse()?);
    Ok(names.into_iter().map(ToString::to_string).collect())
}

/// apt's answer as units; every version it names is in the universe.
///
/// # Errors
/// One is not.
pub fn units_of(
    universe: &Universe,
    installed: &std::collections::BTreeMap<String, String>,
) -> Result<BTreeSet<UnitId>> {
    let repository = REPOSITORY.parse()?;
    let unit = |(name, version): (&String, &String)| {
        let found = universe.get(&repository, &name.parse()?, &version.parse()?);
        let found = found.with_context(|| format!("{name} {version} is not in the database"))?;
        ensure!(universe.unit(found).metadata.kind == LayerKind::Software, "{name}");
        Ok(found)
    };
    installed.iter().map(unit).collect()
}
