//! Requests counted by kind, for `status`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// Opcodes that are counted apart.
const OPCODES: usize = 64;

/// Counts so far, by opcode; the last is of all that are newer.
#[derive(Debug)]
pub struct Requests([AtomicU64; OPCODES]);

impl Default for Requests {
    fn default() -> Self {
        Requests([const { AtomicU64::new(0) }; OPCODES])
    }
}

impl Requests {
    pub fn count(&self, opcode: u32) {
        self.0[(opcode as usize).min(OPCODES - 1)].fetch_add(1, Ordering::Relaxed);
    }

    /// Those that came at all, by the opcodes' names.
    pub fn by_name(&self) -> BTreeMap<String, u64> {
        let counts = self.0.iter().map(|count| count.load(Ordering::Relaxed)).enumerate();
        counts.filter(|(_, count)| *count > 0).map(|(opcode, n)| (name(opcode), n)).collect()
    }
}

/// What the kernel calls an opcode (`include/uapi/linux/fuse.h`).
fn name(opcode: usize) -> String {
    let name = match opcode {
        1 => "lookup",
        2 => "forget",
        3 => "getattr",
        4 => "setattr",
        5 => "readlink",
        6 => "symlink",
        8 => "mknod",
        9 => "mkdir",
        10 => "unlink",
        11 => "rmdir",
        12 => "rename",
        13 => "link",
        14 => "open",
        15 => "read",
        16 => "write",
        17 => "statfs",
        18 => "release",
        20 => "fsync",
        21 => "setxattr",
        22 => "getxattr",
        23 => "listxattr",
        24 => "removexattr",
        25 => "flush",
        26 => "init",
        27 => "opendir",
        28 => "readdir",
        29 => "releasedir",
        30 => "fsyncdir",
        31 => "getlk",
        32 => "setlk",
        33 => "setlkw",
        34 => "access",
        35 => "create",
        36 => "interrupt",
        37 => "bmap",
        38 => "destroy",
        39 => "ioctl",
        40 => "poll",
        41 => "notify_reply",
        42 => "batch_forget",
        43 => "fallocate",
        44 => "readdirplus",
        45 => "rename2",
        46 => "lseek",
        47 => "copy_file_range",
        48 => "setupmapping",
        49 => "removemapping",
        50 => "syncfs",
        51 => "tmpfile",
        52 => "statx",
        53 => "copy_file_range_64",
        _ => return format!("opcode_{opcode}"),
    };
    name.to_owned()
}
