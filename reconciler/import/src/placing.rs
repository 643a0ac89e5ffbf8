//! Entries of a package put in their places below a merged /usr, whatever the
//! package's format. Nothing an entry says is trusted: names and targets of links
//! are checked here, the rest by [`crate::writer`].

use std::collections::HashMap;
use std::io::{self, Read};

use strata_core::limits;
use strata_core::manifest::{Kind, Manifest};

use crate::member::{MemberError, member_path, shown};
use crate::tarball::{TarEntry, TarKind};
use crate::usr_merge;
use crate::writer::{Attributes, TreeWriter, WriteError};

#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    #[error(transparent)]
    Name(#[from] MemberError),
    #[error("the link's target is refused: {0}")]
    LinkTarget(MemberError),
    #[error("a symbolic link without a target")]
    EmptyLink,
    #[error("a symbolic link's target has {0} bytes, the limit is {max}", max = limits::PATH_BYTES)]
    LongLink(usize),
    #[error("it is hard linked to {0}, which is no earlier file of the package")]
    Dangling(String),
    #[error("the package holds {first} at the same place, with other content or attributes")]
    Differs { first: String },
    #[error("a control archive holds plain files only, named by letters, digits and . _ + -")]
    Control,
    #[error("all control files together have more than {limit} bytes", limit = limits::CONTROL_BYTES)]
    ControlBytes,
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error("cannot be written: {0}")]
    Io(#[from] io::Error),
}

/// A package's files on their way into the layer.
pub struct Placing {
    writer: TreeWriter,
    /// Place → the name that the package has for it, where the two differ.
    moved: HashMap<Vec<u8>, Vec<u8>>,
}

impl Placing {
    pub fn new(writer: TreeWriter) -> Self {
        Placing { writer, moved: HashMap::new() }
    }

    /// Puts an entry in its place; `content` is a regular file's.
    ///
    /// # Errors
    /// [`EntryError`]; the caller knows the entry.
    pub fn add(&mut self, entry: &TarEntry, content: &mut dyn Read) -> Result<(), EntryError> {
        let path = member_path(&entry.name)?;
        if entry.kind == TarKind::Symlink {
            match entry.link.len() {
                0 => return Err(EntryError::EmptyLink),
                long if long > limits::PATH_BYTES => return Err(EntryError::LongLink(long)),
                _ => {}
            }
            if usr_merge::is_merge_link(&path, &entry.link) {
                return self.place(&path, entry, content);
            }
            if usr_merge::is_self_link(&path, &entry.link) {
                tracing::debug!(link = %shown(&path), "a link between / and /usr is left out");
                return Ok(());
            }
        }
        let place = usr_merge::merged(&path);
        let moved = place != path;
        if entry.kind == TarKind::Directory {
            let there = self.writer.get(&place).is_some() && !self.writer.is_implicit(&place);
            // The attributes that the package gives to the real place win.
            if there && moved && !self.moved.contains_key(&place) {
                return Ok(());
            }
            if moved {
                self.moved.insert(place.clone(), path);
            } else {
                self.moved.remove(&place);
            }
            return Ok(self.writer.directory(&place, attributes(entry))?);
        }
        self.place(&place, entry, content)?;
        if moved {
            self.moved.entry(place).or_insert(path);
        }
        Ok(())
    }

    /// Puts anything but a directory at `place`, or makes sure that the same
    /// stands there.
    fn place(
        &mut self,
        place: &[u8],
        entry: &TarEntry,
        content: &mut dyn Read,
    ) -> Result<(), EntryError> {
        if self.writer.get(place).is_some() {
            return self.compare(place, entry, content);
        }
        let attributes = attributes(entry);
        match entry.kind {
            TarKind::Regular => {
                return Ok(self.writer.regular(place, attributes, entry.size, content)?);
            }
            TarKind::HardLink => {
                let target = self.link_target(entry)?;
                return Ok(self.writer.hard_link(place, &target)?);
            }
            _ => {}
        }
        Ok(self.writer.node(place, attributes, node(entry))?)
    }

