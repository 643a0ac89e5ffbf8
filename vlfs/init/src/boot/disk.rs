//! The private disk of a VA: an ext4 file system whose label is the VA's address.
//!
//! The label lets disks stand in any order, and keeps a machine from another VA's
//! disk before it is even mounted; the private directory on it has an owner of its
//! own, which the VLFS checks again. Disks are made and formatted by the host: a
//! `mkfs.ext4` is linked dynamically in every distribution, and making a file system
//! is no work for each of a thousand machines at its first boot.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use strata_core::MacAddr;

use crate::boot::error::BootError;

/// Where ext4 has its superblock, and in it its magic number and its label.
const SUPERBLOCK: u64 = 1024;
const MAGIC: (usize, [u8; 2]) = (0x38, [0x53, 0xef]);
const LABEL: std::ops::Range<usize> = 0x78..0x88;
const LABEL_PREFIX: &str = "va-";

/// The label of a VA's disk, as in `va-525400123456`: ext4 has room for 16 bytes.
pub fn label_of(mac: MacAddr) -> String {
    let digits: String = mac.octets().iter().map(|octet| format!("{octet:02x}")).collect();
    format!("{LABEL_PREFIX}{digits}")
}

/// What is on a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    Ext4 { label: String },
    Other,
}

/// Reads what begins a disk, from its 1024th byte on.
pub fn content(superblock: &[u8]) -> Content {
    let (at, magic) = MAGIC;
    let (Some(found), Some(label)) = (superblock.get(at..at + 2), superblock.get(LABEL)) else {
        return Content::Other;
    };
    if found != magic {
        return Content::Other;
    }
    let end = label.iter().position(|byte| *byte == 0).unwrap_or(label.len());
    Content::Ext4 { label: String::from_utf8_lossy(&label[..end]).escape_debug().to_string() }
}

/// A disk or partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    pub name: String,
    pub content: Content,
}

/// The disks that the kernel has, by name. One that cannot be read counts as empty.
///
/// # Errors
/// `/sys/class/block` cannot be listed.
pub fn disks(sys: &Path, dev: &Path) -> Result<Vec<Disk>, BootError> {
    let directory = sys.join("class/block");
    let failed = |source| BootError::Read { path: directory.clone(), source };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&directory).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let Some(name) = name.to_str() else { continue };
        if ["loop", "ram", "zram", "sr", "fd"].iter().any(|prefix| name.starts_with(prefix)) {
            continue;
        }
        let mut superblock = [0; 1024];
        let read = File::open(dev.join(name))
            .and_then(|disk| disk.read_exact_at(&mut superblock, SUPERBLOCK));
        let content = if read.is_ok() { content(&superblock) } else { Content::Other };
        found.push(Disk { name: name.to_owned(), content });
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// Chooses the private disk of a VA.
///
/// # Errors
/// No disk is the VA's, or the one that was named is not.
pub fn choose(disks: &[Disk], named: Option<&str>, mac: MacAddr) -> Result<String, BootError> {
    let label = label_of(mac);
    let own = |disk: &&Disk| matches!(&disk.content, Content::Ext4 { label: own } if *own == label);
    let eligible = |disk: &&Disk| named.is_none_or(|named| disk.name == named);
    if let Some(disk) = disks.iter().filter(eligible).find(own) {
        return Ok(disk.name.clone());
    }
    let others = disks.iter().filter(eligible);
    let mut foreign = others.filter_map(|disk| match &disk.content {
        Content::Ext4 { label } if named.is_some() || label.starts_with(LABEL_PREFIX) => {
            Some((disk.name.clone(), label.clone()))
        }
        Content::Ext4 { .. } | Content::Other => None,
    });
    if let Some((name, found)) = foreign.next_back() {
        return Err(BootError::ForeignDisk { name, mac, found, label });
    }
    Err(BootError::NoDisk { mac, label, found: shown(disks) })
}

fn shown(disks: &[Disk]) -> String {
    let each = disks.iter().map(|disk| match &disk.content {
        Content::Ext4 { label } => format!("{} (ext4, label {label:?})", disk.name),
        Content::Other => format!("{} (no ext4)", disk.name),
    });
    let each: Vec<_> = each.collect();
    if each.is_empty() { "none".to_owned() } else { each.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac() -> MacAddr {
        "52:54:00:12:34:56".parse().expect("an address")
    }

    fn superblock(label: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 1024];
        bytes[0x38..0x3a].copy_from_slice(&[0x53, 0xef]);
        bytes[0x78..0x78 + label.len()].copy_from_slice(label);
        bytes
    }

    fn disk(name: &str, label: &str) -> Disk {
        Disk { name: name.to_owned(), content: content(&superblock(label.as_bytes())) }
    }

    #[test]
    fn superblocks() {
        let label = |label: &str| Content::Ext4 { label: label.to_owned() };
        assert_eq!(content(&superblock(b"va-525400123456")), label("va-525400123456"));
        assert_eq!(content(&superblock(b"")), label(""));
        assert_eq!(content(&superblock(b"sixteen letters!")), label("sixteen letters!"));
        assert_eq!(content(&superblock(b"\x1b[2J")), label("\\u{1b}[2J"));
        assert_eq!(content(&[0; 1024]), Content::Other);
        assert_eq!(content(b"short"), Content::Other);
    }

    #[test]
    fn the_label_fits_and_names_the_va() {
        assert_eq!(label_of(mac()), "va-525400123456");
        assert!(label_of(mac()).len() <= LABEL.len());
    }

    #[test]
    fn a_machine_takes_its_own_disk_in_any_place_and_no_other() {
        let own = disk("vdb", "va-525400123456");
        let other = disk("vda", "va-525400000001");
        let root = disk("sda1", "root");
        let blank = Disk { name: "vdc".to_owned(), content: Content::Other };
        let all = [root.clone(), other.clone(), own, blank.clone()];
        assert_eq!(choose(&all, None, mac()).expect("found"), "vdb");
        assert_eq!(choose(&all, Some("vdb"), mac()).expect("found"), "vdb");
        let told = |disks: &[Disk], named| choose(disks, named, mac()).expect_err("refused");
        let foreign = told(&[root.clone(), other], None).to_string();
        assert!(foreign.contains("vda") && foreign.contains("va-525400000001"), "{foreign}");
        let named = told(&all, Some("sda1")).to_string();
        assert!(named.contains("\"root\""), "{named}");
        let none = told(&[root, blank], None).to_string();
        assert!(none.contains("sda1 (ext4, label \"root\"), vdc (no ext4)"), "{none}");
        assert!(none.contains("mkfs.ext4 -L va-525400123456"), "{none}");
        assert!(told(&[], None).to_string().contains("there are: none"));
    }
}
