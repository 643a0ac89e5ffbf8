//! The file systems that are compared, each with the same files.

use std::ffi::CString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};
use rustix::mount::{MountFlags, UnmountFlags};
use strata_tests::commands::run;

use crate::trees::Trees;

/// What Strata mounts as a data directory, from the root.
pub const DATA_DIRECTORY: &str = "data";

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// One plain directory on the disk.
    Native,
    /// The kernel's overlayfs.
    Overlay,
    FuseOverlay,
    Strata,
    /// Strata, with data passing through its daemon.
    StrataOff,
}

pub const ALL: [Kind; 5] =
    [Kind::Native, Kind::Overlay, Kind::FuseOverlay, Kind::Strata, Kind::StrataOff];

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Native => "native",
            Kind::Overlay => "overlayfs",
            Kind::FuseOverlay => "fuse-overlayfs",
            Kind::Strata => "strata",
            Kind::StrataOff => "strata, no passthrough",
        }
    }
}

/// A mounted file system of the comparison; unmounted when it is dropped.
#[derive(Debug)]
pub struct System {
    pub kind: Kind,
    /// Where the files are seen.
    pub root: PathBuf,
    /// Where the bytes of the layers are, by path: top first.
    backing: Vec<PathBuf>,
}

impl System {
    pub fn native(root: &Path) -> System {
        System { kind: Kind::Native, root: root.to_owned(), backing: vec![root.to_owned()] }
    }

    /// Mounts the layers.
    pub fn mount(kind: Kind, work: &Path, trees: &Trees, vlfs: &Path) -> Result<System> {
        let place = work.join(format!("{kind:?}"));
        let root = place.join("mnt");
        for name in ["mnt", "upper", "work"] {
            fs::create_dir_all(place.join(name))?;
        }
        let backing: Vec<_> = trees.layers.iter().rev().cloned().collect();
        // From here on, what was mounted is taken away again.
        let system = System { kind, root, backing };
        system.mount_layers(&place, vlfs).with_context(|| format!("mounting {}", kind.name()))?;
        Ok(system)
    }

    fn mount_layers(&self, place: &Path, vlfs: &Path) -> Result<()> {
        let lower: Vec<_> = self.backing.iter().map(|layer| layer.display().to_string()).collect();
        let (upper, work) = (place.join("upper"), place.join("work"));
        match self.kind {
            Kind::Native => Ok(()),
            Kind::Overlay => {
                // One string of at most a page: names relative to the layers' directory.
                let above = self.backing[0].parent().context("layers lie in a directory")?;
                std::env::set_current_dir(above)?;
                let names = self.backing.iter().filter_map(|layer| layer.file_name());
                let names: Vec<_> = names.map(|name| name.to_string_lossy()).collect();
                let data = format!(
                    "lowerdir={},upperdir={},workdir={}",
                    names.join(":"),
                    upper.display(),
                    work.display()
                );
                let data = CString::new(data)?;
                let none = MountFlags::empty();
                Ok(rustix::mount::mount("overlay", &self.root, "overlay", none, data.as_c_str())?)
            }
            Kind::FuseOverlay => {
                let options = format!(
                    "lowerdir={},upperdir={},workdir={}",
                    lower.join(":"),
                    upper.display(),
                    work.display()
                );
                run(Command::new("fuse-overlayfs").args(["-o", &options]).arg(&self.root))
            }
            Kind::Strata | Kind::StrataOff => {
                let list = place.join("layers");
                fs::write(&list, lower.join("\n"))?;
                let mut command = Command::new(vlfs);
                command.arg("mount").arg("--layers-file").arg(list);
                command.arg("--private").arg(place.join("private"));
                command.arg(format!("--data=/{DATA_DIRECTORY}"));
                if self.kind == Kind::StrataOff {
                    command.arg("--no-passthrough");
                }
                // Its daemon keeps what it is given: no pipe of ours.
                command.stdout(Stdio::null()).arg(&self.root);
                run(&mut command)
            }
        }
    }

    /// The files below that hold a path's bytes.
    pub fn below(&self, path: &str) -> Result<PathBuf> {
        let found = self.backing.iter().map(|layer| layer.join(path)).find(|path| path.exists());
        found.with_context(|| format!("{path} is in no layer"))
    }
}

impl Drop for System {
    fn drop(&mut self) {
        if self.kind != Kind::Native
            && let Err(error) = rustix::mount::unmount(&self.root, UnmountFlags::DETACH)
        {
            eprintln!("warning: {} stays mounted: {error}", self.root.display());
        }
    }
}