    /// The place of a hard link's target, which must be a file that is there.
    fn link_target(&self, entry: &TarEntry) -> Result<Vec<u8>, EntryError> {
        let target = member_path(&entry.link).map_err(EntryError::LinkTarget)?;
        let place = usr_merge::merged(&target);
        match self.writer.get(&place) {
            Some((kind, _)) if *kind != Kind::Directory => Ok(place),
            _ => Err(EntryError::Dangling(shown(&entry.link))),
        }
    }

    fn compare(
        &mut self,
        place: &[u8],
        entry: &TarEntry,
        content: &mut dyn Read,
    ) -> Result<(), EntryError> {
        let first = self.moved.get(place).map_or(place, Vec::as_slice);
        let differs = EntryError::Differs { first: shown(first) };
        if entry.kind == TarKind::HardLink {
            let target = self.link_target(entry)?;
            let same = self.writer.same_file(place, &target)
                || self.writer.get(place) == self.writer.get(&target);
            return if same { Ok(()) } else { Err(differs) };
        }
        let mut wanted = attributes(entry);
        match self.writer.get(place) {
            Some((_, present)) => wanted.mtime = present.mtime,
            None => return Err(differs),
        }
        let kind = match entry.kind {
            TarKind::Regular => {
                let digest = self.writer.digest_only(place, entry.size, content)?;
                Kind::Regular { size: entry.size, digest }
            }
            _ => node(entry),
        };
        match self.writer.get(place) {
            Some(present) if present == (&kind, &wanted) => Ok(()),
            _ => Err(differs),
        }
    }

    /// Describes what was written.
    ///
    /// # Errors
    /// A directory cannot be given its attributes.
    pub fn finish(self) -> Result<Manifest, WriteError> {
        self.writer.finish()
    }

    /// Gives `base-files` of a release that leaves it to the installer the links
    /// of a merged /usr, which later releases ship in this very package.
    ///
    /// # Errors
    /// A link cannot be made.
    pub fn merge_links(&mut self, architecture: Option<&str>) -> Result<(), WriteError> {
        let mtime = self.writer.get(b"").map(|(_, root)| root.mtime).unwrap_or_default();
        let wide =
            matches!(architecture, Some("amd64" | "loong64" | "mips64el" | "ppc64" | "ppc64el"));
        let names = ["bin", "lib", "sbin"].into_iter().chain(wide.then_some("lib64"));
        for name in names {
            if self.writer.get(name.as_bytes()).is_none() {
                let attributes = Attributes { mode: 0o777, mtime, ..Attributes::default() };
                let target = format!("usr/{name}").into_bytes();
                self.writer.node(name.as_bytes(), attributes, Kind::Symlink { target })?;
            }
        }
        Ok(())
    }
}

/// Symbolic links have the mode that Linux gives them, whatever an archive says.
fn attributes(entry: &TarEntry) -> Attributes {
    let mode = if entry.kind == TarKind::Symlink { 0o777 } else { entry.mode };
    let TarEntry { uid, gid, mtime, .. } = *entry;
    Attributes { mode, uid, gid, mtime, xattrs: entry.xattrs.clone() }
}

/// The kind of an entry without content; callers have dealt with the others.
fn node(entry: &TarEntry) -> Kind {
    let (major, minor) = (entry.major, entry.minor);
    match entry.kind {
        TarKind::Symlink => Kind::Symlink { target: entry.link.clone() },
        TarKind::CharacterDevice => Kind::CharacterDevice { major, minor },
        TarKind::BlockDevice => Kind::BlockDevice { major, minor },
        TarKind::Fifo => Kind::Fifo,
        TarKind::Directory => Kind::Directory,
        TarKind::HardLink => Kind::HardLink { target: entry.link.clone() },
        TarKind::Regular => {
            Kind::Regular { size: entry.size, digest: strata_core::Digest::of(b"") }
        }
    }
}
