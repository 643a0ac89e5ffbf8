//! Ring links and VA links: what every VA should run, told by `readlink`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use strata_core::links::VaTarget;
use strata_core::{CompositionName, GenerationId, MacAddr, RingName};

use crate::error::{Context, StoreError};
use crate::read::{names_in, optional};
use crate::store::Store;

/// All VA links of a store.
#[derive(Debug, Default)]
pub struct VaLinks {
    pub targets: BTreeMap<MacAddr, VaTarget>,
    /// What stands where a VA's link should, put there by somebody else.
    pub foreign: Vec<StoreError>,
}

/// All ring links of a store.
#[derive(Debug, Default)]
pub struct RingLinks {
    pub rings: BTreeMap<(CompositionName, RingName), GenerationId>,
    /// What stands where a ring's link should, put there by somebody else.
    pub foreign: Vec<(CompositionName, RingName, StoreError)>,
}

/// The target of a link; `None` where nothing stands.
fn link_target(path: &Path) -> Result<Option<PathBuf>, StoreError> {
    match std::fs::read_link(path) {
        Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => {
            Err(StoreError::NotALink(path.to_owned()))
        }
        target => optional(target.at("read the link", path)),
    }
}

impl Store {
    pub(crate) fn ring_path(&self, composition: &CompositionName, ring: &RingName) -> PathBuf {
        self.root().join("rings").join(composition).join(ring)
    }

    pub(crate) fn va_path(&self, mac: MacAddr) -> PathBuf {
        self.root().join("va").join(mac.to_string())
    }

    /// The generation that a ring of a composition is on; `None` where the ring
    /// has no link.
    ///
    /// # Errors
    /// The link is none that Strata made.
    pub fn ring(
        &self,
        composition: &CompositionName,
        ring: &RingName,
    ) -> Result<Option<GenerationId>, StoreError> {
        let path = self.ring_path(composition, ring);
        let Some(target) = link_target(&path)? else { return Ok(None) };
        let id = target.strip_prefix("../../generations").ok().and_then(|id| id.to_str());
        match id.and_then(|id| id.parse().ok()) {
            Some(id) => Ok(Some(id)),
            None => Err(StoreError::ForeignLink { path, target }),
        }
    }

    /// When a ring's link was last moved, by the clock of the store's file
    /// system; `None` where the ring has no link.
    ///
    /// # Errors
    /// The link cannot be looked at.
    pub fn ring_moved_at(
        &self,
        composition: &CompositionName,
        ring: &RingName,
    ) -> Result<Option<SystemTime>, StoreError> {
        let path = self.ring_path(composition, ring);
        let modified = std::fs::symlink_metadata(&path).and_then(|metadata| metadata.modified());
        optional(modified.at("stat", &path))
    }

    /// All ring links. What somebody else put in the place of one is told in the
    /// log and counts as no link: one bad ring must not hide the others.
    ///
    /// # Errors
    /// A directory cannot be listed, or a link cannot be read.
    pub fn rings(&self) -> Result<BTreeMap<(CompositionName, RingName), GenerationId>, StoreError> {
        let RingLinks { rings, foreign } = self.ring_links()?;
        for (_, _, error) in foreign {
            tracing::warn!(%error, "a ring's link is passed over");
        }
        Ok(rings)
    }

