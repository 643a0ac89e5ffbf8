//! Steps on `upper/` that must not be seen apart after a crash.
//!
//! Almost every change is made safe by its order alone (see `vfs/`): copy in
//! place, hide what is obscured anyway, then one rename. What is left is the
//! copy of an object with several hard links, all whose names must follow.
//!
//! `journal/<n>` is written and flushed before the first step and removed after
//! the last. Every step can be repeated: what is done already is left as it is.
//! Format: a header line, one step a line (a word, then two paths relative to
//! the private directory with every byte outside `[A-Za-z0-9._/-]` as `%xx`), then `end`.

use std::fmt::Write as _;
use std::os::fd::OwnedFd;

use rustix::fs::{FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::{JOURNAL, Private, write_all};
use crate::backing;

const HEADER: &str = "strata-journal 1\n";
const END: &str = "end\n";
/// Bytes of one journal entry that are read back.
const LIMIT: usize = 64 << 20;

/// Paths are relative to the private directory, for example `work/7` or `upper/etc/motd`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    Rename { from: Vec<u8>, to: Vec<u8> },
    Link { from: Vec<u8>, to: Vec<u8> },
}

/// Performs one step. Nothing is replaced.
pub fn perform(private: &Private, step: &Step) -> Result<(), Errno> {
    let (Step::Rename { from, to } | Step::Link { from, to }) = step;
    let root = private.root();
    let (from_directory, from_name) = backing::open_parent(root, from)?;
    let (to_directory, to_name) = backing::open_parent(root, to)?;
    let (from, to) = ((&from_directory, from_name), (&to_directory, to_name));
    match step {
        Step::Rename { .. } => private.disk.rename(from, to, RenameFlags::NOREPLACE),
        Step::Link { .. } => private.disk.link(from, to),
    }
}

/// Finishes the steps of an entry that a crash interrupted; what is done already is
/// left. Where something else has the first name, the entry is given up: the names of
/// an object that is not there would follow another.
pub fn finish(private: &Private, steps: &[Step]) -> Result<(), Errno> {
    for step in steps {
        match (perform(private, step), step) {
            // The source is where it was to go.
            (Ok(()) | Err(Errno::NOENT), _) | (Err(Errno::EXIST), Step::Link { .. }) => {}
            (Err(Errno::EXIST), Step::Rename { to, .. }) => {
                let path = String::from_utf8_lossy(to).into_owned();
                tracing::warn!(path, "an interrupted change is given up: its place is taken");
                return Ok(());
            }
            (Err(error), _) => return Err(error),
        }
    }
    Ok(())
}

/// Takes back a step that was performed a moment ago.
pub fn undo(private: &Private, step: &Step) -> Result<(), Errno> {
    let (Step::Rename { from, to } | Step::Link { from, to }) = step;
    let root = private.root();
    let (to_directory, to_name) = backing::open_parent(root, to)?;
    match step {
        Step::Rename { .. } => {
            let (from_directory, from_name) = backing::open_parent(root, from)?;
            let (from, to) = ((&to_directory, to_name), (&from_directory, from_name));
            private.disk.rename(from, to, RenameFlags::NOREPLACE)
        }
        Step::Link { .. } => private.disk.unlink(&to_directory, to_name),
    }
}

/// Writes the entry `name` and flushes it with its name. After a failure
/// there is no entry.
pub fn write(private: &Private, name: &[u8], steps: &[Step]) -> Result<Vec<u8>, Errno> {
    let (disk, flags) = (&private.disk, OFlags::RDONLY | OFlags::DIRECTORY);
    let directory = backing::open_beneath(private.root(), JOURNAL, flags, Mode::empty())?;
    let flags = OFlags::WRONLY | OFlags::TRUNC | OFlags::NONBLOCK;
    let fd = disk.create(&directory, name, flags, Mode::from_raw_mode(0o600))?;
    let written = write_all(disk, &fd, print(steps).as_bytes())
        .and_then(|()| disk.sync(&fd))
        .and_then(|()| disk.sync(&directory));
    if let Err(error) = written {
        disk.unlink(&directory, name)?;
        return Err(error);
    }
    Ok(name.to_vec())
}

