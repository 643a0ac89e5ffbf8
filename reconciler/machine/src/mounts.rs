//! Mounts of this process's mount namespace, read from `/proc/self/mountinfo`
//! (proc_pid_mountinfo(5)). Reading it asks no file system, so it never hangs on
//! a VLFS that is suspended or dead, which stat(2) of a mount point would.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// A mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// `st_dev` of its files.
    pub device: (u32, u32),
    pub point: PathBuf,
    /// As in `fuse.strata`.
    pub kind: String,
}

/// All mounts, lowest first.
///
/// # Errors
/// `/proc` is not there.
pub fn all() -> io::Result<Vec<Mount>> {
    let text = std::fs::read("/proc/self/mountinfo")?;
    Ok(text.split(|byte| *byte == b'\n').filter_map(parse).collect())
}

/// The topmost mount on exactly `point`, an absolute path without links.
///
/// # Errors
/// `/proc` is not there.
pub fn on(point: &Path) -> io::Result<Option<Mount>> {
    Ok(all()?.into_iter().rfind(|mount| mount.point == point))
}

/// All mounts below `point`, an absolute path without links, lowest first.
///
/// # Errors
/// `/proc` is not there.
pub fn below(point: &Path) -> io::Result<Vec<Mount>> {
    let inside = |mount: &Mount| mount.point != point && mount.point.starts_with(point);
    Ok(all()?.into_iter().filter(inside).collect())
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw`
fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let device = std::str::from_utf8(fields.nth(2)?).ok()?;
    let (major, minor) = device.split_once(':')?;
    let point = unescape(fields.nth(1)?);
    let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
    Some(Mount {
        device: (major.parse().ok()?, minor.parse().ok()?),
        point: OsString::from_vec(point).into(),
        kind: String::from_utf8_lossy(kind).into_owned(),
    })
}

/// Space, tab, newline and backslash are written as `\` and three octal digits.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        let code = (*first == b'\\')
            .then(|| std::str::from_utf8(after.get(..3)?).ok())
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        plain.push(code.unwrap_or(*first));
        rest = if code.is_some() { &after[3..] } else { after };
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_mountinfo() {
        let line = br"36 35 98:7 /mnt1 /mnt\0402\134x rw,noatime master:1 - fuse.strata a rw";
        let mount = parse(line).expect("a valid line");
        assert_eq!(mount.device, (98, 7));
        assert_eq!(mount.point, Path::new(r"/mnt 2\x"));
        assert_eq!(mount.kind, "fuse.strata");
        let line = b"41 31 0:38 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw";
        assert_eq!(parse(line).expect("a valid line").kind, "cgroup2");
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"41 31 0:38 /"), None);
    }
}