    /// All ring links, and what is none.
    ///
    /// # Errors
    /// See [`Store::rings`].
    pub fn ring_links(&self) -> Result<RingLinks, StoreError> {
        let mut links = RingLinks::default();
        for directory in self.ring_directories()? {
            let name = directory.file_name().unwrap_or_default().to_string_lossy();
            let Ok(composition) = CompositionName::new(name.as_ref()) else { continue };
            for ring in names_in(&directory)? {
                let Ok(ring) = RingName::new(ring) else { continue };
                match self.ring(&composition, &ring) {
                    Ok(Some(id)) => {
                        links.rings.insert((composition.clone(), ring), id);
                    }
                    Ok(None) => {}
                    Err(error) if error.is_foreign_link() => {
                        links.foreign.push((composition.clone(), ring, error));
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(links)
    }

    /// The directories below `rings/`, one a composition.
    pub(crate) fn ring_directories(&self) -> Result<Vec<PathBuf>, StoreError> {
        let parent = self.root().join("rings");
        let names = names_in(&parent)?;
        let mut paths: Vec<_> = names.iter().map(|name| parent.join(name)).collect();
        paths.retain(|path| {
            let is_directory = path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir());
            if !is_directory {
                tracing::warn!(path = %path.display(), "what is no directory is passed over");
            }
            is_directory
        });
        Ok(paths)
    }

    /// Moves a ring to a sealed generation: one `rename(2)` moves every VA that
    /// hangs off the ring, however many there are.
    ///
    /// # Errors
    /// The generation is not sealed; or the link cannot be written and the old
    /// one stands.
    pub fn move_ring(
        &self,
        composition: &CompositionName,
        ring: &RingName,
        generation: &GenerationId,
    ) -> Result<(), StoreError> {
        if !self.has_generation(generation) {
            return Err(StoreError::NoGeneration(*generation));
        }
        let path = self.ring_path(composition, ring);
        // Collected by when it was last in use, not by when it was sealed.
        if let Some(former) = self.ring(composition, ring).ok().flatten() {
            self.touch_generation(&former);
        }
        self.disk.create_directory(path.parent().expect("a ring path has a parent"))?;
        self.disk.replace_link(&path, Path::new(&format!("../../generations/{generation}")))
    }

    /// Removes a ring's link.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn remove_ring(
        &self,
        composition: &CompositionName,
        ring: &RingName,
    ) -> Result<(), StoreError> {
        self.disk.remove_file(&self.ring_path(composition, ring))
    }

    /// All VA links with their targets, by MAC address. One that somebody else
    /// made does not hide the others.
    ///
    /// # Errors
    /// The directory cannot be listed, or a link cannot be read.
    pub fn va_links(&self) -> Result<VaLinks, StoreError> {
        let mut links = VaLinks::default();
        for name in names_in(&self.root().join("va"))? {
            let Ok(mac) = name.parse() else {
                tracing::warn!(name, "a name in va/ that is no MAC address is passed over");
                continue;
            };
            match self.va_target(mac) {
                Ok(Some(target)) => {
                    links.targets.insert(mac, target);
                }
                Ok(None) => {}
                Err(error) if error.is_foreign_link() => links.foreign.push(error),
                Err(error) => return Err(error),
            }
        }
        Ok(links)
    }

    /// When a VA's link was last moved, by the clock of the store's file system; `None`
    /// where it has none.
    ///
    /// # Errors
    /// The link cannot be looked at.
    pub fn va_moved_at(&self, mac: MacAddr) -> Result<Option<SystemTime>, StoreError> {
        let path = self.va_path(mac);
        let modified = std::fs::symlink_metadata(&path).and_then(|metadata| metadata.modified());
        optional(modified.at("stat", &path))
    }

    /// Where a VA's link points; `None` where it has none.
    ///
    /// # Errors
    /// The link is none that Strata made.
    pub fn va_target(&self, mac: MacAddr) -> Result<Option<VaTarget>, StoreError> {
        let path = self.va_path(mac);
        let Some(target) = link_target(&path)? else { return Ok(None) };
        match VaTarget::from_path(&target) {
            Some(target) => Ok(Some(target)),
            None => Err(StoreError::ForeignLink { path, target }),
        }
    }

    /// The generation a VA should serve: its link followed to the end. `None`
    /// where the VA has no link or its ring has none yet.
    ///
    /// # Errors
    /// A link on the way is none that Strata made.
    pub fn desired(&self, mac: MacAddr) -> Result<Option<GenerationId>, StoreError> {
        match self.va_target(mac)? {
            None => Ok(None),
            Some(VaTarget::Pinned { generation, .. }) => Ok(Some(generation)),
            Some(VaTarget::Ring { composition, ring }) => self.ring(&composition, &ring),
        }
    }

    /// Claims a MAC address for a new VA. Not synced: follow a batch with
    /// [`Store::sync`].
    ///
    /// # Errors
    /// [`StoreError::MacTaken`] where the address has a link.
    pub fn claim_va(&self, mac: MacAddr, target: &VaTarget) -> Result<(), StoreError> {
        match self.disk.create_link(&self.va_path(mac), &target.to_path()) {
            Err(StoreError::Io { source, .. })
                if source.kind() == std::io::ErrorKind::AlreadyExists =>
            {
                Err(StoreError::MacTaken(mac))
            }
            other => other,
        }
    }

    /// Points a VA's link elsewhere, durably.
    ///
    /// # Errors
    /// It cannot be written; the old link stands.
    pub fn move_va(&self, mac: MacAddr, target: &VaTarget) -> Result<(), StoreError> {
        self.disk.replace_link(&self.va_path(mac), &target.to_path())
    }

    /// Removes a VA's link.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn release_va(&self, mac: MacAddr) -> Result<(), StoreError> {
        self.disk.remove_file(&self.va_path(mac))
    }

    /// Waits until all that was written to the store is on disk.
    ///
    /// # Errors
    /// The file system reports a failed write.
    pub fn sync(&self) -> Result<(), StoreError> {
        self.disk.sync_file_system(self.root())
    }
}
