//! The table of requests: takes each apart, calls the file system, encodes the answer.
//!
//! No logic of the file system is here.

use std::time::Duration;

use rustix::fs::{FileType, SeekFrom};
use rustix::io::Errno;
use strata_core::manifest::Timestamp;

use super::root;
use super::session::{MAX_WRITE, Request, Session};
use super::wire::{Reader, Writer};
use super::worker::Means;
use crate::vfs::file::OpenMode;
use crate::vfs::{Attr, Caller, Found, Opened, ROOT_ID, SetAttr, SetTime, rename};

/// Flags of OPEN's answer.
mod fopen {
    pub const KEEP_CACHE: u32 = 1 << 1;
    pub const CACHE_DIR: u32 = 1 << 3;
    pub const NOFLUSH: u32 = 1 << 5;
    pub const PASSTHROUGH: u32 = 1 << 7;
}

/// Bits of SETATTR that change nothing by themselves: a handle, a lock's owner.
const NO_CHANGE: u32 = 1 << 6 | 1 << 9;

/// What to send back.
pub(super) enum Answer {
    Body(Writer),
    /// So many bytes of [`Means::data`].
    Data(usize),
    Empty,
    Silent,
}

pub(super) type Answered = Result<Answer, Errno>;

impl Session {
    pub(super) fn dispatch(&self, request: &mut Request<'_>, means: &mut Means<'_>) -> Answered {
        let node = request.node;
        let body = &mut request.body;
        let vfs = &*self.vfs;
        match request.opcode {
            1 => self.lookup(node, component(body)?),
            2 => {
                vfs.forget(node, body.u64()?);
                Ok(Answer::Silent)
            }
            3 => vfs.getattr(node).map(|(attr, valid)| attributes(&attr, valid)),
            4 => self.setattr(node, body),
            5 => {
                let mut out = Writer::default();
                out.bytes(&vfs.readlink(node)?);
                Ok(Answer::Body(out))
            }
            6 => {
                let (name, target) = (new_name(body)?, body.name()?);
                self.entry(&vfs.symlink(node, name, target, &request.caller)?)
            }
            8 => {
                let (mode, device, umask, _) = (body.u32()?, body.u32()?, body.u32()?, body.u32()?);
                let caller = Caller { umask, ..request.caller };
                self.entry(&vfs.mknod(
                    node,
                    new_name(body)?,
                    mode,
                    decode_device(device),
                    &caller,
                )?)
            }
            9 => {
                let (mode, umask) = (body.u32()?, body.u32()?);
                let caller = Caller { umask, ..request.caller };
                self.entry(&vfs.mkdir(node, new_name(body)?, mode, &caller)?)
            }
            10 => vfs.unlink(node, new_name(body)?).map(|()| Answer::Empty),
            11 => vfs.rmdir(node, new_name(body)?).map(|()| Answer::Empty),
            12 | 45 => self.rename(node, request.opcode == 45, body),
            13 => {
                let id = body.u64()?;
                self.entry(&vfs.link(id, node, new_name(body)?)?)
            }
            21..=24 => self.xattr(request),
            17 => self.statfs(),
            42 => {
                let (count, _) = (body.u32()?, body.u32()?);
                for _ in 0..count {
                    let (id, references) = (root::node(body.u64()?), body.u64()?);
                    vfs.forget(id, references);
                }
                Ok(Answer::Silent)
            }
            15 => self.read(&mut request.body, means),
            14 | 16 | 18 | 20 | 35 | 43 | 46 | 47 | 51 => self.file(request),
            27 | 28 | 29 | 30 | 44 => self.directory(request),
            36 => {
                self.interrupts.signal(body.u64()?);
                Ok(Answer::Silent)
            }
            39 => Err(Errno::NOTTY),
            // FLUSH, ACCESS, locks, POLL, STATX and what is newer: the kernel
            // does without once it is told so.
            _ => Err(Errno::NOSYS),
        }
    }

    fn lookup(&self, parent: u64, name: &[u8]) -> Answered {
        if parent == ROOT_ID && name == root::NAME.as_bytes() && self.root.take() {
            let (attr, valid) = self.vfs.getattr(ROOT_ID)?;
            return self.entry(&Found { id: ROOT_ID, attr, entry_valid: valid, attr_valid: valid });
        }
        match self.vfs.lookup(parent, name) {
            Ok(found) => self.entry(&found),
            // Node 0: the kernel remembers that there is none.
            Err(Errno::NOENT) => {
                let mut out = Writer::with_capacity(128);
                let valid = self.vfs.valid();
                out.u64(0).u64(0).u64(valid.as_secs()).u64(0).u32(valid.subsec_nanos()).u32(0);
                out.bytes(&[0; 88]);
                Ok(Answer::Body(out))
            }
            Err(error) => Err(error),
        }
    }

