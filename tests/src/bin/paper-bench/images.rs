//! Disk images of plain appliances, by `qemu-img`.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use strata_tests::commands::{run, timed};

use crate::appliances::APPLIANCES;

/// The unit of `st_blocks`, in bytes.
const BLOCK: u64 = 512;

/// The image of an appliance that others are made from.
pub fn base(directory: &Path, appliance: &str) -> PathBuf {
    directory.join(format!("{appliance}.raw"))
}

/// An image of each appliance's root, ext4 as the installer makes it.
pub fn make_bases(roots: &Path, directory: &Path) -> Result<()> {
    fs::create_dir_all(directory)?;
    for appliance in &APPLIANCES {
        let image = base(directory, appliance.name);
        fs::File::create(&image)?.set_len(appliance.disk_bytes)?;
        let mut make = Command::new("mkfs.ext4");
        run(make.args(["-q", "-d"]).arg(roots.join(appliance.name)).arg(&image))
            .with_context(|| format!("the disk of {}", appliance.name))?;
    }
    Ok(())
}

/// Copies an image. Returns the seconds that it took.
pub fn copy(base: &Path, to: &Path) -> Result<f64> {
    timed(Command::new("qemu-img").args(["convert", "-f", "raw", "-O", "raw"]).arg(base).arg(to))
}

/// Makes an image that has its base's content and room for changes. Returns the seconds.
pub fn overlay(base: &Path, to: &Path) -> Result<f64> {
    let mut create = Command::new("qemu-img");
    create.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]).arg(base).arg(to);
    timed(&mut create)
}

/// What a file or a tree takes on the disk; inodes that were seen before count nothing, nor
/// does what is mounted in it.
pub fn disk_bytes(path: &Path, seen: &mut BTreeSet<(u64, u64)>) -> Result<u64> {
    let metadata = fs::symlink_metadata(path).with_context(|| path.display().to_string())?;
    if !seen.insert((metadata.dev(), metadata.ino())) {
        return Ok(0);
    }
    let mut bytes = metadata.blocks() * BLOCK;
    if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            let path = entry?.path();
            if fs::symlink_metadata(&path)?.dev() == metadata.dev() {
                bytes += disk_bytes(&path, seen)?;
            }
        }
    }
    Ok(bytes)
}