/// Removes an entry, or empties it: either way it has no steps any more.
pub fn remove(private: &Private, name: &[u8]) -> Result<(), Errno> {
    let directory = backing::open_directory(private.root(), JOURNAL)?;
    private.disk.unlink(&directory, name).or_else(|error| {
        let flags = OFlags::WRONLY | OFlags::NONBLOCK;
        let entry = backing::open_beneath(&directory, name, flags, Mode::empty())?;
        private.disk.truncate(&entry, 0).map_err(|_| error)
    })
}

/// The entries under way, oldest first.
pub fn pending(root: &OwnedFd) -> Result<Vec<Vec<u8>>, Errno> {
    let names = backing::list(backing::open_directory(root, JOURNAL)?)?;
    let mut names: Vec<_> = names.into_iter().map(|entry| entry.name.into_vec()).collect();
    names.sort_by_key(|name| (name.len(), name.clone()));
    Ok(names)
}

/// Reads an entry. One that was cut short was never begun and has no steps;
/// `None` is one that is damaged otherwise.
pub fn read(root: &OwnedFd, name: &[u8]) -> Result<Option<Vec<Step>>, Errno> {
    let directory = backing::open_directory(root, JOURNAL)?;
    // Who rules the disk may put a FIFO there, which must not be waited for.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK;
    let fd = backing::open_beneath(&directory, name, flags, Mode::empty())?;
    if FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) != FileType::RegularFile {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        match rustix::io::read(&fd, &mut buffer)? {
            0 => break,
            length => bytes.extend_from_slice(&buffer[..length]),
        }
        if bytes.len() > LIMIT {
            return Ok(None);
        }
    }
    if !bytes.ends_with(END.as_bytes()) {
        return Ok(Some(Vec::new()));
    }
    Ok(std::str::from_utf8(&bytes).ok().and_then(parse))
}

fn print(steps: &[Step]) -> String {
    let mut text = HEADER.to_owned();
    for step in steps {
        let (word, from, to) = match step {
            Step::Rename { from, to } => ("rename", from, to),
            Step::Link { from, to } => ("link", from, to),
        };
        text.push_str(word);
        for path in [from, to] {
            text.push(' ');
            for byte in path {
                if byte.is_ascii_alphanumeric() || b"._/-".contains(byte) {
                    text.push(char::from(*byte));
                } else {
                    let _infallible = write!(text, "%{byte:02x}");
                }
            }
        }
        text.push('\n');
    }
    text + END
}

fn parse(text: &str) -> Option<Vec<Step>> {
    let body = text.strip_prefix(HEADER)?.strip_suffix(END)?;
    body.lines()
        .map(|line| {
            let mut fields = line.split(' ');
            let (word, from, to) = (fields.next()?, fields.next()?, fields.next()?);
            let (from, to) = (unescape(from)?, unescape(to)?);
            match (word, fields.next()) {
                ("rename", None) => Some(Step::Rename { from, to }),
                ("link", None) => Some(Step::Link { from, to }),
                _ => None,
            }
        })
        .collect()
}

fn unescape(field: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut rest = field.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &rest[2..];
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_is_read_back() {
        let steps = vec![
            Step::Rename { from: b"work/7".to_vec(), to: b"upper/a b%\n\xff/c".to_vec() },
            Step::Link { from: b"upper/x".to_vec(), to: b"upper/y".to_vec() },
        ];
        assert_eq!(parse(&print(&steps)), Some(steps));
        assert_eq!(parse("strata-journal 1\nrename a\nend\n"), None);
        assert_eq!(parse("strata-journal 2\nend\n"), None);
    }
}