    fn entry(&self, found: &Found) -> Answered {
        let mut out = Writer::with_capacity(128);
        self.write_entry(&mut out, found);
        Ok(Answer::Body(out))
    }

    fn write_entry(&self, out: &mut Writer, found: &Found) {
        let (entry, attr) = (found.entry_valid, found.attr_valid);
        out.u64(self.root.number(found.id))
            .u64(self.ino_gen)
            .u64(entry.as_secs())
            .u64(attr.as_secs());
        out.u32(entry.subsec_nanos()).u32(attr.subsec_nanos());
        write_attr(out, &found.attr);
    }

    fn setattr(&self, node: u64, body: &mut Reader<'_>) -> Answered {
        let (valid, _, handle, size) = (body.u32()?, body.u32()?, body.u64()?, body.u64()?);
        let (_, atime, mtime, _) = (body.u64()?, body.u64()?, body.u64()?, body.u64()?);
        let (atime_ns, mtime_ns, _) = (body.u32()?, body.u32()?, body.u32()?);
        let (mode, _, uid, gid) = (body.u32()?, body.u32()?, body.u32()?, body.u32()?);
        let has = |bit: u32| valid & 1 << bit != 0;
        // A write through the kernel, or an owner set to what he is: setuid goes. The kernel
        // leaves that to us, and takes it out of what it asks for.
        let nothing_else = valid & !(NO_CHANGE) == 0;
        let time = |at: u64, nanoseconds, set, now| match (has(set), has(now)) {
            (_, true) => Some(SetTime::Now),
            (true, false) => {
                Some(SetTime::At(Timestamp { seconds: at.cast_signed(), nanoseconds }))
            }
            (false, false) => None,
        };
        let set = SetAttr {
            mode: has(0).then_some(mode),
            uid: has(1).then_some(uid),
            gid: has(2).then_some(gid),
            size: has(3).then_some(size),
            atime: time(atime, atime_ns, 4, 7),
            mtime: time(mtime, mtime_ns, 5, 8),
            handle: has(6).then_some(handle),
            kill_privileges: has(11) || nothing_else,
        };
        self.vfs.setattr(node, &set).map(|(attr, valid)| attributes(&attr, valid))
    }

    fn rename(&self, parent: u64, with_flags: bool, body: &mut Reader<'_>) -> Answered {
        let new_parent = root::node(body.u64()?);
        let mut mode = rename::Mode::Replace;
        if with_flags {
            let (flags, _) = (body.u32()?, body.u32()?);
            mode = match flags {
                0 => rename::Mode::Replace,
                1 => rename::Mode::NoReplace,
                2 => rename::Mode::Exchange,
                _ => return Err(Errno::INVAL),
            };
        }
        let (name, to) = (new_name(body)?, new_name(body)?);
        self.vfs.rename((parent, name), (new_parent, to), mode).map(|()| Answer::Empty)
    }

    fn xattr(&self, request: &mut Request<'_>) -> Answered {
        let node = request.node;
        let body = &mut request.body;
        let sized = |value: &[u8], size: u32| {
            let mut out = Writer::default();
            if size == 0 {
                out.u32(u32::try_from(value.len()).map_err(|_| Errno::TOOBIG)?).u32(0);
            } else if value.len() > size as usize {
                return Err(Errno::RANGE);
            } else {
                out.bytes(value);
            }
            Ok(Answer::Body(out))
        };
        match request.opcode {
            21 => {
                let (size, flags) = (body.u32()?, body.u32()?);
                let extended = self.agreed().is_some_and(|agreed| agreed.setxattr_ext);
                let more = if extended { (body.u32()?, body.u32()?).0 } else { 0 };
                let name = body.name()?;
                let value = body.take(size as usize)?;
                let caller = &request.caller;
                self.vfs.setxattr(node, name, value, flags, more & 1 != 0, caller)?;
                Ok(Answer::Empty)
            }
            22 => {
                let (size, _) = (body.u32()?, body.u32()?);
                sized(&self.vfs.getxattr(node, body.name()?)?, size)
            }
            23 => {
                let (size, _) = (body.u32()?, body.u32()?);
                let mut list = Vec::new();
                for name in self.vfs.listxattr(node)? {
                    list.extend_from_slice(&name);
                    list.push(0);
                }
                sized(&list, size)
            }
            _ => self.vfs.removexattr(node, body.name()?).map(|()| Answer::Empty),
        }
    }

