//! What Figure 7 compares: one appliance's files on plain ext4, as an overlayfs of the same
//! layers, and as a running VA of Strata.

use std::ffi::{CString, OsStr};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};
use rustix::mount::{MountFlags, UnmountFlags};
use strata_tests::commands::run;

use crate::site::Site;

/// What overlayfs stacks at most (`OVL_MAX_STACK`).
const OVERLAY_LAYERS: usize = 500;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Native,
    Overlay,
    Strata,
    /// A declared data directory of Strata's.
    Data,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Native => "ext4",
            Kind::Overlay => "overlayfs",
            Kind::Strata => "Strata",
            Kind::Data => "Strata, data directory",
        }
    }
}

/// The file systems with one template's layers; gone when they are dropped, but for the VA,
/// which [`Systems::end`] stops, and the site otherwise.
pub struct Systems {
    directory: PathBuf,
    overlay: Option<PathBuf>,
    strata: PathBuf,
    va: usize,
    pub layers: usize,
}

impl Systems {
    /// Starts a VA of the template; the others are made below `directory`, which is not
    /// there.
    pub fn make(site: &mut Site, template: &str, directory: &Path) -> Result<Systems> {
        let generation = site.store.generation(&site.generation(template)?)?;
        let unit = |entry: &strata_core::generation::LayerSetEntry| {
            let unit = site.store.unit_path(&entry.repository, &entry.layer, &entry.version);
            unit.join("filesystem")
        };
        let mut layers: Vec<_> = generation.layers().iter().map(unit).collect();
        layers.reverse();
        let va = site.provision(template, template)?;
        site.start(va)?;
        let strata = site.root(&site.vas()[va]);
        fs::create_dir_all(directory)?;
        let native = directory.join("native");
        run(Command::new("cp").args(["-a", "--no-preserve=xattr"]).arg(&strata).arg(&native))?;
        let directory = directory.to_owned();
        let mut systems = Systems { directory, overlay: None, strata, va, layers: layers.len() };
        if layers.len() < OVERLAY_LAYERS {
            systems.mount_overlay(&layers)?;
        }
        Ok(systems)
    }

    /// `layers`: the topmost first.
    fn mount_overlay(&mut self, layers: &[PathBuf]) -> Result<()> {
        let place = self.directory.join("overlay");
        for name in ["names", "upper", "work", "root"] {
            fs::create_dir_all(place.join(name))?;
        }
        // One string of at most a page: short names, relative to where they are.
        std::env::set_current_dir(place.join("names"))?;
        let names: Vec<_> = (0..layers.len()).map(|number| number.to_string()).collect();
        for (name, layer) in names.iter().zip(layers) {
            symlink(layer, name)?;
        }
        let options = CString::new(format!(
            "lowerdir={},upperdir=../upper,workdir=../work",
            names.join(":")
        ))?;
        let root = place.join("root");
        let none = MountFlags::empty();
        rustix::mount::mount("overlay", &root, "overlay", none, options.as_c_str())
            .with_context(|| format!("an overlayfs of {} layers", layers.len()))?;
        self.overlay = Some(root);
        Ok(())
    }

    /// The roots, plain ext4 first.
    pub fn roots(&self) -> Vec<(Kind, PathBuf)> {
        let native = Some((Kind::Native, self.directory.join("native")));
        let overlay = self.overlay.clone().map(|root| (Kind::Overlay, root));
        let strata = Some((Kind::Strata, self.strata.clone()));
        native.into_iter().chain(overlay).chain(strata).collect()
    }

    /// Takes everything away, and stops the VA.
    pub fn end(self, site: &mut Site) -> Result<()> {
        let (va, directory) = (self.va, self.directory.clone());
        drop(self);
        site.stop(va)?;
        fs::remove_dir_all(&directory).with_context(|| directory.display().to_string())
    }
}

impl Drop for Systems {
    fn drop(&mut self) {
        if let Some(root) = &self.overlay
            && let Err(error) = rustix::mount::unmount(root, UnmountFlags::empty())
        {
            eprintln!("warning: {} stays mounted: {error}", root.display());
        }
    }
}

/// A program in a root, as the first process of namespaces of its own, with the host's
/// devices and network. It ends with the process that is started here.
pub fn inside(root: &Path, program: &[&OsStr]) -> Command {
    let script = "mount --bind /dev \"$0/dev\" && mount -t proc proc \"$0/proc\" && exec chroot \"$0\" \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script]).arg(root);
    command.args(program).stdin(Stdio::null()).stdout(Stdio::null());
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C");
    command
}
