//! Taking layer units out of a repository.
//!
//! The order makes a crash harmless: what is withdrawn of the units is put on record
//! ([`super::withdrawal`]), `.removing` names the units, the database
//! without them is written, their directories are set aside by rename, `.removing`
//! goes. Whoever opens the repository for writing next reads a `.removing` that is
//! left: units that the database still lists were never removed and stay; the
//! others are set aside, so that `strata repo index` cannot bring one back, a
//! withdrawn one above all.
//!
//! A mirror's database says what there is elsewhere, not what is here: it stays as it is, and
//! each unit goes by one rename.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use strata_core::database::Database;
use strata_core::names::unit_directory;
use strata_core::{LayerName, LayerVersion};

use super::RepositoryWriter;
use crate::database_file;
use crate::error::{Context, StoreError};
use crate::read::{optional, read_limited};
use crate::store::Store;
use crate::temporary;

/// Units that are being removed, one directory a line.
const NOTE: &str = ".removing";
/// What a directory that was set aside is called, before a number.
pub(crate) const ASIDE: &str = ".removing-";
/// Bytes of the note: 4096 layers of the longest names would have two million.
const NOTE_BYTES: usize = 64 << 20;

impl RepositoryWriter<'_> {
    /// Takes units out of the repository; of a mirror, which lists them on. Their directories are set aside and
    /// returned: [`Store::discard`] deletes them, which may take its time.
    ///
    /// # Errors
    /// A step failed. Each unit is either listed and there, or neither once the
    /// repository is next opened for writing.
    pub fn remove(
        &mut self,
        units: &BTreeSet<(LayerName, LayerVersion)>,
    ) -> Result<Vec<PathBuf>, StoreError> {
        if units.is_empty() {
            return Ok(Vec::new());
        }
        let directory = self.store.repository_path(&self.repository);
        let names: Vec<_> =
            units.iter().map(|(layer, version)| unit_directory(layer, version)).collect();
        if self.store.is_mirror(&self.repository)? {
            return set_aside(self.store, &directory, &names);
        }
        self.note_withdrawn(units)?;
        let note = directory.join(NOTE);
        let disk = &self.store.disk;
        disk.write_file(&note, format!("{}\n", names.join("\n")).as_bytes(), 0o644)?;
        for (layer, version) in units {
            self.database.remove(layer, version);
        }
        let path = directory.join("database");
        let bytes = database_file::encode(&path, self.database.print().as_bytes())?;
        disk.write_file(&path, &bytes, 0o644)?;
        self.changed = false;
        let aside = set_aside(self.store, &directory, &names)?;
        disk.remove_file(&note)?;
        Ok(aside)
    }
}

/// See the module.
pub(super) fn finish_interrupted(
    store: &Store,
    directory: &Path,
    database: &Database,
) -> Result<(), StoreError> {
    let note = directory.join(NOTE);
    let Some(text) = optional(read_limited(&note, NOTE_BYTES))? else { return Ok(()) };
    let listed: BTreeSet<_> = database
        .units()
        .map(|unit| unit_directory(&unit.metadata.layer, &unit.metadata.version))
        .collect();
    let text = String::from_utf8_lossy(&text);
    let plain = |name: &&str| !name.is_empty() && !name.starts_with('.') && !name.contains('/');
    let gone: Vec<_> = text
        .lines()
        .filter(plain)
        .filter(|name| !listed.contains(*name))
        .map(str::to_owned)
        .collect();
    for path in set_aside(store, directory, &gone)? {
        discard(&path)?;
    }
    store.disk.remove_file(&note)
}

fn set_aside(
    store: &Store,
    directory: &Path,
    names: &[String],
) -> Result<Vec<PathBuf>, StoreError> {
    let mut aside = Vec::new();
    for name in names {
        let path = directory.join(name);
        if optional(fs::symlink_metadata(&path).at("stat", &path))?.is_none() {
            continue;
        }
        let place = aside_of(directory);
        store.disk.set_aside(&path, &place)?;
        aside.push(place);
    }
    store.disk.sync_directory(directory)?;
    Ok(aside)
}

/// A name that no reader looks at and no other writer uses.
pub(crate) fn aside_of(directory: &Path) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    directory.join(temporary::name(ASIDE, number))
}

/// Deletes what was set aside; another process may be doing the same.
pub(crate) fn discard(path: &Path) -> Result<(), StoreError> {
    optional(fs::remove_dir_all(path).at("remove", path)).map(|_| ())
}
