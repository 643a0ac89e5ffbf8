//! Packages of the distribution's archive, as files.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use strata_core::universe::{UnitId, Universe};

/// The packages of these units below `directory`, downloaded where they are missing; apt
/// checks each.
///
/// # Errors
/// One cannot be downloaded.
pub fn download(
    universe: &Universe,
    units: impl IntoIterator<Item = UnitId>,
    directory: &Path,
) -> Result<Vec<PathBuf>> {
    std::fs::create_dir_all(directory)?;
    let mut wanted = Vec::new();
    let mut missing = Vec::new();
    for unit in units {
        let metadata = &universe.unit(unit).metadata;
        let (layer, version) = (&metadata.layer, &metadata.version);
        let architecture = metadata.architecture.as_deref().unwrap_or("all");
        let escaped = version.as_str().replace(':', "%3a");
        let file = directory.join(format!("{layer}_{escaped}_{architecture}.deb"));
        if !file.exists() {
            missing.push(format!("{layer}={version}"));
        }
        wanted.push(file);
    }
    if !missing.is_empty() {
        eprintln!("downloading {} packages into {}", missing.len(), directory.display());
        let mut command = Command::new("apt-get");
        let status =
            command.args(["-q", "download"]).args(&missing).current_dir(directory).status();
        ensure!(status.context("run apt-get")?.success(), "apt-get download failed");
    }
    Ok(wanted)
}