    fn statfs(&self) -> Answered {
        let stat = self.vfs.statfs()?;
        let mut out = Writer::with_capacity(80);
        out.u64(stat.f_blocks).u64(stat.f_bfree).u64(stat.f_bavail);
        out.u64(stat.f_files).u64(stat.f_ffree);
        out.u32(u32::try_from(stat.f_bsize).unwrap_or(4096)).u32(255);
        out.u32(u32::try_from(stat.f_frsize).unwrap_or(4096)).bytes(&[0; 28]);
        Ok(Answer::Body(out))
    }

    /// What is in memory is answered at once; only what is not takes long.
    fn read(&self, body: &mut Reader<'_>, means: &mut Means<'_>) -> Answered {
        let (handle, offset, size) = (body.u64()?, body.u64()?, body.u32()?);
        let length = (size as usize).min(MAX_WRITE as usize);
        // Kept from request to request: what is new must be cleared first.
        if means.data.len() < length {
            means.data.resize(length, 0);
        }
        let buffer = &mut means.data[..length];
        let (mut read, all) = self.vfs.read_in_memory(handle, offset, buffer)?;
        if !all {
            (means.before_waiting)();
            read += self.vfs.read(handle, offset + read as u64, &mut buffer[read..])?;
        }
        Ok(Answer::Data(read))
    }

    fn opened(&self, out: &mut Writer, opened: Opened) {
        let (flags, backing) = match opened.backing_id {
            Some(id) => (fopen::PASSTHROUGH | fopen::NOFLUSH, id),
            None if opened.keep_cache => (fopen::KEEP_CACHE | fopen::NOFLUSH, 0),
            None => (fopen::NOFLUSH, 0),
        };
        out.u64(opened.handle).u32(flags).i32(backing);
    }

    fn file(&self, request: &mut Request<'_>) -> Answered {
        let body = &mut request.body;
        let vfs = &*self.vfs;
        let mut out = Writer::default();
        match request.opcode {
            14 => {
                let (flags, more) = (body.u32()?, body.u32()?);
                let mode = OpenMode {
                    write: flags & 3 != 0,
                    truncate: flags & 0o1000 != 0,
                    kill_privileges: more & 1 != 0,
                };
                self.opened(&mut out, vfs.open(request.node, mode)?);
            }
            16 => {
                let (handle, offset) = (body.u64()?, body.u64()?);
                let (size, flags) = (body.u32()?, body.u32()?);
                let (_, _, _) = (body.u64()?, body.u32()?, body.u32()?);
                let data = body.take(size as usize)?;
                let written = vfs.write(handle, offset, data, flags & 4 != 0)?;
                out.u32(u32::try_from(written).unwrap_or(0)).u32(0);
            }
            18 => vfs.release(body.u64()?),
            20 => {
                let (handle, flags) = (body.u64()?, body.u32()?);
                vfs.fsync(handle, flags & 1 != 0)?;
            }
            35 => {
                let (flags, mode) = (body.u32()?, body.u32()?);
                let (umask, _) = (body.u32()?, body.u32()?);
                let caller = Caller { umask, ..request.caller };
                let made = vfs.create(request.node, new_name(body)?, mode, &caller);
                let exclusive = flags & 0o200 != 0;
                let (found, opened) = match made {
                    // The kernel did not know of it: it looks again, and opens.
                    Err(Errno::EXIST) if !exclusive => return Err(Errno::STALE),
                    other => other?,
                };
                self.write_entry(&mut out, &found);
                self.opened(&mut out, opened);
            }
            43 => {
                let (handle, offset, length) = (body.u64()?, body.u64()?, body.u64()?);
                vfs.fallocate(handle, body.u32()?, offset, length)?;
            }
            46 => {
                let (handle, offset, whence) = (body.u64()?, body.u64()?, body.u32()?);
                let from = match whence {
                    3 => SeekFrom::Data(offset),
                    4 => SeekFrom::Hole(offset),
                    _ => return Err(Errno::INVAL),
                };
                out.u64(vfs.seek(handle, from)?);
            }
            47 => {
                let source = (body.u64()?, body.u64()?);
                let _node = body.u64()?;
                let target = (body.u64()?, body.u64()?);
                let length = usize::try_from(body.u64()?).unwrap_or(usize::MAX).min(1 << 30);
                let copied = vfs.copy_range(source, target, length)?;
                out.u32(u32::try_from(copied).unwrap_or(0)).u32(0);
            }
            _ => {
                let (_, mode) = (body.u32()?, body.u32()?);
                let (umask, _) = (body.u32()?, body.u32()?);
                let caller = Caller { umask, ..request.caller };
                let (found, opened) = vfs.tmpfile(request.node, mode, &caller)?;
                self.write_entry(&mut out, &found);
                self.opened(&mut out, opened);
            }
        }
        Ok(if out.is_empty() { Answer::Empty } else { Answer::Body(out) })
    }

