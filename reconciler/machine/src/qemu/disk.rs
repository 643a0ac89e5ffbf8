//! The private disk of a machine: a sparse image that the host makes and formats
//! (`docs/boot.md`), once, at the first start.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

use strata_core::MacAddr;
use strata_store::durable::Disk;

use crate::error::{Context, MachineError};

/// The label by which a machine finds its disk.
fn label_of(mac: MacAddr) -> String {
    let digits: String = mac.octets().iter().map(|octet| format!("{octet:02x}")).collect();
    format!("va-{digits}")
}

/// Makes the disk of a VA where it has none. It has its name once it is whole.
///
/// # Errors
/// There is no room, or no `mkfs.ext4`.
pub fn make(path: &Path, mac: MacAddr, bytes: u64) -> Result<(), MachineError> {
    if path.exists() {
        return Ok(());
    }
    let new = path.with_extension("new");
    let image = File::create(&new).at("create", &new)?;
    image.set_len(bytes).at("size", &new)?;
    let mut command = Command::new("mkfs.ext4");
    command.args(["-q", "-F", "-L", &label_of(mac)]).arg(&new);
    let output = command.stdin(Stdio::null()).output().at("run", Path::new("mkfs.ext4"))?;
    if !output.status.success() {
        let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(MachineError::NoDisk { path: path.to_owned(), reason });
    }
    image.sync_all().at("sync", &new)?;
    fs::rename(&new, path).at("rename", &new)?;
    Ok(Disk::default().sync_directory(path.parent().unwrap_or(Path::new("/")))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_made_once_and_takes_no_room() {
        use std::os::unix::fs::MetadataExt;
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("disk.img");
        let mac = "52:54:00:12:34:56".parse().expect("an address");
        make(&path, mac, 1 << 30).expect("made");
        let metadata = fs::metadata(&path).expect("there");
        assert_eq!(metadata.len(), 1 << 30);
        assert!(metadata.blocks() * 512 < 64 << 20, "{} blocks", metadata.blocks());
        let start = fs::read(&path).expect("read");
        assert!(start[1024 + 0x78..].starts_with(b"va-525400123456\0"));
        make(&path, mac, 2 << 30).expect("there already");
        assert_eq!(fs::metadata(&path).expect("there").len(), 1 << 30);
        assert_eq!(fs::read_dir(directory.path()).expect("listed").count(), 1);
    }
}
