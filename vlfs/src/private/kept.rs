//! What copying data into a private file changes beside the data, and how it is put down
//! in the registry's name of the file until it is put back.

use std::os::fd::OwnedFd;

use rustix::fs::{Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

use super::borrowed::open_xattr;
use super::{KEPT_XATTR, Private};

/// Removed by the kernel whenever data is written.
const CAPABILITY: &[u8] = b"security.capability";
/// Stands before the registry's name while data is copied. What follows is what is put
/// back ([`Kept`]), a space and the name; of an earlier program the name alone.
pub(super) const UNDER_WAY: u8 = b't';

/// What copying data into a file changes beside it.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    pub(super) times: Timestamps,
    pub(super) capability: Option<Vec<u8>>,
}

impl Kept {
    pub(super) fn of(file: &OwnedFd) -> Result<Kept, Errno> {
        let stat = rustix::fs::fstat(file)?;
        let time = |seconds, nanoseconds: u64| Timespec {
            tv_sec: seconds,
            tv_nsec: nanoseconds.cast_signed(),
        };
        let times = Timestamps {
            last_access: time(stat.st_atime, stat.st_atime_nsec),
            last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
        };
        let capability = match open_xattr(file, CAPABILITY) {
            Err(Errno::NODATA | Errno::NOTSUP) => None,
            other => Some(other?),
        };
        Ok(Kept { times, capability })
    }

    /// What an earlier program put down on the file. `None`: that was cut short.
    pub(super) fn read(file: &OwnedFd) -> Result<Option<Kept>, Errno> {
        match open_xattr(file, KEPT_XATTR) {
            Err(Errno::NODATA) => Ok(None),
            other => Ok(std::str::from_utf8(&other?).ok().and_then(Kept::parse)),
        }
    }

    pub(super) fn put_back(&self, private: &Private, file: &OwnedFd) -> Result<(), Errno> {
        if let Some(value) = &self.capability {
            private.disk.set_xattr_open(file, CAPABILITY, value, XattrFlags::empty())?;
        }
        private.disk.set_times_open(file, &self.times)
    }

    /// `1 <access seconds>.<nanoseconds> <modification …> <capability in hexadecimal, or ->`
    fn print(&self) -> String {
        let time = |time: Timespec| format!("{}.{:09}", time.tv_sec, time.tv_nsec);
        let capability = self.capability.as_ref().map_or_else(
            || "-".to_owned(),
            |value| value.iter().map(|byte| format!("{byte:02x}")).collect(),
        );
        let (access, modification) = (self.times.last_access, self.times.last_modification);
        format!("1 {} {} {capability}", time(access), time(modification))
    }

    fn parse(text: &str) -> Option<Kept> {
        let mut fields = text.strip_prefix("1 ")?.split(' ');
        let mut time = || {
            let (seconds, nanoseconds) = fields.next()?.split_once('.')?;
            let (tv_sec, tv_nsec) = (seconds.parse().ok()?, nanoseconds.parse().ok()?);
            Some(Timespec { tv_sec, tv_nsec })
        };
        let times = Timestamps { last_access: time()?, last_modification: time()? };
        let capability = match fields.next()? {
            "-" => None,
            hex => {
                let digits = (0..hex.len()).step_by(2);
                let bytes = digits.map(|at| u8::from_str_radix(hex.get(at..at + 2)?, 16).ok());
                Some(bytes.collect::<Option<Vec<u8>>>()?)
            }
        };
        Some(Kept { times, capability })
    }
}

/// The registry's name while data is copied.
pub(super) fn under_way(kept: &Kept, name: &[u8]) -> Vec<u8> {
    [&[UNDER_WAY], kept.print().as_bytes(), b" ", name].concat()
}

/// The registry's name while no data is copied.
pub(super) fn settled(name: &[u8]) -> &[u8] {
    let Some(rest) = name.strip_prefix(&[UNDER_WAY]) else { return name };
    rest.rsplit(|byte| *byte == b' ').next().unwrap_or(rest)
}

/// What is to be put back, of the registry's name.
pub(super) fn kept_in(name: &[u8]) -> Option<Kept> {
    let rest = name.strip_prefix(&[UNDER_WAY])?;
    let end = rest.iter().rposition(|byte| *byte == b' ')?;
    Kept::parse(std::str::from_utf8(&rest[..end]).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_read_back() {
        let time = |tv_sec, tv_nsec| Timespec { tv_sec, tv_nsec };
        for capability in [None, Some(vec![0, 1, 0xff])] {
            let times =
                Timestamps { last_access: time(-5, 7), last_modification: time(9, 999_999_999) };
            let kept = Kept { times, capability };
            let read = Kept::parse(&kept.print()).expect("of this program");
            assert_eq!(format!("{read:?}"), format!("{kept:?}"));
            let name = under_way(&kept, b"2a-0");
            let read = kept_in(&name).expect("of this program");
            assert_eq!(format!("{read:?}"), format!("{kept:?}"));
            assert_eq!((settled(&name), settled(b"2a-0")), (&b"2a-0"[..], &b"2a-0"[..]));
        }
        assert!(kept_in(b"t2a-0").is_none() && kept_in(b"2a-0").is_none());
        assert_eq!(settled(b"t2a-0"), b"2a-0");
        let longest = Timespec { tv_sec: i64::MIN, tv_nsec: 999_999_999 };
        let times = Timestamps { last_access: longest, last_modification: longest };
        let capability = Some(vec![0xff; 24]);
        let name = under_way(&Kept { times, capability }, b"ffffffffffffffff-99");
        assert!(name.len() <= 255, "{}", name.len());
        assert!(Kept::parse("2 1.0 1.0 -").is_none());
    }
}
