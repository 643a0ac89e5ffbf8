//! What somebody else put in the place of a link or a sealed generation, and how it is put
//! right: it is set aside in `state/set-aside/`, whole, and never deleted here.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use strata_core::generation::Generation;
use strata_core::{CompositionName, GenerationId, MacAddr, RingName};

use crate::error::{Context, StoreError};
use crate::read::names_in;
use crate::store::Store;

const DIRECTORY: &str = "set-aside";
/// Things that may lie there: whoever puts more in place than anybody looks at does not
/// fill the disk.
const MOST: usize = 100;

/// What the files of a generation were like when they were looked at. Nothing was changed in
/// a generation that is like before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GenerationStamp(Vec<(String, u64, i64, i64, u64)>);

impl Store {
    /// Where something that stands in the way goes; `label` says what it was.
    ///
    /// # Errors
    /// There is no room for it.
    pub fn aside(&self, label: &str, at_ms: u64) -> Result<PathBuf, StoreError> {
        let directory = self.state(DIRECTORY);
        self.disk().create_directory(&directory)?;
        if names_in(&directory)?.len() >= MOST {
            return Err(StoreError::AsideFull(directory));
        }
        Ok(directory.join(format!("{label}-{at_ms}")))
    }

    /// Sets aside what stands in the place of a VA's link.
    ///
    /// # Errors
    /// It cannot be moved; it stands where it stood.
    pub fn set_va_aside(&self, mac: MacAddr, aside: &Path) -> Result<(), StoreError> {
        self.move_aside(&self.va_path(mac), aside)
    }

    /// Sets aside what stands in the place of a ring's link.
    ///
    /// # Errors
    /// See [`Store::set_va_aside`].
    pub fn set_ring_aside(
        &self,
        composition: &CompositionName,
        ring: &RingName,
        aside: &Path,
    ) -> Result<(), StoreError> {
        self.move_aside(&self.ring_path(composition, ring), aside)
    }

    fn move_aside(&self, path: &Path, aside: &Path) -> Result<(), StoreError> {
        self.disk().set_aside(path, aside)?;
        self.disk().sync_directory(&self.state(DIRECTORY))
    }

    /// What the files of a generation are like, without a look into them.
    ///
    /// # Errors
    /// They cannot be looked at.
    pub fn generation_stamp(&self, id: &GenerationId) -> Result<GenerationStamp, StoreError> {
        let path = self.generation_path(id);
        let mut files = Vec::new();
        for name in names_in(&path)? {
            let file = path.join(&name);
            let found = file.symlink_metadata().at("stat", &file)?;
            files.push((name, found.ino(), found.ctime(), found.ctime_nsec(), found.size()));
        }
        files.sort();
        Ok(GenerationStamp(files))
    }

    /// Seals a generation anew whose content is other than it was; what stood in its place is
    /// set aside.
    ///
    /// # Errors
    /// It cannot be written, and stands as it stood.
    pub fn reseal_generation(
        &self,
        generation: &Generation,
        origin: &str,
        aside: &Path,
    ) -> Result<(), StoreError> {
        let staged = self.stage_generation(generation, origin)?;
        let path = self.generation_path(&generation.id());
        if path.symlink_metadata().is_err() {
            return self.disk.publish_directory(&staged, &path);
        }
        self.disk.exchange_directory(&staged, &path)?;
        self.move_aside(&staged, aside)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_aside_is_kept_and_bounded() {
        let directory = tempfile::TempDir::new().expect("a directory");
        let store = Store::init(&directory.path().join("store")).expect("a store");
        let mac: MacAddr = "02:00:00:00:00:01".parse().expect("valid");
        let link = store.root().join(format!("va/{mac}"));
        std::fs::create_dir_all(link.join("with/more")).expect("a directory");
        let aside = store.aside("va", 7).expect("room");
        store.set_va_aside(mac, &aside).expect("set aside");
        assert!(aside.join("with/more").is_dir() && !link.exists());
        std::fs::write(&link, "x").expect("written");
        assert!(store.set_va_aside(mac, &aside).is_err(), "nothing is written over");
        assert!(link.exists() && aside.join("with").is_dir());
        for number in 1..MOST {
            std::fs::write(aside.with_file_name(format!("x{number}")), "").expect("written");
        }
        assert!(matches!(store.aside("va", 8), Err(StoreError::AsideFull(_))));
    }
}
