//! What a daemon costs, and who holds what it would let go: for `status`.
//!
//! Read from `/proc` as the daemon sees it. Nothing on the mount itself is
//! touched but what a process has open of a layer that is gone, whose attributes
//! the kernel keeps.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::proc;

/// Descriptors and mappings that are looked at for one status.
const LOOKED_AT: usize = 200_000;
/// Bytes of a file below `/proc` that are read.
const PROC_BYTES: u64 = 16 << 20;

/// The daemon's own memory, in bytes; 0 where the kernel does not tell.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    pub resident: u64,
    /// What is the daemon's alone and would be written to swap.
    pub private_dirty: u64,
    /// Of program files and mapped indexes: shared, and dropped under pressure.
    pub file_backed: u64,
}

impl Memory {
    pub fn now() -> Memory {
        let field = |text: &str, name: &str| -> u64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
            kilobytes.and_then(|text| text.parse::<u64>().ok()).unwrap_or(0) * 1024
        };
        let status = read(&proc::own("status")).unwrap_or_default();
        let rollup = read(&proc::own("smaps_rollup")).unwrap_or_default();
        Memory {
            resident: field(&status, "VmRSS:"),
            private_dirty: field(&rollup, "Private_Dirty:"),
            file_backed: field(&status, "RssFile:"),
        }
    }
}

/// The longest of many times.
#[derive(Debug, Default)]
pub struct Longest(AtomicU64);

impl Longest {
    pub fn note(&self, time: Duration) {
        let microseconds = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.0.fetch_max(microseconds, Ordering::Relaxed);
    }

    pub fn microseconds(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A process that holds a file of a layer that is gone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Holder {
    pub pid: u32,
    pub command: String,
}

/// The processes that have files open or mapped whose `st_ino` is among
/// `wanted`, on the device `number`.
pub fn holders(number: (u32, u32), wanted: &BTreeSet<u64>) -> BTreeMap<u64, BTreeSet<Holder>> {
    let mut found: BTreeMap<u64, BTreeSet<Holder>> = BTreeMap::new();
    if wanted.is_empty() {
        return found;
    }
    let mut left = LOOKED_AT;
    let Ok(processes) = std::fs::read_dir(proc::all()) else { return found };
    for process in processes.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        let directory = process.path();
        let held = held_by(&directory, number, wanted, &mut left);
        if held.is_empty() {
            continue;
        }
        let command = read(&directory.join("comm")).unwrap_or_default().trim_end().to_owned();
        for ino in held {
            found.entry(ino).or_default().insert(Holder { pid, command: command.clone() });
        }
    }
    found
}

fn held_by(
    process: &Path,
    number: (u32, u32),
    wanted: &BTreeSet<u64>,
    left: &mut usize,
) -> BTreeSet<u64> {
    let mut held = BTreeSet::new();
    // A process that ends meanwhile, or a thread of the kernel, has none.
    for entry in std::fs::read_dir(process.join("fdinfo")).into_iter().flatten().flatten() {
        if *left == 0 {
            return held;
        }
        *left -= 1;
        let info = read(&entry.path()).unwrap_or_default();
        let ino = info.lines().find_map(|line| line.strip_prefix("ino:")?.trim().parse().ok());
        let Some(ino) = ino.filter(|ino| wanted.contains(ino)) else { continue };
        // Another file system may have the number, too.
        let open = process.join("fd").join(entry.file_name());
        let same = rustix::fs::stat(&open).is_ok_and(|stat| {
            (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev)) == number
        });
        if same {
            held.insert(ino);
        }
    }
    let device = format!("{:02x}:{:02x}", number.0, number.1);
    let maps = read(&process.join("maps")).unwrap_or_default();
    for line in maps.lines().take(*left) {
        let mut fields = line.split_ascii_whitespace().skip(3);
        if fields.next() == Some(&device)
            && let Some(ino) = fields.next().and_then(|field| field.parse().ok())
            && wanted.contains(&ino)
        {
            held.insert(ino);
        }
    }
    held
}

fn read(path: &Path) -> std::io::Result<String> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(PROC_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