    fn directory(&self, request: &mut Request<'_>) -> Answered {
        let body = &mut request.body;
        match request.opcode {
            27 => {
                let opened = self.vfs.opendir(request.node)?;
                let mut flags = 0;
                if opened.cache {
                    flags |= fopen::CACHE_DIR;
                }
                if opened.keep {
                    flags |= fopen::KEEP_CACHE;
                }
                let mut out = Writer::with_capacity(16);
                out.u64(opened.handle).u32(flags).u32(0);
                Ok(Answer::Body(out))
            }
            29 => {
                self.vfs.releasedir(body.u64()?);
                Ok(Answer::Empty)
            }
            30 => self.vfs.fsyncdir(body.u64()?).map(|()| Answer::Empty),
            opcode => self.list(opcode == 44, body),
        }
    }

    fn list(&self, plus: bool, body: &mut Reader<'_>) -> Answered {
        let (handle, offset, size) = (body.u64()?, body.u64()?, body.u32()? as usize);
        let listing = self.vfs.listing(handle, offset)?;
        let mut out = Writer::with_capacity(size.min(64 << 10));
        let start = usize::try_from(offset).map_err(|_| Errno::INVAL)?;
        for (index, listed) in listing.iter().enumerate().skip(start) {
            let length = if plus { 128 } else { 0 } + (24 + listed.name.len()).next_multiple_of(8);
            if out.len() + length > size {
                break;
            }
            let dots = matches!(&*listed.name, b"." | b"..");
            let found =
                if plus && !dots { self.vfs.lookup_listed(handle, &listed.name) } else { None };
            match (&found, plus) {
                (Some(found), _) => self.write_entry(&mut out, found),
                (None, true) => {
                    out.bytes(&[0; 128]);
                }
                (None, false) => {}
            }
            let ino = found.as_ref().map_or(listed.ino, |found| found.attr.ino);
            out.u64(ino).u64(index as u64 + 1);
            out.u32(u32::try_from(listed.name.len()).unwrap_or(0)).u32(raw_kind(listed.kind) >> 12);
            out.bytes(&listed.name).align();
        }
        Ok(Answer::Body(out))
    }
}

/// One component of a path. The kernel sends nothing else, and system calls on
/// private directories rely on it.
fn component<'a>(body: &mut Reader<'a>) -> Result<&'a [u8], Errno> {
    let name = body.name()?;
    if name.is_empty() || name.contains(&b'/') { Err(Errno::INVAL) } else { Ok(name) }
}

/// A name to make or to remove: neither of the two that every directory has.
fn new_name<'a>(body: &mut Reader<'a>) -> Result<&'a [u8], Errno> {
    let name = component(body)?;
    if matches!(name, b"." | b"..") { Err(Errno::INVAL) } else { Ok(name) }
}

fn attributes(attr: &Attr, valid: Duration) -> Answer {
    let mut out = Writer::with_capacity(104);
    out.u64(valid.as_secs()).u32(valid.subsec_nanos()).u32(0);
    write_attr(&mut out, attr);
    Answer::Body(out)
}

fn write_attr(out: &mut Writer, attr: &Attr) {
    out.u64(attr.ino).u64(attr.size).u64(attr.blocks);
    for time in [attr.atime, attr.mtime, attr.ctime] {
        out.u64(time.seconds.cast_unsigned());
    }
    for time in [attr.atime, attr.mtime, attr.ctime] {
        out.u32(time.nanoseconds);
    }
    out.u32(raw_kind(attr.kind) | attr.mode).u32(attr.nlink).u32(attr.uid).u32(attr.gid);
    out.u32(encode_device(attr.device)).u32(4096).u32(0);
}

fn raw_kind(kind: FileType) -> u32 {
    kind.as_raw_mode()
}

/// A device number as the kernel passes it (`new_encode_dev`).
fn encode_device((major, minor): (u32, u32)) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

fn decode_device(device: u32) -> (u32, u32) {
    ((device & 0xf_ff00) >> 8, (device & 0xff) | ((device >> 12) & 0xf_ff00))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_survive() {
        for device in [(0, 0), (1, 3), (252, 300), (4095, 1_048_575)] {
            assert_eq!(decode_device(encode_device(device)), device);
        }
    }
}
