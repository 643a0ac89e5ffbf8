//! Where the loader looks for a library (ld.so(8)), in terms of a merged system.

use std::collections::HashSet;

use strata_core::manifest::{Kind, Manifest, file_name, parent_path};

use super::elf::Elf;
use crate::usr_merge::{merged, resolve};

/// The directories of a merged system that the loader always looks in, but for those of
/// the machine.
const DIRECTORIES: [&str; 5] = ["usr/local/lib", "usr/lib", "usr/lib64", "usr/lib32", "usr/libx32"];
/// Debian's names of machines, by `e_machine` and whether files are of 64 bits.
const MACHINES: [(u16, bool, &str); 12] = [
    (3, false, "i386-linux-gnu"),
    (8, false, "mipsel-linux-gnu"),
    (8, true, "mips64el-linux-gnuabi64"),
    (20, false, "powerpc-linux-gnu"),
    (21, true, "powerpc64le-linux-gnu"),
    (22, true, "s390x-linux-gnu"),
    (40, false, "arm-linux-gnueabihf"),
    (62, true, "x86_64-linux-gnu"),
    (62, false, "x86_64-linux-gnux32"),
    (183, true, "aarch64-linux-gnu"),
    (243, true, "riscv64-linux-gnu"),
    (258, true, "loongarch64-linux-gnu"),
];

/// The directories that are looked in for what the file at `path` needs, without the
/// leading slash and with the merge of /usr done, the first ones first.
pub fn directories(path: &[u8], elf: &Elf) -> Vec<Vec<u8>> {
    let origin = [b"/", parent_path(path).unwrap_or_default()].concat();
    let mut found = Vec::new();
    for directory in &elf.search {
        let mut text = directory.as_bytes().to_vec();
        for word in ["${ORIGIN}", "$ORIGIN"] {
            if let Some(rest) = text.strip_prefix(word.as_bytes()) {
                text = [&origin, rest].concat();
            }
        }
        if text.first() == Some(&b'/')
            && let Some(directory) = resolve(b"", &text)
        {
            found.push(merged(&directory));
        }
    }
    let platform = (elf.platform.machine, elf.platform.is_64);
    for (_, _, name) in MACHINES.iter().filter(|known| (known.0, known.1) == platform) {
        found.push(format!("usr/local/lib/{name}").into_bytes());
        found.push(format!("usr/lib/{name}").into_bytes());
    }
    found.extend(DIRECTORIES.map(|directory| directory.as_bytes().to_vec()));
    found
}

/// The paths at which a library may be.
pub fn places(directories: &[Vec<u8>], soname: &str) -> impl Iterator<Item = Vec<u8>> {
    directories
        .iter()
        .map(move |directory| [directory.as_slice(), b"/", soname.as_bytes()].concat())
}

/// The paths of a layer that are no directories, where a merged system has them.
pub struct Search {
    paths: HashSet<Vec<u8>>,
    names: HashSet<Vec<u8>>,
}

impl Search {
    pub fn of(manifest: &Manifest) -> Self {
        let files = || manifest.entries().iter().filter(|entry| entry.kind != Kind::Directory);
        Search {
            paths: files().map(|entry| merged(&entry.path)).collect(),
            names: files().map(|entry| file_name(&entry.path).to_vec()).collect(),
        }
    }

    pub fn has(&self, path: &[u8]) -> bool {
        self.paths.contains(path)
    }

    pub fn finds(&self, directories: &[Vec<u8>], soname: &str) -> bool {
        places(directories, soname).any(|path| self.has(&path))
    }

    /// Whether anything in the layer has this name, wherever.
    pub fn has_name(&self, name: &str) -> bool {
        self.names.contains(name.as_bytes())
    }
}
