//! The paper's five appliances (§6), as packages of the distribution, and the update that
//! all of them get.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use strata_core::LayerVersion;
use strata_core::database::Database;
use strata_core::universe::{UnitId, Universe};
use strata_tests::archive::{self, REPOSITORY};
use strata_tests::{packages, resolution};

#[derive(Debug)]
pub struct Appliance {
    /// The template's name.
    pub name: &'static str,
    pub package: &'static str,
    /// What its virtual disk can take, where it has one: the paper's sizes (§6).
    pub disk_bytes: u64,
}

const fn appliance(name: &'static str, package: &'static str, disk_gib: u64) -> Appliance {
    Appliance { name, package, disk_bytes: disk_gib << 30 }
}

pub const APPLIANCES: [Appliance; 5] = [
    appliance("apache", "apache2", 1),
    appliance("mysql", "mariadb-server", 1),
    appliance("samba", "samba", 1),
    appliance("ssh", "openssh-server", 1),
    appliance("desktop", "gnome-session", 2),
];

/// What updates a plain appliance; all appliances have it, so that all have the same files.
pub const TOOL: &str = "apt";

/// The library that is updated: in every appliance, and in the archive at two versions.
const LIBRARIES: [&str; 2] = ["libssl3t64", "libssl3"];

#[derive(Debug)]
pub struct Update {
    pub package: String,
    pub old: LayerVersion,
    pub new: LayerVersion,
    /// The packages of both versions, as files.
    pub old_file: PathBuf,
    pub new_file: PathBuf,
}

pub struct Archive {
    /// What there was before the update.
    universe: Universe,
    /// By appliance.
    closures: Vec<BTreeSet<UnitId>>,
    pub update: Update,
    /// Where the packages are.
    pub directory: PathBuf,
}

impl Archive {
    /// Reads what apt knows, and downloads what the appliances need into `directory`.
    pub fn read(directory: &Path) -> Result<Archive> {
        let mut before = archive::database()?;
        let (package, old, new) = update(&before)?;
        let mut after = Database::default();
        // The other packages of the same source are not there before the update either.
        let released: Vec<_> =
            before.units().filter(|unit| unit.metadata.version == new).cloned().collect();
        for unit in released {
            before.remove(&unit.metadata.layer, &unit.metadata.version);
            after.insert(unit);
        }
        let universe = Universe::new(vec![(REPOSITORY.parse()?, 500, before)]);
        let mut closures = Vec::new();
        for appliance in &APPLIANCES {
            closures.push(closure(&universe, &[TOOL, appliance.package])?);
        }
        let after = Universe::new(vec![(REPOSITORY.parse()?, 500, after)]);
        let file = |universe: &Universe, version: &LayerVersion| -> Result<PathBuf> {
            let unit = universe.get(&REPOSITORY.parse()?, &package.parse()?, version);
            let unit = unit.context("the update is in the archive")?;
            let files = packages::download(universe, [unit], directory)?;
            files.into_iter().next().context("one file")
        };
        let update = Update {
            old_file: file(&universe, &old)?,
            new_file: file(&after, &new)?,
            package,
            old,
            new,
        };
        Ok(Archive { universe, closures, update, directory: directory.to_owned() })
    }

    /// The packages of all appliances, and of what else is to be there: each with all that it
    /// needs together.
    pub fn files(&self, others: &[Vec<&str>]) -> Result<Vec<PathBuf>> {
        let mut units: BTreeSet<UnitId> = self.closures.iter().flatten().copied().collect();
        for other in others {
            units.extend(closure(&self.universe, other)?);
        }
        packages::download(&self.universe, units, &self.directory)
    }

    /// The layers of an appliance, by its number.
    pub fn layers(&self, appliance: usize) -> BTreeSet<(String, LayerVersion)> {
        let units = self.closures.get(appliance).into_iter().flatten();
        units
            .map(|unit| {
                let metadata = &self.universe.unit(*unit).metadata;
                (metadata.layer.to_string(), metadata.version.clone())
            })
            .collect()
    }

    /// Layers of the appliances that the archive has at an older version, too.
    pub fn former(&self) -> Result<Vec<Versions>> {
        let units: BTreeSet<UnitId> = self.closures.iter().flatten().copied().collect();
        let version = |unit: UnitId| &self.universe.unit(unit).metadata.version;
        let (mut olders, mut newers, mut layers) = (Vec::new(), Vec::new(), Vec::new());
        for unit in units {
            let layer = &self.universe.unit(unit).metadata.layer;
            let older = self.universe.named(layer);
            let older = older.filter(|other| version(*other).debian_cmp(version(unit)).is_lt());
            if let Some(older) = older.max_by(|a, b| version(*a).debian_cmp(version(*b))) {
                let versions = [version(older).clone(), version(unit).clone()];
                layers.push((layer.to_string(), versions));
                olders.push(older);
                newers.push(unit);
            }
        }
        let download = |units| packages::download(&self.universe, units, &self.directory);
        let files = download(olders)?.into_iter().zip(download(newers)?);
        let pairs = layers.into_iter().zip(files);
        Ok(pairs
            .map(|((layer, versions), (older, newer))| Versions {
                layer,
                versions,
                files: [older, newer],
            })
            .collect())
    }
}

/// A layer, its older and its newer version, and their packages.
pub struct Versions {
    pub layer: String,
    pub versions: [LayerVersion; 2],
    pub files: [PathBuf; 2],
}

fn closure(universe: &Universe, goals: &[&str]) -> Result<BTreeSet<UnitId>> {
    let (found, _) = resolution::resolved(universe, &resolution::desired(goals)?)?;
    found.map_err(anyhow::Error::msg).with_context(|| goals.join(" "))
}

/// The library that is updated, and its two newest versions.
fn update(database: &Database) -> Result<(String, LayerVersion, LayerVersion)> {
    for library in LIBRARIES {
        let of_library = database.units().filter(|unit| unit.metadata.layer.as_str() == library);
        let mut versions: Vec<_> = of_library.map(|unit| unit.metadata.version.clone()).collect();
        versions.sort_by(|a, b| a.debian_cmp(b));
        if let [.., old, new] = versions.as_slice() {
            return Ok((library.to_owned(), old.clone(), new.clone()));
        }
        ensure!(
            versions.is_empty(),
            "apt knows one version of {library} only\n  hint: add the distribution's security archive to apt's sources"
        );
    }
    anyhow::bail!("apt knows none of {LIBRARIES:?}\n  hint: apt-get update")
}
